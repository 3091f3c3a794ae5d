"""Progressive listening: one endless answer that any player takes, Ogg Opus or AAC. An ASGI application.

    /listen/<stream>, /listen/<stream>.ogg      Ogg Opus
    /listen/<stream>.aac                        AAC in ADTS, also for players that accept nothing of Ogg
    ?quality=low|medium|high|ultra              to begin with another than the listener's own
    Icy-MetaData: 1                             titles within the AAC stream, as SHOUTcast players ask for them

What is sent comes in *pages* of 0.16 s, cut at the same places of the stream's clock for every rendition and every
listener, so a page is made once for all of them, and another rendition goes on with the next page: Ogg pages even are
numbered by the clock. A listener begins with the last few seconds, to fill its buffer.

A listener's queue is bounded. Who does not keep up goes on at the live edge; who takes nothing for `CUT_S` is let go.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs
from weakref import WeakValueDictionary

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read, open_to_pages
from whispr.asgi.wire import ClientGoneError
from whispr.audio import adts, icy
from whispr.audio.ogg import Writer
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.errors import invalid, not_found
from whispr.nurseries import own_nursery
from whispr.services.stream.access import shown_by
from whispr.services.stream.audience import Audience
from whispr.services.stream.domain import Metadata
from whispr.services.stream.engine.live import Live
from whispr.services.stream.listener import Listener, Transport, Wish
from whispr.services.stream.listening import metrics
from whispr.services.stream.listening.hls import missing_without_sound
from whispr.services.stream.listening.shelves import Find

PATH: Final = re.compile(r"/listen/([0-9A-Za-z-]{1,64})(\.ogg|\.opus|\.aac)?")
"""What of a gateway's paths is served here."""
PAGE: Final = 7680
"""Samples at 48 kHz: 8 Opus packets, 7 or 8 AAC frames."""
QUEUE_S: Final = 10.0
BURST_S: Final = 3.0
CUT_S: Final = 15.0

AddressOf = Callable[[Scope, Headers], str]
TitleOf = Callable[[str], Metadata | None]
"""Tells what a stream plays now, as far as this process knows."""

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"accept-ranges", b"none"),
)
_TYPES: Final = {Codec.OPUS: b"audio/ogg", Codec.AAC: adts.CONTENT_TYPE.encode()}
_HEADER_PAGES: Final = 2

Hear = Callable[[int, bytes], None]
"""Takes a page: its number on the stream's clock, and its bytes."""


class Press:
    """Makes the pages of one rendition, for as long as somebody hears it."""

    def __init__(self, live: Live, rendition: Rendition) -> None:
        self.rendition = rendition
        self._serial = zlib.crc32(live.stream_id.encode())
        self._hearers: list[Hear] = []
        self._gathered: list[Packet] = []
        self._number = -1
        self._pages: deque[tuple[int, bytes]] = deque(maxlen=round(BURST_S * CLOCK_HZ / PAGE))
        self._next_pts = 0
        self._take(live.recent(rendition))
        self._subscription = live.subscribe(rendition, self._take)

    @property
    def latest(self) -> Sequence[tuple[int, bytes]]:
        """The last pages, to begin with."""
        return tuple(self._pages)

    def attach(self, hear: Hear) -> None:
        """Give every page from now on to a listener."""
        self._hearers.append(hear)

    def detach(self, hear: Hear) -> None:
        """Give no more to a listener; the last one's leaving stops the press."""
        if hear in self._hearers:
            self._hearers.remove(hear)
        if not self._hearers:
            self._subscription.close()

    @property
    def stopped(self) -> bool:
        """Whether everybody has left."""
        return not self._hearers

    def _take(self, packets: Sequence[Packet]) -> None:
        for packet in packets:
            if packet.pts < self._next_pts:
                continue
            self._next_pts = packet.pts + packet.duration
            number = packet.pts // PAGE
            if number != self._number:
                self._print()
                self._number = number
            self._gathered.append(packet)
            if self._next_pts >= (number + 1) * PAGE:
                self._print()

    def _print(self) -> None:
        packets, self._gathered = self._gathered, []
        if not packets:
            return
        page = self._number, self._bytes(packets)
        self._pages.append(page)
        for hear in tuple(self._hearers):
            hear(*page)

    def _bytes(self, packets: Sequence[Packet]) -> bytes:
        if self.rendition.codec is Codec.AAC:
            return adts.adts(packets)
        writer = Writer(self._serial, sequence=(self._number + _HEADER_PAGES) % (1 << 32))
        return writer.page([packet.data for packet in packets], packets[-1].pts + packets[-1].duration)

    def beginning(self, comments: Mapping[str, str]) -> bytes:
        """Return what comes before any page."""
        if self.rendition.codec is Codec.AAC:
            return b""
        return Writer(self._serial).opus_headers(comments)


