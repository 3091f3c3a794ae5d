"""The server: listens, and serves purerpc servicers on every connection.

    server = RpcServer([AuthHandlers(...)], interceptors=[...])
    port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
    ...
    with trio.move_on_after(10):
        await server.drain()

Each call runs in its own task under its own cancel scope, whose deadline is the caller's. The scope is
cancelled, with a reason, when the deadline passes, the client resets the call, the connection is lost, or
a drain runs out of patience; a handler sees Trio's Cancelled and nothing else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

import purerpc
import structlog
import trio

from whispr.rpc.common import Common
from whispr.rpc.compression import named
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.limits import RpcLimits
from whispr.rpc.memory import keep_large_blocks
from whispr.rpc.methods import method_table
from whispr.rpc.server_connection import ServerConnection
from whispr.rpc.statistics import Census, Statistics, ids
from whispr.rpc.tls import TlsFiles, accept_tls
from whispr.rpc.transport import FLUSH_S
from whispr.tcp_sockets import open_tcp
from whispr.unix_sockets import open_unix_listener

_log = structlog.get_logger("whispr.rpc")


class RpcServer:
    """Serves `servicers`. It may listen in several places at once."""

    def __init__(
        self,
        servicers: Iterable[purerpc.Servicer],
        interceptors: Sequence[Interceptor] = (),
        limits: RpcLimits = RpcLimits(),  # noqa: B008  # frozen
        *,
        compression: str | None = None,
    ) -> None:
        """`compression` of the responses, unless a call says otherwise: "gzip", "deflate", or none.

        Raises ValueError when two servicers offer the same method, or no encoding has that name.
        """
        named(compression)
        keep_large_blocks(limits.message_bytes_max)
        self.id = next(ids)
        self.listening: dict[int, Any] = {}
        """What it listens on: number → address as sockets give it."""
        self._compression = compression
        self._methods = method_table(servicers, interceptors)
        self._limits = limits
        self._accepting: set[trio.CancelScope] = set()
        self._connections: set[ServerConnection] = set()
        self.census = Census()
        self._connection_closed = trio.Event()
        self._draining = False
        self._common = Common()
        self._accepted_now = 0
        self._refused = 0

    @property
    def methods(self) -> frozenset[str]:
        """Full names of everything served."""
        return frozenset(self._methods)

    def statistics(self) -> Statistics:
        """What has been served, and what is being served now."""
        return self.census.statistics()

    async def serve_tcp(
        self,
        host: str,
        port: int,
        *,
        tls: TlsFiles | None = None,
        shared: bool = False,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on `host` and `port`, 0 for a free one, `shared` as `open_tcp` says; reports the port.

        Returns after a drain. Raises OSError when the address cannot be had, and for `tls` what
        `TlsFiles.server_context` raises.
        """
        if tls is not None:
            tls.server_context()  # better now than with the first client
        listeners = await open_tcp(host, port, shared=shared)
        bound: int = listeners[0].socket.getsockname()[1]
        await self._serve(listeners, lambda: task_status.started(bound), tls)

    async def serve_unix(
        self, path: str | os.PathLike[str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on a Unix socket, which its owner alone may connect to. Returns after a drain.

        A socket on which nobody listens any more is replaced. Raises OSError when the path cannot be had,
        also because something else listens there.
        """
        listener = await open_unix_listener(os.fspath(path))
        try:
            await self._serve([listener], task_status.started, None)
        finally:
            listener.socket.close()
            if os.path.exists(path):  # noqa: ASYNC240  # a local file, at shutdown
                os.unlink(path)

    def serve_stream(self, stream: trio.abc.Stream, peer: str = "memory") -> Coroutine[Any, Any, None]:
        """Serve one connection that is already there, until it ends. To be awaited."""
        return self._serve_connection(stream, peer)

    async def _serve_connection(self, stream: trio.abc.Stream, peer: str, *, accepted: bool = False) -> None:
        connection = ServerConnection(
            stream, peer, self._methods, self._limits, self._common, self._compression
        )
        self._connections.add(connection)
        self.census.add(connection, peer)
        try:
            if not self._draining:
                await connection.run()
        except Exception as error:  # noqa: BLE001  # a defect met on one connection must not end the others
            _log.error("connection failed", peer=peer, exc_info=error)
        finally:
            self._connections.discard(connection)
            self.census.remove(connection)
            self._connection_closed.set()
            self._accepted_now -= accepted

    async def _serve(
        self, listeners: list[trio.SocketListener], started: Callable[[], None], tls: TlsFiles | None
    ) -> None:
        async with trio.open_nursery() as connections:
            bound = {next(ids): listener.socket.getsockname() for listener in listeners}
            self.listening.update(bound)
            with trio.CancelScope() as accepting:
                self._accepting.add(accepting)
                if self._draining:
                    accepting.cancel(reason="draining")
                started()
                await trio.serve_listeners(
                    partial(self._accepted, tls=tls), listeners, handler_nursery=connections
                )
            self._accepting.discard(accepting)
            for each in bound:
                del self.listening[each]

    def _accepted(self, stream: trio.SocketStream, tls: TlsFiles | None) -> Coroutine[Any, Any, None]:
        # No coroutine of its own: each of thousands of idle connections would hold it.
        if self._accepted_now >= self._limits.accepted_connections_max:
            self._refuse()
            return trio.aclose_forcefully(stream)  # noqa: ASYNC105  # the caller awaits it
        self._accepted_now += 1
        peer = _peer_name(stream)
        if tls is None:
            return self._serve_connection(stream, peer, accepted=True)
        return self._serve_tls(stream, peer, tls)

    def _refuse(self) -> None:
        self._refused += 1
        # A flood must not become one of the log: the first, the second, the fourth, the eighth...
        if self._refused & (self._refused - 1) == 0:
            maximum = self._limits.accepted_connections_max
            _log.warning("too many connections", maximum=maximum, refused=self._refused)

    async def _serve_tls(self, stream: trio.SocketStream, peer: str, tls: TlsFiles) -> None:
        encrypted: trio.abc.Stream | None = None
        reason = "no handshake in time"
        try:
            # A drain waits for no handshake: it cancels what is still being accepted.
            with trio.move_on_after(self._limits.handshake_s) as accepting:
                self._accepting.add(accepting)
                encrypted = await accept_tls(stream, tls)
        except (trio.BrokenResourceError, OSError) as error:
            reason = str(error)
        finally:
            self._accepting.discard(accepting)
            if encrypted is None:
                await trio.aclose_forcefully(stream)
        if encrypted is None:
            self._accepted_now -= 1
            # Scanners and plaintext clients end here, which is nobody's error but theirs.
            _log.info("no TLS", peer=peer, reason=reason)
        else:
            await self._serve_connection(encrypted, peer, accepted=True)

    async def drain(self) -> None:
        """Stop listening, let calls in progress finish, and close.

        Cancel it, as by a deadline, to end the calls still running with UNAVAILABLE; that takes at most
        `FLUSH_S` seconds more.
        """
        self._draining = True
        for accepting in self._accepting:
            accepting.cancel(reason="draining")
        for connection in self._connections:
            connection.shut_down()
        try:
            await self._closed()
        finally:
            if self._connections:
                await self._abort()

    async def _abort(self) -> None:
        with trio.move_on_after(FLUSH_S, shield=True):
            for connection in self._connections:
                connection.abort("the server is shutting down")
            await self._closed()
        for connection in self._connections:
            connection.kill("the server was shut down")

    async def _closed(self) -> None:
        """Wait until no connection is left."""
        await trio.lowlevel.checkpoint()
        while self._connections:
            self._connection_closed = trio.Event()
            await self._connection_closed.wait()


def _peer_name(stream: trio.SocketStream) -> str:
    try:
        address = stream.socket.getpeername()
    except OSError:
        return "unknown"  # already gone
    if stream.socket.family == socket.AF_UNIX:
        return "unix"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"tcp:{host}:{address[1]}"
