"""Moves bytes between one byte stream and one `http2.Connection`, for servers and channels alike.

Theory of operation. One task reads and dispatches events, all of it synchronously, so that whatever a read
brought is handled before any other task runs; then it writes what that gave rise to, without waiting. What calls
have to say at other times is written by the `Flusher`, for all connections at the end of a round. What a socket
does not take at once a second task writes, which there is as long as there are calls that may add to it: it takes
the connection's whole output, in which streams have been given fair turns; what calls add meanwhile goes out
in one write next time. Calls never touch the socket; they change the connection and call `flush`. So a connection
without calls is one task that waits for something to read, and that is nearly all it takes of memory.

Sockets are read and written directly, for Trio's own stream makes two more rounds of its loop for each.

The reader stops while the output is over `OUTPUT_BYTES_MAX` on a server, which answers what it reads: a peer
that will not read its answers gets no further. A client goes on reading, so the two never wait for each other.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from socket import SHUT_WR
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import structlog
import trio

from whispr.http2 import events
from whispr.http2.connection import Connection
from whispr.http2.queued import Octets
from whispr.rpc.common import Common
from whispr.rpc.inbox import Waker
from whispr.rpc.statistics import Counters, ids
from whispr.rpc.watchman import Watch

_log = structlog.get_logger("whispr.rpc")

OUTPUT_BYTES_MAX = 256 * 1024
READ_BYTES = 64 * 1024
READ_BYTES_MAX = 256 * 1024
"""While every read finds as much as it asks for, each asks for twice as much, up to this."""
_KEEPALIVE_PING = b"whsprkpa"

FLUSH_S = 1.0
"""How long a connection that is ending may take to send its last words."""


class HasRoom(Protocol):
    """What a call is to its transport."""

    def has_room(self) -> None:
        """The stream's queue has been sent."""


CallT = TypeVar("CallT", bound=HasRoom)