class Presses:
    """The presses at work, found by stream and rendition."""

    def __init__(self) -> None:
        self._presses: WeakValueDictionary[tuple[int, Rendition], Press] = WeakValueDictionary()

    def of(self, live: Live, rendition: Rendition) -> Press:
        """Return the press of a rendition."""
        press = self._presses.get((id(live), rendition))
        if press is None or press.stopped:
            press = self._presses[id(live), rendition] = Press(live, rendition)
        return press


class Ear:
    """One listener's queue of pages, and the press that fills it."""

    def __init__(self, live: Live, presses: Presses, codec: Codec, listener: Listener) -> None:
        self._live = live
        self._presses = presses
        self._codec = codec
        self._listener = listener
        self._queue: deque[bytes] = deque()
        self._next = -1
        """Number of the page that comes next; negative before the first."""
        self._more = trio.Event()
        self._press: Press | None = None
        self._coming: Press | None = None
        self._ended = False
        self.sending = False
        """Whether something is under way, so that nothing else may be said."""

    @property
    def rendition(self) -> Rendition:
        """What is heard now."""
        assert self._press is not None, "it listens"
        return self._press.rendition

    def open(self, quality: Quality | None) -> Press:
        """Begin to listen; return the press."""
        press = self._press = self._presses.of(self._live, self._live.best_for(quality, self._codec))
        press.attach(self._hear)
        for number, page in press.latest:
            self._hear(number, page)
        self._listener.report(rendition=press.rendition.quality)
        self._listener.on_wish(self._wished)
        return press

    def close(self) -> None:
        """Listen no more."""
        for press, hear in ((self._press, self._hear), (self._coming, self._hear_coming)):
            if press is not None:
                press.detach(hear)

    async def follow(self) -> None:
        """Let `pages` know of the end of the stream, or of its way here."""
        await self._live.ended.wait()
        self._ended = True
        self._more.set()

    async def pages(self) -> Sequence[bytes]:
        """Return the pages that wait, once there is one; none once the sound has ended."""
        while not self._queue:
            if self._ended:
                self._listener.end(self._live.reason or "ended")
                return ()
            self._more = trio.Event()
            await self._more.wait()
        pages = tuple(self._queue)
        self._queue.clear()
        return pages

    def _wished(self, wish: Wish) -> None:
        rendition = self._live.best_for(wish.quality or Quality.MEDIUM, self._codec)
        if self._coming is not None:
            self._coming.detach(self._hear_coming)
            self._coming = None
        if rendition != self.rendition:
            self._coming = self._presses.of(self._live, rendition)
            self._coming.attach(self._hear_coming)

    def _hear(self, number: int, page: bytes) -> None:
        if number < self._next:
            return
        self._next = number + 1
        if len(self._queue) * PAGE >= QUEUE_S * CLOCK_HZ:
            self._listener.report(dropped_frames=len(self._queue))
            metrics.SKIPPED.labels("progressive").inc()
            self._queue.clear()
        self._queue.append(page)
        self._more.set()

    def _hear_coming(self, number: int, page: bytes) -> None:
        """Go over to another rendition with the page that is due."""
        coming, press = self._coming, self._press
        if number < self._next or coming is None or press is None:
            return
        if number > self._next and not press.stopped:
            for earlier, missed in coming.latest:
                if self._next <= earlier < number:
                    self._hear(earlier, missed)
        coming.attach(self._hear)
        coming.detach(self._hear_coming)
        press.detach(self._hear)
        self._press, self._coming = coming, None
        self._listener.report(rendition=coming.rendition.quality)
        self._hear(number, page)


