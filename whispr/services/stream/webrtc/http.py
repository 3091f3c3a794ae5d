"""WHIP and WHEP over HTTP: `/whip/{stream_id}`, `/whep/{stream_id}`, the sessions under them. An ASGI application.

POST an offer, get 201 with the answer and the session's URL, whose secrecy is what allows to PATCH (candidates, ICE
restart) and DELETE it. Candidates of clients are not needed: ours is the side that waits. Errors are raised, for the
gateway to word them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.adapters.bus import Bus
from whispr.asgi.errors import ERROR_HEADERS, HttpError, not_allowed
from whispr.asgi.wire import ClientGoneError
from whispr.errors import Code, invalid
from whispr.services.stream.access import Shown, shown_by
from whispr.services.stream.webrtc.passing import Ask, Passing, Told
from whispr.services.stream.webrtc.sessions import Session, Sessions
from whispr.webrtc import sdp
from whispr.webrtc.ice import Credentials
from whispr.webrtc.sdp import Offer, SdpError
from whispr.webrtc.turn import ice_server_links

PATH: Final = re.compile(r"/(whip|whep)/([0-9A-Za-z_-]{1,64})(?:/([0-9A-Za-z_-]{1,64}))?")
"""What of a gateway's paths is served here."""
BODY_S: Final = 15.0
"""How long an offer may take to come, however steadily its bytes do."""
OFFER: Final = "application/sdp"
FRAGMENT: Final = "application/trickle-ice-sdpfrag"

