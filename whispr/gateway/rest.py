"""The REST API as an ASGI application: a request in, one RPC, its answer out.

The request runs under one cancel scope: its deadline travels to the service with the call. A client that hangs
up cancels it there too: the server looks after that (`whispr.asgi`), which spares each request a task that listens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

import structlog
import trio
from google.protobuf import descriptor_pool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import HttpError
from whispr.errors import Code, WhisprError, unauthenticated
from whispr.gateway import metrics, protojson, transcode
from whispr.gateway.http import (
    ClientGoneError,
    NoTokenError,
    Proxies,
    error_response,
    json_response,
    read_body,
    request_id,
    tagged_response,
)
from whispr.gateway.transcode import Route, Router
from whispr.identity import ACTOR_KEY, CLIENT_ADDRESS_KEY, VOUCHER_KEY, access_of, service_of
from whispr.resilience.fallback import STALE_KEY
from whispr.rpc.call import Metadata
from whispr.rpc.channel import Channel
from whispr.telemetry import tracing
from whispr.v1 import options_pb2

DEADLINE_S: Final = 5.0
"""From the first byte of a request to the last of its answer."""

_HEADER = re.compile(r"[\x20-\x7e]{1,8300}")
_PASSED_ON = ("traceparent", "tracestate", ACTOR_KEY)
"""The last is for services; beside a person's token it may name nobody else."""

log = structlog.get_logger("whispr.gateway")


class UnaryCall(Protocol):
    """A stub's method with one message each way."""

    async def __call__(self, request: Any, *, metadata: Any = ..., heads: list[Metadata] | None = ...) -> Any:
        """Make the call."""


@dataclass(frozen=True, slots=True)
class RestLimits:
    """What one request may take; 0 lifts a limit of bytes."""

    body_bytes: int = 1024 * 1024
    deadline_s: float = DEADLINE_S


def routes_for(services: Mapping[str, Any]) -> list[Route]:
    """Return the routes of services by short name ("auth"), in the order of the names."""
    routes = []
    for name in services:
        import_module(f"whispr.v1.{name}_pb2")  # Registers its descriptors.
        full_name = f"whispr.v1.{name.capitalize()}Service"
        routes += transcode.routes_of(descriptor_pool.Default().FindServiceByName(full_name))
    return routes


class RestApi:
    """Transcodes requests to calls on `channels`, which are keyed by the short names of their services."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        *,
        voucher: Callable[[], str],
        limits: RestLimits,
        proxies: Proxies,
    ) -> None:
        self.routes = routes_for(channels)
        self._router = Router(self.routes)
        self._voucher = voucher
        self._limits = limits
        self._proxies = proxies
        self._calls: dict[str, UnaryCall] = {
            route.path: channels[service_of(route.path)].unary_unary(route.path, route.input, route.output)
            for route in self.routes
        }
        self._public = {route.path for route in self.routes if access_of(route.path) == options_pb2.PUBLIC}

        self._single = frozenset(route.template for route in self.routes if route.reads_one)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3), in a span of the client's trace, or of a new one."""
        headers = Headers(scope=scope)
        parent = tracing.parse(headers.get("traceparent"), headers.get("tracestate"))
        with tracing.span(scope["method"], tracing.Kind.SERVER, parent=parent) as span:
            measured = await self._serve(scope, receive, send, headers)
            if span is not None:
                span.name = f"{scope['method']} {measured.route}"
                span.set("http.request.method", scope["method"])
                span.set("http.route", measured.route)
                span.set("http.response.status_code", measured.status)
                if measured.status >= 500:
                    span.code = Code.INTERNAL

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> metrics.Measured:
        identifier = request_id(headers)
        request = _Request(scope, headers, receive, identifier)
        with metrics.measured(scope["method"]) as measured:
            try:
                response = await self._answer(request, measured)
            except ClientGoneError:
                measured.status = 499
                return measured
            except trio.Cancelled:
                measured.status = 499  # The server found that the client had gone, or it is stopping.
                raise
            measured.status = response.status_code
            response.headers["x-request-id"] = identifier
            await response(scope, receive, send)
        return measured

    async def _answer(self, request: _Request, measured: metrics.Measured) -> Response:
        """Answer within the deadline, errors included. Raises ClientGoneError."""
        try:
            # Not fail_after, which is two generators more: they cost as much as finding the route.
            with trio.CancelScope(deadline=trio.current_time() + self._limits.deadline_s):
                return await self._call(request, measured)
        except WhisprError as error:
            return error_response(error)
        return error_response(_too_slow(request, self._limits.deadline_s))

    async def _call(self, request: _Request, measured: metrics.Measured) -> Response:
        scope = request.scope
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route, bindings = self._router.match(method, scope["raw_path"].decode("ascii"))
        measured.route = route.template
        metadata = self._metadata(route, request)
        body = await request.body(self._limits.body_bytes)
        message = transcode.request_message(route, bindings, scope["query_string"].decode("latin-1"), body)
        heads: list[Metadata] = []
        answer = await self._calls[route.path](message, metadata=metadata, heads=heads)
        shown = protojson.to_json(answer)
        if route.template in self._single and route.http_method == "GET":
            response = tagged_response(shown, request.headers.get("if-none-match"))
        else:
            response = json_response(shown)
        for head in heads:
            if (age := head.text(STALE_KEY)) is not None:
                response.headers[STALE_KEY] = response.headers["age"] = age
        return response

    def _metadata(self, route: Route, request: _Request) -> list[tuple[str, str]]:
        """What goes with the call. Raises UNAUTHENTICATED where a token is needed and there is none."""
        headers = request.headers
        metadata = [("x-request-id", request.identifier)]
        metadata += [(name, headers[name]) for name in _PASSED_ON if _HEADER.fullmatch(headers.get(name, ""))]
        metadata += self._client(request, needed=route.path in self._public)
        if route.path in self._public:
            return metadata
        authorization = headers.get("authorization", "")
        if not authorization:
            raise NoTokenError
        if not _HEADER.fullmatch(authorization):
            raise unauthenticated("the authorization is malformed")
        return [*metadata, ("authorization", authorization)]

    def _client(self, request: _Request, *, needed: bool) -> list[tuple[str, str]]:
        """Say who the client is, for limits by address, and prove that it is we who say so.

        A gateway that has nothing to prove it with passes on what people sign in for all the same; they then
        share the limits of its own address. Raises FAILED_PRECONDITION when it is `needed`.
        """
        try:
            voucher = self._voucher()
        except WhisprError:
            if needed:
                raise
            return []
        address = self._proxies.client_address(request.scope, request.headers)
        return [(CLIENT_ADDRESS_KEY, address), (VOUCHER_KEY, voucher)]


class _Request:
    """One request, and how much of it has been read."""

    def __init__(self, scope: Scope, headers: Headers, receive: Receive, identifier: str) -> None:
        self.scope = scope
        self.headers = headers
        self.receive = receive
        self.identifier = identifier
        self.unread = True
        """Whether some of the body may still be on its way."""

    async def body(self, bytes_max: int) -> bytes:
        """Read the body; see `read_body`."""
        body = await read_body(self.receive, self.headers, bytes_max)
        self.unread = False
        return body


def _too_slow(request: _Request, deadline_s: float) -> WhisprError:
    if request.unread:
        return HttpError(
            408,
            Code.DEADLINE_EXCEEDED,
            f"the request took over {deadline_s:g} s to arrive",
            "request_timeout",
        )
    return WhisprError(Code.DEADLINE_EXCEEDED, f"no answer within {deadline_s:g} s")
