"""What the attributes of a generated stub are: one class for each call kind.

Calls with one message each way are awaited. The others are entered, which keeps the whole life of the call
visible: leaving the block early, by an exception or a `break`, resets the call.

    async with stub.Chat(metadata=[...]) as call:
        await call.send(message)
        await call.done_sending()
        async for reply in call:
            ...

Each takes `wait_for_ready`, whether to wait for a server that cannot be reached, and `compression` of what it
sends: "gzip", "deflate" or "identity". None is as the channel says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from google.protobuf.message import DecodeError, Message

from whispr.errors import Code, WhisprError
from whispr.rpc.call import NO_METADATA, Metadata
from whispr.rpc.client_call import ClientCall
from whispr.rpc.interceptors import Surrounding, surrounded
from whispr.rpc.wire import MetadataPairs

if TYPE_CHECKING:
    from whispr.rpc.channel import Channel
    from whispr.rpc.guard import Guard

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class _Method(Generic[RequestT, ResponseT]):
    """What a stub knows of a method."""

    def __init__(self, channel: Channel, name: str, response: type[ResponseT]) -> None:
        self._channel = channel
        self._name = name
        self._response = response
        self._guard = channel.guard(name)

    def _new_call(
        self, metadata: MetadataPairs, wait_for_ready: bool | None, compression: str | None
    ) -> ClientCall:
        given = Metadata(metadata) if metadata else NO_METADATA
        return ClientCall(self._channel, self._name, given, wait_for_ready, compression)


class UnaryUnary(_Method[RequestT, ResponseT]):
    """One message each way: `reply = await stub.M(request)`."""

    def __init__(self, channel: Channel, name: str, response: type[ResponseT]) -> None:
        super().__init__(channel, name, response)
        # Put together once: to find out what each interceptor is takes as long as a third of a call.
        self._inside: Callable[[ClientCall], Awaitable[ResponseT]] = surrounded(
            channel.interceptors, self._perform
        )

    async def __call__(
        self,
        request: RequestT,
        *,
        metadata: MetadataPairs = (),
        wait_for_ready: bool | None = None,
        compression: str | None = None,
        heads: list[Metadata] | None = None,
    ) -> ResponseT:
        """Make the call, through the channel's policies if it has any.

        The response's initial metadata is added to `heads`, if there is any. Raises WhisprError with the status it
        ends with, ValueError for bad metadata.
        """
        call = self._new_call(metadata, wait_for_ready, compression)
        call.heads = heads
        guard = self._guard
        call.message = request
        if guard is None:
            return await self._inside(call)
        target = guard.target
        bulkhead = target.bulkhead
        short = target.calm and bulkhead.in_flight < guard.in_flight_max
        if not short:
            return await guard.run(_Attempts(self, request, metadata, wait_for_ready, compression, heads, 0))
        bulkhead.in_flight += 1
        ticket = target.breaker.ticket
        call.limit_s = guard.limit_s
        try:
            response = await self._inside(call)
        except WhisprError as error:
            guard.failed(ticket, error)
            failure = error
        except BaseException:
            guard.given_up(ticket, call)
            raise
        else:
            if target.calm and not bulkhead.line:
                bulkhead.in_flight -= 1
            else:
                guard.succeeded(ticket)
            return response
        again = _Attempts(self, request, metadata, wait_for_ready, compression, heads, 1)
        return await guard.resume(failure, call, again)

    def another(
        self,
        request: RequestT,
        metadata: MetadataPairs,
        wait_for_ready: bool | None,
        compression: str | None,
        heads: list[Metadata] | None,
        previous: int,
    ) -> Awaitable[ResponseT]:
        """Begin one attempt after `previous` ones; no coroutine of its own, which all its waits would go through."""
        call = self._new_call(metadata, wait_for_ready, compression)
        call.message, call.previous_attempts, call.heads = request, previous, heads
        return self._inside(call)

    async def _perform(self, call: ClientCall) -> ResponseT:
        assert call.message is not None, "given before the call is made"
        await call.start(call.message.SerializeToString())
        try:
            response = parse(self._response, await call.receive_only())
        finally:
            call.abandon()
        if call.heads is not None and call.initial_metadata:
            call.heads.append(call.initial_metadata)
        return response


class _Attempts(Generic[RequestT, ResponseT]):
    """Makes a call again and again; tells the server how often before (gRFC A6, "Exposed Retry Metadata")."""

    __slots__ = ("_given", "_made", "_method")

    def __init__(
        self,
        method: UnaryUnary[RequestT, ResponseT],
        request: RequestT,
        metadata: MetadataPairs,
        wait_for_ready: bool | None,
        compression: str | None,
        heads: list[Metadata] | None,
        made: int,
    ) -> None:
        self._method = method
        self._given = request, metadata, wait_for_ready, compression, heads
        self._made = made

    def __call__(self) -> Awaitable[ResponseT]:
        """Begin the next attempt."""
        self._made += 1
        return self._method.another(*self._given, self._made - 1)


class UnaryStream(_Method[RequestT, ResponseT]):
    """One message there, many back: `async with stub.M(request) as call: async for message in call`."""

    def __call__(
        self,
        request: RequestT,
        *,
        metadata: MetadataPairs = (),
        wait_for_ready: bool | None = None,
        compression: str | None = None,
    ) -> ReceivingCall[ResponseT]:
        """Returns the call, to be entered."""
        return ReceivingCall(
            self._channel,
            self._new_call(metadata, wait_for_ready, compression),
            self._response,
            request,
            guard=self._guard,
        )


class StreamUnary(_Method[RequestT, ResponseT]):
    """Many messages there, one back: `async with stub.M() as call: …; reply = await call.response()`."""

    def __call__(
        self,
        *,
        metadata: MetadataPairs = (),
        wait_for_ready: bool | None = None,
        compression: str | None = None,
    ) -> SendingCall[RequestT, ResponseT]:
        """Returns the call, to be entered."""
        return SendingCall(
            self._channel,
            self._new_call(metadata, wait_for_ready, compression),
            self._response,
            guard=self._guard,
        )


class StreamStream(_Method[RequestT, ResponseT]):
    """Many messages each way."""

    def __call__(
        self,
        *,
        metadata: MetadataPairs = (),
        wait_for_ready: bool | None = None,
        compression: str | None = None,
    ) -> BidirectionalCall[RequestT, ResponseT]:
        """Returns the call, to be entered."""
        return BidirectionalCall(
            self._channel,
            self._new_call(metadata, wait_for_ready, compression),
            self._response,
            guard=self._guard,
        )


class StreamingCall(Generic[ResponseT]):
    """A call in a block of its own. Entering starts it; leaving ends it, by a reset if need be."""

    def __init__(
        self,
        channel: Channel,
        call: ClientCall,
        response: type[ResponseT],
        request: Message | None = None,
        guard: Guard | None = None,
    ) -> None:
        self._call = call
        self._guard = guard
        self._ticket = 0
        self._response = response
        self._request = request
        self._around = Surrounding(channel.interceptors, call) if channel.interceptors else None

    async def __aenter__(self) -> Self:
        """Raises WhisprError when the call cannot start, ValueError for bad metadata."""
        if self._guard is not None:
            self._ticket = self._guard.admit()
        try:
            if self._around is not None:
                await self._around.enter()
        except BaseException:
            self._tell_guard()
            raise
        try:
            await self._call.start()
            if self._request is not None:
                self._call.send_last(self._request.SerializeToString())
        except BaseException as error:
            self._tell_guard()
            if self._around is not None:
                await self._around.exit(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Reset the call unless it has ended."""
        self._tell_guard()
        self._call.abandon()
        if self._around is not None:
            await self._around.exit(error)

    def _tell_guard(self) -> None:
        if self._guard is not None:
            self._guard.stream_ended(self._ticket, self._call)

    async def initial_metadata(self) -> Metadata:
        """The server's initial metadata, once it has come. Raises the call's error."""
        return await self._call.receive_head()

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last had come compressed."""
        return self._call.received_compressed

    @property
    def trailing_metadata(self) -> Metadata:
        """The server's trailing metadata; empty until the call has ended."""
        return self._call.trailing_metadata


