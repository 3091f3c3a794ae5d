"""A server's methods, out of purerpc servicers, and what a request's head asks of them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import purerpc

from whispr.errors import Code, WhisprError
from whispr.http2.headers import Headers, encode
from whispr.rpc import compression, wire
from whispr.rpc.call import NO_METADATA, Metadata
from whispr.rpc.compression import Encoding
from whispr.rpc.interceptors import Interceptor, Observer, split, surrounded

if TYPE_CHECKING:
    from whispr.rpc.server_call import ServerCall


@dataclass(slots=True, eq=False)
class Method:
    """One method: how to read its requests and run its handler."""

    name: str
    """Full name, as in "/whispr.v1.AuthService/Login"."""
    parse_request: Callable[[bytes], Any]
    run: Callable[[ServerCall], Awaitable[Any]]
    """Runs the handler; returns the response of a method that gives one, and sends those of one that streams."""
    takes_one: bool
    """A request is one message."""
    streams_response: bool
    observers: tuple[Observer, ...] = ()
    """Told of how each call ends."""
    waits: bool = False
    """Whether the last call had to wait, as the next one then probably has to."""


def method_table(
    servicers: Iterable[purerpc.Servicer], interceptors: Sequence[Interceptor] = ()
) -> dict[str, Method]:
    """Every method of `servicers` by full name, inside the interceptors.

    Raises ValueError when two servicers share a name.
    """
    table: dict[str, Method] = {}
    for servicer in servicers:
        service = servicer.service
        for name, bound in service.methods.items():
            method = _method(f"/{service.name}/{name}", bound.method_fn, bound.signature, interceptors)
            if table.setdefault(method.name, method) is not method:
                raise ValueError(f"two servicers offer {method.name}")
    return table


def _method(
    name: str,
    function: Callable[..., Any],
    signature: purerpc.RPCSignature,
    interceptors: Sequence[Interceptor],
) -> Method:
    cardinality = signature.cardinality.name
    observers, others = split(interceptors)
    return Method(
        name,
        signature.request_type.FromString,
        surrounded(others, partial(_RUNNERS[cardinality], function)),
        cardinality.startswith("UNARY"),
        cardinality.endswith("STREAM"),
        observers,
    )


# purerpc calls a handler as `function(message or messages, request=...)`; our call takes the place of its
# request event. A streamed request is the call itself, iterated.


def _unary_unary(function: Callable[..., Awaitable[Any]], call: ServerCall) -> Awaitable[Any]:
    request = call.receive_now()
    return _unary_unary_later(function, call) if request is None else function(request, request=call)


async def _unary_unary_later(function: Callable[..., Awaitable[Any]], call: ServerCall) -> Any:
    return await function(await call.receive_one(), request=call)


async def _stream_unary(function: Callable[..., Awaitable[Any]], call: ServerCall) -> Any:
    return await function(call, request=call)


async def _unary_stream(function: Callable[..., AsyncIterator[Any]], call: ServerCall) -> None:
    request = call.receive_now()
    if request is None:
        request = await call.receive_one()
    await _send_all(function(request, request=call), call)


async def _stream_stream(function: Callable[..., AsyncIterator[Any]], call: ServerCall) -> None:
    await _send_all(function(call, request=call), call)


_RUNNERS: Mapping[str, Callable[[Callable[..., Any], ServerCall], Awaitable[Any]]] = {
    "UNARY_UNARY": _unary_unary,
    "UNARY_STREAM": _unary_stream,
    "STREAM_UNARY": _stream_unary,
    "STREAM_STREAM": _stream_stream,
}


async def _send_all(messages: Any, call: ServerCall) -> None:
    if inspect.iscoroutine(messages):
        # A handler without a `yield`, such as the default that purerpc's own plugin writes.
        messages = await messages
    closing = aclosing(messages) if hasattr(messages, "aclose") else nullcontext()
    async with closing:
        async for message in messages:
            await call.send(message)


# --- Heads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request that can be served."""

    method: Method
    timeout_s: float | None
    metadata: Metadata
    encoding: Encoding | None
    """Of the messages that are flagged as compressed."""
    accepts: frozenset[str]
    """Encodings that responses may have."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot: the header block that answers it, or for HTTP clients all of a response."""

    error: WhisprError
    block: bytes
    body: bytes = b""
    trailers: bytes = b""


def _refuse(error: WhisprError, more: Iterable[tuple[str, str]] = ()) -> Refusal:
    head = [(":status", "200"), ("content-type", wire.CONTENT_TYPE)]
    return Refusal(error, encode([*head, *wire.status_fields(error), *more]))


def _refuse_http(headers: Headers, error: WhisprError, http_status: int) -> Refusal:
    """Say it in words that a person with a browser or curl sees; the status is for a gRPC client gone astray."""
    head = [(":status", str(http_status)), ("content-type", "text/plain; charset=utf-8")]
    if headers.get(":method") == "HEAD":
        return Refusal(error, encode([*head, *wire.status_fields(error)]))
    return Refusal(error, encode(head), f"{error.message}\n".encode(), encode(wire.status_fields(error)))


def read_head(headers: Headers, methods: Mapping[str, Method]) -> RequestHead | Refusal:
    """Judge a request by its header fields.

    `te: trailers` is not insisted on: proxies lose it, and nothing here depends on it.
    """
    if headers.get(":method") != "POST":
        return _refuse_http(headers, WhisprError(Code.INTERNAL, "gRPC requests are POST requests"), 405)
    content_type = headers.get("content-type")
    if not wire.is_grpc(content_type):
        wrong_type = WhisprError(Code.INTERNAL, f"content-type {content_type!r} is not gRPC")
        return _refuse_http(headers, wrong_type, 415)
    encoding = headers.get("grpc-encoding")
    if not compression.known(encoding):
        unknown = WhisprError(Code.UNIMPLEMENTED, f"grpc-encoding {encoding!r} is not supported")
        return _refuse(unknown, more=[("grpc-accept-encoding", compression.ACCEPTED)])
    path = headers.get(":path") or ""
    method = methods.get(path)
    if method is None:
        return _refuse(WhisprError(Code.UNIMPLEMENTED, f"unknown method {path}"))
    try:
        timeout = headers.get("grpc-timeout")
        timeout_s = None if timeout is None else wire.parse_timeout(timeout)
        pairs = wire.metadata_pairs(headers.fields)
    except ValueError as error:
        return _refuse(WhisprError(Code.INTERNAL, str(error)))
    return RequestHead(
        method,
        timeout_s,
        Metadata(pairs) if pairs else NO_METADATA,
        compression.named(encoding),
        compression.accepted(headers.get("grpc-accept-encoding")),
    )
