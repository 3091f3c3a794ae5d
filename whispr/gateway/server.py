"""The gateway: one HTTP listener for the REST API and the pages around it.

The seam to the HTTP server, `whispr.asgi`, is ASGI. What the server refuses by itself, and what goes wrong in
the application, is answered as the API answers: in JSON, with a code and a reason.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whispr import __version__
from whispr.asgi import HttpLimits, HttpServer, Refusal, Rendered
from whispr.asgi.errors import ERROR_HEADERS, HttpError
from whispr.asgi.wire import ClientGoneError
from whispr.errors import Code, WhisprError, conflict
from whispr.gateway import metrics, openapi
from whispr.gateway.http import Proxies, error_response, request_id
from whispr.gateway.page_files import Places
from whispr.gateway.pages import Exposition, Readiness, own_metrics, page_routes
from whispr.gateway.rest import RestApi, RestLimits
from whispr.rpc.channel import Channel
from whispr.rpc.tls import TlsFiles

_TUS_SENDS = (
    "tus-resumable", "upload-offset", "upload-length", "upload-metadata", "upload-checksum",
    "x-http-method-override", "range", "if-range",
)  # fmt: skip
_TUS_SAYS = (
    "tus-resumable", "tus-version", "tus-extension", "tus-max-size", "upload-offset", "upload-length",
    "upload-expires", "content-range", "content-disposition", "etag",
)  # fmt: skip
"""Headers of the endpoints that take and give bytes (tus 1.0.0, and ranges)."""


class ListenError(OSError):
    """The address cannot be had; the message names it and the settings that choose it."""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What an operator may choose."""

    rest: RestLimits = field(default_factory=RestLimits)
    http: HttpLimits = field(default_factory=HttpLimits)
    """Of bodies it has none to say: those are the API's and the endpoints' matter, who know what they are for."""
    tls: TlsFiles | None = None
    """HTTPS instead of HTTP, with a certificate that may be replaced at any time."""
    drain_s: float = 5.0
    """How long a drain waits for requests in flight."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API; none by default, `*` for all."""
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a service in this process serves over HTTP by itself, past the API: bytes, not messages.

    It answers requests whose path matches as a whole. WhisprErrors that it raises before it has begun to answer
    are worded by the gateway.
    """

    name: str
    """What it is called in metrics."""
    path: re.Pattern[str]
    app: ASGIApp
    answers_origins: bool = False
    """Whether it looks after foreign pages (CORS) by itself; of errors, by `ERROR_HEADERS`."""


class Gateway:
    """REST, health, metrics and documentation over HTTP."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        *,
        readiness: Readiness,
        voucher: Callable[[], str],
        options: GatewayOptions | None = None,
        endpoints: Sequence[Endpoint] = (),
        exposition: Exposition = own_metrics,
        places: Places | None = None,
    ) -> None:
        """`channels`: a channel to each service, by short name ("auth"). `voucher`: returns a service token."""
        self._options = options or GatewayOptions()
        rest = RestApi(
            channels,
            voucher=voucher,
            limits=self._options.rest,
            proxies=Proxies(self._options.trusted_proxies),
        )
        document = openapi.document(rest.routes, openapi.load_comments(), __version__)
        pages = _starlette(page_routes(document, readiness, exposition, places), rest)
        shared = [endpoint for endpoint in endpoints if not endpoint.answers_origins]
        front: ASGIApp = _with_cors(_Front(rest, pages, shared), self._options.cors_origins)
        own = [endpoint for endpoint in endpoints if endpoint.answers_origins]
        self.app: ASGIApp = _Front(front, front, own) if own else front
        self._server = HttpServer(self.app, self._options.http, render=_refused)

    async def serve(
        self,
        host: str,
        port: int,
        *,
        shared: bool = False,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on `host` and `port`, 0 for a free one, `shared` as `open_tcp` says; reports the port.

        Returns after a drain.

        Raises ListenError when the address cannot be had, FAILED_PRECONDITION (bad_setting) for a certificate that
        cannot be used.
        """
        tls = self._options.tls
        try:
            if tls is not None:
                tls.server_context()  # better now than with the first client
        except OSError as error:  # ssl.SSLError is one
            told = f"WHISPR_GATEWAY_TLS_CERTIFICATE, WHISPR_GATEWAY_TLS_KEY: {error}"
            raise conflict(told, "bad_setting") from error
        try:
            make = None if tls is None else tls.server_context
            await self._server.serve_tcp(host, port, tls=make, shared=shared, task_status=task_status)
        except OSError as error:
            raise _listen_error(error, host, port) from error

    async def drain(self) -> None:
        """Stop listening and return once requests in flight are answered, or `drain_s` later."""
        with trio.move_on_after(self._options.drain_s):
            await self._server.drain()


def _refused(refusal: Refusal) -> Rendered:
    """Word what the server answers by itself as the API words its errors."""
    code = Code.INTERNAL if refusal.status == 500 else Code.INVALID_ARGUMENT
    if refusal.status == 503:
        code = Code.UNAVAILABLE
    response = error_response(HttpError(refusal.status, code, refusal.message, refusal.reason))
    return b"application/json", bytes(response.body)


class _Front:
    """Sends API requests straight to the API, past the routing of pages, which costs more than the API's own."""

    def __init__(self, rest: ASGIApp, pages: ASGIApp, endpoints: Sequence[Endpoint]) -> None:
        self._rest = rest
        self._pages = pages
        self._endpoints = [(endpoint.path, _worded(endpoint)) for endpoint in endpoints]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app_for(scope["path"])(scope, receive, send)

    def _app_for(self, path: str) -> ASGIApp:
        for pattern, app in self._endpoints:
            if pattern.fullmatch(path):
                return app
        return self._rest if path.startswith("/v1/") else self._pages


def _worded(endpoint: Endpoint) -> ASGIApp:
    """Answer errors of an endpoint as the API words its own, and count its requests among the API's."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                measured.status = message["status"]
            await send(message)

        with metrics.measured(scope["method"]) as measured:
            measured.route = endpoint.name
            try:
                await endpoint.app(scope, receive, noting)
            except ClientGoneError:
                measured.status = 499
                raise
            except WhisprError as error:
                if begun:
                    raise
                response = error_response(error)
                response.headers.update(scope.get(ERROR_HEADERS, {}))
                response.headers["x-request-id"] = request_id(Headers(scope=scope))
                await response(scope, receive, noting)

    return serve


def _starlette(pages: list[Route], rest: RestApi) -> Starlette:
    app = Starlette(routes=pages, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    app.router.default = rest
    return app


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own: a page asked for by another method than GET."""
    assert isinstance(error, HTTPException)
    shown = HttpError(error.status_code, Code.UNIMPLEMENTED, error.detail, reason="method_not_allowed")
    response = error_response(shown)
    response.headers.update(error.headers or {})
    return response


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=(
            "authorization",
            "content-type",
            "if-none-match",
            "x-request-id",
            "traceparent",
            *_TUS_SENDS,
        ),
        expose_headers=("retry-after", "x-request-id", "www-authenticate", *_TUS_SAYS),
        max_age=600,
    )


def _listen_error(error: OSError, host: str, port: int) -> ListenError:
    where = f"{host or '*'}:{port}"
    if isinstance(error, socket.gaierror):
        return ListenError(error.errno, f"{host!r} (WHISPR_GATEWAY_HOST): {error.strerror}")
    if error.errno == errno.EADDRINUSE:
        message = f"port {port} is in use ({where}): set WHISPR_GATEWAY_PORT to another, 0 for a free one"
    else:
        message = f"cannot listen on {where}: {error.strerror} (WHISPR_GATEWAY_HOST, WHISPR_GATEWAY_PORT)"
    return ListenError(error.errno, message)
