"""The listener: accepts, performs the opening handshake on trio-websocket, and runs a `WebSocket` per connection.

A refused upgrade is an HTTP response with a JSON body `{"reason", "message"}`: 404 another path; 403 an unsupported
`vsn`, a foreign Origin, no token or a bad one (with the verifier's reason); 429 `too_many_sockets`,
`rate_limited` for an address that opens too many a minute, `too_many_connections` for one that has too many open; 503
while draining or when the verifier is away. `whispr_ws_upgrades_total` counts them by reason.
"""

from __future__ import annotations

import errno
import re
import socket as stdlib
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack, suppress
from typing import NamedTuple, NoReturn

import structlog
import trio

from whispr.errors import Code, WhisprError
from whispr.realtime import metrics
from whispr.realtime.addresses import NoProxies, Proxies, RawHeaders, Visit
from whispr.realtime.admission import Admission
from whispr.realtime.channel import Session
from whispr.realtime.deflate import ANSWER, Deflated, negotiate
from whispr.realtime.handshake import LONGPOLL_PATH, Refused, Upgrade, check_upgrade, host_of
from whispr.realtime.hub import Hub
from whispr.realtime.longpoll.sessions import refusal
from whispr.realtime.serializers import V1, V2, Serializer
from whispr.realtime.socket import Authenticate
from whispr.realtime.upgrade import Request, read_request, turn_away
from whispr.realtime.websocket import WebSocket
from whispr.tcp_sockets import bind_tcp

log = structlog.get_logger()

Admit = Callable[[str, RawHeaders], Awaitable[None]]
"""Looks at the address a connection comes from and the headers of its upgrade. Raises RESOURCE_EXHAUSTED."""

ServeHttp = Callable[[trio.SocketStream], Awaitable[None]]
"""Serves one connection over HTTP to its end."""

_LONGPOLL = re.compile(rb"(GET|POST|OPTIONS) " + re.escape(LONGPOLL_PATH).encode() + rb"[? ]")
_PEEK_BYTES = 64
_STATUS = {Code.RESOURCE_EXHAUSTED: 429, Code.UNAVAILABLE: 503, Code.DEADLINE_EXCEEDED: 503}
_BACKLOG = 4096  # as many handshakes as may wait; the kernel's own limit is net.core.somaxconn
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_FILES_PAUSE_S = 0.1
_TOLD_MAX = 100
"""Connections of addresses with too many that are told so at a time; others are closed without a word."""


