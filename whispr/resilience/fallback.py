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


STALE_KEY = "whispr-stale"
"""What a response says in its metadata that stands in for another: its age in whole seconds."""


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
    at: float
    """When it was given."""
    until: float
    """Until when it is used without asking again."""
    names: tuple[str, ...]
    size: int


class LastGood(Generic[K, V]):
    """Answers remembered: fresh ones spare the question, and the last good one stands in while nobody answers.

    What is forgotten stands in no more, and neither does what is older than `age_s_max`. An answer that was on its
    way while something was forgotten is used once and not remembered, for it may be of before. The least recently
    used goes when there are too many, or when together they are too large.
    """

    def __init__(
        self,
        what: str,
        clock: Callable[[], float],
        *,
        len_max: int,
        age_s_max: float,
        bytes_max: int = 0,
        stand_in_s: float = 1.0,
    ) -> None:
        """`what` names the answers in metrics; `bytes_max` 0 is for answers that are all small.

        A stand-in is used for `stand_in_s` before it is asked again.
        """
        self._stood_in = metrics.LAST_GOOD.labels(what)
        self._clock = clock
        self._len_max = len_max
        self._age_s_max = age_s_max
        self._bytes_max = bytes_max
        self._stand_in_s = stand_in_s
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._keys_of: dict[str, set[K]] = {}
        self.bytes = 0
        """Of all answers, as far as their sizes were given."""
        self.changes = 0
        """How often something was forgotten; see `keep`."""

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
        last, changes = self._kept.get(key), self.changes
        try:
            value, fresh_s = await ask()
        except WhisprError as error:
            if error.code not in AWAY or last is None or self._kept.get(key) is not last:
                raise
            found = self.stand_in(key)
            if found is None:
                raise
            # For a moment nobody else waits for something that does not answer.
            until = min(self._clock() + self._stand_in_s, last.at + self._age_s_max)
            self._put(key, replace(last, until=until))
            return found[0]
        self.keep(key, value, fresh_s, names, changes)
        return value

    def keep(
        self, key: K, value: V, fresh_s: float, names: Iterable[str], changes: int, *, size: int = 0
    ) -> None:
        """Remember an answer, unless something was forgotten since `changes` was read, before the question.

        One of more than a hundredth of `bytes_max` is not kept: it would push out too many others.
        """
        if changes != self.changes:
            return
        if self._bytes_max and size > self._bytes_max / 100:
            if key in self._kept:
                self._drop(key)
            return
        now = self._clock()
        self._put(key, _Kept(value, now, now + fresh_s, tuple(names), size))

    def stand_in(self, key: K) -> tuple[V, float] | None:
        """The last good answer and its age in seconds, to stand in for one that was not given; None for none."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        age_s = self._clock() - kept.at
        if age_s >= self._age_s_max:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        self._stood_in.inc()
        return kept.value, age_s

    def forget(self, *names: str) -> None:
        """Forget every answer that goes by one of these names."""
        self.changes += 1
        for name in names:
            for key in list(self._keys_of.get(name, ())):
                self._drop(key)

    def forget_all(self) -> None:
        """Forget everything, as after a time in which changes may have been missed."""
        self.changes += 1
        self._kept.clear()
        self._keys_of.clear()
        self.bytes = 0

    def _put(self, key: K, kept: _Kept[V]) -> None:
        if key in self._kept:
            self._drop(key)
        self._kept[key] = kept
        self.bytes += kept.size
        for name in kept.names:
            self._keys_of.setdefault(name, set()).add(key)
        while len(self._kept) > self._len_max or (self._bytes_max and self.bytes > self._bytes_max):
            self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> None:
        kept = self._kept.pop(key)
        self.bytes -= kept.size
        for name in kept.names:
            keys = self._keys_of.get(name)
            if keys is not None:
                keys.discard(key)
                if not keys:
                    del self._keys_of[name]
