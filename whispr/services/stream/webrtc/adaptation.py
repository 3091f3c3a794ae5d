"""Which rung of the ladder a WebRTC listener gets who leaves it to us (AUTO). Pure.

Reports of the receiver decide: loss over 5 %, or a round trip that has grown far beyond what it was, is a path with a
queue that fills, and leads a rung down at once. After some time without either the next rung up is tried; one that
did not hold is tried again after twice as long, so that a listener is not moved up and down forever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from whispr.audio.packets import Quality

LOSS_DOWN: Final = 0.05
LOSS_CLEAN: Final = 0.02
"""Between the two nothing is decided."""
RTT_GROWN: Final = 2.0
RTT_GROWN_S: Final = 0.15
"""A round trip has grown when it is both so many times and so much longer than the shortest lately."""
SETTLE_S: Final = 2.0
"""After a change, reports are still of the time before."""
CLEAN_S: Final = 12.0
"""Without trouble, until the next rung is tried."""
CLEAN_MAX_S: Final = 96.0
FAILED_S: Final = 20.0
"""A rung that leads to trouble within so long did not hold."""
BASE_S: Final = 60.0
"""Over how long the shortest round trip is looked for."""


class Adaptation:
    """One listener's rung, time passed in."""

    def __init__(self, ladder: Sequence[Quality], start: Quality, now: float) -> None:
        """`ladder`: what may be chosen, the lowest first."""
        self._ladder = list(ladder)
        self._rung = self._ladder.index(start) if start in self._ladder else 0
        self._changed_at = self._clean_since = now
        self._clean_s = CLEAN_S
        self._climbed_at: float | None = None
        self._trips: list[tuple[float, float]] = []

    @property
    def quality(self) -> Quality:
        """The present choice."""
        return self._ladder[self._rung]

    def report(self, loss: float, round_trip_s: float | None, now: float) -> Quality:
        """Take a receiver's report in: the share lost since the one before, 0 to 1. Returns the choice."""
        grown = self._grown(round_trip_s, now)
        if now - self._changed_at < SETTLE_S:
            return self.quality
        if loss > LOSS_DOWN or grown:
            self._down(now)
        elif loss > LOSS_CLEAN:
            self._clean_since = now
        elif now - self._clean_since >= self._clean_s:
            self._up(now)
        return self.quality

    def _down(self, now: float) -> None:
        if self._climbed_at is not None and now - self._climbed_at < FAILED_S:
            self._clean_s = min(CLEAN_MAX_S, self._clean_s * 2)
        self._climbed_at = None
        self._clean_since = now
        if self._rung:
            self._rung -= 1
            self._changed_at = now
            self._trips.clear()

    def _up(self, now: float) -> None:
        if self._climbed_at is not None and now - self._climbed_at >= FAILED_S:
            self._clean_s = CLEAN_S
        self._clean_since = now
        if self._rung + 1 < len(self._ladder):
            self._rung += 1
            self._changed_at = self._climbed_at = now

    def _grown(self, round_trip_s: float | None, now: float) -> bool:
        """Whether the round trip is far over the shortest of the last minute."""
        if round_trip_s is None:
            return False
        self._trips = [each for each in self._trips if now - each[0] < BASE_S]
        shortest = min((trip for _, trip in self._trips), default=round_trip_s)
        self._trips.append((now, round_trip_s))
        return round_trip_s > max(shortest * RTT_GROWN, shortest + RTT_GROWN_S)
