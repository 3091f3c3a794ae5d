"""Packets of one rendition, cut into the parts and segments of HLS. Pure.

Cuts are places on the stream's own clock, not counts of packets, so the renditions of a stream are cut at the same
instants and have the same media sequence numbers, on whichever node that is done:

    part       0.32 s = 15 AAC frames = 16 Opus packets, the shortest time that is whole in both
    segment    6 parts, 1.92 s; its media sequence number is how many of that length came before it

The first segment of a rendition whose encoder has just begun holds only the parts from then on. Parts are counted
within their segment from 0 in the order of a playlist (RFC 8216bis, 4.4.4.9). A part that nothing came for, because a
relay lost it, is a *gap*: it keeps its place and has no bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from whispr.audio.fmp4 import fragments
from whispr.audio.packets import Packet

PART: Final = 15_360
"""Samples at 48 kHz."""
PARTS: Final = 6
"""Parts of a whole segment."""
SEGMENT: Final = PART * PARTS

Place = tuple[int, int]
"""Media sequence number, and part within that segment."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it is served."""

    start: int
    """In samples on the stream's clock."""
    duration: int
    data: bytes
    """Empty for a gap."""


@dataclass(slots=True)
class Segment:
    """A segment that is whole, or the one that still grows."""

    msn: int
    parts: list[Part] = field(default_factory=list)
    whole: bool = False

    @property
    def start(self) -> int:
        """In samples on the stream's clock. There must be a part."""
        return self.parts[0].start

    @property
    def duration(self) -> int:
        """In samples, of the parts so far."""
        return sum(part.duration for part in self.parts)

    @property
    def gap(self) -> bool:
        """Whether nothing is in it."""
        return not any(part.data for part in self.parts)

    @property
    def data(self) -> bytes:
        """All of its parts. Joined each time, which is cheaper than to keep it twice."""
        return b"".join([part.data for part in self.parts])


class Segmenter:
    """The latest segments of one rendition. At most `window` whole ones are kept."""

    def __init__(self, window: int) -> None:
        assert window > 0
        self.segments: deque[Segment] = deque()
        """Each follows the one before it. The last may be growing."""
        self.ended = False
        self._window = window
        self._gathered: list[Packet] = []
        self._start = -1
        """Where the part that is gathered begins; negative before the first."""
        self._end = 0
        """Where the last packet ended."""

    @property
    def first_whole(self) -> bool:
        """Whether there is a whole segment."""
        return bool(self.segments) and self.segments[0].whole

    @property
    def last(self) -> Place | None:
        """Return the place of the newest part."""
        if not self.segments:
            return None
        newest = self.segments[-1]
        return newest.msn, len(newest.parts) - 1

    @property
    def next(self) -> Place | None:
        """Return the place of the part that is gathered now, None before the first and after the end."""
        if self.ended or self._start < 0:
            return None
        msn = self._start // SEGMENT
        if self.segments and self.segments[-1].msn == msn:
            return msn, len(self.segments[-1].parts)
        return msn, 0

    def has(self, msn: int, part: int | None) -> bool:
        """Whether everything up to a part is there, or, without a part, up to the end of a segment."""
        if not self.segments:
            return False
        newest = self.segments[-1]
        if newest.msn != msn:
            return newest.msn > msn
        # A part past the last of a whole segment is the first of the next one (RFC 8216bis, 6.2.5.2).
        return (newest.whole and part is None) or (part is not None and part < len(newest.parts))

    def segment(self, msn: int) -> Segment | None:
        """Return a segment that is kept."""
        index = msn - self.segments[0].msn if self.segments else -1
        return self.segments[index] if 0 <= index < len(self.segments) else None

    def add(self, packets: Sequence[Packet]) -> bool:
        """Take packets, in order; return whether a part has come of them."""
        before = self.last
        for packet in packets:
            if not self.ended:
                self._take(packet)
        return self.last != before

    def finish(self) -> None:
        """End: what is gathered is the last part, and a playlist says that no more will come."""
        if self._gathered:
            self._close(self._end - self._start)
        if self.segments:
            self.segments[-1].whole = True
        self.ended = True

    def _take(self, packet: Packet) -> None:
        if packet.pts < self._end:
            return  # has been taken: who begins with what is kept gets some of it again
        self._end = packet.pts + packet.duration
        if self._start < 0:
            self._start = -(-packet.pts // PART) * PART
        elif packet.pts >= self._start + SEGMENT * self._window:
            self._restart(packet)
        while packet.pts >= self._start + PART:
            self._close(PART)
        if packet.pts < self._start:
            return  # before the first cut: the encoder began in the middle of a part
        self._gathered.append(packet)
        if packet.pts + packet.duration >= self._start + PART:
            self._close(PART)

    def _restart(self, packet: Packet) -> None:
        """Begin anew after a hole in which everything has become too old."""
        self.segments.clear()
        self._gathered.clear()
        self._start = -(-packet.pts // PART) * PART

    def _close(self, duration: int) -> None:
        """Make a part of what is gathered."""
        msn, index = divmod(self._start // PART, PARTS)
        if not self.segments or self.segments[-1].msn != msn:
            self.segments.append(Segment(msn))
        segment = self.segments[-1]
        data = fragments(msn * PARTS + index + 1, self._gathered) if self._gathered else b""
        segment.parts.append(Part(self._start, duration, data))
        segment.whole = index == PARTS - 1
        self._gathered.clear()
        self._start += PART
        if segment.whole and len(self.segments) > self._window:
            self.segments.popleft()