_EXPOSED = "location, etag, link, accept-post, accept-patch, retry-after, www-authenticate"
_ASKED = "authorization, content-type, if-match"
_NO_STORE = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for by POST."""

    stream_id: str
    offer: Offer
    shown: Shown
    address: str
    user_agent: str


Open = Callable[[Request], Awaitable[tuple[Session, str]]]
"""Begins a session and returns it with its answer. Raises WhisprError."""


class WebRtcEndpoints:
    """Serves WHIP and WHEP for one process."""

    def __init__(
        self,
        publish: Open,
        listen: Open,
        sessions: Sessions,
        *,
        client_address: Callable[[Scope, Headers], str],
        origins: Sequence[str] = (),
        ice_servers: Sequence[str] = (),
        turn_secret: str = "",
        bus: Bus | None = None,
    ) -> None:
        """`origins`: those whose pages may use it, `*` for all. `ice_servers`, `turn_secret`: see `webrtc.turn`."""
        self._open = {"whip": publish, "whep": listen}
        self._sessions = sessions
        self._client_address = client_address
        self._origins = frozenset(origins)
        self._ice_servers = ice_servers
        self._turn_secret = turn_secret
        self.passing = Passing(bus, sessions.process, self._asked) if bus is not None else None
        """Reaches the sessions of other processes; its owner runs it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        found = PATH.fullmatch(scope["path"])
        assert found is not None, "the gateway looked"
        protocol, stream_id, session_id = found.groups()
        headers = Headers(scope=scope)
        shared = scope[ERROR_HEADERS] = self._shared(headers)
        if scope["method"] == "OPTIONS":
            await _answer(send, 204, self._options(session_id) | shared)
        elif session_id is None:
            await self._create(protocol, stream_id, scope, headers, receive, send, shared)
        else:
            await self._of_session((protocol, stream_id, session_id), scope, headers, receive, send, shared)

    def _shared(self, headers: Headers) -> dict[str, str]:
        """What pages of other origins need to be told (Fetch, section 3.2.3)."""
        origin = headers.get("origin")
        if origin is None or not ({"*", origin} & self._origins):
            return {}
        allowed = {"access-control-allow-origin": "*" if "*" in self._origins else origin, "vary": "origin"}
        return allowed | {"access-control-expose-headers": _EXPOSED}

    def _options(self, session_id: str | None) -> dict[str, str]:
        """What can be done here (RFC 9725, section 4.2; RFC 5789, section 3.1)."""
        methods = "OPTIONS, POST" if session_id is None else "OPTIONS, PATCH, DELETE"
        accepts = {"accept-post": OFFER} if session_id is None else {"accept-patch": FRAGMENT}
        said = accepts | {
            "allow": methods,
            "access-control-allow-methods": methods,
            "access-control-allow-headers": _ASKED,
            "access-control-max-age": "600",
        }
        links = ice_server_links(self._ice_servers, "", 0)  # who has shown nothing gets no credentials
        return said | ({"link": ", ".join(links)} if links else {})

    # Endpoints

    async def _create(
        self, protocol: str, stream_id: str, scope: Scope, headers: Headers, receive: Receive, send: Send,
        shared: Mapping[str, str],
    ) -> None:  # fmt: skip
        if scope["method"] != "POST":
            raise not_allowed(scope["method"], "OPTIONS, POST")
        text = await _body(receive, headers, OFFER)
        try:
            offer = sdp.read_offer(text)
        except SdpError as error:
            raise invalid({"offer": str(error)}, "invalid_offer") from None
        if protocol == "whip" and not offer.direction.sends:
            raise invalid({"offer": "who publishes must offer to send"}, "invalid_offer")
        if protocol == "whep" and not offer.direction.receives:
            raise invalid({"offer": "who listens must offer to receive"}, "invalid_offer")
        address, agent = self._client_address(scope, headers), headers.get("user-agent", "")[:256]
        request = Request(stream_id, offer, shown_by(scope), address, agent)
        session, answer = await self._open[protocol](request)
        links = ice_server_links(self._ice_servers, self._turn_secret, time.time())
        said = {
            "content-type": OFFER,
            "location": f"/{protocol}/{stream_id}/{session.id}",
            "etag": session.etag,
            "accept-patch": FRAGMENT,
            **_NO_STORE,
            **shared,
        }
        answered = False
        try:
            await _answer(send, 201, said, answer.encode(), links)
            answered = True
        finally:
            if not answered:  # Nobody knows of it, and the stream's place is another's.
                session.end("its client left before it was answered")

    # Sessions

    async def _of_session(
        self, path: tuple[str, str, str], scope: Scope, headers: Headers, receive: Receive, send: Send,
        shared: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Act on a session of this process or another."""
        method, owner = scope["method"], self.passing.owner(path[2]) if self.passing is not None else None
        if owner is None:
            self._sessions.get(*path)
        if method not in ("DELETE", "PATCH"):
            raise not_allowed(method, "OPTIONS, PATCH, DELETE")
        condition = headers.get("if-match", "").strip()
        text = await _body(receive, headers, FRAGMENT) if method == "PATCH" else ""
        if owner is None or self.passing is None:
            told = await self._asked(Ask(0, "", path, method, condition, text))
        else:
            told = await self.passing.ask(owner, path, method, condition, text)
        await _answer(send, told.status, {**told.headers, **_NO_STORE, **shared}, told.body.encode())

    async def _asked(self, ask: Ask) -> Told:
        """Act on a session of this process. Raises WhisprError."""
        await trio.lowlevel.checkpoint()
        session = self._sessions.get(*ask.path)
        if ask.method == "DELETE":
            session.end("its client ended it")
            return Told(ask.id, 200, {}, "")
        return _patched(session, ask)


def _patched(session: Session, ask: Ask) -> Told:
    """Take candidates, or an ICE restart (RFC 9725, sections 4.3.1 to 4.3.3)."""
    if not ask.condition:
        raise _precondition(428, "send If-Match with the session's ETag", "precondition_required")
    credentials = _credentials(ask.body)
    if ask.condition == "*":
        if credentials == session.remote:
            raise _precondition(412, "an ICE restart needs new credentials", "not_a_restart")
        answer = session.restart(credentials)
        return Told(ask.id, 200, {"content-type": FRAGMENT, "etag": session.etag}, answer)
    if ask.condition != session.etag or credentials != session.remote:
        raise _precondition(412, "that ICE session is over", "other_ice_session")
    # What the candidates say is not looked at: a client's checks show where it is. `.local` names least of all.
    return Told(ask.id, 204, {}, "")


def _credentials(text: str) -> Credentials:
    """Read the credentials of a fragment. Raises INVALID_ARGUMENT."""
    try:
        session, *media = sdp.parse_fragment(text)
        return sdp.credentials_of(session, media[0] if media else session)
    except SdpError as error:
        raise invalid({"fragment": str(error)}, "invalid_fragment") from None


def _precondition(status: int, message: str, reason: str) -> HttpError:
    return HttpError(status, Code.FAILED_PRECONDITION, message, reason)


async def _body(receive: Receive, headers: Headers, wanted: str) -> str:
    """Read a body of the wanted type. Raises 408, 413, 415, INVALID_ARGUMENT, or ClientGoneError."""
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        message = f"send {wanted}, not {given[:100] or 'nothing'}"
        raise HttpError(415, Code.INVALID_ARGUMENT, message, "unsupported_media_type", {"accept": wanted})
    with trio.move_on_after(BODY_S) as patience:
        data = await _all_of(receive)
    if patience.cancelled_caught:
        told = f"the body took over {BODY_S:g} s to arrive"
        raise HttpError(408, Code.DEADLINE_EXCEEDED, told, "request_timeout", {"connection": "close"})
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise invalid({"body": "not UTF-8"}) from None


async def _all_of(receive: Receive) -> bytes:
    """Read a body of an offer's size. Raises 413 or ClientGoneError."""
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError("the client left in the middle of its offer")
        pieces.append(event.get("body", b""))
        size, more = size + len(pieces[-1]), event.get("more_body", False)
        if size > sdp.OFFER_BYTES_MAX:
            message = f"at most {sdp.OFFER_BYTES_MAX} bytes"
            raise HttpError(413, Code.INVALID_ARGUMENT, message, "too_large")
    return b"".join(pieces)


async def _answer(
    send: Send, status: int, headers: Mapping[str, str], body: bytes = b"", links: Sequence[str] = ()
) -> None:
    raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"link", link.encode("latin-1")) for link in links]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
