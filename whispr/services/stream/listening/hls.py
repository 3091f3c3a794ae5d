"""The HLS origin: an ASGI application that serves live streams with low latency, and plainly to old players.

    /hls/<stream>/master.m3u8                        admits a listener; needs what the stream asks of them
    /hls/<stream>/<session>/<rendition>/live.m3u8    the listener's playlist; may wait for what is asked for
    /hls/<stream>/<session>/<rendition>/init.mp4, <msn>.m4s, <msn>.<part>.m4s
    /hls/<stream>/<rendition>/…                      the same files for all, of streams that are open to anybody

A session in the path, rather than in a query, makes every URL in a playlist relative and the same for all: playlists
are rendered and compressed once for all listeners. Files are asked for under the session, which ends with the
listener's access; where a cache in front is to keep them, open streams can have one URL of each for all instead.

A player that has parts asks for the playlist that will have the next one, and for that part itself, before they are
there; both answers are held back until they are (RFC 8216bis, 6.2.5.2 and 6.3.7). Players choose their rendition
themselves. Whose quality was pinned by ChangeQuality gets the sound of that one in the files of whichever they ask
for: all renditions of a codec are cut alike and decode alike, so nothing is heard of the change.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read, open_to_pages
from whispr.audio import playlist
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.audio.playlist import AHEAD_MAX, Directives, read_directives
from whispr.audio.segments import PARTS
from whispr.errors import WhisprError, denied, exhausted, invalid, not_found, unavailable
from whispr.services.stream.access import shown_by
from whispr.services.stream.audience import Audience
from whispr.services.stream.domain import Stream, Visibility
from whispr.services.stream.listener import Listener
from whispr.services.stream.listening import metrics
from whispr.services.stream.listening.compressed import Compressed
from whispr.services.stream.listening.shelves import RENDITIONS, Shelf, Shelves, Stage

PATH: Final = re.compile(r"/hls/(?!recordings/)[0-9A-Za-z-]{1,64}/.+")
"""What of a gateway's paths is served here."""

AddressOf = Callable[[Scope, Headers], str]
"""Tells a client's address, past the proxies that are trusted."""
Describe = Callable[[str], Awaitable[Stream]]
"""Reads what a stream is. Raises NOT_FOUND."""

_FILE = re.compile(r"(?:(init)\.mp4|(\d{1,15})(?:\.(\d{1,3}))?\.m4s)")
DESCRIBED_S: Final = 2.0
"""How long it is believed that a stream is open to anybody."""
HELD_MAX: Final = 16
"""Requests of one session that are held back at a time: a player has two or three, for each rendition it tries."""
_KEPT_S: Final = 600  # what never changes: longer than any playlist names it

_ANYWHERE = (
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
)
_PLAYLIST = (*_ANYWHERE, (b"content-type", playlist.CONTENT_TYPE.encode()), (b"vary", b"accept-encoding"))
_OWN = (*_PLAYLIST, (b"cache-control", b"no-store"))
_FRESH = (*_PLAYLIST, (b"cache-control", b"private, no-cache"))
_FRESH_GZIP = (*_FRESH, (b"content-encoding", b"gzip"))
_SOUND = (*_ANYWHERE, (b"content-type", b"audio/mp4"))
_OPEN_SOUND = (*_SOUND, (b"cache-control", b"public, max-age=%d, immutable" % _KEPT_S))
_CLOSED_SOUND = (*_SOUND, (b"cache-control", b"private, max-age=%d, immutable" % _KEPT_S))
_PREFLIGHT = (
    *_ANYWHERE,
    (b"access-control-allow-methods", b"GET, HEAD"),
    (b"access-control-allow-headers", b"authorization, range"),
    (b"access-control-max-age", b"600"),
    (b"cache-control", b"no-store"),
)


