"""How long connections live: pings that find out who is gone, pings that are too many, age and idleness.

The figures are those of grpc/doc/keepalive.md and gRFCs A8 and A9. Each concern is a `Watch` that a watchman looks
at when it is due; what it needs to know of the time between, connections note down anyway, so calls pay
nothing for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.rpc.watchman import Watch

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
    """What watches need of a connection."""

    read_at: float
    """When something was last read, on Trio's clock."""

    @property
    def calls_begun(self) -> int:
        """A number that grows with each call."""

    @property
    def calls_going(self) -> int:
        """How many calls are in progress."""

    def ping_now(self) -> None:
        """Send a PING."""

    def kill(self, reason: str) -> None:
        """End the connection at once."""


class Aging(Watched, Protocol):
    """What watches need of a server's connection."""

    settled: bool
    """The client has said that it speaks HTTP/2."""

    def shut_down(self) -> None:
        """Begin a graceful end."""

    def abort(self, reason: str) -> None:
        """End every call, then the connection."""


class Silence:
    """Pings who has been silent for `after_s`, and ends the connection when that brings nothing."""

    __slots__ = ("_after_s", "_always", "_connection", "_heard_at", "_timeout_s", "due")

    def __init__(self, connection: Watched, after_s: float, timeout_s: float, always: bool = True) -> None:
        """Unless `always`, only while there are calls."""
        self._connection = connection
        self._after_s = after_s
        self._timeout_s = timeout_s
        self._always = always
        self._heard_at: float | None = None
        self.due = connection.read_at + after_s

    def look(self, now: float) -> float:
        """Returns when to look again."""
        connection = self._connection
        heard_at, self._heard_at = self._heard_at, None
        if heard_at is not None and connection.read_at == heard_at:
            connection.kill(f"nothing came within {self._timeout_s:g} s of a ping")
            return math.inf
        if now < connection.read_at + self._after_s:
            return connection.read_at + self._after_s
        if not self._always and not connection.calls_going:
            return now + self._after_s
        self._heard_at = connection.read_at
        connection.ping_now()
        return now + self._timeout_s


class Handshake:
    """Cuts off who does not speak HTTP/2 in time."""

    __slots__ = ("_connection", "due")

    def __init__(self, connection: Aging, within_s: float) -> None:
        self._connection = connection
        self.due = connection.read_at + within_s

    def look(self, now: float) -> float:
        """Returns when to look again."""
        if not self._connection.settled:
            self._connection.kill("no HTTP/2 preface in time")
        return math.inf


class Age:
    """Ends an old connection gracefully, and after its grace the calls that are left."""

    __slots__ = ("_connection", "_grace_s", "_told", "due")

    def __init__(self, connection: Aging, age_s: float, grace_s: float) -> None:
        self._connection = connection
        self._grace_s = grace_s
        self._told = False
        jitter = random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311  # nobody gains by guessing it
        self.due = connection.read_at + age_s * jitter

    def look(self, now: float) -> float:
        """Returns when to look again."""
        if self._told:
            self._connection.abort("the connection has come of age")
            return math.inf
        self._told = True
        self._connection.shut_down()
        return now + self._grace_s


class Idleness:
    """Ends a connection without calls; looks now and then, for calls leave no time behind."""

    __slots__ = ("_begun", "_connection", "_look_s", "_looks", "due")

    def __init__(self, connection: Aging, idle_s: float) -> None:
        self._connection = connection
        self._look_s = idle_s / _IDLE_LOOKS
        self._begun = -1
        self._looks = 0
        self.due = connection.read_at + self._look_s

    def look(self, now: float) -> float:
        """Returns when to look again."""
        connection = self._connection
        self._looks += 1
        if connection.calls_going or connection.calls_begun != self._begun:
            self._begun, self._looks = connection.calls_begun, 0
        if self._looks < _IDLE_LOOKS:
            return now + self._look_s
        connection.shut_down()
        return math.inf


def server_watches(connection: Aging, keepalive: Keepalive, handshake_s: float) -> Iterator[Watch]:
    """What is watched of a server's connection that has just begun."""
    yield Handshake(connection, handshake_s)
    yield Silence(connection, keepalive.server_ping_s, keepalive.ping_timeout_s)
    if keepalive.idle_s < math.inf:
        yield Idleness(connection, keepalive.idle_s)
    if keepalive.age_s < math.inf:
        yield Age(connection, keepalive.age_s, keepalive.age_grace_s)


class PingGuard:
    """Counts pings that come too soon from a client without calls (gRFC A8, "Server Enforcement")."""

    STRIKES_MAX = 2

    __slots__ = ("_begun", "_clock", "_connection", "_interval_s", "_last_at", "_strikes")

    def __init__(self, connection: Watched, interval_s: float, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._interval_s = interval_s
        self._clock = clock
        self._last_at = -math.inf
        self._strikes = 0
        self._begun = 0

    def pinged(self) -> None:
        """A PING has come. Raises ProtocolError at the third in a row that came too soon."""
        connection, now = self._connection, self._clock()
        if connection.calls_going or connection.calls_begun != self._begun:
            # Clients measure a busy connection with pings, the last of which may come after its last call.
            self._begun, self._strikes = connection.calls_begun, 0
        elif now < self._last_at + self._interval_s:
            self._strikes += 1
            if self._strikes > self.STRIKES_MAX:
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._last_at = now
