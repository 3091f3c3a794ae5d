"""A client of the hub over one WebSocket connection, after its handshake.

It reads when the kernel has something, feeds the pure codec and takes the messages in the reader's task; while a
message is held back the connection is not read, so TCP holds the client back. Sending is `transport`'s.

After the goodbye, the close frame gets `Limits.close_s` to leave and the peer's to arrive; then the connection is
dropped.
"""

from __future__ import annotations

import socket as stdlib
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import TYPE_CHECKING

import trio

from whispr.realtime import frames, metrics
from whispr.realtime.channel import Session
from whispr.realtime.deflate import inflate
from whispr.realtime.frames import CloseCode, Closed, FrameError, FrameReader, Ping
from whispr.realtime.link import Link
from whispr.realtime.serializers import V2, Serializer
from whispr.realtime.socket import Authenticate, Socket
from whispr.realtime.transport import Transport

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub

_RECEIVE_BYTES = 16 * 1024  # bounds how long one flooding socket keeps the others from being read
_FRAME_ERRORS = frozenset({CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.TOO_BIG})


_PONGS_A_READ = 16
"""Pings of one read that are answered each; of more only the latest is, which RFC 6455 §5.5.3 allows of all."""


class WebSocket(Socket):
    """One WebSocket connection."""

    __slots__ = ("_frames", "_peer_closed", "_sock")

    transport: Transport

    def __init__(
        self,
        hub: Hub,
        sock: stdlib.socket,
        session: Session,
        serializer: Serializer = V2,
        authenticate: Authenticate | None = None,
    ) -> None:
        super().__init__(hub, session, serializer, authenticate)
        self._sock = sock
        deflates = serializer.plain is not serializer
        self._frames = FrameReader(
            masked=True,
            message_bytes_max=hub.limits.frame_bytes,
            inflate=inflate if deflates else None,
            fragments_max=hub.limits.fragments,
        )
        self.transport = Transport(sock, hub.flusher, hub.limits.buffer_bytes, self)
        self.send: Callable[[bytes], None] = self.transport.send
        self._peer_closed = False

    # ── reading ──

    async def _read(self) -> None:
        sock, feed = self._sock, self._frames.feed
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                data = sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                self._lost()
                return
            self.last_seen = self.hub.now
            try:
                items = feed(data)
            except FrameError as error:
                await self._take(error.items)
                self.close(error.code, str(error))
                return
            if not await self._take(items):
                return

    async def _take(self, items: list[frames.Item]) -> bool:
        """Handle what one read completed. False once the client closed."""
        pings, unanswered = 0, None
        for item in items:
            if self._closing is not None:
                return False
            if isinstance(item, str | bytes):
                await self._message(item)
            elif isinstance(item, Ping):
                self._chatters()
                pings += 1
                if pings <= _PONGS_A_READ:
                    self.send(frames.encode_frame(frames.PONG, item.payload))
                else:
                    unanswered = item
            elif isinstance(item, Closed):
                self._peer_closed = True
                self.close(CloseCode.NORMAL if item.code == CloseCode.NO_STATUS else item.code, "")
                return False
            else:
                self._chatters()  # a pong: nobody asked for one
        if unanswered is not None:
            self.send(frames.encode_frame(frames.PONG, unanswered.payload))
        return True

    # ── ending ──

    def _say_goodbye(self, code: int, reason: str) -> None:
        """Queue the close frame."""
        self.transport.end(frames.encode_frame(frames.CLOSE, frames.close_payload(code, reason)))

    def _detach(self) -> None:
        """Start no writer task any more."""
        self.transport.detach()

    def _lost(self) -> None:
        """The connection ended without a close frame."""
        self._peer_closed = True
        self.close(CloseCode.ABNORMAL, "connection lost")

    # ── for the transport ──

    def too_slow(self) -> None:
        """Close: the buffer was full."""
        metrics.SLOW_CLOSED.inc()
        self.close(CloseCode.TRY_AGAIN_LATER, "too slow: the send buffer is full")

    def start_writer(self, write: Callable[[], Awaitable[None]]) -> None:
        """Start the task that waits for room."""
        self.nursery.start_soon(write)

    def caught_up(self, missed: Collection[Hashable]) -> None:
        """Have channels make good what the client went without."""
        for link in missed:
            if isinstance(link, Link):
                link.caught_up()

    # ── hanging up ──

    async def _hang_up(self) -> None:
        """Finish the closing handshake, bounded, and close the connection."""
        deadline = trio.current_time() + self.hub.limits.close_s
        try:
            with trio.CancelScope(shield=True, deadline=deadline):
                await self.transport.flushed()
                if not self._peer_closed:
                    await self._peer_closes()
        finally:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def _peer_closes(self) -> None:
        """Let the peer read our close frame before the connection goes: until it answers with its own or hangs up.

        Closing at once with unread bytes in the kernel would reset the connection, and the reset could
        overtake the close frame.
        """
        assert self._closing is not None
        sound = self._closing[0] not in _FRAME_ERRORS  # a reader that raised must be fed no more
        try:
            self._sock.shutdown(stdlib.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(_RECEIVE_BYTES)
                if not data:
                    return
                try:
                    if sound and any(isinstance(item, Closed) for item in self._frames.feed(data)):
                        return
                except FrameError:
                    sound = False
        except OSError:
            return  # it is gone: just as good
