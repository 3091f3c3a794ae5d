"""A finished AAC file (ADTS) as segments of HLS: where each begins and ends, in bytes and in time. Pure.

Segments are runs of whole frames, about `LENGTH` long.
"""

from __future__ import annotations

from whispr.audio.adts import SAMPLES, whole_frames
from whispr.audio.ogg_segments import LENGTH, Stretch
from whispr.audio.packets import Packet


class AdtsSegmented:
    """Finds the segments of a file that is fed to it from its beginning."""

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        """Those found so far."""
        self._buffer = b""
        self._start = self._end = 0
        """Bytes of the segment that is gathered."""
        self._pts = self._next = 0
        """Samples of it."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises AdtsError for what is no ADTS."""
        self._buffer += data
        used = 0
        for start, end in whole_frames(self._buffer, strict=True):
            self._end += end - start
            self._next += SAMPLES
            used = end
            if self._next - self._pts >= LENGTH:
                self._close()
        self._buffer = self._buffer[used:]

    def finish(self) -> None:
        """Take what is left as the last segment; a frame that was cut off is not part of it."""
        self._close()

    def _close(self) -> None:
        """Make a segment of what is gathered."""
        if self._next > self._pts:
            self.stretches.append(Stretch(self._start, self._end, self._pts, self._next - self._pts))
        self._start, self._pts = self._end, self._next


def frames_in(data: bytes, pts: int) -> list[Packet]:
    """Return the frames in whole ones, without their headers, the first at `pts`. Raises AdtsError."""
    return [
        Packet(pts + number * SAMPLES, SAMPLES, data[start + header_bytes(data, start) : end])
        for number, (start, end) in enumerate(whole_frames(data, strict=True))
    ]


def header_bytes(data: bytes, start: int) -> int:
    """Return the length of the header of a frame: longer when there is a checksum."""
    return 7 if data[start + 1] & 1 else 9
