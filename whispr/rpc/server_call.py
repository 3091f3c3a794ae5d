"""One call on a server: its messages in and out, its scope, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import trio
from google.protobuf.message import DecodeError

from whispr.errors import Code, WhisprError
from whispr.http2.headers import encode, list_bytes
from whispr.http2.queued import Data, size_of
from whispr.rpc import wire
from whispr.rpc.call import ServerSideCall
from whispr.rpc.inbox import Inbox, Waker
from whispr.rpc.methods import RequestHead
from whispr.rpc.tls import PeerIdentity

if TYPE_CHECKING:
    from whispr.rpc.server_connection import ServerConnection

_RESPONSE = [(":status", "200"), ("content-type", wire.CONTENT_TYPE)]
_RESPONSE_BYTES = list_bytes(_RESPONSE)
_RESPONSE_BLOCK = encode(_RESPONSE)
_OK_BLOCK = encode(wire.status_fields(None))


def _not_read() -> WhisprError:
    told = "the client does not read: too much is waiting to be sent on its connection"
    return WhisprError(Code.RESOURCE_EXHAUSTED, told)


class ServerCall(ServerSideCall):
    """Created at the request's head; runs once what came with it has been read, and takes messages as they come."""

    __slots__ = (
        "_arrived",
        "_connection",
        "_encoding_received",
        "_finished",
        "_inbox",
        "_only",
        "_only_bytes",
        "_room",
        "ended_by",
        "handler",
        "inflated",
        "keeps_request",
        "observed",
        "request",
        "scope",
        "stream_id",
    )

    def __init__(
        self,
        connection: ServerConnection,
        stream_id: int,
        head: RequestHead,
        deadline: float,
    ) -> None:
        handler = head.method
        super().__init__(handler.name, head.metadata, connection.peer, deadline)
        self.handler = handler
        self.stream_id = stream_id
        self.scope: trio.CancelScope | None = None
        """Around the handler, while it runs."""
        self.ended_by: WhisprError | None = None
        """Why the call was ended, other than by its deadline."""
        self.inflated = 0
        """Bytes of its message received last, if that came compressed."""
        self.observed = False
        """It has begun, and its observers are still to be told how it has ended."""
        self.keeps_request = False
        """Whether an interceptor has a use for the request once the handler has taken it."""
        self.request: Any = None
        """The message taken last, if it is kept."""
        self._finished = False
        self._connection = connection
        self._encoding_received = head.encoding
        self._accepts = head.accepts
        self._only: bytes | None = None
        """The whole request, which came in one piece with its head and is not compressed."""
        self._only_bytes = 0
        """What it still holds of the window, prefix included."""
        self._inbox: Inbox | None = None
        self._arrived: Waker | None = None
        self._room: Waker | None = None

    # --- From the connection ------------------------------------------------------------------------------

    def receive_whole(self, data: bytes) -> bool:
        """Take the whole body of a request, if it is the one message that the method takes."""
        size = len(data) - wire.PREFIX_BYTES
        # The first byte says whether the message is compressed, the others how long it is.
        if size < 0 or data[0] or int.from_bytes(data[1:5], "big") != size:
            return False
        if size > self._connection.message_bytes_max or not self.handler.takes_one:
            return False
        self._only = data[5:]
        self._only_bytes = len(data)
        self._connection.counters.messages_received += 1
        return True

    def receive_data(self, data: bytes | memoryview) -> None:
        """DATA has come. Raises WhisprError when it breaks gRPC's framing."""
        surplus = self.inbox.feed(data)
        if surplus:
            self._connection.core.consume(self.stream_id, surplus)
        self._wake()

    def receive_end(self) -> None:
        """The client has half-closed. Raises WhisprError if it did so within a message."""
        self.inbox.end()
        self._wake()

    @property
    def inbox(self) -> Inbox:
        """Messages that wait to be read; made when there is need of one."""
        if self._inbox is None:
            self._inbox = Inbox(self._connection.message_bytes_max)
            if self._encoding_received is not None:
                self._inbox.expect(self._encoding_received)
        return self._inbox

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.wake()

    async def _wait(self) -> None:
        if self._arrived is None:
            self._arrived = Waker()
        await self._arrived.wait()

    def has_room(self) -> None:
        """The stream's queue has been sent."""
        if self._room is not None:
            self._room.wake()

    def end(self, error: WhisprError, reason: str) -> None:
        """Cancel the call's scope. What the client hears of it, if it still listens, is `error`."""
        if self.ended_by is None:
            self.ended_by = error
            if self.scope is not None:
                self.scope.cancel(reason=reason)

    # --- Messages -----------------------------------------------------------------------------------------

    def receive_now(self) -> Any:
        """The only message of a request that came in one piece; None when it did not. Raises as `receive_one`."""
        # Taken once, for a call that waits may wait for long, and has no use for it.
        message, self._only = self._only, None
        return None if message is None else self._parse(message)

    def waits(self) -> None:
        """The handler has to wait, for who knows how long: its request no longer holds the window."""
        if self._only_bytes:
            self._connection.core.consume(self.stream_id, self._only_bytes)
            self._only_bytes = 0

    async def receive_one(self) -> Any:
        """The only message of a unary request. Raises WhisprError INTERNAL when there is none, or more."""
        if self._only is not None:
            return self.receive_now()
        inbox = self.inbox
        # One more message than allowed is enough to know; a unary handler starts when the client is done.
        while not inbox.ended and len(inbox) < 2:
            await self._wait()
        if len(inbox) != 1:
            raise WhisprError(Code.INTERNAL, "a unary request is one message: none or more than one came")
        return self._parse(self._take())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next message of a streamed request, until the client half-closes."""
        await trio.lowlevel.checkpoint_if_cancelled()
        inbox = self.inbox
        while not inbox:
            if inbox.ended:
                raise StopAsyncIteration
            await self._wait()
        return self._parse(self._take())

    @property
    def peer_identity(self) -> PeerIdentity | None:
        """Who the client is, by its certificate; None when it has shown none."""
        return self._connection.identity

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last had come compressed."""
        return self._inbox is not None and self._inbox.compressed

    def _take(self) -> bytes:
        self._connection.counters.messages_received += 1
        message, surplus = self.inbox.take()
        self._connection.hold_inflated(self, len(message) if self.inbox.compressed else 0)
        if surplus:
            self._connection.core.consume(self.stream_id, surplus)
            self._connection.flush()
        return message

    def _parse(self, message: bytes) -> Any:
        try:
            request = self.handler.parse_request(message)
        except DecodeError as error:
            raise WhisprError(Code.INTERNAL, "a request message does not parse") from error
        if self.keeps_request:
            self.request = request
        return request

    async def send(self, message: Any) -> None:
        """Send a message of a stream, waiting while the client is slow to read."""
        await trio.lowlevel.checkpoint_if_cancelled()
        connection, stream_id = self._connection, self.stream_id
        while not connection.core.writable(stream_id):
            self._room = self._room or Waker()
            await self._room.wait()
        data = self._frame(message.SerializeToString())
        if not connection.core.queues(size_of(data)):
            raise _not_read()
        self._send_head()
        connection.core.send_data(stream_id, data)
        connection.counters.messages_sent += 1
        connection.flush()

    # --- The end ------------------------------------------------------------------------------------------

    def respond(self, message: Any) -> None:
        """The whole of a unary response."""
        connection, stream_id = self._connection, self.stream_id
        head = self._head_block()
        data = self._frame(message.SerializeToString())
        if not connection.core.queues(size_of(data)):
            self.finish(_not_read())
            return
        trailers = _OK_BLOCK if self._trailing is None else encode(self._ending(None))
        self._finished = True
        connection.core.respond(stream_id, head, data, trailers)
        connection.counters.responded += 1
        connection.flush()

    def finish(self, error: WhisprError | None = None) -> None:
        """End with a status; without a response before it, as trailers only. Only the first end counts."""
        if self._finished:
            return
        self._finished = True
        if self._initial:
            try:
                self._send_head()
            except WhisprError as too_large:
                error = error or too_large
        if error is None:
            self._connection.counters.succeeded += 1
        else:
            self._connection.counters.fail(error, self.method)
        core, stream_id = self._connection.core, self.stream_id
        if self._initial_sent:
            core.send_trailers(stream_id, encode(self._ending(error)))
        else:
            core.send_headers(stream_id, encode(_RESPONSE + self._ending(error)), end_stream=True)
        self._connection.flush()

    def _ending(self, error: WhisprError | None) -> list[tuple[str, str]]:
        size_max = self._connection.core.peer_header_list_bytes_max - _RESPONSE_BYTES
        return wire.ending_fields(error, self._trailing or [], size_max)

    def _send_head(self) -> None:
        """Send the head, if it has not been. Raises WhisprError when the client would not take it."""
        if not self._initial_sent:
            block = self._head_block()
            self._initial_sent = True
            self._connection.core.send_headers(self.stream_id, block)

    def _head_block(self) -> bytes:
        if self._initial is None and self._encoding is None:
            return _RESPONSE_BLOCK
        announced = [("grpc-encoding", self._encoding.name)] if self._encoding is not None else []
        fields = _RESPONSE + announced + (self._initial or [])
        size, size_max = list_bytes(fields), self._connection.core.peer_header_list_bytes_max
        if size > size_max:
            self._initial = None  # so that the error can be sent
            raise wire.too_large(size, size_max)
        return encode(fields)

    def _frame(self, message: bytes) -> Data:
        if self._encoding is None or not self.compress:
            return wire.framed(message)
        return wire.frame_encoded(message, self._encoding)
