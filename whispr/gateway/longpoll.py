"""`/socket/longpoll`: the HTTP side of long-poll sessions, for the gateway and for the WebSocket listener's port.

Phoenix's rules for who may come in are the WebSocket's: the same origins, tokens, versions and limits. A page of an
allowed origin may read the answers (CORS); whoever may not is told 403.

The access token is in `token=` or `X-Phoenix-AuthToken`, the session's in `token=` or `x-phoenix-longpoll-token`.
phoenix.js appends the session's to a URL that may have the access token already, so its form tells what each is.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.errors import Code, WhisprError
from whispr.gateway.http import ClientGoneError
from whispr.realtime import metrics
from whispr.realtime.addresses import NoProxies, Proxies, RawHeaders
from whispr.realtime.channel import Session
from whispr.realtime.handshake import LONGPOLL_PATH, Refused, asked_version, check_origin
from whispr.realtime.longpoll.passing import Passing
from whispr.realtime.longpoll.sessions import TOKEN_PREFIX, refusal
from whispr.realtime.socket import Authenticate

PATH = re.compile(re.escape(LONGPOLL_PATH))
BODY_S: Final = 30.0
"""How long a POST may take to arrive, however steadily its bytes do: nobody has signed in for it yet."""

Admit = Callable[[str, RawHeaders], Awaitable[None]]

_LATER = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_NO_TOKEN = frozenset({"", "null", "undefined"})
_MAY_ASK = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"content-type, x-phoenix-authtoken, x-phoenix-longpoll-token"),
    (b"access-control-max-age", b"600"),
)


class LongPollEndpoint:
    """The ASGI application."""

    def __init__(
        self,
        passing: Passing,
        authenticate: Authenticate,
        admit: Admit,
        origins: Collection[str] = (),
        proxies: Proxies | None = None,
    ) -> None:
        self._passing = passing
        self._authenticate = authenticate
        self._admit = admit
        self._origins = origins
        self._proxies = proxies or NoProxies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI: answer one request."""
        headers = Headers(scope=scope)
        method: str = scope["method"]
        if method not in ("GET", "POST", "OPTIONS"):
            await _respond(send, 405, b"", [(b"allow", b"GET, POST, OPTIONS")])
            return
        shared: list[tuple[bytes, bytes]] = []
        origin = headers.get("origin")
        try:
            check_origin(None if origin is None else origin.encode(), headers.get("host", ""), self._origins)
            if origin is not None:
                shared = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]
            if method == "OPTIONS":
                await _respond(send, 200, b"", [*shared, *_MAY_ASK])
                return
            answer = await self._answer(scope, headers, receive)
        except Refused as refused:
            answer = refusal(refused).encode()
        metrics.POLL_ANSWERS.labels(method, status_of(answer)).inc()
        await _respond(send, 200, answer, [*shared, (b"content-type", b"application/json")])

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive) -> bytes:
        query = parse_qs(scope["query_string"].decode("ascii", errors="replace"))
        tokens = [headers.get("x-phoenix-longpoll-token", ""), *query.get("token", ())]
        session = next((token for token in tokens if token.startswith(TOKEN_PREFIX)), "")
        if scope["method"] == "POST":
            lines = headers.get("content-type", "").partition(";")[0].strip() == "application/x-ndjson"
            body = await _read(receive, self._passing.sessions.hub.limits.poll_body_bytes)
            return await self._passing.post(session, body, lines=lines)
        if session:
            return await self._passing.poll(session)
        access = headers.get("x-phoenix-authtoken", "") or next(
            (token for token in tokens if token not in _NO_TOKEN), ""
        )
        return await self._open(scope, query, access)

    async def _open(self, scope: Scope, query: Mapping[str, Sequence[str]], access: str) -> bytes:
        """Open a session, once everything was checked, the cheapest first. Raises Refused."""
        version = asked_version(query)
        if not access:
            told = "a token is needed: token=<access token>, or authToken in phoenix.js"
            raise Refused(403, "unauthorized", told)

        client = scope.get("client")
        peer = client[0] if client else ""
        address = self._proxies.address_behind(peer, scope["headers"])

        async def admitted() -> Session:
            await self._admit(peer, scope["headers"])
            return await self._authenticate(access)

        outcome = "ok"
        try:
            opened = await self._passing.sessions.open(version, admitted, self._authenticate, address)
            return opened.encode()
        except WhisprError as error:
            outcome = error.reason
            status = 500 if error.code in _LATER else 403
            raise Refused(status, error.reason, error.message, error.retry_after_s) from None
        finally:
            metrics.UPGRADES.labels(outcome).inc()


def status_of(answer: bytes) -> str:
    """Return the status that an encoded answer begins with."""
    found = re.match(rb'\{"status":(\d+)', answer)
    assert found is not None, "an answer begins with its status"
    return found[1].decode()


async def _read(receive: Receive, bytes_max: int) -> bytes:
    """Read a body. Raises Refused for one that is too long or too slow, ClientGoneError."""
    with trio.move_on_after(BODY_S):
        return await _all_of(receive, bytes_max)
    raise Refused(408, "body_too_slow", f"a POST may take at most {BODY_S:g} s to arrive")


async def _all_of(receive: Receive, bytes_max: int) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError("the client left in the middle of its request")
        body += event.get("body", b"")
        if len(body) > bytes_max:
            raise Refused(413, "message_too_large", f"a POST may have at most {bytes_max} bytes")
        if not event.get("more_body", False):
            return bytes(body)


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    plain = [
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": body})
