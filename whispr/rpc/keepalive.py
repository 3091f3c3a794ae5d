"""How long connections live: pings that find out who is gone, pings that are too many, age and idleness.

The figures are those of grpc/doc/keepalive.md and gRFCs A8 and A9. One task watches a connection. It wakes four
times in the shortest of its intervals and looks whether anything was read since, so that calls pay nothing
for it; silence and idleness are therefore noticed within a quarter of the interval they may last.
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
_LOOKS = 4
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
    """A connection without calls for so long is closed."""

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

    reads: int
    """How often something was read."""

    def ping_now(self) -> None:
        """Send a PING."""

    def kill(self, reason: str) -> None:
        """End the connection at once."""


class Silence:
    """Notices a peer that has been silent for `after_s`, and pings it."""

    def __init__(self, connection: Watched, after_s: float, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self.look_s = after_s / _LOOKS
        self._reads = connection.reads
        self._looks = 0

    async def look(self, wanted: bool) -> None:
        """Called every `look_s`; pings only if `wanted`. Kills the connection when nothing comes back."""
        connection = self._connection
        if connection.reads != self._reads:
            self._reads, self._looks = connection.reads, 0
        self._looks += 1
        if self._looks <= _LOOKS or not wanted:
            return
        connection.ping_now()
        await trio.sleep(self._timeout_s)
        if connection.reads == self._reads:
            connection.kill(f"nothing came within {self._timeout_s:g} s of a ping")


async def keep_alive(
    connection: Watched, after_s: float, timeout_s: float, wanted: Callable[[], bool]
) -> None:
    """Watch a client's connection until cancelled."""
    silence = Silence(connection, after_s, timeout_s)
    while True:
        await trio.sleep(silence.look_s)
        await silence.look(wanted())


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

    def abort(self) -> None:
        """End every call, then the connection."""


async def watch_server(connection: Aging, keepalive: Keepalive) -> None:
    """Ping, age and idle a server's connection; returns once it has been told to end."""
    silence = Silence(connection, keepalive.server_ping_s, keepalive.ping_timeout_s)
    old_at = trio.current_time() + keepalive.age_s * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311  # nobody gains by guessing it
    look_s = min(silence.look_s, keepalive.idle_s / _LOOKS)
    pinged_at = looked_at = trio.current_time()
    begun, idle_looks = connection.calls_begun, 0
    while trio.current_time() < old_at:
        await trio.sleep_until(min(old_at, looked_at + look_s))
        looked_at = trio.current_time()
        if looked_at >= pinged_at + silence.look_s:
            pinged_at = looked_at
            await silence.look(wanted=True)
        if connection.calls_going or connection.calls_begun != begun:
            begun, idle_looks = connection.calls_begun, 0
        idle_looks += 1
        if idle_looks > keepalive.idle_s / look_s:
            connection.shut_down()
            return
    connection.shut_down()
    await trio.sleep(keepalive.age_grace_s)
    connection.abort()


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
