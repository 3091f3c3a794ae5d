"""One task that looks after many connections, whenever one of them is due.

A task for each would cost three times what is to be remembered.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import trio

from whispr.rpc.lodger import Lodger

if TYPE_CHECKING:
    from whispr.rpc.transport import Transport

_DEAD_MAX = 64


class Watch(Protocol):
    """Something to look at from time to time."""

    due: float
    """When to look first, on Trio's clock."""

    def look(self, now: float) -> float:
        """Do what is due; returns when to look again, infinity for never."""


class _Entry:
    __slots__ = ("due", "watch")

    def __init__(self, due: float, watch: Watch) -> None:
        self.due = due
        self.watch: Watch | None = watch

    def __lt__(self, other: _Entry) -> bool:
        return self.due < other.due


class Watchman(Lodger):
    """Looks at the watches of the connections that have joined and not left."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[Transport[Any], list[_Entry]] = {}
        self._heap: list[_Entry] = []
        self._dead = 0

    def watch(self, connection: Transport[Any], watches: Iterable[Watch]) -> None:
        """Look after a connection, which is running, until it leaves."""
        entries = [_Entry(watch.due, watch) for watch in watches if watch.due < inf]
        if not entries:
            return
        self._entries[connection] = entries
        for entry in entries:
            heapq.heappush(self._heap, entry)
        self.join(connection)
        if self._heap[0] in entries:
            self._changed.wake()

    def leave(self, connection: Transport[Any]) -> None:
        """Look after a connection no longer."""
        for entry in self._entries.pop(connection, ()):
            entry.watch = None
            self._dead += 1
        if self._dead > _DEAD_MAX + len(self._heap) // 2:
            # Connections come and go much faster than their watches fall due.
            self._heap = [entry for entry in self._heap if entry.watch is not None]
            heapq.heapify(self._heap)
            self._dead = 0
        super().leave(connection)

    async def work(self) -> None:
        """Look at what is due, or wait until something is."""
        due = self._heap[0].due if self._heap else inf
        now = trio.current_time()
        if due <= now:
            self._look(heapq.heappop(self._heap), now)
        else:
            with trio.move_on_at(due):
                await self._changed.wait()

    def _look(self, entry: _Entry, now: float) -> None:
        if entry.watch is None:
            self._dead = max(0, self._dead - 1)
            return
        entry.due = entry.watch.look(now)
        if entry.due < inf:
            heapq.heappush(self._heap, entry)
