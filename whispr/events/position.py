"""How far a consumer has come in a stream: a floor, and what is done above it. Pure.

Events are taken up in the order of their sequence numbers and finished in any order. Numbers between them belong
to other subjects, so the floor is just below the first that is open, or the last taken up when none is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection


class Position:
    """A consumer's place in one incarnation of a stream."""

    def __init__(self, incarnation: str, floor: int = 0, done_above: Collection[int] = ()) -> None:
        self.incarnation = incarnation
        self.floor = floor
        """Everything up to this is done."""
        self.last = floor
        """The last number that was taken up."""
        self._open: deque[int] = deque()
        self._done = set(done_above)

    @property
    def done_above(self) -> list[int]:
        """What is done above the floor."""
        return sorted(seq for seq in self._done if seq > self.floor)

    def take_up(self, seq: int) -> bool:
        """Note that an event has come; False if it was done before, and is not to be handled."""
        assert seq > self.last, f"{seq} after {self.last}"
        self.last = seq
        self._open.append(seq)
        fresh = seq not in self._done
        self._advance()
        return fresh

    def finish(self, seq: int) -> None:
        """Note that an event is done."""
        self._done.add(seq)
        self._advance()

    def _advance(self) -> None:
        while self._open and self._open[0] in self._done:
            self._done.discard(self._open.popleft())
        self.floor = self._open[0] - 1 if self._open else self.last
