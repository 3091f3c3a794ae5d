"""The time of day at places of a stream's clock, which is its source's and therefore drifts from ours. Pure.

A source's quartz may be off by 100 ppm, which is 8 s a day. Whoever makes the stream notes now and then how far its
clock is off; what is noted holds from the end of the segment after the one that is begun, so that every node has been
told when the first of them says what it is. The time of a segment is thus the same on all renditions and all nodes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from whispr.audio.segments import SEGMENT

STEP_S: Final = 0.01
"""What is off by less is left as it is."""
NOTES_MAX: Final = 32
"""Notes that are kept, one a segment at most: more than a playlist has segments."""

Note = tuple[int, float]
"""From where, in samples, a clock is so many seconds behind the time of day since it was 0."""


class WallClock:
    """How far one stream's clock is off, place by place."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self.notes: tuple[Note, ...] = tuple(notes)
        """In the order of the clock."""

    def note(self, pts: int, behind_s: float) -> None:
        """Say how far it is behind, at a place that is later than those before."""
        start = (pts // SEGMENT + 2) * SEGMENT
        last = self.notes[-1] if self.notes else (-1, 0.0)
        if start <= last[0] or abs(behind_s - last[1]) < STEP_S:
            return
        # A time that went back would have later segments begin before earlier ones.
        behind_s = max(behind_s, last[1] - 1.0)
        self.notes = (*self.notes, (start, behind_s))[-NOTES_MAX:]

    def behind_s(self, pts: int) -> float:
        """Return how far it is behind at a place."""
        number = bisect_right(self.notes, pts, key=lambda note: note[0])
        return self.notes[number - 1][1] if number else 0.0
