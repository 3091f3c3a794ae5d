"""How much a source sends. Pure: time is passed in."""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 1.0
WINDOWS: Final = 20
LIKELY_S: Final = 0.1
"""After which a first guess is made."""


class Bitrate:
    """The most that came in any second of the last `WINDOWS`: a source in a pause has not become a lesser one."""

    def __init__(self) -> None:
        self.bps = 0
        """0 until the first second is over."""
        self._sums: deque[int] = deque(maxlen=WINDOWS)
        self._sum = 0
        self._since: float | None = None
        self._sum_before = 0
        self._passed_s = 0.0
        """What had come before the newest bytes, and in how long."""

    @property
    def likely_bps(self) -> int:
        """What it is, or, in the first second, what it is likely to be; 0 before anything can be said."""
        if self.bps or self._passed_s < LIKELY_S:
            return self.bps
        return round(self._sum_before * 8 / self._passed_s)

    def add(self, size: int, now: float) -> bool:
        """Count bytes; return whether `bps` is new."""
        if self._since is None:
            self._since = now
        passed = now - self._since
        self._sum_before, self._passed_s = self._sum, passed
        if passed >= WINDOW_S:
            self._sums.append(round(self._sum * 8 / passed))
            self._since, self._sum = now, 0
            self.bps = max(self._sums)
        self._sum += size
        return passed >= WINDOW_S
