"""One call on a channel: its messages in and out, and how it ended."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio
from google.protobuf.message import Message

from whispr.errors import Code, WhisprError, exhausted, unavailable
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers, encode, list_bytes
from whispr.http2.queued import Data, size_of
from whispr.rpc import wire
from whispr.rpc.call import NO_METADATA, Call, Metadata
from whispr.rpc.compression import named
from whispr.rpc.inbox import Inbox, Waker
from whispr.rpc.tls import PeerIdentity

if TYPE_CHECKING:
    from whispr.rpc.channel import Channel
    from whispr.rpc.client_connection import ClientConnection


NOT_PROCESSED = {"processed": "no"}
"""The fact of an UNAVAILABLE whose request no server has acted on."""

_REFUSALS_MAX = 1
_UNSENT_MAX = 4


class ClientCall(Call):
    """Created by a stub; becomes a stream with `start`; over once `ended`."""

    __slots__ = (
        "_arrived",
        "_attempts",
        "_channel",
        "_connection",
        "_deadline",
        "_encoding",
        "_inbox",
        "_kept",
        "_kept_bytes",
        "_looking",
        "_room",
        "_sent_end",
        "_sent_metadata",
        "_stream_id",
        "_unsent",
        "compress",
        "ended",
        "error",
        "extra_head",
        "heads",
        "initial_metadata",
        "limit_s",
        "message",
        "previous_attempts",
        "trailing_metadata",
        "wait_for_ready",
    )

    def __init__(
        self,
        channel: Channel,
        method: str,
        metadata: Metadata,
        wait_for_ready: bool | None = None,
        compression: str | None = None,
    ) -> None:
        super().__init__(method, metadata, channel.target, inf)
        self._deadline: float | None = None
        self.message: Message | None = None
        """The only message of the request, for a call that has one."""
        self.initial_metadata: Metadata | None = None
        """The server's, once it has come."""
        self.trailing_metadata = NO_METADATA
        """The server's, once the call has ended."""
        self.ended = False
        self.error: WhisprError | None = None
        """How it ended; None for OK."""
        self.wait_for_ready = channel.wait_for_ready if wait_for_ready is None else wait_for_ready
        """Whether to wait for a server that cannot be reached."""
        self.compress = True
        """Whether messages sent from now on are compressed, when the call has an encoding."""
        self.limit_s = inf
        """What the call may take, however far the deadline of its caller is. The connection sees to that."""
        self.extra_head: tuple[bytes, int] | None = None
        """More of the header block, encoded, and its size in a list: what is the same for very many calls."""
        self.previous_attempts = 0
        """Calls that this one is made in place of, or beside, by policy: the server is told."""
        self.heads: list[Metadata] | None = None
        """Where the server's initial metadata goes, for a caller who gets only the response."""
        self._encoding = channel.encoding if compression is None else named(compression)
        self._channel = channel
        self._connection: ClientConnection | None = None
        self._stream_id = 0
        self._inbox = Inbox(channel.limits.message_bytes_max)
        self._arrived = Waker()
        self._room = Waker()
        self._sent_end = False
        self._kept: list[Data] | None = []
        """What has been sent, until the server answers or it is too much to send again."""
        self._kept_bytes = 0
        self._attempts = 0
        """Streams that servers refused without looking at them."""
        self._unsent = 0
        """Connections that were lost before anything of the call was sent."""
        self._looking: trio.CancelScope | None = None
        """Around the search for another connection."""

    @property
    def deadline(self) -> float:
        """On Trio's clock; infinity for none. Found out when somebody asks: that takes as long as making the call."""
        if self._deadline is None:
            self._deadline = trio.current_effective_deadline()
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline

    @property
    def peer_identity(self) -> PeerIdentity | None:
        """Who the server is, by its certificate; None without TLS, and before the call has started."""
        return self._connection.identity if self._connection is not None else None

    # --- Commands -----------------------------------------------------------------------------------------

    async def start(self, only: bytes | None = None) -> None:
        """Send the head, once a connection has a stream free, and with it the only message if there is one.

        Raises WhisprError: UNAVAILABLE when no connection can be made, RESOURCE_EXHAUSTED when too many calls
        wait or the server takes no such header list; ValueError for metadata that may not be sent.
        """
        # Interceptors may have added to it, so this is not known before.
        self._sent_metadata = wire.metadata_fields(self.metadata) if self.metadata else []
        await trio.lowlevel.checkpoint_if_cancelled()
        channel = self._channel
        try:
            connection = channel.connection_now() or await channel.connection(self.wait_for_ready)
            # Read now rather than when the call was made: interceptors may have opened a nearer scope since.
            self.deadline = trio.current_effective_deadline()
            if only is None:
                self._open(connection)
            else:
                self._sent_end = True
                framed = self._frame(only)
                self._keep(framed)
                self._open(connection, framed)
                connection.counters.messages_sent += 1
        except WhisprError as error:
            self._end(error)
            raise

    def _open(self, connection: ClientConnection, last: Data | None = None) -> None:
        """Begin a stream, and end it with a message if `last` is given.

        Raises WhisprError when the server would not take its header list.
        """
        fields = self._fields()
        block, size = self._channel.head_block(self.method)
        if fields:
            block += encode(fields)
            size += list_bytes(fields)
        if self.extra_head is not None:
            block += self.extra_head[0]
            size += self.extra_head[1]
        size_max = connection.core.peer_header_list_bytes_max
        if size > size_max:
            connection.unused()
            told = f"metadata of {size} bytes in all is over the {size_max} that {connection.target} takes"
            raise exhausted(told, reason="metadata_too_large")
        self.peer = connection.target
        self._connection = connection
        self._stream_id = connection.open(self, block, last)

    def _fields(self) -> list[tuple[str, str]]:
        fields = self._sent_metadata
        if self.deadline < inf or self.limit_s < inf:
            left_s = min(self.limit_s, self.deadline - (now := trio.current_time()))
            self.deadline = now + left_s
            fields = [("grpc-timeout", wire.format_timeout(left_s)), *fields]
        if self._encoding is not None:
            fields = [("grpc-encoding", self._encoding.name), *fields]
        if attempts := self.previous_attempts + self._attempts:
            fields = [*fields, (wire.PREVIOUS_ATTEMPTS, str(attempts))]
        return fields

    def send_last(self, message: bytes) -> None:
        """Send the only message of a request, and end it."""
        assert self._connection is not None, "started"
        self._sent_end = True
        framed = self._frame(message)
        self._keep(framed)
        self._connection.core.send_data(self._stream_id, framed, end_stream=True)
        self._connection.counters.messages_sent += 1
        self._connection.flush()

    async def send(self, message: bytes) -> None:
        """Send a message, waiting while the server is slow to read.

        Raises the call's error once it has failed, RuntimeError after `send_end`. What a server that has
        answered no longer wants is dropped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sent_end:
            raise RuntimeError("send() after done_sending() or response()")
        # Between two attempts there is no connection.
        while not self.ended and (
            self._connection is None or not self._connection.core.writable(self._stream_id)
        ):
            await self._room.wait()
        if self.error is not None:
            raise self.error
        if not self.ended and self._connection is not None:
            framed = self._frame(message)
            self._keep(framed)
            self._connection.core.send_data(self._stream_id, framed)
            self._connection.counters.messages_sent += 1
            self._connection.flush()

    def _frame(self, message: bytes) -> Data:
        if self._encoding is None or not self.compress:
            return wire.framed(message)
        return wire.frame_encoded(message, self._encoding)

    def send_end(self) -> None:
        """Half-close: no more messages follow."""
        if not self._sent_end and not self.ended:
            self._sent_end = True
            if self._connection is not None:
                self._connection.core.send_data(self._stream_id, b"", end_stream=True)
                self._connection.flush()

    def _keep(self, framed: Data) -> None:
        if self._kept is not None:
            self._kept_bytes += size_of(framed)
            if self._kept_bytes <= self._channel.limits.retry_bytes_max:
                self._kept.append(framed)
            else:
                self._kept = None

    async def receive(self) -> bytes | None:
        """The next message, or None when the call has ended well. Raises the call's error."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._inbox:
            if self.ended:
                if self.error is not None:
                    raise self.error
                return None
            await self._arrived.wait()
        message, surplus = self._inbox.take()
        if self._connection is not None:
            self._connection.counters.messages_received += 1
        if surplus and not self.ended and self._connection is not None:
            self._connection.core.consume(self._stream_id, surplus)
            self._connection.flush()
        return message

    async def receive_only(self) -> bytes:
        """The response of a call that has one, once the call has ended. Raises the call's error."""
        if not self.ended and self._connection is not None:
            await self._connection.lead(self._stream_id)
        while not self.ended and len(self._inbox) < 2:
            await self._arrived.wait()
        if self.error is not None:
            raise self.error
        if len(self._inbox) != 1:
            raise WhisprError(Code.INTERNAL, "the server sent none or more than one response")
        if self._connection is not None:
            self._connection.counters.messages_received += 1
        return self._inbox.take()[0]

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last had come compressed."""
        return self._inbox.compressed

    async def receive_head(self) -> Metadata:
        """The server's initial metadata, once it has come. Raises the call's error."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.initial_metadata is None and not self.ended:
            await self._arrived.wait()
        if self.initial_metadata is None and self.error is not None:
            raise self.error
        return self.initial_metadata or NO_METADATA

    def abandon(self) -> None:
        """Have no more to do with a call: reset it, if it is still going."""
        if not self.ended:
            if self._connection is not None:
                self._connection.forget(self._stream_id)
            if self._looking is not None:
                self._looking.cancel(reason="the caller abandoned the call")
            self._end(WhisprError(Code.CANCELLED, "the caller abandoned the call"))

    # --- From the connection ------------------------------------------------------------------------------

    def receive_head_fields(self, headers: Headers) -> None:
        """The response has begun. Raises WhisprError when it is not a gRPC response."""
        self._kept = None
        head = headers.parsed
        if not isinstance(head, _ResponseHead):
            head = headers.parsed = _ResponseHead(headers)
        self.initial_metadata = head.metadata
        if head.encoding is not None:
            self._inbox.expect(head.encoding)
        self._arrived.wake()

    def receive_data(self, data: bytes | memoryview) -> None:
        """DATA has come. Raises WhisprError when it breaks gRPC's framing."""
        surplus = self._inbox.feed(data)
        if surplus and self._connection is not None:
            self._connection.core.consume(self._stream_id, surplus)
        self._arrived.wake()

    def receive_trailers(self, headers: Headers) -> None:
        """The server has ended the call. Raises WhisprError when it did so badly."""
        self._inbox.end()
        error = wire.read_status(headers)
        self.trailing_metadata = _metadata(headers)
        if not self._sent_end and self._connection is not None:
            # The server has said all it will; the rest of the request would only hold the stream open.
            self._connection.core.reset(self._stream_id, ErrorCode.CANCEL)
        self._end(error)

    def receive_whole(self, headers: Headers, data: bytes, trailers: Headers) -> None:
        """The response has come, in one piece. Raises WhisprError when there is anything wrong with it."""
        self.receive_head_fields(headers)
        self.receive_data(data)
        self.receive_trailers(trailers)

    def fail(self, error: WhisprError) -> None:
        """The call is over without the server's own status."""
        self._end(error)

    # --- Another attempt (gRFC A6, "Transparent Retries") -------------------------------------------------

    def not_processed(self, error: WhisprError, *, left: bool) -> None:
        """No server has looked at the call: make it again, unseen by its caller, or fail it with `error`.

        `left`: something of it was sent. Then it is made again once; otherwise a few times.
        """
        again = self._attempts < _REFUSALS_MAX if left else self._unsent < _UNSENT_MAX
        if self._kept is None or not again:
            self._end(error)
            return
        self._attempts += left
        self._unsent += not left
        self._connection = None
        self._channel.make_again(self)

    async def find_another_connection(self) -> None:
        """Wait for a connection, and go on there; the call fails when there is none to be had."""
        if self.ended:
            return
        try:
            with trio.CancelScope() as self._looking:
                self.resume(await self._channel.connection(self.wait_for_ready))
        except WhisprError as error:
            self._end(error)
        finally:
            self._looking = None
            if self._connection is None:
                self._end(unavailable("the channel was closed", facts=NOT_PROCESSED))

    def resume(self, connection: ClientConnection) -> None:
        """Send what had been sent before on a new stream."""
        kept = self._kept or []
        if self.ended:
            # Abandoned after the connection was found and before it could be used.
            connection.unused()
            return
        try:
            self._open(connection)
        except WhisprError as error:
            self._end(error)
            return
        for framed in kept:
            connection.core.send_data(self._stream_id, framed)
        if self._sent_end:
            connection.core.send_data(self._stream_id, b"", end_stream=True)
        connection.flush()
        self._room.wake()

    def has_room(self) -> None:
        """The stream's queue has been sent."""
        self._room.wake()

    def _end(self, error: WhisprError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error
            counters = (self._connection or self._channel).counters
            if error is None:
                counters.succeeded += 1
            else:
                counters.fail(error, self.method)
            self._kept = None
            self._arrived.wake()
            self._room.wake()


class _ResponseHead:
    """What the head of a response says, worked out once per header block."""

    __slots__ = ("encoding", "metadata")

    def __init__(self, headers: Headers) -> None:
        """Raises WhisprError when it is no gRPC response, or has an encoding that we do not accept."""
        error = wire.read_response(headers)
        if error is not None:
            raise error
        self.metadata = _metadata(headers)
        try:
            self.encoding = named(headers.get("grpc-encoding"))
        except ValueError as bad:
            raise WhisprError(Code.INTERNAL, f"bad grpc-encoding from the server: {bad}") from bad


def _metadata(headers: Headers) -> Metadata:
    """Metadata of a response's head or trailers, worked out once per header block."""
    parsed = headers.parsed
    if isinstance(parsed, _ResponseHead):
        return parsed.metadata
    if not isinstance(parsed, Metadata):
        try:
            parsed = Metadata(wire.metadata_pairs(headers.fields))
        except ValueError as error:
            raise WhisprError(Code.INTERNAL, f"bad metadata from the server: {error}") from error
        headers.parsed = parsed
    return parsed