class HlsOrigin:
    """Serves the live streams of one process by HLS."""

    def __init__(
        self,
        shelves: Shelves,
        audience: Audience,
        describe: Describe,
        address_of: AddressOf,
        *,
        anonymous: bool = True,
        shared_files: bool = False,
    ) -> None:
        """`anonymous`: whether streams open to anybody are open to people without an account.

        `shared_files`: whether files of such streams have one URL for all.
        """
        self._shelves = shelves
        self._audience = audience
        self._describe = describe
        self._address_of = address_of
        self._shared_files = shared_files and anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        del receive
        open_to_pages(scope)
        if scope["method"] == "OPTIONS":
            await _answer(send, 204, _PREFLIGHT, b"")
            return
        must_read(scope)
        stream_id, *rest = scope["path"].removeprefix("/hls/").split("/")
        match rest:
            case ["master.m3u8"]:
                await self._master(stream_id, scope, send)
            case [session, rendition, "live.m3u8"]:
                await self._playlist(stream_id, session, rendition, scope, send)
            case [session, rendition, file]:
                listener = await self._listener(stream_id, session, scope)
                stage = await self._stage(stream_id)
                asked = _rendition(rendition)
                with _held(listener):
                    data = await _file(stage, asked, _pinned(listener, stage, asked), file)
                listener.report(bytes_sent=len(data))
                await _answer(send, 200, _CLOSED_SOUND, data)
            case [rendition, file]:
                await _answer(send, 200, _OPEN_SOUND, await self._open_file(stream_id, rendition, file))
            case _:
                raise not_found("file", scope["path"])

    async def _master(self, stream_id: str, scope: Scope, send: Send) -> None:
        headers = Headers(scope=scope)
        address, agent = self._address_of(scope, headers), headers.get("user-agent", "")
        with missing_without_sound(stream_id):
            session = await self._audience.open_session(stream_id, shown_by(scope), address, agent)
        live = (await self._stage(stream_id)).live
        wished = session.listener.quality or Quality.MEDIUM
        order: list[Rendition] = []
        for codec in (Codec.AAC, Codec.OPUS):
            first = live.best_for(wished, codec)
            order += sorted(live.renditions(codec), key=lambda each: each != first)
        await _answer(send, 200, _OWN, playlist.master(order, session.token))

    async def _playlist(self, stream_id: str, session: str, name: str, scope: Scope, send: Send) -> None:
        directives = read_directives(scope["query_string"].decode("latin-1"))
        listener = await self._listener(stream_id, session, scope)
        stage = await self._stage(stream_id)
        shelf = _shelf(stage, _rendition(name))
        with _held(listener):
            await _reach(shelf, directives)
        listener.report(rendition=_pinned(listener, stage, shelf.rendition).quality)
        prefix = f"../../{name}/" if self._shares_files(listener.stream) else ""
        await _answer_text(scope, send, shelf.playlist(prefix, skip=directives.skip))

    async def _listener(self, stream_id: str, session: str, scope: Scope) -> Listener:
        """Return whose session it is. Raises as `Audience.resume`."""
        listener = self._audience.seen(stream_id, session)
        if listener is None:
            headers = Headers(scope=scope)
            address, agent = self._address_of(scope, headers), headers.get("user-agent", "")
            with missing_without_sound(stream_id):
                listener = await self._audience.resume(stream_id, session, address, agent)
        return listener

    async def _open_file(self, stream_id: str, rendition: str, file: str) -> bytes:
        """Return a file that has one URL for all. Raises NOT_FOUND where files are had by a session alone."""
        if not self._shared_files:
            raise not_found("file", file)
        stage, now = await self._stage(stream_id), trio.current_time()
        if stage.stream is None or now - stage.described_at > DESCRIBED_S:
            stage.described_at = now  # who asks meanwhile goes by what was known
            stage.stream = await self._describe(stream_id)
        if not self._shares_files(stage.stream):
            raise not_found("file", file)
        asked = _rendition(rendition)
        return await _file(stage, asked, asked, file)

    async def _stage(self, stream_id: str) -> Stage:
        """Return the stage of a live stream. Raises NOT_FOUND."""
        stage = await self._shelves.stage(stream_id)
        if stage is None:
            raise not_found("live stream", stream_id)
        return stage

    def _shares_files(self, stream: Stream) -> bool:
        return self._shared_files and stream.visibility in (Visibility.PUBLIC_STREAM, Visibility.UNLISTED)


