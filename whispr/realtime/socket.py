"""One WebSocket connection after its handshake: reads frames, dispatches messages to links, closes.

The reader is the socket's only permanent task. It reads when the kernel has something, feeds the pure codecs
and hands each message to its link. A link that cannot take another push holds the reader back, so that TCP holds the
client back; the socket's other topics wait with it.

Closing: `close` queues the close frame and stops the reader. The channels leave, then the close frame gets
`Limits.close_s` to leave and the peer's to arrive, then the connection is dropped. Codes: 1001 idle or shut down,
1002/1007/1009 a broken or oversized frame, 1008 the session ended, 1011 not a Phoenix message (as Phoenix does),
1012 drain, 1013 slow reader.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from whispr.errors import WhisprError, exhausted
from whispr.realtime import frames, metrics
from whispr.realtime.channel import Session, error_response
from whispr.realtime.frames import CloseCode, Closed, FrameError, FrameReader, Ping
from whispr.realtime.limits import OperationBudget
from whispr.realtime.link import UNMATCHED, Link
from whispr.realtime.protocol import EMPTY, MalformedMessage, Message, Ref
from whispr.realtime.serializers import V2, Serializer
from whispr.realtime.transport import Transport

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub

_RECEIVE_BYTES = 16 * 1024  # bounds how long one flooding socket keeps the others from being read
_FRAME_ERRORS = frozenset({CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.TOO_BIG})
_ids = itertools.count(1)


class Socket:
    """One connected client. `run` owns it; everything else is synchronous and may be called until it has ended."""

    __slots__ = (
        "_budget",
        "_closing",
        "_draining",
        "_frames",
        "_held_back",
        "_peer_closed",
        "_reading",
        "_sock",
        "_transport",
        "hub",
        "id",
        "last_seen",
        "links",
        "nursery",
        "send",
        "serializer",
        "session",
    )

    nursery: trio.Nursery

    def __init__(self, hub: Hub, sock: socket.socket, session: Session, serializer: Serializer = V2) -> None:
        self.id = next(_ids)
        self.serializer = serializer
        self.hub = hub
        self.session = session
        self.links: dict[str, Link] = {}
        self.last_seen = hub.now
        self._sock = sock
        self._frames = FrameReader(masked=True, message_bytes_max=hub.limits.frame_bytes)
        self._budget = OperationBudget(hub.limits.operations_per_min)
        self._transport = Transport(
            sock, hub.flusher, hub.limits.buffer_bytes, self._start_writer, self._slow
        )
        self.send: Callable[[bytes], None] = self._transport.send
        """Send one encoded frame, or drop it when the socket is closing."""
        self._reading = trio.CancelScope()
        self._closing: tuple[int, str] | None = None
        self._draining = False
        self._held_back = False
        self._peer_closed = False

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        self.hub.add(self)
        try:
            async with trio.open_nursery() as self.nursery:
                try:
                    with self._reading:
                        await self._read()
                    await self._finish_pushes()
                finally:
                    self._end_channels()
                    self.nursery.cancel_scope.cancel(reason="the socket closed")
        finally:
            self.hub.remove(self)
            await self._hang_up()

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> None:
        """Answer one message."""
        self.send(self.serializer.reply(join_ref, ref, topic, status, response))

    def end(self, join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> None:
        """Tell the client that a channel has ended: `phx_close` or `phx_error`."""
        self.send(self.serializer.end(join_ref, topic, event, payload))

    def close(self, code: int, reason: str) -> None:
        """Begin to close: nothing sent or received from now on counts. The first reason given is the one sent."""
        if self._closing is None:
            self._closing = (code, reason)
        self._transport.end(frames.encode_frame(frames.CLOSE, frames.close_payload(*self._closing)))
        self._reading.cancel(reason=reason)

    def dismiss(self, event: str, payload: object, reason: str) -> None:
        """Tell every joined channel why, then close with 1008."""
        for link in tuple(self.links.values()):
            link.push(event, payload)
        self.close(CloseCode.POLICY_VIOLATION, reason)

    def drain(self) -> None:
        """Read no more, answer what is in flight (at most `Limits.drain_s`), then close with 1012."""
        if self._closing is None:
            self._closing = (CloseCode.SERVICE_RESTART, "the server is restarting")
            self._draining = True
        self._reading.cancel(reason="drain")

    def check(self, wall_s: float) -> None:
        """Close an idle socket, and one whose session has expired. Called by the hub every second."""
        expires_at = self.session.expires_at
        if expires_at is not None and expires_at <= wall_s:
            self.dismiss("token_expired", {"reason": "token_expired"}, "token_expired")
        elif self.hub.now - self.last_seen > self.hub.limits.idle_s and not self._held_back:
            self.close(CloseCode.GOING_AWAY, "idle: no frame from the client")

    def forget(self, link: Link) -> None:
        """Take an ended link off, unless a newer join of its topic took its place."""
        if self.links.get(link.topic) is link:
            del self.links[link.topic]

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
                self.close(error.code, str(error))
                return
            if not await self._take(items):
                return

    async def _take(self, items: list[frames.Item]) -> bool:
        """Handle what one read completed. False once the client closed."""
        ping: Ping | None = None
        for item in items:
            if self._closing is not None:
                return False
            if isinstance(item, str | bytes):
                await self._message(item)
            elif isinstance(item, Ping):
                ping = item  # only the latest of several needs a pong (RFC 6455 §5.5.3)
            elif isinstance(item, Closed):
                self._peer_closed = True
                self.close(CloseCode.NORMAL if item.code == CloseCode.NO_STATUS else item.code, "")
                return False
        if ping is not None:
            self.send(frames.encode_frame(frames.PONG, ping.payload))
        return True

    async def _message(self, data: str | bytes) -> None:
        try:
            message = self.serializer.decode(data)
        except MalformedMessage as error:
            self.close(CloseCode.INTERNAL_ERROR, f"malformed message: {error}")
            return
        link = self._dispatch(message)
        while link is not None and not link.offer(message):
            self._held_back = True
            await link.room()
            self._held_back = False
            self.last_seen = self.hub.now

    def _dispatch(self, message: Message) -> Link | None:
        """Answer what concerns the socket itself; return the link that must take the message."""
        topic, event = message.topic, message.event
        if topic == "phoenix":
            response = EMPTY if event == "heartbeat" else UNMATCHED
            status = "ok" if event == "heartbeat" else "error"
            self.reply(None, message.ref, topic, status, response)
            return None
        link = self.links.get(topic)
        if event == "phx_leave":
            return self._leave(message, link)
        if (wait_s := self._budget.take(trio.current_time() if self._budget.limited else 0.0)) > 0:
            metrics.REFUSED_OPERATIONS.inc()
            self._refuse(message, exhausted("too many operations on this socket", wait_s))
            return None
        if event == "phx_join":
            self._join(message, link)
            return None
        if link is None:
            self.reply(None, message.ref, topic, "error", UNMATCHED)
            return None
        if message.join_ref is not None and message.join_ref != link.join_ref:
            return None  # meant for an earlier join of this topic, which has ended
        metrics.PUSHES.inc()
        return link

    def _leave(self, message: Message, link: Link | None) -> Link | None:
        if link is None:
            self.reply(message.join_ref, message.ref, message.topic, "ok", EMPTY)
            return None
        stale = message.join_ref is not None and message.join_ref != link.join_ref
        return None if stale else link

    def _join(self, message: Message, old: Link | None) -> None:
        factory = self.hub.factory(message.topic)
        if factory is None:
            metrics.JOINS.labels("unmatched_topic").inc()
            self.reply(None, message.ref, message.topic, "error", UNMATCHED)
            return
        if old is None and len(self.links) >= self.hub.limits.channels:
            limit = self.hub.limits.channels
            self._refuse(message, exhausted(f"at most {limit} channels a socket", reason="too_many_channels"))
            return
        if old is not None:
            old.end("replaced")
        link = Link(self, message, factory, old)
        self.links[message.topic] = link
        link.start()

    def _refuse(self, message: Message, error: WhisprError) -> None:
        response = error_response(error)
        self.reply(message.join_ref, message.ref, message.topic, "error", response)

    # ── ending ──

    def _lost(self) -> None:
        """The connection ended without a close frame."""
        self._peer_closed = True
        self.close(CloseCode.ABNORMAL, "connection lost")

    def _slow(self) -> None:
        metrics.SLOW_CLOSED.inc()
        self.close(CloseCode.TRY_AGAIN_LATER, "too slow: the send buffer is full")

    def _start_writer(self, write: Callable[[], Awaitable[None]]) -> None:
        self.nursery.start_soon(write)

    async def _finish_pushes(self) -> None:
        if self._draining:
            with trio.move_on_after(self.hub.limits.drain_s):
                for link in tuple(self.links.values()):
                    await link.quiet()

    def _end_channels(self) -> None:
        """Queue the close frame if none is yet, and end every link; they leave in the nursery."""
        self.close(CloseCode.GOING_AWAY, "the server is shutting down")
        self._transport.detach()
        for link in tuple(self.links.values()):
            link.end("closed")

    async def _hang_up(self) -> None:
        """Finish the closing handshake, bounded, and close the connection."""
        assert self._closing is not None
        metrics.CLOSED.labels(str(int(self._closing[0]))).inc()
        deadline = trio.current_time() + self.hub.limits.close_s
        try:
            with trio.CancelScope(shield=True, deadline=deadline):
                await self._transport.flushed()
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
            self._sock.shutdown(socket.SHUT_WR)
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