async def serve_websocket(
    hub: Hub,
    host: str,
    port: int,
    authenticate: Authenticate,
    *,
    origins: Collection[str] = (),
    admit: Admit | None = None,
    http: ServeHttp | None = None,
    proxies: Proxies | None = None,
    shared: bool = False,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve the hub until cancelled; reports the port. One listener per hub, which this also runs.

    `origins` are allowed beside the server's own host (`whispr.realtime.handshake`). `http` is handed connections
    that begin with a long poll: phoenix.js falls back to long polling on the port where WebSockets are. `proxies`
    tells whom to believe about the addresses of clients. Other processes may listen on a `shared` port
    (`whispr.tcp_sockets`). For an orderly end call `hub.drain()` first: it stops the accepting too. Raises OSError
    when it cannot listen.
    """
    with ExitStack() as stack:
        listeners = await _listen(host, port, stack, shared)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            server = _Server(hub, authenticate, origins, admit, http, proxies or NoProxies(), nursery)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener)
                task_status.started(listeners[0].getsockname()[1])
                await hub.draining.wait()
                accepting.cancel_scope.cancel(reason="draining")
            stack.close()
            await trio.sleep_forever()
    raise AssertionError("unreachable: only a cancel ends sleep_forever")


async def _listen(host: str, port: int, stack: ExitStack, shared: bool) -> list[stdlib.socket]:
    """Listen on every address the host stands for; port 0 picks one free port for all of them."""
    listeners = await bind_tcp(host, port, shared=shared)
    for listener in listeners:
        stack.enter_context(listener)
    for listener in listeners:
        listener.listen(_BACKLOG)
    return listeners


class _Guest(NamedTuple):
    """Who has been let in, and what they speak."""

    session: Session
    serializer: Serializer


class _Server:
    """What the connections of one listener share."""

    def __init__(
        self,
        hub: Hub,
        authenticate: Authenticate,
        origins: Collection[str],
        admit: Admit | None,
        http: ServeHttp | None,
        proxies: Proxies,
        nursery: trio.Nursery,
    ) -> None:
        self._hub = hub
        self._authenticate = authenticate
        self._origins = origins
        self._admits = admit
        self._http = http
        self._proxies = proxies
        self._admission = Admission(hub.limits)
        self._nursery = nursery
        self._telling = self._turned_away = 0
        self._serializers: dict[tuple[int, bool], Serializer] = {}
        for version, plain in ((1, V1), (2, V2)):
            self._serializers[version, False] = plain
            self._serializers[version, True] = Deflated(plain, hub.limits.deflate_bytes)

    async def accept(self, listener: stdlib.socket) -> NoReturn:
        """Accept until cancelled."""
        while True:
            await self._admission.room()
            try:
                sock, peer = listener.accept()
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
                visit = Visit(self._hub.addresses, self._proxies, str(peer[0]))
                self._nursery.start_soon(self._connection, sock, visit, self._admission.begin())

    async def _connection(self, sock: stdlib.socket, visit: Visit, place: trio.CancelScope) -> None:
        try:
            guest, serve = None, None
            try:
                with place:
                    self._admission.waits(place, sock)
                    if not await self._is_turned_away(sock, visit):
                        serve = self._http if await self._is_longpoll(sock) else None
                        guest = None if serve is not None else await self._handshake(sock, visit, place)
            finally:
                self._admission.end(place)
            if serve is not None:
                await serve(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
            if guest is None:
                return
            try:
                await WebSocket(self._hub, sock, guest.session, guest.serializer, self._authenticate).run()
            finally:
                self._hub.seats.leave(guest.session.user_id)
        except Exception:  # one connection's failure, ours to find in the log, must not end the others
            log.exception("connection failed")
        finally:
            visit.end()
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()

    async def _is_turned_away(self, sock: stdlib.socket, visit: Visit) -> bool:
        """Count a connection in, or tell who is one too many so, in little time and whatever they came for."""
        try:
            visit.arrive()
        except WhisprError as error:
            refused = _refused(error)
        else:
            return False
        metrics.UPGRADES.labels(refused.reason).inc()
        self._note_turned_away(visit.peer)
        if self._telling < _TOLD_MAX:
            self._telling += 1
            try:
                await self._tell(sock, refused)
            finally:
                self._telling -= 1
        return True

    def _note_turned_away(self, address: str) -> None:
        """Log the first, the second, the fourth, the eighth: a flood must not become one of the log."""
        self._turned_away += 1
        if self._turned_away & (self._turned_away - 1) == 0:
            most = self._hub.addresses.most
            log.warning("too_many_connections", address=address, maximum=most, refused=self._turned_away)

    async def _tell(self, sock: stdlib.socket, refused: Refused) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        with trio.move_on_after(self._hub.limits.slow_handshake_s), suppress(trio.BrokenResourceError):
            # Who polls reads the reason in a form of its own.
            await turn_away(
                stream,
                refused.status,
                lambda head: refusal(refused).encode() if _LONGPOLL.match(head) else refused.body,
            )

    async def _is_longpoll(self, sock: stdlib.socket) -> bool:
        """Look at how the request begins, if there is somebody to serve long polls, and leave it unread."""
        if self._http is None:
            return False
        with trio.move_on_after(self._hub.limits.handshake_s):
            await trio.lowlevel.wait_readable(sock)
            try:
                return _LONGPOLL.match(sock.recv(_PEEK_BYTES, stdlib.MSG_PEEK)) is not None
            except OSError:
                return False  # the handshake meets the same end
        return False

    async def _handshake(self, sock: stdlib.socket, visit: Visit, place: trio.CancelScope) -> _Guest | None:
        """Upgrade the connection and take the user's seat; None when it was refused or came to nothing."""
        outcome = "dropped"
        guest: _Guest | None = None
        with trio.move_on_after(self._hub.limits.handshake_s):
            request = await read_request(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
            self._admission.heard(place)
            if request is not None:
                try:
                    guest, outcome = await self._answer(request, visit)
                except trio.BrokenResourceError:
                    log.debug("the peer hung up during the handshake")
        metrics.UPGRADES.labels(outcome).inc()
        return guest

    async def _answer(self, request: Request, visit: Visit) -> tuple[_Guest | None, str]:
        """Accept or refuse; returns who was accepted, and the outcome."""
        try:
            session, upgrade = await self._admit(request, visit)
        except Refused as refusal:
            headers = [(b"content-type", b"application/json")]
            await request.reject(refusal.status, headers, refusal.body)
            return None, refusal.reason
        try:
            deflates = self._hub.limits.deflate and negotiate(request.extensions)
            answer = [(b"sec-websocket-extensions", ANSWER)] if deflates else []
            await request.accept(upgrade.subprotocol, answer)
        except BaseException:  # whatever stopped us, also a cancel: the seat is not taken
            self._hub.seats.leave(session.user_id)
            raise
        return _Guest(session, self._serializers[upgrade.version, deflates]), "ok"

    async def _admit(self, request: Request, visit: Visit) -> tuple[Session, Upgrade]:
        """Check everything, the cheapest first, and take the user's seat. Raises Refused."""
        if self._hub.draining.is_set():
            raise Refused(503, "unavailable", "the server is restarting", 1.0)
        if not request.head.endswith(b"\r\n\r\n"):
            raise Refused(400, "protocol_error", "frames were sent before the handshake was answered")
        headers, host = dict(request.headers), host_of(request.head)
        upgrade = check_upgrade(request.target, headers, host, request.subprotocols, self._origins)
        try:
            visit.introduce(request.headers)
            if self._admits is not None:
                await self._admits(visit.peer, request.headers)
            session = await self._authenticate(upgrade.token)
            await self._hub.seats.take(session.user_id)
        except WhisprError as error:
            raise _refused(error) from None
        return session, upgrade


def _refused(error: WhisprError) -> Refused:
    return Refused(_STATUS.get(error.code, 403), error.reason, error.message, error.retry_after_s)