class ReceivingCall(StreamingCall[ResponseT]):
    """Messages from the server: iterate it. Raises WhisprError with the status the call ends with."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ResponseT:
        message = await self._call.receive()
        if message is None:
            raise StopAsyncIteration
        return parse(self._response, message)


class SendingCall(StreamingCall[ResponseT], Generic[RequestT, ResponseT]):
    """Messages to the server."""

    async def send(self, message: RequestT, *, compress: bool = True) -> None:
        """Send one message, waiting while the server is slow. Raises the call's error once it has failed.

        `compress` it, if the call has an encoding.
        """
        self._call.compress = compress
        await self._call.send(message.SerializeToString())

    async def done_sending(self) -> None:
        """Half-close: the server sees the end of the request."""
        self._call.send_end()

    async def response(self) -> ResponseT:
        """Half-close, and wait for the one response. Raises WhisprError with the status the call ends with."""
        self._call.send_end()
        return parse(self._response, await self._call.receive_only())


class BidirectionalCall(
    ReceivingCall[ResponseT], SendingCall[RequestT, ResponseT], Generic[RequestT, ResponseT]
):
    """Messages both ways, in any order; send from one task and iterate from another if need be."""


def parse(kind: type[ResponseT], message: bytes) -> ResponseT:
    """Raises WhisprError INTERNAL when the server sent something else."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise WhisprError(Code.INTERNAL, "a response message does not parse") from error
