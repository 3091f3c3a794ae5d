"""One call on a channel: its messages in and out, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from whispr.errors import Code, WhisprError
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers, encode
from whispr.rpc import wire
from whispr.rpc.call import NO_METADATA, Call, Metadata
from whispr.rpc.inbox import Inbox, Waker

if TYPE_CHECKING:
    from whispr.rpc.channel import Channel
    from whispr.rpc.client_connection import ClientConnection


class ClientCall(Call):
    """Created by a stub; becomes a stream with `start`; over once `ended`."""

    __slots__ = (
        "_arrived",
        "_channel",
        "_connection",
        "_inbox",
        "_room",
        "_sent_end",
        "_stream_id",
        "ended",
        "error",
        "initial_metadata",
        "trailing_metadata",
    )

    def __init__(self, channel: Channel, method: str, metadata: Metadata) -> None:
        super().__init__(method, metadata, channel.target, trio.current_effective_deadline())
        self.initial_metadata: Metadata | None = None
        """The server's, once it has come."""
        self.trailing_metadata = NO_METADATA
        """The server's, once the call has ended."""
        self.ended = False
        self.error: WhisprError | None = None
        """How it ended; None for OK."""
        self._channel = channel
        self._connection: ClientConnection | None = None
        self._stream_id = 0
        self._inbox = Inbox(channel.limits.message_bytes_max)
        self._arrived = Waker()
        self._room = Waker()
        self._sent_end = False

    # --- Commands -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Send the head, once a connection has a stream free.

        Raises WhisprError: UNAVAILABLE when no connection can be made, RESOURCE_EXHAUSTED when too many calls
        wait; ValueError for metadata that may not be sent.
        """
        fields = wire.metadata_fields(self.metadata) if self.metadata else []
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._channel.connection_now() or await self._channel.connection()
        # Read now rather than when the call was made: interceptors may have opened a nearer scope since.
        self.deadline = trio.current_effective_deadline()
        if self.deadline < float("inf"):
            fields.insert(0, ("grpc-timeout", wire.format_timeout(self.deadline - trio.current_time())))
        block = self._channel.head_block(self.method)
        if fields:
            block += encode(fields)
        self._connection = connection
        self._stream_id = connection.open(self, block)

    def send_last(self, message: bytes) -> None:
        """Send the only message of a request, and end it."""
        assert self._connection is not None, "started"
        self._sent_end = True
        self._connection.core.send_data(self._stream_id, wire.frame_message(message), end_stream=True)
        self._connection.flush()

    async def send(self, message: bytes) -> None:
        """Send a message, waiting while the server is slow to read.

        Raises the call's error once it has failed, RuntimeError after `send_end`. What a server that has
        answered no longer wants is dropped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sent_end:
            raise RuntimeError("send() after done_sending() or response()")
        connection = self._connection
        assert connection is not None, "started"
        while not self.ended and not connection.core.writable(self._stream_id):
            await self._room.wait()
        if self.error is not None:
            raise self.error
        if not self.ended:
            connection.core.send_data(self._stream_id, wire.frame_message(message))
            connection.flush()

    def send_end(self) -> None:
        """Half-close: no more messages follow."""
        if self._connection is not None and not self._sent_end and not self.ended:
            self._sent_end = True
            self._connection.core.send_data(self._stream_id, b"", end_stream=True)
            self._connection.flush()

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
        if surplus and not self.ended and self._connection is not None:
            self._connection.core.consume(self._stream_id, surplus)
            self._connection.flush()
        return message

    async def receive_only(self) -> bytes:
        """The response of a call that has one, once the call has ended. Raises the call's error."""
        while not self.ended and len(self._inbox) < 2:
            await self._arrived.wait()
        if self.error is not None:
            raise self.error
        if len(self._inbox) != 1:
            raise WhisprError(Code.INTERNAL, "the server sent none or more than one response")
        return self._inbox.take()[0]

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
        if not self.ended and self._connection is not None:
            self._connection.forget(self._stream_id)
            self._end(WhisprError(Code.CANCELLED, "the caller abandoned the call"))

    # --- From the connection ------------------------------------------------------------------------------

    def receive_head_fields(self, headers: Headers) -> None:
        """The response has begun. Raises WhisprError when it is not a gRPC response."""
        error = wire.read_response(headers)
        if error is not None:
            raise error
        self.initial_metadata = _metadata(headers)
        self._arrived.wake()

    def receive_data(self, data: bytes) -> None:
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

    def fail(self, error: WhisprError) -> None:
        """The call is over without the server's own status."""
        self._end(error)

    def has_room(self) -> None:
        """The stream's queue has been sent."""
        self._room.wake()

    def _end(self, error: WhisprError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error
            self._arrived.wake()
            self._room.wake()


def _metadata(headers: Headers) -> Metadata:
    """Metadata of a response's head or trailers, worked out once per header block."""
    parsed = headers.parsed
    if not isinstance(parsed, Metadata):
        try:
            parsed = Metadata(wire.metadata_pairs(headers.fields))
        except ValueError as error:
            raise WhisprError(Code.INTERNAL, f"bad metadata from the server: {error}") from error
        headers.parsed = parsed
    return parsed