class Progressive:
    """Serves the live streams of one process to plain players."""

    def __init__(self, find: Find, audience: Audience, address_of: AddressOf, metadata_of: TitleOf) -> None:
        self._find = find
        self._audience = audience
        self._address_of = address_of
        self._metadata_of = metadata_of
        self._presses = Presses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        del receive
        open_to_pages(scope)
        match = PATH.fullmatch(scope["path"])
        must_read(scope)
        if match is None:
            raise not_found("live stream", scope["path"].removeprefix("/listen/"))
        headers = Headers(scope=scope)
        codec = _codec(match[2] or "", headers.get("accept", ""), headers.get("icy-metadata", ""))
        quality = _quality(scope["query_string"].decode("latin-1"))
        if scope["method"] == "HEAD":
            await self._tell(match[1], codec, scope, send)
            return
        address, agent = self._address_of(scope, headers), headers.get("user-agent", "")
        titled = codec is Codec.AAC and headers.get("icy-metadata", "") == "1"
        with missing_without_sound(match[1]):
            async with self._audience.listening(
                match[1], shown_by(scope), Transport.PROGRESSIVE, address, agent
            ) as listener:
                # Only now: what strangers may not hear is not fetched from another node for them.
                ear = Ear(await self._live(match[1]), self._presses, codec, listener)
                try:
                    press = ear.open(quality or listener.quality or Quality.MEDIUM)
                    async with own_nursery("the listener has left") as nursery:
                        nursery.start_soon(ear.follow)
                        await self._serve(send, ear, press, listener, titled=titled)
                finally:
                    ear.close()
        if ear.sending:
            metrics.CUT.labels("progressive").inc()
            raise ClientGoneError("the listener was let go in the middle of what it does not take")
        await send({"type": "http.response.body", "body": b""})

    async def _tell(self, stream_id: str, codec: Codec, scope: Scope, send: Send) -> None:
        """Answer HEAD: to whom GET would be answered. Raises as `Audience.regard`, and why they may not listen."""
        _, refused = await self._audience.regard(stream_id, shown_by(scope))
        if refused is not None:
            raise refused
        await self._live(stream_id)
        await _begin(send, codec, ())
        await send({"type": "http.response.body", "body": b""})

    async def _live(self, stream_id: str) -> Live:
        """Return a stream's sound. Raises NOT_FOUND."""
        live = await self._find(stream_id)
        if live is None:
            raise not_found("live stream", stream_id)
        return live

    async def _serve(self, send: Send, ear: Ear, press: Press, listener: Listener, *, titled: bool) -> None:
        """Send pages until the listener leaves, or is too slow, or the stream ends."""
        stream = listener.stream
        said = [(b"icy-name", _latin(stream.title))]
        if titled:
            said += [
                (b"icy-metaint", b"%d" % icy.INTERVAL),
                (b"icy-br", b"%d" % (ear.rendition.bitrate_bps // 1000)),
            ]
        await _begin(send, ear.rendition.codec, said)
        comments = {"title": stream.title, "artist": stream.streamer_username}
        await _more(send, press.beginning(comments))
        weaver = icy.TitleWeaver() if titled else None
        while True:
            sound = b"".join(await ear.pages())
            if not sound:
                return
            if weaver is not None:
                sound = weaver.weave(sound, self._title(stream.id, stream.title))
            ear.sending = True
            with trio.move_on_after(CUT_S) as patience:
                await _more(send, sound)
            if patience.cancelled_caught:
                listener.end("too_slow")
                return
            ear.sending = False
            listener.report(bytes_sent=len(sound))
            metrics.SENT_BYTES.labels("progressive").inc(len(sound))

    def _title(self, stream_id: str, title: str) -> str:
        """Return what plays now, as players show it."""
        metadata = self._metadata_of(stream_id)
        if metadata is None:
            return title
        return " - ".join(each for each in (metadata.artist, metadata.current_track) if each) or title


def _codec(extension: str, accepted: str, titles: str) -> Codec:
    """Return what a player gets: what its URL says, else what it accepts; players that ask for titles know AAC."""
    if extension:
        return Codec.AAC if extension == ".aac" else Codec.OPUS
    if titles == "1":
        return Codec.AAC
    anything = not accepted or "*/*" in accepted or "audio/*" in accepted
    return Codec.OPUS if anything or "ogg" in accepted or "opus" in accepted else Codec.AAC


def _quality(query: str) -> Quality | None:
    """Return the quality that a URL asks for. Raises INVALID_ARGUMENT."""
    asked = parse_qs(query).get("quality", [""])[0].lower()
    if not asked:
        return None
    if asked not in list(Quality):
        raise invalid({"quality": "low, medium, high or ultra"})
    return Quality(asked)


def _latin(text: str) -> bytes:
    """Write a header's value: players read UTF-8 there, and no line may end in it."""
    return re.sub(rb"[\x00-\x1f\x7f]", b" ", text.encode())


async def _begin(send: Send, codec: Codec, said: Sequence[tuple[bytes, bytes]]) -> None:
    headers = (*_HEADERS, (b"content-type", _TYPES[codec]), *said)
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _more(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
