"""The listener: accepts, performs the opening handshake on trio-websocket, and runs a `Socket` per connection.

The handshake is trio-websocket's, on its public API, in a nursery of its own that ends with it: the request is read
there, then its reader is stopped, and from the 101 response on the bytes are ours. Nothing is lost in between: a client
must not send before it has that response (RFC 6455 §4.1), and one that does is refused.

A refused upgrade is an HTTP response with a JSON body `{"reason", "message"}`: 404 another path; 403 a missing or
unsupported `vsn`, a foreign Origin, no token or a bad one (with the verifier's reason); 429 `too_many_sockets`;
503 while draining or when the verifier is away.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack
from typing import NoReturn

import structlog
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, WebSocketRequest, wrap_server_stream

from whispr.errors import Code, WhisprError
from whispr.realtime import metrics
from whispr.realtime.channel import Session
from whispr.realtime.handshake import Refused, check_upgrade, host_of
from whispr.realtime.hub import Hub
from whispr.realtime.socket import Socket

log = structlog.get_logger()

Authenticate = Callable[[str], Awaitable[Session]]
"""Verifies an access token. Raises WhisprError: UNAUTHENTICATED with its reason, or UNAVAILABLE."""

_STATUS = {Code.RESOURCE_EXHAUSTED: 429, Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 503}
_BACKLOG = 1024
_HEAD_BYTES_MAX = 64 * 1024
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_FILES_PAUSE_S = 0.1


async def serve_websocket(
    hub: Hub,
    host: str,
    port: int,
    authenticate: Authenticate,
    *,
    origins: Collection[str] = (),
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the hub until cancelled; reports the port. One listener per hub, which this also runs.

    `origins` are allowed beside the server's own host (`whispr.realtime.handshake`). For an orderly end call
    `hub.drain()` first: it stops the accepting too. Raises OSError naming host and port when it cannot listen.
    """
    with ExitStack() as stack:
        listeners = await _listen(host, port, stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            server = _Server(hub, authenticate, origins, nursery)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener)
                task_status.started(listeners[0].getsockname()[1])
                await hub.draining.wait()
                accepting.cancel_scope.cancel(reason="draining")
            stack.close()
            await trio.sleep_forever()
    raise AssertionError("unreachable: only a cancel ends sleep_forever")


async def _listen(host: str, port: int, stack: ExitStack) -> list[stdlib.socket]:
    """Listen on every address the host stands for; port 0 picks one free port for all of them."""
    found = await trio.socket.getaddrinfo(host, port, type=stdlib.SOCK_STREAM, flags=stdlib.AI_PASSIVE)
    listeners: list[stdlib.socket] = []
    for family, kind, proto, _, address in found:
        listener = stack.enter_context(stdlib.socket(family, kind, proto))
        listener.setblocking(False)
        if os.name == "posix":
            listener.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, 1)
        if family == stdlib.AF_INET6:
            listener.setsockopt(stdlib.IPPROTO_IPV6, stdlib.IPV6_V6ONLY, 1)
        chosen = listeners[0].getsockname()[1] if listeners else port
        try:
            listener.bind((address[0], chosen, *address[2:]))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
        listeners.append(listener)
    return listeners


class _HandshakeStream(trio.SocketStream):
    """The bytes of one handshake: remembers the request head, and ends the handshake with the connection.

    trio-websocket's reader ends quietly when the peer hangs up or sends what is no upgrade request; whoever
    waits for the request would wait for the deadline.
    """

    def __init__(self, sock: stdlib.socket, over: trio.CancelScope) -> None:
        super().__init__(trio.socket.from_stdlib_socket(sock))
        self.head = b""
        self._over = over

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await super().receive_some(max_bytes))
        self.head += data
        if not data or len(self.head) > _HEAD_BYTES_MAX:
            self._over.cancel(reason="no request came")
        return data

    async def aclose(self) -> None:
        self._over.cancel(reason="the request was no upgrade")
        await super().aclose()


