"""Which event may be handled next: one at a time per key, in order; any number of keys side by side. Pure.

A key is what its events are about. The first event of a key is its *head*; only a head may run, or with it those
behind it together. A head that failed waits for its time with the rest of its key behind it, and other keys go on.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whispr.events.envelope import Event
from whispr.events.position import Position


@dataclass(slots=True, eq=False)
class Work:
    """One event on its way through a consumer."""

    key: str
    event: Event | None
    """None for what is no envelope."""
    event_id: str
    subject: str
    payload: bytes
    attempts: int = 0
    """How many have failed."""
    seq: int = 0
    position: Position | None = None
    """Where it is to be marked as done; None for a dead letter that is tried again."""
    letter: int | None = None
    """The dead letter it was."""
    alone: bool = False
    """Whether it is to run by itself, so that what fails is known."""


class Schedule:
    """Work that is waiting, running, or waiting to be tried again. The clock is the caller's."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Work]] = {}
        self._ready: deque[str] = deque()
        self._later: list[tuple[float, int, str]] = []
        self._pushed = 0
        self._len = 0

    def __len__(self) -> int:
        """How much work there is, in whatever state."""
        return self._len

    @property
    def next_due(self) -> float:
        """When the next failed head may run again; infinity when none waits."""
        return self._later[0][0] if self._later else float("inf")

    def add(self, work: Work) -> None:
        """Put work behind what there is of its key."""
        self._len += 1
        queue = self._queues.get(work.key)
        if queue is None:
            self._queues[work.key] = deque((work,))
            self._ready.append(work.key)
        else:
            queue.append(work)

    def take(self, now: float, len_max: int = 1) -> list[Work]:
        """Return what may run together, in the order of each key; empty for nothing. It is running from then on."""
        while self._later and self._later[0][0] <= now:
            self._ready.append(heapq.heappop(self._later)[2])
        taken: list[Work] = []
        while self._ready and len(taken) < len_max:
            queue = self._queues[self._ready[0]]
            if queue[0].alone:
                return taken or [self._queues[self._ready.popleft()][0]]
            self._ready.popleft()
            for work in queue:
                if work.alone or len(taken) == len_max:
                    break
                taken.append(work)
        return taken

    def done(self, works: Sequence[Work]) -> None:
        """End what ran together for good; the next of its keys may run."""
        for work in works:
            queue = self._queues[work.key]
            assert queue[0] is work
            queue.popleft()
        self._len -= len(works)
        for key in dict.fromkeys(work.key for work in works):
            if self._queues[key]:
                self._ready.append(key)
            else:
                del self._queues[key]

    def apart(self, works: Sequence[Work]) -> None:
        """Let what ran together run again, each by itself."""
        for work in works:
            work.alone = True
        self._ready.extend(dict.fromkeys(work.key for work in works))

    def again(self, work: Work, at: float) -> None:
        """Let running work run again at a time; its key waits."""
        assert self._queues[work.key][0] is work
        work.alone = True
        self._pushed += 1
        heapq.heappush(self._later, (at, self._pushed, work.key))

    def attempts(self, position: Position) -> dict[str, Any]:
        """Sequence number → failed attempts, of the work of one stream that has failed before."""
        heads = (queue[0] for queue in self._queues.values())
        return {str(head.seq): head.attempts for head in heads if head.attempts and head.position is position}
