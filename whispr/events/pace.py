"""Lets live traffic go first: who works in the background pauses, and pauses longer when the process is busy.

In each pause it is measured how much of the time the thread computes for others. Nobody calls, nothing is held
back; near saturation a background worker gets a small, steady rate, and its backlog waits for quieter times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

PAUSE_S = 0.004
"""The shortest pause, which is also what the measurement takes."""
WORK_LEN = 128
"""Pieces of work between two pauses."""
BUSY_S = 0.02
"""How often to pause when the process is busy."""
BUSY = 0.6
"""Share of a pause spent computing for others from which on the process counts as busy."""


class Pace:
    """One background worker's. `busy_per_s` pieces of work a second are done in a busy process; 0 lifts it."""

    def __init__(self, busy_per_s: float, *, cpu_time: Callable[[], float] = time.thread_time) -> None:
        self._busy_per_s = busy_per_s
        self._cpu_time = cpu_time
        self._done = 0
        self.busy = False
        """What the last pause has shown."""

    async def did(self, count: int) -> None:
        """Pause if it is time to, having done that many pieces of work."""
        self._done += count
        until = min(WORK_LEN, BUSY_S * self._busy_per_s) if self.busy else WORK_LEN
        if not self._busy_per_s or self._done < until:
            await trio.lowlevel.checkpoint()
            return
        owed_s, self._done = self._done / self._busy_per_s, 0
        cpu, began = self._cpu_time(), trio.current_time()
        await trio.sleep(PAUSE_S)
        took = trio.current_time() - began
        self.busy = self._cpu_time() - cpu >= BUSY * took
        if self.busy:
            await trio.sleep(max(0.0, owed_s - took))
