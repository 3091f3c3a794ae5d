"""A Phoenix Channels v2 client on Trio: for the terminal client, tests and load generators.

    async with open_phoenix("ws://127.0.0.1:4000", token) as phoenix:
        channel = await phoenix.join("conversation:01…", {"since_seq": 41})
        channel.response                                    # the join's response
        reply = await channel.push("mark_read", {"seq": 42})
        receipt = channel.push_nowait("send_message", {"text": "hi"})    # pipelined: many may be in flight
        await receipt.wait()
        async for event, payload in channel:                # ends when the channel is left or closed
            ...

trio-websocket opens the connection; the frames are ours (`whispr.realtime.frames`), several times cheaper. It never
reconnects by itself: when the connection ends, everything that waits raises `Disconnected`, and whether to open a new
one and join with what was seen last is the caller's choice. Heartbeats are its own business.

Events of a channel nobody iterates wait in its inbox, at most `inbox_len_max`; then the socket is not read, so
replies wait too. Deadlines are the caller's cancel scopes.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode, urlsplit

import trio

from whispr.errors import Code, WhisprError, exhausted, unavailable
from whispr.realtime import frames, protocol
from whispr.realtime.frames import CloseCode, Closed, FrameError, FrameReader, Ping
from whispr.realtime.handshake import PATH, bearer_subprotocol
from whispr.realtime.protocol import MalformedMessage, Message
from whispr.realtime.upgrade import request_upgrade

HEARTBEAT_S = 30.0
"""phoenix.js's interval; a server closes a socket that is silent for 60 s."""

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_RECEIVE_BYTES = 64 * 1024
_OUT_BYTES_MAX = 16 * 1024 * 1024
_CLOSE_S = 2.0

_CODES = {
    "unauthorized": Code.UNAUTHENTICATED,
    "not_a_member": Code.PERMISSION_DENIED,
    "forbidden": Code.PERMISSION_DENIED,
    "not_found": Code.NOT_FOUND,
    "rate_limited": Code.RESOURCE_EXHAUSTED,
    "invalid_payload": Code.INVALID_ARGUMENT,
    "message_too_large": Code.INVALID_ARGUMENT,
    "duplicate_mismatch": Code.ALREADY_EXISTS,
    "unavailable": Code.UNAVAILABLE,
}


class Refused(WhisprError):  # noqa: N818  # says what happened, as trio.Cancelled does
    """The server's error reply to a push or a join: `response` is its payload, `reason` the reason in it."""

    def __init__(self, what: str, response: object) -> None:
        self.response: Mapping[str, object] = response if isinstance(response, dict) else {"reason": response}
        reason = str(self.response.get("reason", "unknown"))
        super().__init__(_CODES.get(reason, Code.FAILED_PRECONDITION), f"{what} refused: {self.response}")
        self._reason = reason

    @property
    def reason(self) -> str:
        """The reason the server gave."""
        return self._reason


class Disconnected(WhisprError):  # noqa: N818  # says what happened, as trio.Cancelled does
    """The connection ended: `close_code` is the WebSocket status, 1006 when it was lost."""

    def __init__(self, close_code: int, close_reason: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"disconnected: {close_code} {close_reason}".rstrip())
        self.close_code = close_code
        self.close_reason = close_reason


class ChannelClosed(WhisprError):  # noqa: N818  # says what happened, as trio.Cancelled does
    """The channel was left, closed by the server, or crashed there (`crashed`)."""

    def __init__(self, topic: str, *, crashed: bool) -> None:
        super().__init__(Code.CANCELLED, f"channel {topic} {'crashed' if crashed else 'closed'}")
        self.crashed = crashed


