"""The gateway: one HTTP listener for the REST API and the pages around it.

The seam to the HTTP server is ASGI; the server is hypercorn's Trio worker. Its socket is bound here, so that
port 0 works and a port in use is an error that names the setting; its signal handlers are not used, and what
it has to say goes to our log.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import hypercorn
import hypercorn.trio
import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whispr import __version__
from whispr.errors import Code, internal
from whispr.gateway import openapi
from whispr.gateway.http import HttpError, Proxies, error_response
from whispr.gateway.pages import Readiness, page_routes
from whispr.gateway.rest import RestApi, RestLimits
from whispr.rpc.channel import Channel

BACKLOG = 1024
HEADERS_BYTES_MAX = 16 * 1024
KEEP_ALIVE_S = 30.0
"""An idle connection, or one that is slow to send its headers, is closed after this."""

log = structlog.get_logger("whispr.gateway")


class ListenError(OSError):
    """The address cannot be had; the message names it and the settings that choose it."""


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What an operator may choose."""

    rest: RestLimits = field(default_factory=RestLimits)
    headers_bytes: int = HEADERS_BYTES_MAX
    drain_s: float = 5.0
    """How long a drain waits for requests in flight."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API; none by default, `*` for all."""
    trusted_proxies: tuple[str, ...] = ()


class Gateway:
    """REST, health, metrics and documentation over HTTP."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        *,
        readiness: Readiness,
        voucher: Callable[[], str],
        options: GatewayOptions | None = None,
    ) -> None:
        """`channels`: a channel to each service, by short name ("auth"). `voucher`: returns a service token."""
        self._options = options or GatewayOptions()
        self._draining = trio.Event()
        self._drained = trio.Event()
        rest = RestApi(
            channels,
            voucher=voucher,
            limits=self._options.rest,
            proxies=Proxies(self._options.trusted_proxies),
        )
        document = openapi.document(rest.routes, openapi.load_comments(), __version__)
        self.app: ASGIApp = _Guard(_starlette(page_routes(document, readiness), rest, self._options))

    async def serve(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on `host` and `port`, 0 for a free one; reports the port. Returns after a drain.

        Raises ListenError when the address cannot be had.
        """
        listener = await _listener(host, port)
        bound: int = listener.getsockname()[1]
        config = _config(listener, self._options)

        async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await hypercorn.trio.serve(
                self.app,  # type: ignore[arg-type]  # Starlette and hypercorn spell ASGI's types differently
                config,
                shutdown_trigger=self._draining.wait,
                task_status=task_status,
                mode="asgi",
            )

        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve)
                task_status.started(bound)
        finally:
            self._drained.set()

    async def drain(self) -> None:
        """Stop listening and return once requests in flight are answered, or `drain_s` later."""
        self._draining.set()
        await self._drained.wait()


class _Guard:
    """Outermost: what goes wrong inside becomes INTERNAL without internals, and one logged traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            # WebSockets have a listener of their own; closed before it is accepted, an upgrade gets 403.
            await send({"type": "websocket.close"})
            return
        started = False

        async def noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting_start)
        except Exception as error:  # a defect must cost one request, not the listener
            log.error("request_failed", method=scope["method"], path=scope["path"], exc_info=error)
            if not started:
                await error_response(internal("internal error"))(scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing here starts or stops with the server."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


def _starlette(pages: list[Route], rest: RestApi, options: GatewayOptions) -> Starlette:
    app = Starlette(
        routes=pages,
        middleware=_cors(options.cors_origins),
        exception_handlers={HTTPException: _http_error, Exception: _internal_error},
    )
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


async def _internal_error(_: Request, __: Exception) -> Response:
    return error_response(internal("internal error"))


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("authorization", "content-type", "x-request-id", "traceparent"),
            expose_headers=("retry-after", "x-request-id", "www-authenticate"),
            max_age=600,
        )
    ]


async def _listener(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises ListenError."""
    where = f"{host or '*'}:{port}"
    try:
        found = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenError(error.errno, f"{host!r} (WHISPR_GATEWAY_HOST): {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is in use ({where}): set WHISPR_GATEWAY_PORT to another, 0 for a free one"
        else:
            message = f"cannot listen on {where}: {error.strerror} (WHISPR_GATEWAY_HOST, WHISPR_GATEWAY_PORT)"
        raise ListenError(error.errno, message) from error
    return listener


def _config(listener: socket.socket, options: GatewayOptions) -> hypercorn.Config:
    """Return hypercorn's settings; it owns the listener from now on."""
    logger = logging.getLogger("whispr.gateway.http")
    logger.setLevel(logging.WARNING)  # Its "Running on … (CTRL + C to quit)" is not ours to say.
    config = hypercorn.Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = logger
    config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = options.drain_s
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = options.headers_bytes
    return config
