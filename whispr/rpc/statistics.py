"""What servers and channels have done and are doing, in the manner of channelz (gRFC A14).

    for connection in server.statistics().connections:
        print(connection.peer, connection.streams_open, connection.traffic.bytes_sent)

Counting costs a call an addition or two: a unary call that goes well is one count of its own, from which its
message and its success are worked out when somebody asks, and what is open is not counted but looked at.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from whispr.errors import Code, WhisprError
from whispr.http2.connection import Connection

ids = itertools.count(1)
"""Servers, channels, addresses of channels and sockets are numbered in one row, as channelz wants it."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Sums since the beginning. Calls in progress have started, and neither succeeded nor failed."""

    calls_started: int
    calls_succeeded: int
    calls_failed: int
    """Ended with another status than OK, or by a cancel."""
    messages_sent: int
    messages_received: int
    bytes_sent: int
    """Of everything, frames' headers included; without TLS."""
    bytes_received: int
    pings_sent: int
    """To find out whether a silent peer is there."""


@dataclass(frozen=True, slots=True)
class LastError:
    """How the call that failed last has ended."""

    code: Code
    message: str
    method: str
    """Full name, "" for a request without a method of ours."""
    at: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class ConnectionStatistics:
    """One connection that is there."""

    peer: str
    opened_at: float
    """Unix time in seconds."""
    streams_open: int
    traffic: Traffic
    last_error: LastError | None


@dataclass(frozen=True, slots=True)
class Statistics:
    """A server or a channel."""

    connections: tuple[ConnectionStatistics, ...]
    connections_opened: int
    """Since the beginning, those that are closed included."""
    streams_open: int
    traffic: Traffic
    """Of all connections, those that are closed included, and of calls that never had one."""
    last_error: LastError | None


class Counters:
    """What is added to while calls go on."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "failed",
        "last_error",
        "messages_received",
        "messages_sent",
        "pings_sent",
        "responded",
        "succeeded",
    )

    def __init__(self) -> None:
        self.responded = 0
        """Calls that succeeded with one message, counted neither as succeeded nor as sent."""
        self.succeeded = 0
        self.failed = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.pings_sent = 0
        self.last_error: LastError | None = None

    def fail(self, error: WhisprError, method: str) -> None:
        """A call has failed."""
        self.failed += 1
        self.last_error = LastError(error.code, error.message, method, time.time())

    def add(self, other: Counters) -> None:
        """Add what another has counted."""
        self.responded += other.responded
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.messages_sent += other.messages_sent
        self.messages_received += other.messages_received
        self.bytes_sent += other.bytes_sent
        self.bytes_received += other.bytes_received
        self.pings_sent += other.pings_sent
        if other.last_error is not None and (
            self.last_error is None or self.last_error.at <= other.last_error.at
        ):
            self.last_error = other.last_error

    def traffic(self, streams_open: int) -> Traffic:
        """The sums, with as many calls in progress."""
        succeeded = self.succeeded + self.responded
        return Traffic(
            calls_started=succeeded + self.failed + streams_open,
            calls_succeeded=succeeded,
            calls_failed=self.failed,
            messages_sent=self.messages_sent + self.responded,
            messages_received=self.messages_received,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            pings_sent=self.pings_sent,
        )


class Counted(Protocol):
    """What is asked of a connection."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def core(self) -> Connection:
        """Its state."""

    @property
    def stream(self) -> trio.abc.Stream:
        """What carries it."""

    @property
    def counters(self) -> Counters:
        """Its own."""

    @property
    def opened_at(self) -> float:
        """Unix time in seconds."""

    @property
    def calls_going(self) -> int:
        """How many are in progress."""


class Census:
    """The connections of a server, a channel or one address of it, and the sums of those that are closed."""

    def __init__(self) -> None:
        self.opened_at = time.time()
        """When what it counts for began, in Unix time."""
        self.closed = Counters()
        """Also of calls that never had a connection."""
        self._opened = 0
        self._live: dict[Counted, str] = {}

    def add(self, connection: Counted, peer: str) -> None:
        """A connection has been made."""
        self._opened += 1
        self._live[connection] = peer

    def remove(self, connection: Counted) -> None:
        """It is closed, and its calls have ended."""
        del self._live[connection]
        self.closed.add(connection.counters)

    def peer_of(self, connection: Counted) -> str:
        """The other end of a connection that is there."""
        return self._live[connection]

    @property
    def live(self) -> Iterable[Counted]:
        """The connections that are there, the oldest first."""
        return self._live

    def statistics(self) -> Statistics:
        """All of it, now."""
        total = Counters()
        total.add(self.closed)
        for connection in self._live:
            total.add(connection.counters)
        streams_open = sum(connection.calls_going for connection in self._live)
        return Statistics(
            connections=tuple(_statistics(connection, peer) for connection, peer in self._live.items()),
            connections_opened=self._opened,
            streams_open=streams_open,
            traffic=total.traffic(streams_open),
            last_error=total.last_error,
        )


def _statistics(connection: Counted, peer: str) -> ConnectionStatistics:
    counters, streams_open = connection.counters, connection.calls_going
    return ConnectionStatistics(
        peer=peer,
        opened_at=connection.opened_at,
        streams_open=streams_open,
        traffic=counters.traffic(streams_open),
        last_error=counters.last_error,
    )
