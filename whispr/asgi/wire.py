"""A connection's bytes: read, written, and sent from files.

A plain socket is read and written directly, without Trio's stream around it, which makes small answers about
twice as fast; anything else, such as TLS, goes through its stream.
"""

from __future__ import annotations

import os
import select
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final, NoReturn

import trio

from whispr.asgi.limits import HttpLimits
from whispr.asgi.poller import Poller

READ_BYTES: Final = 64 * 1024
FILE_BYTES: Final = 256 * 1024
"""How much of a file is handed to the kernel before others get their turn."""

LINGER_S: Final = 2.0
LINGER_BYTES_MAX: Final = 64 * 1024 * 1024
"""How long, and how much of, what a client still sends is read and thrown away, so that it sees the answer.

Closing with bytes unread makes the kernel send a reset, on which the client may drop what we answered
(RFC 9112, section 9.6).
"""

GOODBYE_S: Final = 1.0
"""How long TLS's goodbye may take."""

_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ClientGoneError(OSError):
    """The client has closed the connection, or does not take what is sent to it."""


class Wire(ABC):
    """One connection. One task reads at a time, and one writes."""

    def __init__(self, limits: HttpLimits) -> None:
        self._gap_s = limits.send_gap_s

    @abstractmethod
    async def receive(self) -> bytes:
        """Return what has come, nothing once the client has closed or the connection is broken."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send all of it; not a checkpoint when the socket takes it at once. Raises ClientGoneError."""

    @abstractmethod
    async def send_file(self, descriptor: int, start: int, end: int) -> None:
        """Send an open file from `start` up to `end`. Raises ClientGoneError, or EOFError if it is shorter."""

    @abstractmethod
    def end(self) -> None:
        """Say that nothing more will be sent, where the transport can say that."""

    @abstractmethod
    def cut(self) -> None:
        """Have `close` look like a failure to the client, so that it takes no part of an answer for all."""

    @abstractmethod
    def is_gone(self) -> bool:
        """Whether the client has closed its side."""

    @abstractmethod
    async def close(self) -> None:
        """Close at once."""

    async def linger(self) -> None:
        """End our side, and hear the client out within bounds."""
        self.end()
        size = 0
        with trio.move_on_after(LINGER_S):
            while size < LINGER_BYTES_MAX:
                data = await self.receive()
                if not data:
                    return
                size += len(data)

    def _stalled(self) -> NoReturn:
        raise ClientGoneError(f"the client has read nothing for {self._gap_s:g} s")


class SocketWire(Wire):
    """A plain TCP or Unix socket."""

    def __init__(self, stream: trio.SocketStream, limits: HttpLimits, poller: Poller) -> None:
        super().__init__(limits)
        self._socket = stream.socket
        self._descriptor = stream.socket.fileno()
        self._poller = poller
        self._readiness = poller.add(self._descriptor)

    async def receive(self) -> bytes:
        """Return what has come, nothing once the client has closed or the connection is broken."""
        readiness = self._readiness
        while True:
            await readiness.wait()
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                readiness.ready = False
                continue
            except OSError:
                return b""
            # A short read has emptied the socket (epoll(7)); behind it there can only be the end.
            readiness.ready = len(data) == READ_BYTES or readiness.hung_up
            return data

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises ClientGoneError."""
        sent = self._write(data)
        if sent != len(data):
            await self._send_rest(memoryview(data)[sent:])

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ClientGoneError(error.errno, "the client is gone") from error

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            await self._writable()
            rest = rest[self._write(rest) :]

    async def _writable(self) -> None:
        with trio.move_on_after(self._gap_s) as gap:
            await trio.lowlevel.wait_writable(self._descriptor)
        if gap.cancelled_caught:
            self._stalled()

    async def send_file(self, descriptor: int, start: int, end: int) -> None:
        """Send from a file without copying it through this process (sendfile(2))."""
        position = start
        while position < end:
            await trio.lowlevel.checkpoint()
            try:
                sent = os.sendfile(self._descriptor, descriptor, position, min(FILE_BYTES, end - position))
            except BlockingIOError:
                await self._writable()
                continue
            except OSError as error:
                raise ClientGoneError(error.errno, "the client is gone") from error
            if not sent:
                raise EOFError("the file is shorter than it was")
            position += sent

    def end(self) -> None:
        """Shut down our side (a FIN)."""
        with suppress(OSError):  # It is gone already.
            self._socket.shutdown(trio.socket.SHUT_WR)

    def cut(self) -> None:
        """Have `close` send a reset."""
        with suppress(OSError):
            self._socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))

    def is_gone(self) -> bool:
        """Whether it has hung up, which the kernel says even while bytes are unread."""
        return self._readiness.hung_up

    async def close(self) -> None:
        """Close at once."""
        self._poller.remove(self._descriptor)
        self._socket.close()


class StreamWire(Wire):
    """Any other stream, such as TLS. `socket` is what lies beneath, if one does."""

    def __init__(
        self, stream: trio.abc.Stream, limits: HttpLimits, socket: trio.socket.SocketType | None = None
    ) -> None:
        super().__init__(limits)
        self._stream = stream
        self._socket = socket
        self._cut = False

    async def receive(self) -> bytes:
        """Return what has come, nothing once the client has closed or the connection is broken."""
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        """Send all of it. Raises ClientGoneError."""
        for start in range(0, len(data), FILE_BYTES):
            try:
                with trio.move_on_after(self._gap_s) as gap:
                    await self._stream.send_all(data[start : start + FILE_BYTES])
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ClientGoneError("the client is gone") from error
            if gap.cancelled_caught:
                self._stalled()

    async def send_file(self, descriptor: int, start: int, end: int) -> None:
        """Send from a file, a piece at a time."""
        position = start
        while position < end:
            piece = await trio.to_thread.run_sync(
                os.pread, descriptor, min(FILE_BYTES, end - position), position
            )
            if not piece:
                raise EOFError("the file is shorter than it was")
            await self.send(piece)
            position += len(piece)

    def end(self) -> None:
        """TLS ends both directions at once: that is left to `close`."""

    def cut(self) -> None:
        """Have `close` leave out TLS's goodbye, which is what tells the end from a failure."""
        self._cut = True

    def is_gone(self) -> bool:
        """Ask the kernel about the socket beneath."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return any(events & _GONE for _, events in poll.poll(0))

    async def close(self) -> None:
        """Say goodbye if that can be done quickly, and close."""
        if not self._cut:
            with trio.move_on_after(GOODBYE_S), suppress(trio.BrokenResourceError):
                await self._stream.aclose()
        await trio.aclose_forcefully(self._stream)