class Transport(ABC, Generic[CallT]):
    """One connection's reader and writer. Subclasses say what events mean."""

    __slots__ = (
        "_arrived",
        "_calls",
        "_closing",
        "_output_sent",
        "_pauses",
        "_read_bytes",
        "_shut",
        "_silent",
        "_socket",
        "_unsent",
        "_writer",
        "common",
        "core",
        "counters",
        "handling",
        "id",
        "lost",
        "nursery",
        "opened_at",
        "read_at",
        "stream",
    )

    on: ClassVar[Mapping[type, Callable[[Any, Any], None]]]
    """What handles each type of event."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.on = {kind: getattr(cls, name) for kind, name in _HANDLERS.items() if hasattr(cls, name)}

    def __init__(self, stream: trio.abc.Stream, core: Connection, common: Common, *, pauses: bool) -> None:
        """`pauses`: stop reading while the output is long."""
        self.id = next(ids)
        self.core = core
        self.common = common
        self.nursery: trio.Nursery
        """Ends with the connection. Available while `run` runs."""
        self.lost: str | None = None
        """Why the connection is over; None while it is not."""
        self.handling = False
        """Events are being handled, and what they give rise to is sent when they all have been: `flush` may wait."""
        self.read_at = trio.current_time()
        """When bytes were last read, such as those being handled, on Trio's clock."""
        self.counters = Counters()
        self.opened_at = time.time()
        """Unix time in seconds."""
        self.stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._read_bytes = READ_BYTES
        self._unsent: list[Octets] = []
        """Output taken from the connection that the socket has not taken."""
        self._pauses = pauses
        self._calls: dict[int, CallT] = {}
        """Those in progress, by stream."""
        self._writer: Waker | None = None
        """What the writing task waits for, while there is one."""
        self._output_sent = Waker()
        self._arrived = b""
        """What was read from a stream that is no socket."""
        self._closing = False
        self._shut = False
        """We have said everything."""
        self._silent = False
        """The peer has closed, or the connection is broken."""

    @property
    def calls_going(self) -> int:
        """How many calls are in progress."""
        return len(self._calls)

    @abstractmethod
    def on_headers(self, event: events.HeadersReceived) -> None:
        """A header section has come."""

    @abstractmethod
    def on_data(self, event: events.DataReceived) -> None:
        """Bytes of a body have come."""

    @abstractmethod
    def on_reset(self, event: events.StreamReset) -> None:
        """A stream is gone, perhaps one that was never reported."""

    @abstractmethod
    def on_settings(self, event: events.SettingsReceived) -> None:
        """The peer's settings have come."""

    @abstractmethod
    def on_ping_acknowledged(self, event: events.PingAcknowledged) -> None:
        """The peer has seen everything sent before the ping."""

    @abstractmethod
    def on_go_away(self, event: events.GoAwayReceived) -> None:
        """The peer takes no new streams."""

    def on_writable(self, stream_id: int) -> None:
        """Let a call go on sending."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.has_room()

    @abstractmethod
    def on_lost(self, reason: str) -> None:
        """The connection is over; called once."""

    def _on_failed(self, event: events.ConnectionFailed) -> None:
        self._lose(f"protocol error: {event.message}")

    @abstractmethod
    def watches(self) -> Iterable[Watch]:
        """What the watchman has to look at."""

    @abstractmethod
    def read(self) -> Awaitable[None]:
        """Until the peer closes, breaks the connection, or breaks the protocol."""

    async def run(self) -> None:
        """Serve the connection until it is lost or closed; never raises for the peer's sake."""
        common = self.common
        try:
            if self.lost is not None:
                return  # killed before it began
            async with trio.open_nursery() as self.nursery:
                common.flusher.join(self)
                common.watchman.watch(self, self.watches())
                try:
                    await self.read()
                finally:
                    common.watchman.leave(self)
                    common.flusher.leave(self)
                self.close()
                with trio.move_on_after(FLUSH_S):
                    await self._hear_out()
                self.nursery.cancel_scope.cancel(reason="the peer does not take our last words")
        finally:
            self._shut = True
            self._lose("the connection was closed")
            await trio.aclose_forcefully(self.stream)

    @property
    def unread(self) -> int | None:
        """Bytes that the socket has taken so far, while it does not take more; None while it does."""
        return self.counters.bytes_sent if self._unsent else None

    def flush(self) -> None:
        """Have what the connection has to say sent."""
        if self.handling:
            return
        if self._writer is not None or self._socket is None:
            self._need_writer()
        else:
            self.common.flusher.ask(self)

    def ping_now(self) -> None:
        """Ask the peer whether it is still there."""
        self.counters.pings_sent += 1
        self.core.ping(_KEEPALIVE_PING)
        self.flush()

    def close(self) -> None:
        """Close once everything in the output has been sent."""
        self._closing = True
        self._need_writer()

    def kill(self, reason: str) -> None:
        """End the connection at once, whatever is still unsent."""
        self._lose(reason)
        nursery: trio.Nursery | None = getattr(self, "nursery", None)
        if nursery is not None:
            nursery.cancel_scope.cancel(reason=reason)

    def fail(self, error: Exception) -> None:
        """End the connection for a mistake of ours."""
        _log.error("connection failed", kind=type(self).__name__, number=self.id, exc_info=error)
        self.kill("the connection failed")

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self.on_lost(reason)

    def readable(self) -> Awaitable[object]:
        """Wait until `receive` has something to do. Raises OSError or ClosedResourceError for a broken socket."""
        # What an idle connection waits in is held by each of thousands: no coroutine is there that need not be.
        if self._socket is None:
            return self._read_stream()
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105  # the caller awaits it

    def receive(self) -> bool:
        """Read once, and handle what came; False when the connection is over."""
        data = self._read_now()
        if not data:
            if data is None:
                return True
            self._silent = True
            self._lose("the connection was lost")
            return False
        self.counters.bytes_received += len(data)
        if self._shut:
            return True
        self.handling = True
        self.read_at = trio.current_time()
        on = self.on
        for event in self.core.receive(data):
            on[type(event)](self, event)
        return True

    async def _hear_out(self) -> None:
        """Drop what still comes until the peer closes too, and our last words are out.

        Closing a socket with something unread in it would make the kernel tell the peer to forget what it has not
        read of ours: the GOAWAY that says why.
        """
        while not self._silent and socket_under(self.stream) is not None:
            with suppress(OSError, trio.ClosedResourceError):
                await self.readable()
            self._silent = self._read_now() == b""
        while not self._shut:
            await self._output_sent.wait()

    @property
    def must_pause(self) -> bool:
        """Whether there is too much to send to read on."""
        return self._pauses and self.core.output_bytes > OUTPUT_BYTES_MAX and self.lost is None

    async def pause(self) -> None:
        """Wait until there is less to send."""
        while self.must_pause:
            await self._output_sent.wait()

    def broken(self) -> None:
        """The socket cannot even be waited for."""
        self._silent = True
        self._lose("the connection was lost")

    async def _read_stream(self) -> None:
        try:
            # Some streams return a bytearray, whose slices could not be looked up in the header cache.
            self._arrived = bytes(await self.stream.receive_some(READ_BYTES))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._arrived = b""

    def _read_now(self) -> bytes | None:
        """What the peer has sent; None if nothing yet, b"" if it has closed or the connection is broken."""
        if self._socket is None:
            data, self._arrived = self._arrived, b""
            return data
        try:
            data = os.read(self._socket.fileno(), self._read_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        full = len(data) == self._read_bytes
        self._read_bytes = min(2 * len(data), READ_BYTES_MAX) if full else READ_BYTES
        return data

    def write_now(self) -> None:
        """Write the output, as far as the socket takes it; the rest is the writer's."""
        core = self.core
        if self._socket is not None and not self._unsent and core.sends_more and not self._closing:
            self._take_output()
            # Full, or broken: the writer will find out.
            with suppress(OSError):
                self._sent(self._write_some(self._socket))
        if self._unsent or self._closing or core.sends_more:
            self._need_writer()

    def _need_writer(self) -> None:
        if self._writer is not None:
            self._writer.wake()
        elif not self._shut:  # after which there is nothing to start it in
            self._writer = Waker()
            self.nursery.start_soon(self._write, self._writer, name="writer")

    def calls_over(self) -> None:
        """The last call has ended: nobody adds to the output any more."""
        if self._writer is not None:
            self._writer.wake()

    def _write_some(self, sock: trio.socket.SocketType) -> int:
        """What the socket has taken, in bytes. Raises OSError."""
        unsent = self._unsent
        return os.write(sock.fileno(), unsent[0]) if len(unsent) == 1 else os.writev(sock.fileno(), unsent)

    def _sent(self, count: int) -> None:
        self.counters.bytes_sent += count
        unsent = self._unsent
        while unsent and count >= len(unsent[0]):
            count -= len(unsent.pop(0))
        if count:
            # What is left may be long: a view of it, rather than a copy for each write.
            unsent[0] = memoryview(unsent[0])[count:]

    def _take_output(self) -> None:
        self._unsent, writable = self.core.take_output()
        for stream_id in writable:
            self.on_writable(stream_id)

    async def _write(self, output_added: Waker) -> None:
        """Until there is nothing to send and no call that may have more, or the connection is over.

        That is so when the peer has ended it after our `close`, or when it breaks; it ends the connection's nursery.
        """
        while True:
            if not self._unsent:
                self._take_output()
            if self._unsent:
                try:
                    await self._send_some()
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    break
                self._output_sent.wake()
            elif self._closing and (self.lost is not None or not self.core.unsent):
                await self._end_writing()
                break
            elif not self.calls_going and not self._closing:
                self._writer = None
                return
            else:
                await output_added.wait()
        self._lose("the connection was lost")
        self.nursery.cancel_scope.cancel(reason=self.lost)

    async def _end_writing(self) -> None:
        """Everything has been sent: say so, and give the peer a moment to close in its turn."""
        self._lose("the connection was closed")
        self._shut = True
        self._output_sent.wake()
        socket = socket_under(self.stream)
        if socket is not None and not self._silent:
            with suppress(OSError):
                socket.shutdown(SHUT_WR)
                await trio.sleep(FLUSH_S)

    async def _send_some(self) -> None:
        if self._socket is None:
            output = b"".join(self._unsent)
            await self.stream.send_all(output)
            self.counters.bytes_sent += len(output)
            self._unsent = []
            return
        try:
            self._sent(self._write_some(self._socket))
        except BlockingIOError:
            await trio.lowlevel.wait_writable(self._socket)


_HANDLERS: Mapping[type, str] = {
    events.HeadersReceived: "on_headers",
    events.DataReceived: "on_data",
    events.RequestReceived: "on_request",
    events.ResponseReceived: "on_response",
    events.StreamReset: "on_reset",
    events.SettingsReceived: "on_settings",
    events.PingAcknowledged: "on_ping_acknowledged",
    events.GoAwayReceived: "on_go_away",
    events.ConnectionFailed: "_on_failed",
}


def socket_under(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    """The socket that carries a stream, encrypted or not; None for what is in memory."""
    carrier = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    return carrier.socket if isinstance(carrier, trio.SocketStream) else None
