"""Recordings as HLS: the Ogg Opus or AAC file, repackaged segment by segment as it is asked for. An ASGI application.

    /recordings/<recording>/<token>/master.m3u8, recording.m3u8, init.mp4, <n>.m4s

The token in the path is that of the download beside it, and allows as much. A recording's segments are found once, by
the heads of its pages, and remembered; the sound itself is read for each segment, and copied from one container to
the other without being decoded.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from starlette.types import Receive, Scope, Send

from whispr.adapters.objects import Objects
from whispr.asgi.errors import must_read, open_to_pages
from whispr.audio import playlist
from whispr.audio.adts_segments import AdtsSegmented, frames_in
from whispr.audio.fmp4 import fragments, init_segment
from whispr.audio.ogg_segments import Segmented, Stretch, packets_in
from whispr.audio.packets import CLOCK_HZ, Codec, Rendition
from whispr.errors import conflict, not_found, unavailable
from whispr.services.stream.engine.recording.download import Checks, Index
from whispr.services.stream.recordings import Recording, RecordingStatus

PATH: Final = re.compile(
    r"/recordings/([0-9a-f-]{36})/([0-9A-Za-z._-]{1,200})/(master\.m3u8|recording\.m3u8|init\.mp4|\d{1,9}\.m4s)"
)
"""What of a gateway's paths is served here."""
REMEMBERED_MAX: Final = 256
"""Recordings whose segments are known: some 100 KB for each hour."""
READING_MAX: Final = 4
"""Recordings that are read through at a time; the next wait."""

_CHUNK_BYTES: Final = 256 * 1024
_HEADERS = (
    (b"access-control-allow-origin", b"*"),
    (b"cross-origin-resource-policy", b"cross-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"private, max-age=3600, immutable"),
)


@dataclass(frozen=True, slots=True)
class Known:
    """A recording and its segments."""

    recording: Recording
    stretches: tuple[Stretch, ...]

    @property
    def rendition(self) -> Rendition:
        """What it was made of."""
        return Rendition(self.recording.codec, self.recording.quality)

    def playlist(self) -> bytes:
        """Return its media playlist."""
        return playlist.recorded([each.duration for each in self.stretches], self.recording.created_at)

    def master(self) -> bytes:
        """Return its multivariant playlist, with what it takes on average and at most."""
        rates = [(each.end - each.start) * 8 * CLOCK_HZ // each.duration for each in self.stretches]
        average = sum(rates) // len(rates) if rates else self.rendition.bitrate_bps
        return playlist.recorded_master(self.rendition, average, max(rates, default=average))


class RecordedHls:
    """Serves the recordings of one process as HLS."""

    def __init__(self, index: Index, urls: Checks, objects: Objects, folder: Path) -> None:
        """`folder`: where recordings are that were not to be uploaded."""
        self._index = index
        self._urls = urls
        self._objects = objects
        self._folder = folder
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._reading = trio.CapacityLimiter(READING_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        del receive
        open_to_pages(scope)
        must_read(scope)
        found = PATH.fullmatch(scope["path"])
        assert found is not None, "the gateway looked"
        recording_id, token, file = found.groups()
        self._urls.check_recording(token, recording_id)
        known = await self._segments_of(recording_id)
        kind, data = playlist.CONTENT_TYPE, b""
        if file == "master.m3u8":
            data = known.master()
        elif file == "recording.m3u8":
            data = known.playlist()
        else:
            kind, data = "audio/mp4", await self._sound(known, file)
        headers = (*_HEADERS, (b"content-type", kind.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _sound(self, known: Known, file: str) -> bytes:
        if file == "init.mp4":
            return init_segment(known.rendition)
        number = int(file.removesuffix(".m4s"))
        if number >= len(known.stretches):
            raise not_found("segment", file)
        stretch = known.stretches[number]
        pieces = [piece async for piece in self._bytes(known.recording, stretch.start, stretch.end)]
        read = frames_in if known.rendition.codec is Codec.AAC else packets_in
        packets = await trio.to_thread.run_sync(read, b"".join(pieces), stretch.pts)
        return fragments(number + 1, packets)

    async def _segments_of(self, recording_id: str) -> Known:
        """Return a recording's segments. Raises NOT_FOUND, FAILED_PRECONDITION (not_complete), UNAVAILABLE."""
        known = self._known.get(recording_id)
        if known is None:
            async with self._reading:
                known = self._known.get(recording_id) or await self._look_through(recording_id)
        self._known[recording_id] = known
        self._known.move_to_end(recording_id)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return known

    async def _look_through(self, recording_id: str) -> Known:
        recording = await self._index.find(recording_id)
        if recording.status is not RecordingStatus.COMPLETED:
            raise conflict(f"the recording is {recording.status.value}", "not_complete")
        segmented = AdtsSegmented() if recording.codec is Codec.AAC else Segmented()
        async for piece in self._bytes(recording, 0, recording.bytes):
            segmented.feed(piece)
        segmented.finish()
        return Known(recording, tuple(segmented.stretches))

    async def _bytes(self, recording: Recording, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield a recording's bytes from `start` up to `end`, wherever it is."""
        if recording.object_key:
            async for piece in self._objects.read(recording.object_key, start, end):
                yield piece
            return
        try:
            file = await trio.open_file(self._folder / f"{recording.id}.{recording.extension}", "rb")
        except FileNotFoundError:
            told = "the recording is on the disk of another node, and was not to be uploaded"
            raise unavailable(told, 60.0) from None
        async with file:
            await file.seek(start)
            while start < end and (piece := await file.read(min(_CHUNK_BYTES, end - start))):
                start += len(piece)
                yield piece
