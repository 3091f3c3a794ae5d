"""The server: accepts connections, and gives each a task."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import structlog
import trio

from whispr.asgi import metrics
from whispr.asgi.connection import App, Connection, Serving
from whispr.asgi.limits import HttpLimits
from whispr.asgi.poller import Poller
from whispr.asgi.refusals import Refusal, Renderer, plain
from whispr.asgi.request import ASGI, EXTENSIONS
from whispr.asgi.response import refusal_bytes
from whispr.asgi.wire import LINGER_S, ClientGoneError, SocketWire, StreamWire, Wire
from whispr.tcp_sockets import open_tcp
from whispr.unix_sockets import open_unix_listener

WATCH_S: Final = 0.25
"""How often connections are looked after. A task, or even a deadline, for each request would cost more than the
rest of a small one. So a client that leaves is noticed within twice this, unless the application listens for
it, and an idle connection closed within this after its time."""

REFUSING_MAX: Final = 100
"""How many connections over the limit are told so at a time; beyond, they are closed without a word."""

MakeContext = Callable[[], ssl.SSLContext]

log = structlog.get_logger("whispr.http")


class HttpServer:
    """Serves an ASGI 3 application over HTTP/1.1. It may listen in several places at once."""

    def __init__(
        self,
        app: App,
        limits: HttpLimits = HttpLimits(),  # noqa: B008 - frozen
        *,
        render: Renderer = plain,
        server_header: str = "",
    ) -> None:
        """`render` words the answers that the server gives itself. `server_header`: none is sent if empty."""
        self._serving = Serving(app, limits, render, server_header.encode("ascii"))
        self._limits = limits
        self._connections: set[Connection] = set()
        self._nurseries: set[trio.Nursery] = set()
        self._accepting: set[trio.CancelScope] = set()
        self._open = 0
        """Connections, those that are still in their TLS handshake included."""
        self._refusing = 0
        self._closed = trio.Event()
        self._draining = False

    async def serve_tcp(
        self,
        host: str,
        port: int,
        *,
        tls: MakeContext | None = None,
        shared: bool = False,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on `host` and `port`, 0 for a free one; reports the port. Returns after a drain.

        `tls` is asked for each connection, so that certificates can be replaced. `shared` is `open_tcp`'s. Raises
        OSError when the address cannot be had.
        """
        listeners = await open_tcp(host, port, shared=shared)
        bound: int = listeners[0].socket.getsockname()[1]
        await self._serve(listeners, lambda: task_status.started(bound), tls)

    async def serve_unix(
        self, path: str | os.PathLike[str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on a Unix socket that its owner alone may connect to. Returns after a drain. Raises OSError."""
        listener = await open_unix_listener(os.fspath(path))
        try:
            await self._serve([listener], task_status.started, None)
        finally:
            if os.path.exists(path):  # noqa: ASYNC240 - a local file, at shutdown
                os.unlink(path)

    async def serve_handed(
        self,
        *,
        task_status: trio.TaskStatus[
            Callable[[trio.SocketStream], Awaitable[None]]
        ] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve connections that somebody else accepts; reports what is to be called, and awaited, with each."""
        async with trio.open_nursery() as watching:
            watching.start_soon(self._look_after)
            poller = Poller()
            watching.start_soon(poller.run)
            task_status.started(partial(self._accepted, tls=None, poller=poller))
            await trio.sleep_forever()

    async def _serve(
        self, listeners: list[trio.SocketListener], started: Callable[[], None], tls: MakeContext | None
    ) -> None:
        async with trio.open_nursery() as watching:
            watching.start_soon(self._look_after)
            poller = Poller()
            watching.start_soon(poller.run)
            async with trio.open_nursery() as nursery:
                self._nurseries.add(nursery)
                with trio.CancelScope() as accepting:
                    self._accepting.add(accepting)
                    if self._draining:
                        accepting.cancel(reason="the server is draining")
                    started()
                    accepted = partial(self._accepted, tls=tls, poller=poller)
                    await trio.serve_listeners(accepted, listeners, handler_nursery=nursery)
                self._accepting.discard(accepting)
            self._nurseries.discard(nursery)
            watching.cancel_scope.cancel(reason="all connections are closed")

    async def _look_after(self) -> None:
        while True:
            await trio.sleep(WATCH_S)
            now = trio.current_time()
            for connection in self._connections:
                connection.look_after(now)

    async def _accepted(self, stream: trio.SocketStream, tls: MakeContext | None, poller: Poller) -> None:
        if self._limits.connections and self._open >= self._limits.connections:
            await self._refuse(SocketWire(stream, self._limits, poller), told=tls is None)
            return
        self._open += 1
        metrics.ACCEPTED.inc()
        try:
            with metrics.CONNECTIONS.track_inprogress():
                await self._serve_stream(stream, tls, poller)
        finally:
            self._open -= 1
            self._closed.set()

    async def _serve_stream(self, stream: trio.SocketStream, tls: MakeContext | None, poller: Poller) -> None:
        try:
            base = scope_base(stream.socket, "http" if tls is None else "https")
        except OSError:
            await trio.aclose_forcefully(stream)  # The client has gone before it was there.
            return
        wire: Wire
        if tls is None:
            wire = SocketWire(stream, self._limits, poller)
        else:
            encrypted = await self._encrypted(stream, tls, base["client"])
            if encrypted is None:
                return
            wire = StreamWire(encrypted, self._limits, stream.socket)
        await self.serve_connection(wire, base)

    async def serve_connection(self, wire: Wire, base: Mapping[str, Any]) -> None:
        """Serve one connection that is already there, until it ends; `base`: see `scope_base`."""
        connection = Connection(self._serving, wire, dict(base))
        connection.draining = self._draining
        self._connections.add(connection)
        try:
            await connection.run()
        except Exception as error:
            log.error("connection_failed", client=base["client"], exc_info=error)
        finally:
            self._connections.discard(connection)

    async def _encrypted(
        self, stream: trio.SocketStream, tls: MakeContext, client: object
    ) -> trio.SSLStream[trio.SocketStream] | None:
        """Shake hands; None when the client does not manage that in time."""
        encrypted = trio.SSLStream(stream, tls(), server_side=True, https_compatible=True)
        try:
            with trio.fail_after(self._limits.head_s):
                await encrypted.do_handshake()
        except (trio.TooSlowError, trio.BrokenResourceError, OSError) as error:
            # Scanners and plaintext clients end here, which is nobody's error but theirs.
            metrics.REFUSED.labels("no_tls").inc()
            log.info("no_tls", client=client, error=str(error.__cause__ or error))
            await trio.aclose_forcefully(stream)
            return None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return encrypted

    async def _refuse(self, wire: Wire, *, told: bool) -> None:
        """Close a connection over the limit, and say why to as many as that is no burden for."""
        metrics.REFUSED.labels("too_many_connections").inc()
        if self._refusing == 0:
            log.warning("too_many_connections", maximum=self._limits.connections)
        self._refusing += 1
        try:
            if told and self._refusing <= REFUSING_MAX:
                refusal = Refusal(503, "too_many_connections", "there are too many connections")
                with trio.move_on_after(LINGER_S):
                    await wire.send(refusal_bytes(refusal, self._serving.render, self._serving.date()))
                    await wire.linger()
        except ClientGoneError:
            return
        finally:
            self._refusing -= 1
            await wire.close()

    async def drain(self) -> None:
        """Stop listening, answer what is in flight, close idle connections at once; return when all are closed.

        Cancel it, as by a deadline, to cut what is still in flight.
        """
        self._draining = True
        for accepting in self._accepting:
            accepting.cancel(reason="the server is draining")
        for connection in self._connections:
            connection.drain()
        try:
            await trio.lowlevel.checkpoint()
            while self._open:
                self._closed = trio.Event()
                await self._closed.wait()
        finally:
            for nursery in self._nurseries:
                nursery.cancel_scope.cancel(reason="the drain's time is up")


def scope_base(connection: trio.socket.SocketType, scheme: str) -> dict[str, Any]:
    """Return what is the same in the ASGI scope of every request on a connection. Raises OSError."""
    client: tuple[str, int] | None = None
    server: tuple[str, int | None]
    if connection.family == socket.AF_UNIX:
        server = (os.fsdecode(connection.getsockname()), None)
    else:
        peer, own = connection.getpeername(), connection.getsockname()
        client, server = (peer[0], peer[1]), (own[0], own[1])
    return {
        "type": "http",
        "asgi": ASGI,
        "http_version": "1.1",
        "scheme": scheme,
        "server": server,
        "client": client,
        "root_path": "",
        "extensions": EXTENSIONS,
    }