@contextmanager
def missing_without_sound(stream_id: str) -> Iterator[None]:
    """Say of a stream without sound what players know from other origins: that there is none."""
    try:
        yield
    except WhisprError as error:
        if error.reason != "no_source":
            raise
        raise not_found("live stream", stream_id) from error


@contextmanager
def _held(listener: Listener) -> Iterator[None]:
    """Bound what of a listener's may wait at a time, and give nothing to whose access has ended meanwhile.

    Raises RESOURCE_EXHAUSTED (too_many_requests), PERMISSION_DENIED (session_ended).
    """
    if listener.held >= HELD_MAX:
        raise exhausted(
            f"at most {HELD_MAX} requests of one session wait at a time", 1.0, reason="too_many_requests"
        )
    listener.held += 1
    try:
        yield
    finally:
        listener.held -= 1
    if listener.ended.is_set():
        raise denied("the session has ended", "session_ended")


def _pinned(listener: Listener, stage: Stage, asked: Rendition) -> Rendition:
    """Return what a listener gets for a rendition: the one that ChangeQuality pinned, if one did.

    What they began with is where a player starts, which then chooses by itself.
    """
    wished = listener.quality
    if wished is None or wished is listener.stream.default_quality:
        return asked
    return stage.live.best_for(wished, asked.codec)


def _rendition(name: str) -> Rendition:
    rendition = RENDITIONS.get(name)
    if rendition is None:
        raise not_found("rendition", name)
    return rendition


def _shelf(stage: Stage, rendition: Rendition) -> Shelf:
    """Return where a rendition is kept. Raises NOT_FOUND when it is not offered."""
    shelf = stage.shelf(rendition)
    if shelf is None:
        raise not_found("rendition", rendition.name)
    return shelf


async def _reach(shelf: Shelf, asked: Directives) -> None:
    """Wait until a playlist has what is asked of it, and anything at all.

    Raises INVALID_ARGUMENT for what is too far in the future, UNAVAILABLE when nothing comes.
    """
    segmenter = shelf.segmenter
    if not segmenter.first_whole:
        await shelf.until(lambda: segmenter.first_whole)
    msn, last = asked.msn, segmenter.last
    if last is None:
        raise unavailable("the stream ended before it began", playlist.TARGET_S)
    if msn is None or segmenter.ended:
        return
    if msn > last[0] + AHEAD_MAX or (msn, asked.part or 0) > (last[0] + AHEAD_MAX, PARTS):
        raise invalid({"_HLS_msn": f"at most {AHEAD_MAX} past the last segment, {last[0]}"})
    await shelf.until(lambda: segmenter.has(msn, asked.part))


async def _file(stage: Stage, asked: Rendition, given: Rendition, file: str) -> bytes:
    """Return a file of a rendition, with the sound of the one `given` instead, waiting for the part that comes next.

    Raises NOT_FOUND, UNAVAILABLE.
    """
    beginning, shelf = _shelf(stage, asked).init, _shelf(stage, given)
    match = _FILE.fullmatch(file)
    data = None
    if match is None:
        pass
    elif match[1]:
        data = beginning
    elif match[3]:
        data = await _part(shelf, int(match[2]), int(match[3]))
    else:
        segment = shelf.segmenter.segment(int(match[2]))
        data = segment.data if segment is not None and segment.whole else None
    if not data:
        raise not_found("file", file)
    metrics.SENT_BYTES.labels("hls").inc(len(data))
    return data


async def _part(shelf: Shelf, msn: int, index: int) -> bytes | None:
    """Return a part, None if there is none; the one that a playlist hints at is waited for."""
    segmenter = shelf.segmenter
    if segmenter.next == (msn, index):
        await shelf.until(lambda: segmenter.has(msn, index))
    segment = segmenter.segment(msn)
    if segment is None or index >= len(segment.parts):
        return None
    return segment.parts[index].data


async def _answer_text(scope: Scope, send: Send, text: Compressed) -> None:
    """Send a playlist, compressed to whom can read that, as the authoring specification wants it."""
    if any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"]):
        await _answer(send, 200, _FRESH_GZIP, text.gzip)
    else:
        await _answer(send, 200, _FRESH, text.plain)


async def _answer(send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
