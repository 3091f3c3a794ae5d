"""The channel: calls to one server, over a connection made when needed and made again when lost.

    async with open_channel("127.0.0.1:50053") as channel:
        stub = AuthServiceStub(channel)
        with trio.fail_after(5):
            reply = await stub.Login(request, metadata=[("x-request-id", "…")])

There are no timeout parameters. The deadline sent is the effective one of the calling task; when it passes,
or the task is cancelled otherwise, the call is reset and Trio's Cancelled goes on to the scope it belongs
to. What a call itself fails with is WhisprError.

purerpc's own generated stubs work on a Channel too: `_host`, `_port` and `_grpc_socket` are what they need.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio
from google.protobuf.message import Message

from whispr import __version__
from whispr.errors import WhisprError, unavailable
from whispr.http2.headers import encode
from whispr.rpc import wire
from whispr.rpc.client_connection import ClientConnection
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.limits import RpcLimits
from whispr.rpc.purerpc_socket import PurerpcSocket
from whispr.rpc.stubs import StreamStream, StreamUnary, UnaryStream, UnaryUnary

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

Connect = Callable[[], Awaitable[trio.abc.Stream]]

_BACKOFF_FACTOR = 1.6
_BACKOFF_JITTER = 0.2


class _Attempt:
    """One attempt to connect, shared by the calls that wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failed = False


class Channel:
    """Made by `open_channel`."""

    def __init__(
        self,
        target: str,
        connect: Connect,
        nursery: trio.Nursery,
        interceptors: Sequence[Interceptor],
        limits: RpcLimits,
        wait_for_ready: bool,
    ) -> None:
        self.target = target
        self.interceptors = tuple(interceptors)
        self.limits = limits
        self._connect = connect
        self._nursery = nursery
        self._wait_for_ready = wait_for_ready
        self._connection: ClientConnection | None = None
        self._attempt: _Attempt | None = None
        self._failures = 0
        self._last_failure = ""
        self._retry_at = -float("inf")
        self._heads: dict[str, bytes] = {}
        self._host, _, self._port = target.rpartition(":")
        self._grpc_socket = PurerpcSocket(self)

    # --- Typed methods, for generated stubs ---------------------------------------------------------------

    def unary_unary(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> UnaryUnary[RequestT, ResponseT]:
        """One message each way."""
        return UnaryUnary(self, method, response)

    def unary_stream(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> UnaryStream[RequestT, ResponseT]:
        """One message there, many back."""
        return UnaryStream(self, method, response)

    def stream_unary(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> StreamUnary[RequestT, ResponseT]:
        """Many messages there, one back."""
        return StreamUnary(self, method, response)

    def stream_stream(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> StreamStream[RequestT, ResponseT]:
        """Many messages each way."""
        return StreamStream(self, method, response)

    # --- Connections --------------------------------------------------------------------------------------

    def head_block(self, method: str) -> bytes:
        """The part of a request's header block that is the same for every call of a method."""
        block = self._heads.get(method)
        if block is None:
            block = self._heads[method] = encode(
                [
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", method),
                    (":authority", "localhost" if self.target.startswith("unix:") else self.target),
                    ("te", "trailers"),
                    ("content-type", wire.CONTENT_TYPE),
                    ("user-agent", f"whispr-rpc/{__version__}"),
                ]
            )
        return block

    def connection_now(self) -> ClientConnection | None:
        """The connection, if a call may start on it at once."""
        connection = self._connection
        return connection if connection is not None and connection.free() else None

    async def connection(self) -> ClientConnection:
        """A connection on which a stream may be opened, waiting for either.

        Raises WhisprError UNAVAILABLE when connecting fails or failed a moment ago, unless the channel waits
        for ready; RESOURCE_EXHAUSTED when too many calls wait.
        """
        while True:
            connection = self._connection
            if connection is None or not connection.usable:
                await self._connected()
            elif connection.free() or await connection.wait_for_stream():
                return connection

    async def _connected(self) -> None:
        """Wait for the attempt under way, beginning one when it is time."""
        if self._attempt is None and trio.current_time() < self._retry_at:
            if not self._wait_for_ready:
                raise self._unreachable()
            await trio.sleep_until(self._retry_at)
            return
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt()
            self._nursery.start_soon(self._try_to_connect, attempt)
        await attempt.done.wait()
        if attempt.failed and not self._wait_for_ready:
            raise self._unreachable()

    def _unreachable(self) -> WhisprError:
        # Rounded up to the milliseconds that the detail carries: who waits that long must not be early.
        wait_s = self._retry_at - trio.current_time() + 0.001
        return unavailable(f"{self.target}: {self._last_failure}", retry_after_s=wait_s)

    async def _try_to_connect(self, attempt: _Attempt) -> None:
        try:
            with trio.fail_after(self.limits.handshake_s):
                self._connection = await self._new_connection()
            self._failures = 0
        except trio.TooSlowError:
            self._failed(attempt, f"no connection within {self.limits.handshake_s:g} s")
        except (OSError, trio.BrokenResourceError) as error:
            self._failed(attempt, str(error))
        self._attempt = None
        attempt.done.set()

    def _failed(self, attempt: _Attempt, failure: str) -> None:
        attempt.failed = True
        self._last_failure = failure
        self._retry_at = trio.current_time() + self._backoff_s()
        self._failures += 1

    async def _new_connection(self) -> ClientConnection:
        connection = ClientConnection(await self._connect(), self.target, self.limits)
        self._nursery.start_soon(connection.run)
        try:
            await connection.settled.wait()
        except trio.Cancelled:
            connection.kill("no HTTP/2 settings in time")
            raise
        if connection.lost is not None:
            raise trio.BrokenResourceError(connection.lost)
        return connection

    def _backoff_s(self) -> float:
        """How long to leave the server alone (grpc/doc/connection-backoff.md)."""
        limits = self.limits
        plain_s = min(limits.backoff_s * _BACKOFF_FACTOR**self._failures, limits.backoff_s_max)
        jitter = random.uniform(-_BACKOFF_JITTER, _BACKOFF_JITTER)  # noqa: S311  # nobody gains by guessing it
        return plain_s * (1 + jitter)


@asynccontextmanager
async def open_channel(
    target: str,
    *,
    interceptors: Sequence[Interceptor] = (),
    limits: RpcLimits = RpcLimits(),  # noqa: B008  # frozen
    wait_for_ready: bool = False,
    connect: Connect | None = None,
) -> AsyncIterator[Channel]:
    """A channel to `target`: "host:port", "[v6 address]:port" or "unix:/path".

    Connects with the first call. While the server cannot be reached calls fail with UNAVAILABLE, or, with
    `wait_for_ready`, wait as long as their scopes let them. `connect` replaces how a byte stream is had.
    Calls still going when the block ends fail with UNAVAILABLE. Raises ValueError for a target it cannot read.
    """
    dial = connect or _dialler(target)
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield Channel(target, dial, nursery, interceptors, limits, wait_for_ready)
            except BaseException as error:
                body_error = error
                raise
            finally:
                nursery.cancel_scope.cancel(reason="the channel was closed")
    except BaseExceptionGroup as group:
        # The nursery is ours, so the block's own error leaves without the group it would put around it.
        if body_error is not None and group.exceptions == (body_error,):
            raise body_error from body_error.__cause__
        raise


def _dialler(target: str) -> Connect:
    if target.startswith("unix:"):
        path = target.removeprefix("unix:").removeprefix("//")
        return partial(trio.open_unix_socket, path)
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"target {target!r} is not host:port or unix:path")
    return partial(trio.open_tcp_stream, host.strip("[]"), int(port))
