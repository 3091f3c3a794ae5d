"""Says events at most once per key in an interval: the first at once, the latest of the rest at its end. Pure.

For events whose latest is all that counts, such as a typing indicator: a client that sends one with every key
stroke, or one who starts and stops all the time, costs a topic two broadcasts an interval whatever it does.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pacer(Generic[T]):
    """What was said lately, by key, and what waits. `interval_s` of 0 lets everything through."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._until: dict[Hashable, float] = {}
        """Key → when its interval ends; in the order of these times, for all intervals are equally long."""
        self._waiting: dict[Hashable, T] = {}

    def admit(self, key: Hashable, item: T, now: float) -> bool:
        """Tell whether to say this now. If not, `take_due` returns it, or a later one of its key."""
        if not self._interval_s:
            return True
        until = self._until.get(key)
        if until is not None and (now < until or key in self._waiting):
            self._waiting[key] = item
            return False
        self._until.pop(key, None)
        self._until[key] = now + self._interval_s
        return True

    @property
    def next_due(self) -> float | None:
        """When the first interval ends, None when none is running."""
        return next(iter(self._until.values()), None)

    def take_due(self, now: float) -> list[T]:
        """Return what waited for intervals that have ended. Each begins another interval."""
        due: list[T] = []
        while (key := next(iter(self._until), None)) is not None and self._until[key] <= now:
            del self._until[key]
            if key in self._waiting:
                due.append(self._waiting.pop(key))
                self._until[key] = now + self._interval_s
        return due
