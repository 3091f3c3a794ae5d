"""One address of a channel: its connections, the attempts to make more, and how long to leave it alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from whispr.resilience.retry import Backoff
from whispr.rpc.client_connection import ClientConnection
from whispr.rpc.common import Common
from whispr.rpc.keepalive import PingInterval
from whispr.rpc.limits import RpcLimits
from whispr.rpc.statistics import Census, ids

Connect = Callable[[], Awaitable[trio.abc.Stream]]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the subchannels of a channel have in common."""

    nursery: trio.Nursery
    limits: RpcLimits
    line: trio.lowlevel.ParkingLot
    """Where calls wait for connections and streams."""
    pings: PingInterval
    common: Common
    census: Census


class Subchannel:
    """Makes one attempt at a time. Whatever changes wakes the calls that wait in the channel's `line`."""

    def __init__(self, name: str, connect: Connect, shared: Shared) -> None:
        """`connect` gives a byte stream ready for HTTP/2, raising OSError or trio.BrokenResourceError."""
        self.id = next(ids)
        self.name = name
        self.census = Census()
        """Of its own connections."""
        self.connections: list[ClientConnection] = []
        """Those that take calls, now or when a stream is free."""
        self.connecting = False
        self.retry_at = -float("inf")
        """When it may be tried again, on Trio's clock."""
        self.last_failure = ""
        self._connect = connect
        self._shared = shared
        self._limits = shared.limits
        self._failures = 0
        self._retired = False

    def free(self) -> ClientConnection | None:
        """A connection on which a call may start at once."""
        for connection in self.connections:
            if connection.free():
                return connection
        return None

    @property
    def usable(self) -> bool:
        """Whether some connection takes calls, if only once a stream is free."""
        return any(connection.usable for connection in self.connections)

    @property
    def due(self) -> bool:
        """Whether it has no connection and may be tried now."""
        return not self.connecting and not self.usable and trio.current_time() >= self.retry_at

    @property
    def may_grow(self) -> bool:
        """Whether one more connection may be added to those that are saturated."""
        self.connections = [connection for connection in self.connections if connection.usable]
        room = 0 < len(self.connections) < self._limits.connections_per_address_max
        return room and not self.connecting and trio.current_time() >= self.retry_at

    def start_connecting(self) -> None:
        """Begin an attempt, none being under way."""
        self.connecting = True
        self._shared.nursery.start_soon(self._try_to_connect, name=f"connect to {self.name}")

    def retire(self) -> None:
        """Take no more calls; those in progress finish."""
        self._retired = True
        for connection in self.connections:
            connection.retire()

    async def _try_to_connect(self) -> None:
        try:
            with trio.fail_after(self._limits.handshake_s):
                connection = await self._new_connection()
            self.connections = [known for known in self.connections if known.usable]
            self.connections.append(connection)
            if self._retired:
                connection.retire()
            self._failures = 0
        except trio.TooSlowError:
            self._failed(f"no connection within {self._limits.handshake_s:g} s")
        except (OSError, trio.BrokenResourceError) as error:
            self._failed(str(error))
        finally:
            self.connecting = False
            self._shared.line.unpark_all()

    def _failed(self, failure: str) -> None:
        self.last_failure = failure
        self.retry_at = trio.current_time() + backoff_s(self._limits, self._failures)
        self._failures += 1

    async def _new_connection(self) -> ClientConnection:
        stream, shared = await self._connect(), self._shared
        connection = ClientConnection(
            stream, self.name, shared.limits, shared.line, shared.pings, shared.common
        )
        shared.nursery.start_soon(self._live, connection, name=f"connection to {self.name}")
        try:
            await connection.settled.wait()
        except trio.Cancelled:
            connection.kill("no HTTP/2 settings in time")
            raise
        if connection.lost is not None:
            encrypted = isinstance(stream, trio.SSLStream)
            why = "does the server accept our certificate" if encrypted else "is TLS on at one end only"
            raise trio.BrokenResourceError(f"{connection.lost} before HTTP/2 began: {why}?")
        return connection

    async def _live(self, connection: ClientConnection) -> None:
        both = self.census, self._shared.census
        for census in both:
            census.add(connection, self.name)
        try:
            await connection.run()
        finally:
            for census in both:
                census.remove(connection)


def backoff_s(limits: RpcLimits, failures: int) -> float:
    """How long to leave a server alone after one more failure (grpc/doc/connection-backoff.md)."""
    low, high = 1 - limits.backoff_jitter, 1 + limits.backoff_jitter
    spans = Backoff(limits.backoff_s, limits.backoff_s_max, limits.backoff_multiplier, low, high)
    return spans.pause_s(failures + 1)
