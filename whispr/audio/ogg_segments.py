"""A finished Ogg Opus file as segments of HLS: where each begins and ends, in bytes and in time. Pure.

Only the heads of pages are looked at, as the file goes by; segments are runs of whole pages, about `LENGTH` long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from whispr.audio import opus
from whispr.audio.ogg import OggError, whole_pages
from whispr.audio.packets import CLOCK_HZ, Packet

LENGTH: Final = 6 * CLOCK_HZ
"""Of a segment, in samples: what Apple's authoring specification asks of recordings."""

_HEAD_BYTES: Final = 27
_HEADERS: Final = 2
"""Pages before the sound (RFC 7845, section 3)."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A segment of a file: bytes from `start` up to `end`, samples from `pts` on."""

    start: int
    end: int
    pts: int
    duration: int


class Segmented:
    """Finds the segments of a file that is fed to it from its beginning."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        """Those found so far."""
        self._buffer = b""
        self._left = 0
        """What is still to come of a page whose head has been read."""
        self._coming = (0, 0)
        """Size and granule position of that page."""
        self._pages = 0
        self._start = self._end = 0
        """Bytes of the segment that is gathered."""
        self._pts = self._granule = 0
        """Samples of it."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises OggError for what is no Ogg."""
        data, at = self._buffer + data, 0
        while True:
            if self._left:
                step = min(self._left, len(data) - at)
                at, self._left = at + step, self._left - step
                if self._left:
                    break
                self._add_page()
            head = data[at : at + _HEAD_BYTES + 255]
            size = _page_bytes(head)
            if not size:
                break
            self._left = size
            self._coming = size, int.from_bytes(head[6:14], "little", signed=True)
        self._buffer = data[at:]

    def finish(self) -> None:
        """Take what is left as the last segment; a page that was cut off is not part of it."""
        self._close()

    def _add_page(self) -> None:
        self._pages += 1
        if self._granule - self._pts >= LENGTH:
            self._close()
        size, granule = self._coming
        self._end += size
        if self._pages <= _HEADERS:
            self._start = self._end
        else:
            self._granule = max(self._granule, granule)

    def _close(self) -> None:
        """Make a segment of what is gathered."""
        if self._granule > self._pts:
            self.stretches.append(Stretch(self._start, self._end, self._pts, self._granule - self._pts))
        self._start, self._pts = self._end, self._granule


def _page_bytes(head: bytes) -> int:
    """Return how long a page is that begins so; 0 while that cannot be said. Raises OggError."""
    if not b"OggS".startswith(head[:4]):
        raise OggError("no page begins here")
    if len(head) < _HEAD_BYTES or len(head) < _HEAD_BYTES + head[26]:
        return 0
    body = _HEAD_BYTES + head[26]
    return body + sum(head[_HEAD_BYTES:body])


def packets_in(data: bytes, pts: int) -> list[Packet]:
    """Return the packets of whole pages, the first at `pts`. Raises OggError, OpusError."""
    found = []
    for page in whole_pages(data):
        for packet in page.packets:
            length = opus.duration(packet)
            found.append(Packet(pts, length, packet))
            pts += length
    return found
