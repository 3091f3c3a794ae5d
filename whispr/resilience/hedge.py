"""Hedging: a read that is slow gets another attempt beside it, and the first answer counts (gRFC A6, hedging).

Only for what may be done twice and has no side effects. A hedge is an attempt like any other: it asks the breaker,
takes a place in the bulkhead, and is only made while the retry budget of the target allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from whispr.errors import WhisprError
from whispr.nurseries import ungrouped
from whispr.resilience.policy import Attempt
from whispr.resilience.retry import Budget

T = TypeVar("T")


class Hedge:
    """Makes up to `copies` attempts, each `delay_s` after the last or as soon as that has failed."""

    def __init__(
        self, delay_s: float, budget: Budget, *, copies: int = 2, on_hedge: Callable[[], None] = lambda: None
    ) -> None:
        assert delay_s > 0
        assert copies >= 2
        self._delay_s = delay_s
        self._budget = budget
        self._copies = copies
        self._on_hedge = on_hedge

    async def run(self, attempt: Attempt[T]) -> T:
        """The first answer. Raises the last error when every attempt has failed."""
        race: _Race[T] = _Race(attempt)
        with ungrouped():
            async with trio.open_nursery() as nursery:
                await self._start_all(race, nursery)
                nursery.cancel_scope.cancel(reason="another attempt was answered first")
        return race.outcome()

    async def _start_all(self, race: _Race[T], nursery: trio.Nursery) -> None:
        for number in range(self._copies):
            if number:
                if not self._budget.allows:
                    break
                self._on_hedge()
            race.begin(nursery)
            with trio.move_on_after(self._delay_s):
                await race.news()
            if race.won:
                return
        while not race.won and race.under_way:
            await race.news()


class _Race(Generic[T]):
    def __init__(self, attempt: Attempt[T]) -> None:
        self._attempt = attempt
        self._answers: list[T] = []
        self._error: WhisprError | None = None
        self._changed = trio.Event()
        self.under_way = 0

    @property
    def won(self) -> bool:
        return bool(self._answers)

    def begin(self, nursery: trio.Nursery) -> None:
        self.under_way += 1
        nursery.start_soon(self._run, name="one of several attempts")

    async def news(self) -> None:
        """Wait until an attempt has ended."""
        await self._changed.wait()
        self._changed = trio.Event()

    def outcome(self) -> T:
        if self._answers:
            return self._answers[0]
        assert self._error is not None, "an attempt ends with an answer or an error"
        raise self._error

    async def _run(self) -> None:
        try:
            self._answers.append(await self._attempt())
        except WhisprError as error:
            self._error = error
        finally:
            self.under_way -= 1
            self._changed.set()
