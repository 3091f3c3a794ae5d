"""Sources that speak Icecast's HTTP: `PUT` and `SOURCE /ingest/{stream_id}`, and what they say is played.

Such a source sends sound for as long as it lasts, most without a word on the length of it: `PUT` with
`Expect: 100-continue` (FFmpeg, libshout) or `SOURCE` of HTTP/1.0 (older ones), for which the server reads on until
the source closes. Those that frame their body, as `curl -T -` does, are read as any other request. The user is
`source`, the password the stream's key. https://www.icecast.org/docs/icecast-latest/ and
https://gist.github.com/ePirat/adc3b8ba00d85b7e3870 describe both ways.

An ASGI application; errors are raised, for the gateway to word them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import HttpError, not_allowed
from whispr.asgi.wire import ClientGoneError
from whispr.errors import Code, WhisprError, invalid, not_found
from whispr.services.stream.access import Shown, shown_by
from whispr.services.stream.domain import Stream
from whispr.services.stream.engine.containers import SNIFF_BYTES, TAG_CHARS_MAX, form_of
from whispr.services.stream.engine.live import Sound
from whispr.services.stream.engine.lives import Feed, Lives, SourceOptions

PATH: Final = re.compile(r"/ingest/[0-9A-Za-z_-]{1,64}|/admin/metadata")
"""What of a gateway's paths is served here."""

_MOUNT: Final = re.compile(r"/ingest/([0-9A-Za-z_-]{1,64})")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_GO_ON: Final = b"HTTP/1.0 200 OK\r\n\r\n"
_METHODS: Final = ("PUT", "POST", "SOURCE")
_DONE: Final = b"<iceresponse><message>Metadata update successful</message><return>1</return></iceresponse>"

Describe = Callable[[str, Mapping[str, str]], Awaitable[None]]
"""Takes what a stream plays now: title, artist, album, genre."""


class Admits(Protocol):
    """`access.Access`, as far as sources need it."""

    async def source(self, stream_id: str, shown: Shown) -> Stream:
        """Return the stream that a source may send to; raises for others."""


class Icecast:
    """Takes sources' sound for one process."""

    def __init__(self, lives: Lives, access: Admits, describe: Describe) -> None:
        self._lives = lives
        self._access = access
        self._describe = describe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        if scope["path"] == "/admin/metadata":
            await self._metadata(scope, send)
            return
        if scope["method"] not in _METHODS:
            raise not_allowed(scope["method"], ", ".join(_METHODS))
        found = _MOUNT.fullmatch(scope["path"])
        assert found is not None, "the gateway looked"
        stream = await self._admit(found[1], scope)
        options = SourceOptions(
            kind="icecast", top=stream.config.quality, sound=Sound(volume=stream.volume)
        )  # fmt: skip
        failure: WhisprError | None = None
        async with self._lives.source(stream.id, options) as feed:
            request = _Request(scope, receive, send)
            try:
                await request.feed(feed)
            except WhisprError as error:
                failure = error
        await request.finish(failure or _put_out(feed.reason))

    async def _admit(self, stream_id: str, scope: Scope) -> Stream:
        try:
            return await self._access.source(stream_id, shown_by(scope))
        except WhisprError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            # Sources first ask without a password, and send it when they are asked for one.
            asks = {"www-authenticate": 'Basic realm="whispr", charset="UTF-8"'}
            raise HttpError(401, error.code, error.message, error.reason, asks) from None

    async def _metadata(self, scope: Scope, send: Send) -> None:
        """Take what is played, as Icecast's sources say it."""
        if scope["method"] not in ("GET", "POST"):
            raise not_allowed(scope["method"], "GET, POST")
        query = _query(scope["query_string"])
        found = _MOUNT.fullmatch(query.get("mount", ""))
        if found is None:
            raise not_found("mount", query.get("mount", "")[:100])
        if query.get("mode") != "updinfo":
            raise invalid({"mode": "only updinfo is served"})
        stream = await self._admit(found[1], scope)
        await self._describe(stream.id, _played(query))
        headers = [(b"content-type", b"text/xml; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _DONE})


class _Request:
    """One source's request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._legacy = scope["method"] == "SOURCE"
        self._framed = bool({"content-length", "transfer-encoding"} & set(self._headers.keys()))
        self._begun = False
        """Whether the answer's head has been sent."""

    async def feed(self, feed: Feed) -> None:
        """Give all that is sent to the engine. Raises as `Feed.container` does."""
        if not self._framed:
            expects = "expect" in self._headers
            say = _GO_ON if self._legacy else _CONTINUE if expects else b""
            await self._send({"type": "whispr.endless", "say": say, "answered": self._legacy})
            self._begun = self._legacy
        body = _Body(self._receive)
        beginning = await body.beginning()
        if beginning:
            form = form_of(self._headers.get("content-type", ""), beginning)
            await feed.container(body, form)

    async def finish(self, failure: WhisprError | None) -> None:
        """Answer, where the source still waits for one. Raises `failure` where it can be told."""
        try:
            if not self._begun:
                if failure is not None:
                    raise failure
                await self._send({"type": "http.response.start", "status": 200, "headers": []})
            await self._send({"type": "http.response.body", "body": b""})
        except ClientGoneError:
            return  # It has sent all it had to, and closed both sides.


class _Body:
    """A request's body, a piece at a time; it may be left at any of them."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True
        self._beginning = b""

    async def beginning(self) -> bytes:
        """Return what it begins with, which is yet to be iterated over; nothing if it is empty."""
        while len(self._beginning) < SNIFF_BYTES and (piece := await self._next()):
            self._beginning += piece
        return self._beginning

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece, self._beginning = self._beginning, b""
        piece = piece or await self._next()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def _next(self) -> bytes:
        """Return the next piece, nothing at the end."""
        while self._more:
            event = await self._receive()
            self._more = event["type"] == "http.request" and event.get("more_body", False)
            if event.get("body"):
                piece: bytes = event["body"]
                return piece
        return b""


def _put_out(reason: str) -> WhisprError | None:
    """Word why a source was ended that had not ended itself."""
    if reason in ("", "left"):
        return None
    return HttpError(409, Code.ABORTED, reason, "source_ended")


def _query(raw: bytes) -> dict[str, str]:
    """Read a query in the charset that it names: old sources write Latin-1."""
    text = raw.decode("latin-1")
    for charset in (parse_qs(text).get("charset", ["utf-8"])[0], "latin-1"):
        try:
            fields = parse_qs(text, encoding=charset, errors="strict", max_num_fields=32)
            facts = {name: values[0] for name, values in fields.items()}
            "".join(facts.values()).encode()  # some charsets make halves of surrogates, which are no text
            return facts
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return {}


def _played(query: Mapping[str, str]) -> dict[str, str]:
    """Return title and artist: said each, or in one as `artist - title`."""
    facts = {name: query.get(name, "").strip()[:TAG_CHARS_MAX] for name in ("title", "artist", "album")}
    song = query.get("song", "").strip()[:TAG_CHARS_MAX]
    if song and not facts["title"]:
        artist, dash, title = song.partition(" - ")
        facts["title"] = title if dash else song
        facts["artist"] = facts["artist"] or (artist if dash else "")
    return facts
