"""The bulkhead: so many operations at once, so many more in line, and no others. Pure: those in line are only names.

One target that is slow takes its own places and no more of the process than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


@dataclass(frozen=True, slots=True)
class BulkheadRules:
    """Room for operations on one target."""

    in_flight_max: int = 1000
    queue_len_max: int = 1000
    """0 has nobody wait."""

    def __post_init__(self) -> None:
        assert self.in_flight_max > 0
        assert self.queue_len_max >= 0


class Bulkhead(Generic[W]):
    """First come, first served. `enter`, or else `queue`; `leave` says whose turn it is."""

    __slots__ = ("in_flight", "line", "rules")

    def __init__(self, rules: BulkheadRules) -> None:
        self.rules = rules
        self.in_flight = 0
        self.line: OrderedDict[W, None] = OrderedDict()

    @property
    def queued(self) -> int:
        """How many wait in line."""
        return len(self.line)

    def enter(self) -> bool:
        """Take a place if one is free. Nobody waits while one is."""
        if self.in_flight >= self.rules.in_flight_max:
            return False
        self.in_flight += 1
        return True

    def queue(self, waiter: W) -> bool:
        """Get in line, every place being taken; False when the line is full."""
        if len(self.line) >= self.rules.queue_len_max:
            return False
        self.line[waiter] = None
        return True

    def leave(self) -> W | None:
        """Give a place back. It is at once that of the first in line, who is returned and must be told."""
        if self.line:
            return self.line.popitem(last=False)[0]
        self.in_flight -= 1
        return None

    def give_up(self, waiter: W) -> bool:
        """Leave the line; False for somebody who is no longer in it, and so has a place to give back."""
        if waiter not in self.line:
            return False
        del self.line[waiter]
        return True
