"""What serves when there is no answer: something else, or the last good answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from whispr.errors import Code, WhisprError
from whispr.resilience import metrics
from whispr.resilience.policy import Attempt

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
"""What is said of something that is not there, or does not answer."""


class Fallback:
    """Something else when an operation fails with one of `codes`: `stand_in` returns it, or raises an error."""

    def __init__(
        self, stand_in: Callable[[WhisprError], Awaitable[Any]], codes: Collection[Code] = AWAY
    ) -> None:
        self._stand_in = stand_in
        self._codes = codes

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation, and what stands in for it if need be."""
        try:
            return await attempt()
        except WhisprError as error:
            if error.code not in self._codes:
                raise
            result: T = await self._stand_in(error)
            return result


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    until: float
    names: tuple[str, ...]


class LastGood(Generic[K, V]):
    """Answers remembered: fresh ones spare the question, and the last good one stands in while nobody answers.

    What is forgotten stands in no more. An answer that was on its way while something was forgotten is used once
    and not remembered, for it may be of before. The least recently used goes when there are too many.
    """

    def __init__(
        self, what: str, clock: Callable[[], float], *, len_max: int, stand_in_s: float = 1.0
    ) -> None:
        """`what` names the answers in metrics. A stand-in is used for `stand_in_s` before it is asked again."""
        self._stood_in = metrics.LAST_GOOD.labels(what)
        self._clock = clock
        self._len_max = len_max
        self._stand_in_s = stand_in_s
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._keys_of: dict[str, set[K]] = {}
        self._changes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def fresh(self, key: K) -> V | None:
        """The answer, if it need not be asked for again."""
        kept = self._kept.get(key)
        if kept is None or kept.until <= self._clock():
            return None
        self._kept.move_to_end(key)
        return kept.value

    async def ask(
        self, key: K, ask: Callable[[], Awaitable[tuple[V, float]]], names: Iterable[str] = ()
    ) -> V:
        """The fresh answer, or the one that `ask` gives with the seconds for which it is fresh.

        Fails as `ask` does, but for what is said of something away: then the last good answer is returned, unless
        it was forgotten meanwhile. `names` are what the answer can be forgotten by.
        """
        value = self.fresh(key)
        if value is not None:
            return value
        last, changes = self._kept.get(key), self._changes
        try:
            value, fresh_s = await ask()
        except WhisprError as error:
            if error.code not in AWAY or last is None or self._kept.get(key) is not last:
                raise
            self._stood_in.inc()
            # For a moment nobody else waits for something that does not answer.
            self._keep(key, replace(last, until=self._clock() + self._stand_in_s))
            return last.value
        if changes == self._changes:
            self._keep(key, _Kept(value, self._clock() + fresh_s, tuple(names)))
        return value

    def forget(self, *names: str) -> None:
        """Forget every answer that goes by one of these names."""
        self._changes += 1
        for name in names:
            for key in list(self._keys_of.get(name, ())):
                self._drop(key)

    def forget_all(self) -> None:
        """Forget everything, as after a time in which changes may have been missed."""
        self._changes += 1
        self._kept.clear()
        self._keys_of.clear()

    def _keep(self, key: K, kept: _Kept[V]) -> None:
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        for name in kept.names:
            self._keys_of.setdefault(name, set()).add(key)
        while len(self._kept) > self._len_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> None:
        for name in self._kept.pop(key).names:
            keys = self._keys_of.get(name)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys_of[name]
