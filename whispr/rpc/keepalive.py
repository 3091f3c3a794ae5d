"""How long connections live: pings that find out who is gone, pings that are too many, age and idleness.

The figures are those of grpc/doc/keepalive.md and gRFCs A8 and A9. One task watches a connection, and looks when
something was last read; so calls pay nothing for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from whispr.http2.errors import ErrorCode, ProtocolError

_CLIENT_PING_S_MIN = 10.0
_IDLE_LOOKS = 4
_AGE_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Times in seconds; infinity turns one off. Fields not named for a side are for servers."""

    client_ping_s: float = math.inf
    """A client pings a server that has been silent for so long. Servers refuse clients that ping too often."""
    client_pings_without_calls: bool = False
    server_ping_s: float = 7200.0
    """A server pings a client that has been silent for so long."""
    ping_timeout_s: float = 20.0
    """For anything to arrive after a ping, on either side, or the connection is over."""
    pinged_s_min: float = 300.0
    """Between a client's pings while it has no calls; the third that comes sooner ends the connection."""
    age_s: float = math.inf
    """After which a connection takes no new calls, so that clients connect anew; varies by a tenth."""
    age_grace_s: float = math.inf
    """How much longer the calls in progress then have."""
    idle_s: float = math.inf
    """A connection without calls for so long is closed, at the latest a quarter later."""

    def __post_init__(self) -> None:
        if self.client_ping_s < _CLIENT_PING_S_MIN:
            raise ValueError(
                f"client_ping_s {self.client_ping_s:g}: at least {_CLIENT_PING_S_MIN:g} s between pings"
            )
        assert min(self.server_ping_s, self.ping_timeout_s, self.age_s, self.idle_s) > 0
        assert self.pinged_s_min >= 0
        assert self.age_grace_s >= 0


class PingInterval:
    """How long servers may be silent before a channel pings them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def lengthen(self) -> None:
        """A server found our pings too many: ping half as often from the next connection on (gRFC A8)."""
        self.seconds *= 2


class Watched(Protocol):
    """What a watch needs of a connection."""

    read_at: float
    """When something was last read, on Trio's clock."""

    def ping_now(self) -> None:
        """Send a PING."""

    def kill(self, reason: str) -> None:
        """End the connection at once."""


async def keep_alive(
    connection: Watched, after_s: float, timeout_s: float, wanted: Callable[[], bool]
) -> None:
    """Ping a client's connection whenever it has been silent for `after_s` and pings are `wanted`."""
    while True:
        await trio.sleep_until(connection.read_at + after_s)
        if trio.current_time() < connection.read_at + after_s:
            continue
        if wanted():
            await _ping(connection, timeout_s)
        else:
            await trio.sleep(after_s)


async def _ping(connection: Watched, timeout_s: float) -> None:
    heard_at = connection.read_at
    connection.ping_now()
    await trio.sleep(timeout_s)
    if connection.read_at == heard_at:
        connection.kill(f"nothing came within {timeout_s:g} s of a ping")


class Aging(Watched, Protocol):
    """What a server's watch needs of a connection."""

    @property
    def calls_begun(self) -> int:
        """A number that grows with each call."""

    @property
    def calls_going(self) -> int:
        """How many calls are in progress."""

    def shut_down(self) -> None:
        """Begin a graceful end."""

    def abort(self, reason: str) -> None:
        """End every call, then the connection."""


async def watch_server(connection: Aging, keepalive: Keepalive) -> None:
    """Ping a server's connection when it is silent, and end it when it is idle or old."""
    if min(keepalive.server_ping_s, keepalive.idle_s, keepalive.age_s) == math.inf:
        return
    old_at = trio.current_time() + keepalive.age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311  # nobody gains by guessing it
    idle = _Idleness(connection, keepalive.idle_s)
    while True:
        silent_at = connection.read_at + keepalive.server_ping_s
        await trio.sleep_until(min(old_at, silent_at, idle.look_at))
        now = trio.current_time()
        if now >= old_at or (now >= idle.look_at and idle.look()):
            break
        if now >= connection.read_at + keepalive.server_ping_s:
            await _ping(connection, keepalive.ping_timeout_s)
    connection.shut_down()
    await trio.sleep(keepalive.age_grace_s)
    connection.abort("the connection has come of age")


class _Idleness:
    """Looks now and then whether there were calls; calls themselves leave no time behind."""

    def __init__(self, connection: Aging, idle_s: float) -> None:
        self._connection = connection
        self._look_s = idle_s / _IDLE_LOOKS
        self._begun = -1
        self._looks = 0
        self.look_at = trio.current_time() + self._look_s

    def look(self) -> bool:
        """Whether the connection has been idle for long enough."""
        connection = self._connection
        self.look_at = trio.current_time() + self._look_s
        if connection.calls_going or connection.calls_begun != self._begun:
            self._begun, self._looks = connection.calls_begun, 0
            return False
        self._looks += 1
        return self._looks >= _IDLE_LOOKS


class PingGuard:
    """Counts pings that come too soon from a client without calls (gRFC A8, "Server Enforcement")."""

    STRIKES_MAX = 2

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._last_at = -math.inf
        self._strikes = 0
        self._begun = 0

    def pinged(self, calls_going: int, calls_begun: int) -> None:
        """A PING has come. Raises ProtocolError at the third in a row that came too soon."""
        now = self._clock()
        if calls_going or calls_begun != self._begun:
            # Clients measure a busy connection with pings, the last of which may come after its last call.
            self._begun, self._strikes = calls_begun, 0
        elif now < self._last_at + self._interval_s:
            self._strikes += 1
            if self._strikes > self.STRIKES_MAX:
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_at = now