class _Server:
    """What the connections of one listener share."""

    def __init__(
        self, hub: Hub, authenticate: Authenticate, origins: Collection[str], nursery: trio.Nursery
    ) -> None:
        self._hub = hub
        self._authenticate = authenticate
        self._origins = origins
        self._nursery = nursery

    async def accept(self, listener: stdlib.socket) -> NoReturn:
        """Accept until cancelled."""
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
            except OSError as error:
                # The peer may be gone already (ECONNABORTED). Out of descriptors, only time brings some back.
                if error.errno in _OUT_OF_FILES:
                    log.error("cannot accept", error=str(error))
                    await trio.sleep(_OUT_OF_FILES_PAUSE_S)
                else:
                    await trio.lowlevel.checkpoint()
            else:
                sock.setblocking(False)
                self._nursery.start_soon(self._connection, sock)

    async def _connection(self, sock: stdlib.socket) -> None:
        try:
            session = await self._handshake(sock)
            if session is None:
                return
            try:
                await Socket(self._hub, sock, session).run()
            finally:
                self._hub.leave_seat(session.user_id)
        except Exception:  # noqa: BLE001  # one connection's failure, ours to find in the log, must not end the others
            log.exception("connection failed")
        finally:
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()

    async def _handshake(self, sock: stdlib.socket) -> Session | None:
        """Upgrade the connection and take the user's seat; None when it was refused or came to nothing."""
        outcome = "dropped"
        session: Session | None = None
        with trio.move_on_after(self._hub.limits.handshake_s):
            read = await _read_request(sock)
            if read is not None:
                try:
                    session, outcome = await self._answer(*read)
                except ConnectionClosed:
                    log.debug("the peer hung up during the handshake")
        metrics.UPGRADES.labels(outcome).inc()
        return session

    async def _answer(self, request: WebSocketRequest, head: bytes) -> tuple[Session | None, str]:
        """Accept or refuse; returns the session of an accepted request, and the outcome."""
        try:
            session, subprotocol = await self._admit(request, head)
        except Refused as refusal:
            headers = [(b"content-type", b"application/json")]
            await request.reject(refusal.status, extra_headers=headers, body=refusal.body)
            return None, refusal.reason
        try:
            await request.accept(subprotocol=subprotocol)
        except BaseException:  # whatever stopped us, also a cancel: the seat is not taken
            self._hub.leave_seat(session.user_id)
            raise
        return session, "ok"

    async def _admit(self, request: WebSocketRequest, head: bytes) -> tuple[Session, str | None]:
        """Check everything, the cheapest first, and take the user's seat. Raises Refused."""
        if self._hub.draining.is_set():
            raise Refused(503, "unavailable", "the server is restarting", 1.0)
        if not head.endswith(b"\r\n\r\n"):
            raise Refused(400, "protocol_error", "frames were sent before the handshake was answered")
        offered = request.proposed_subprotocols
        upgrade = check_upgrade(request.path, dict(request.headers), host_of(head), offered, self._origins)
        try:
            session = await self._authenticate(upgrade.token)
            self._hub.take_seat(session.user_id)
        except WhisprError as error:
            status = _STATUS.get(error.code, 403)
            raise Refused(status, error.reason, error.message, error.retry_after_s) from None
        return session, upgrade.subprotocol


async def _read_request(sock: stdlib.socket) -> tuple[WebSocketRequest, bytes] | None:
    """Have trio-websocket read the upgrade request, then stop its reader. None when there was no such request."""
    read: tuple[WebSocketRequest, bytes] | None = None
    try:
        async with trio.open_nursery() as nursery:
            stream = _HandshakeStream(sock, nursery.cancel_scope)
            request = await wrap_server_stream(nursery, stream)
            read = request, stream.head
            nursery.cancel_scope.cancel(reason="the request is read")
    except* (OSError, trio.BrokenResourceError, ConnectionClosed, wsproto.utilities.ProtocolError):
        log.debug("no upgrade request came")
    return read