class Receipt:
    """A push on its way: `wait` for its reply."""

    __slots__ = ("_done", "_error", "_response", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = trio.Event()
        self._response: object = None
        self._error: WhisprError | None = None

    async def wait(self) -> object:
        """Return the reply's response. Raises Refused, ChannelClosed or Disconnected."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._response

    @property
    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._done.is_set()

    def reply(self, payload: Mapping[str, object]) -> None:
        """Settle with the payload of a `phx_reply`."""
        if payload.get("status") == "ok":
            self._response = payload.get("response")
        else:
            self._error = Refused(self._what, payload.get("response"))
        self._done.set()

    def fail(self, error: WhisprError) -> None:
        """Settle without a reply."""
        self._error = error
        self._done.set()


class ClientChannel:
    """A joined topic. Iterate it for `(event, payload)`."""

    def __init__(self, phoenix: Phoenix, topic: str, join_ref: str, inbox_len_max: int) -> None:
        self.topic = topic
        self.join_ref = join_ref
        self.response: object = None
        """The join's response."""
        self._phoenix = phoenix
        self._receipts: dict[str, Receipt] = {}
        self._ended: WhisprError | None = None
        self.inbox, self._events = trio.open_memory_channel[tuple[str, object]](inbox_len_max)

    async def push(self, event: str, payload: object) -> object:
        """Push and wait for the reply's response. Raises Refused, ChannelClosed or Disconnected."""
        return await self.push_nowait(event, payload).wait()

    def push_nowait(self, event: str, payload: object) -> Receipt:
        """Push without waiting for the reply. Raises ChannelClosed or Disconnected."""
        if self._ended is not None:
            raise self._ended
        ref = self._phoenix.next_ref()
        self._phoenix.send(self.join_ref, ref, self.topic, event, payload)
        return self.expect(ref, event)

    def expect(self, ref: str, what: str) -> Receipt:
        """Make the receipt of a message that is about to be sent."""
        receipt = self._receipts[ref] = Receipt(what)
        return receipt

    async def leave(self) -> None:
        """Leave the topic. Raises Disconnected."""
        try:
            await self.push("phx_leave", {})
        finally:
            self._phoenix.forget(self)
            self.end(ChannelClosed(self.topic, crashed=False))

    def __aiter__(self) -> ClientChannel:
        return self

    async def __anext__(self) -> tuple[str, object]:
        try:
            return await self._events.receive()
        except trio.EndOfChannel:
            if isinstance(self._ended, ChannelClosed) and not self._ended.crashed:
                raise StopAsyncIteration from None
            assert self._ended is not None
            raise self._ended from None

    def settle(self, ref: str, payload: Mapping[str, object]) -> None:
        """Settle the receipt of this ref, if anybody still waits for it."""
        receipt = self._receipts.pop(ref, None)
        if receipt is not None:
            receipt.reply(payload)

    def end(self, error: WhisprError) -> None:
        """End the iteration after what is in the inbox, and fail what waits."""
        if self._ended is None:
            self._ended = error
            self.inbox.close()
        for receipt in self._receipts.values():
            receipt.fail(error)
        self._receipts.clear()


class Phoenix:
    """An open connection. Made by `open_phoenix`."""

    def __init__(self, stream: trio.abc.Stream, inbox_len_max: int) -> None:
        self.closed: Disconnected | None = None
        """Why the connection ended, once it has."""
        self._stream = stream
        self._inbox_len_max = inbox_len_max
        self._refs = itertools.count(1)
        self._channels: dict[str, ClientChannel] = {}
        self._frames = FrameReader(masked=False, message_bytes_max=_MESSAGE_BYTES_MAX)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._writable = trio.lowlevel.ParkingLot()
        self._ended = trio.Event()
        self._heartbeat_ref: str | None = None

    async def join(self, topic: str, payload: object = None) -> ClientChannel:
        """Join a topic, or join it anew. Raises Refused or Disconnected."""
        ref = self.next_ref()
        channel = ClientChannel(self, topic, ref, self._inbox_len_max)
        receipt = channel.expect(ref, "phx_join")
        self._channels[topic] = channel
        try:
            self.send(ref, ref, topic, "phx_join", {} if payload is None else payload)
            channel.response = await receipt.wait()
        except BaseException:
            self.forget(channel)
            raise
        return channel

    async def wait_closed(self) -> Disconnected:
        """Wait until the connection has ended and return why."""
        await self._ended.wait()
        assert self.closed is not None
        return self.closed

    async def abort(self) -> None:
        """Cut the connection without a close frame, as a lost network would."""
        self.disconnected(Disconnected(CloseCode.ABNORMAL, "aborted"))
        await trio.aclose_forcefully(self._stream)

    def next_ref(self) -> str:
        """Return a ref no message of this connection has."""
        return str(next(self._refs))

    def send(self, join_ref: str | None, ref: str, topic: str, event: str, payload: object) -> None:
        """Queue a message. Raises Disconnected, or RESOURCE_EXHAUSTED when the server does not keep up."""
        if self.closed is not None:
            raise self.closed
        if self._out_bytes > _OUT_BYTES_MAX:
            raise exhausted("the server does not keep up with what this client sends")
        self._send_frame(*protocol.encode_client_message(join_ref, ref, topic, event, payload))

    def forget(self, channel: ClientChannel) -> None:
        """Take a channel off, unless its topic was joined anew since."""
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    def disconnected(self, why: Disconnected) -> None:
        """End everything, with the first reason given."""
        if self.closed is None:
            self.closed = why
        for channel in tuple(self._channels.values()):
            channel.end(self.closed)
        self._channels.clear()
        self._ended.set()

    async def read(self) -> None:
        """Reader task: until the connection ends."""
        try:
            while self.closed is None:
                data = bytes(await self._stream.receive_some(_RECEIVE_BYTES))
                if not data:
                    break
                for item in self._frames.feed(data):
                    await self._take(item)
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError, MalformedMessage) as error:
            self.disconnected(Disconnected(CloseCode.ABNORMAL, str(error)))
        self.disconnected(Disconnected(CloseCode.ABNORMAL, "connection lost"))

    async def write(self) -> None:
        """Writer task: sends what is queued, coalesced."""
        try:
            while True:
                if not self._out:
                    await self._writable.park()
                data = b"".join(self._out)
                self._out.clear()
                self._out_bytes = 0
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.disconnected(Disconnected(CloseCode.ABNORMAL, str(error)))

    async def beat(self, heartbeat_s: float) -> None:
        """Heartbeat task: an unanswered heartbeat is a lost connection."""
        while self.closed is None:
            await trio.sleep(heartbeat_s)
            if self._heartbeat_ref is not None:
                await self.abort()
            elif self.closed is None:
                self._heartbeat_ref = self.next_ref()
                self.send(None, self._heartbeat_ref, "phoenix", "heartbeat", {})

    async def close(self) -> None:
        """Close with 1000 and wait, bounded, for the server to hang up."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
            if self.closed is None:
                self._send_frame(frames.CLOSE, frames.close_payload(CloseCode.NORMAL))
                await self._ended.wait()
        self.disconnected(Disconnected(CloseCode.NORMAL, "closed"))
        await trio.aclose_forcefully(self._stream)

    def _send_frame(self, opcode: int, payload: bytes) -> None:
        frame = frames.encode_masked_frame(opcode, payload, secrets.token_bytes(4))
        self._out.append(frame)
        self._out_bytes += len(frame)
        self._writable.unpark()

    async def _take(self, item: frames.Item) -> None:
        if isinstance(item, str | bytes):
            await self._dispatch(protocol.decode_from_server(item))
        elif isinstance(item, Ping):
            self._send_frame(frames.PONG, item.payload)
        elif isinstance(item, Closed):
            self._send_frame(frames.CLOSE, frames.close_payload(CloseCode.NORMAL))
            self.disconnected(Disconnected(item.code, item.reason))

    async def _dispatch(self, message: Message) -> None:
        if message.topic == "phoenix":
            if message.ref == self._heartbeat_ref:
                self._heartbeat_ref = None
            return
        channel = self._channels.get(message.topic)
        if channel is None:
            return
        if message.event == "phx_reply":
            # Not filtered by join_ref: an "unmatched topic" reply has none, and refs are unique anyhow.
            channel.settle(str(message.ref), message.payload)
        elif message.join_ref is not None and message.join_ref != channel.join_ref:
            return  # for an earlier join of this topic
        elif message.event in ("phx_close", "phx_error"):
            self.forget(channel)
            channel.end(ChannelClosed(message.topic, crashed=message.event == "phx_error"))
        else:
            try:
                await channel.inbox.send((message.event, message.payload))
            except trio.ClosedResourceError:
                return  # left while its inbox was full: nobody wants the event any more


@asynccontextmanager
async def open_phoenix(
    url: str,
    token: str,
    *,
    params: Mapping[str, str] | None = None,
    auth_token: bool = False,
    heartbeat_s: float = HEARTBEAT_S,
    inbox_len_max: int = 10_000,
) -> AsyncIterator[Phoenix]:
    """Connect to `ws://` or `wss://` host and port, with the server's usual path unless the URL has one.

    The token goes into the query, or with `auth_token` into the subprotocol, where no access log sees it.
    Raises Rejected (`whispr.realtime.upgrade`) with the server's reason, or UNAVAILABLE when it cannot be reached.
    """
    query = {"vsn": "2.0.0", **(params or {})}
    if not auth_token:
        query["token"] = token
    stream = await _connect(url, query, ["phoenix", bearer_subprotocol(token)] if auth_token else [])
    phoenix = Phoenix(stream, inbox_len_max)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(phoenix.read)
            nursery.start_soon(phoenix.write)
            nursery.start_soon(phoenix.beat, heartbeat_s)
            try:
                yield phoenix
            finally:
                await phoenix.close()
                nursery.cancel_scope.cancel(reason="the client is done")
    except ExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[
                0
            ] from None  # the caller's own error, not wrapped by a nursery it cannot see
        raise


async def _connect(url: str, query: Mapping[str, str], subprotocols: list[str]) -> trio.abc.Stream:
    parts = urlsplit(url)
    assert parts.scheme in ("ws", "wss"), f"{url} is no ws:// or wss:// URL"
    host, secure = parts.hostname or "localhost", parts.scheme == "wss"
    port = parts.port or (443 if secure else 80)
    stream: trio.abc.Stream
    try:
        if secure:
            stream = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
        else:
            stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise unavailable(f"cannot connect to {host}:{port}: {error}") from error
    path = PATH if parts.path in ("", "/") else parts.path
    try:
        await request_upgrade(stream, f"{host}:{port}", f"{path}?{urlencode(query)}", subprotocols)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream
