"""Lets live traffic go first: whoever works in the background slows down while the process is busy with calls.

Ten times a second all background work holds still for a moment, and what the thread computes in that moment, or
would if it had a core, is for others. Nobody calls, nothing is held back. Near saturation all background workers
together get a small, steady rate, in turns, and what is behind waits for quieter times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

SAMPLE_S = 0.1
"""How often it is measured while there is background work."""
SETTLE_S = 0.002
"""How long what is under way may take to come to rest before."""
MEASURE_S = 0.004
PRESSED_S = 0.5
"""How long the process counts as busy after it was said that much is coming in."""
BUSY = 0.7
"""Share of the time spent computing for others from which on the process counts as busy."""


def demand() -> float:
    """Return the seconds in which this thread has computed, or wanted to and had no core to do it on."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as statistics:
            ran_ns, waited_ns, _ = statistics.read().split()
    except OSError:
        return time.thread_time()  # elsewhere than on Linux, waiting for a core looks like idling
    return (int(ran_ns) + int(waited_ns)) / 1e9


class Pace:
    """Of all the background workers of a process; `run` is its task.

    In a busy process they do `busy_per_s` pieces of work a second together; 0 lifts it, and then `run` does nothing.
    """

    def __init__(self, busy_per_s: float, *, demand: Callable[[], float] = demand) -> None:
        self._busy_per_s = busy_per_s
        self._demand = demand
        self._turn = trio.Lock()
        self._worked = trio.Event()
        self._still: trio.Event | None = None
        self._computing = False
        self._pressed_until = float("-inf")

    @property
    def busy(self) -> bool:
        """What the last measurement has shown, or somebody has said since."""
        return self._computing or trio.current_time() < self._pressed_until

    def press(self) -> None:
        """Say that much is coming in: others than this thread, such as PostgreSQL, may be what is short."""
        self._pressed_until = trio.current_time() + PRESSED_S

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure until cancelled."""
        task_status.started()
        if not self._busy_per_s:
            return
        while True:
            await self._worked.wait()
            self._still = still = trio.Event()
            try:
                await trio.sleep(SETTLE_S)
                before, began = self._demand(), trio.current_time()
                await trio.sleep(MEASURE_S)
                self._computing = self._demand() - before >= BUSY * (trio.current_time() - began)
            finally:
                self._still = None
                still.set()
            self._worked = trio.Event()
            await trio.sleep(SAMPLE_S)

    async def did(self, pieces: float) -> None:
        """Say that work was done, and wait until more may be."""
        self._worked.set()
        while self._still is not None:
            await self._still.wait()
        if not self.busy or not self._busy_per_s:
            await trio.lowlevel.checkpoint()
            return
        async with self._turn:
            if self.busy:
                await trio.sleep(pieces / self._busy_per_s)
