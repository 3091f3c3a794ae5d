"""The circuit breaker: a state machine, apart from whatever it protects. Pure; the clock is passed in.

    closed ──(too many failures)──▶ open ──(its time is over, next call)──▶ half-open ──(the probe succeeds)──▶ closed
                                     ▲──────────────(the probe fails)──────────┘

Closed, everything passes, and two things trip it: so many failures in a row, or so many among the last outcomes.
Open, nothing passes for a while. Then the next to come is the probe, alone: it closes the breaker or opens it
again, for twice as long. A probe that is abandoned says nothing, and the next to come takes its place.

Whoever is admitted gets a ticket and brings it back with the outcome. Tickets of an earlier state say nothing about
this one: what was on its way when the breaker tripped must neither close it nor trip it again.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


class State(enum.Enum):
    """Of a breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When it trips, and for how long."""

    failures_in_a_row: int = 5
    window_len: int = 100
    """Outcomes looked back at; a breaker that closes begins as if all of them had been good."""
    failure_ratio: float = 0.5
    """Of these, how many are too many."""
    open_s: float = 1.0
    open_s_max: float = 4.0

    def __post_init__(self) -> None:
        assert 0 < self.failures_in_a_row <= self.window_len
        assert 0 < self.failure_ratio <= 1
        assert 0 < self.open_s <= self.open_s_max

    @property
    def failures_max(self) -> float:
        """Failures among the last outcomes that trip it."""
        return self.failure_ratio * self.window_len


class Breaker:
    """One target's. `admit`, then one of `succeeded`, `failed` and `abandoned` with the ticket."""

    __slots__ = (
        "_clock",
        "_in_a_row",
        "_on_change",
        "_open_until",
        "_probing",
        "_reopened",
        "_window",
        "rules",
        "state",
        "ticket",
    )

    def __init__(
        self,
        rules: BreakerRules,
        clock: Callable[[], float],
        on_change: Callable[[State], None] = lambda _: None,
    ) -> None:
        """`on_change` hears of every new state; it must not come back here."""
        self.rules = rules
        self.state = State.CLOSED
        self._clock = clock
        self._on_change = on_change
        self.ticket = 0
        """Of the present state: what whoever is admitted now gets."""
        self._in_a_row = 0
        self._window: deque[bool] = deque(maxlen=rules.window_len)
        """Whether each of the last outcomes was a failure; empty as long as none was."""
        self._open_until = 0.0
        self._reopened = 0
        self._probing = False

    @property
    def untroubled(self) -> bool:
        """Closed, with nothing but successes to look back at: another one would change nothing."""
        return self.state is State.CLOSED and not self._window

    @property
    def open_for_s(self) -> float:
        """Seconds until a probe may pass; 0 unless it is open."""
        return max(0.0, self._open_until - self._clock()) if self.state is State.OPEN else 0.0

    def admit(self) -> int | None:
        """A ticket for one operation, None if it may not pass."""
        if self.state is State.OPEN and self._clock() >= self._open_until:
            self._enter(State.HALF_OPEN)
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self._probing):
            return None
        self._probing = self.state is State.HALF_OPEN
        return self.ticket

    def succeeded(self, ticket: int) -> None:
        """The operation has succeeded."""
        if ticket != self.ticket:
            return
        if self.state is State.HALF_OPEN:
            self._reopened = 0
            self._enter(State.CLOSED)
        elif self._window:
            self._in_a_row = 0
            self._window.append(False)
            if True not in self._window:
                self._window.clear()

    def failed(self, ticket: int) -> None:
        """The operation has failed, and the target is to blame."""
        if ticket != self.ticket:
            return
        if self.state is State.HALF_OPEN:
            self._reopened += 1
            self._open()
            return
        self._in_a_row += 1
        self._window.append(True)
        many = self._window.count(True) >= self.rules.failures_max
        if many or self._in_a_row >= self.rules.failures_in_a_row:
            self._open()

    def abandoned(self, ticket: int) -> None:
        """Nobody will know how the operation would have ended."""
        if ticket == self.ticket:
            self._probing = False

    def _open(self) -> None:
        rules = self.rules
        open_s = min(rules.open_s_max, rules.open_s * 2.0 ** min(self._reopened, 30))
        self._open_until = self._clock() + open_s
        self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        self.state = state
        self.ticket += 1
        self._probing = False
        self._in_a_row = 0
        self._window.clear()
        self._on_change(state)
