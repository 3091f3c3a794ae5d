"""Everything about one thing depended on: its breaker, its bulkhead, its retry budget, and how it has been.

The order, from the outside in: the deadline, for all attempts together; the retries; hedges; the breaker, so that
each attempt asks it, and what waits in line ends with the others when it trips; the bulkhead; the operation.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

import trio

from whispr.errors import WhisprError
from whispr.resilience import metrics
from whispr.resilience.breaker import Breaker, BreakerRules, State
from whispr.resilience.bulkhead import Bulkhead, BulkheadRules
from whispr.resilience.hedge import Hedge
from whispr.resilience.policy import (
    BULKHEAD_FULL,
    Attempt,
    Breaking,
    Deadline,
    Limiting,
    Policy,
    Retry,
    compose,
)
from whispr.resilience.retry import BREAKER_OPEN, Budget, RetryRules

T = TypeVar("T")

_STATE_NUMBERS = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


@dataclass(frozen=True, slots=True)
class CallRules:
    """How one kind of operation is made."""

    deadline_s: float = 5.0
    """For all attempts together, unless the caller has less; infinity for none."""
    retry: RetryRules = field(default_factory=RetryRules)
    hedge_s: float = 0.0
    """How long before a second attempt is made beside the first; 0 makes none."""

    def __post_init__(self) -> None:
        assert self.deadline_s > 0
        assert self.hedge_s >= 0


ONCE = CallRules(retry=RetryRules(attempts=1))
"""Of what may not be done twice."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """What all operations on one target share."""

    breaker: BreakerRules = field(default_factory=BreakerRules)
    bulkhead: BulkheadRules = field(default_factory=BulkheadRules)
    hung_s: float = 1.0
    """An operation ended by its deadline after this long or longer counts as failed."""
    retry_tokens: float = 20.0
    retry_ratio: float = 0.1
    """What a success gives back of the token that a failure took."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last that spoke against a target."""

    at: float
    """Unix time."""
    code: str
    message: str


class Target:
    """Makes operations on one thing. Counted in metrics under `kind`."""

    def __init__(
        self,
        name: str,
        rules: TargetRules | None = None,
        *,
        kind: str = "",
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.name = name
        self.rules = rules or TargetRules()
        self.kind = kind or name
        self.breaker = Breaker(self.rules.breaker, clock, self._changed)
        self.bulkhead: Bulkhead[trio.Event] = Bulkhead(self.rules.bulkhead)
        self.budget = Budget(self.rules.retry_tokens, self.rules.retry_ratio)
        self.breaking = Breaking(name, self.breaker, self.rules.hung_s, self.note)
        self.limiting = Limiting(name, self.bulkhead)
        self.last_failure: Failure | None = None
        self.calm = True
        """Whether a success would change nothing: the breaker closed, no failure to look back at, the budget full."""
        self.on_trip: Callable[[], None] = lambda: None
        """Told as the breaker trips, to end what waits past `run`."""
        self._policies: dict[CallRules, Policy] = {}
        self._show(State.CLOSED)

    async def run(self, attempt: Attempt[T], rules: CallRules | None = None) -> T:
        """Make an operation.

        Raises what it fails with in the end, or UNAVAILABLE (breaker_open), RESOURCE_EXHAUSTED (bulkhead_full),
        DEADLINE_EXCEEDED.
        """
        try:
            return await self.policy(rules or CallRules()).run(attempt)
        except WhisprError as error:
            self.rejected(error)
            raise
        finally:
            self.settle()

    def settle(self) -> None:
        """Find out whether it is calm, after anything that may have changed that."""
        self.calm = self.breaker.untroubled and self.budget.full

    def policy(self, rules: CallRules) -> Policy:
        """All that surrounds an operation made by these rules."""
        policy = self._policies.get(rules)
        if policy is None:
            parts: list[Policy] = [] if rules.deadline_s == inf else [Deadline(self.name, rules.deadline_s)]
            parts.append(self.retrying(rules))
            if rules.hedge_s:
                parts.append(Hedge(rules.hedge_s, self.budget, on_hedge=metrics.HEDGES.labels(self.kind).inc))
            policy = self._policies[rules] = compose(*parts, self.breaking, self.limiting)
        return policy

    def retrying(self, rules: CallRules) -> Retry:
        """The retries alone."""
        return Retry(rules.retry, self.budget, self._retried)

    def note(self, error: WhisprError) -> None:
        """Remember what speaks against the target."""
        self.calm = False
        metrics.CALLS_FAILED.labels(self.kind).inc()
        self.last_failure = Failure(time.time(), error.code.name, error.message)

    def rejected(self, error: WhisprError) -> None:
        """Count what was refused or cut off here; other errors are not meant."""
        if error.reason in (BREAKER_OPEN, BULKHEAD_FULL) and not error.by_peer:
            metrics.CALLS_CUT.labels(self.kind, error.reason).inc()

    def _retried(self, error: WhisprError) -> None:
        metrics.RETRIES.labels(self.kind, error.code.name).inc()

    def _changed(self, state: State) -> None:
        self._show(state)
        self.calm = False
        if state is State.OPEN:
            metrics.BREAKER_TRIPS.labels(self.kind).inc()
            self.breaking.tripped()
            self.on_trip()

    def _show(self, state: State) -> None:
        if self.kind == self.name:  # one gauge cannot show many breakers
            metrics.BREAKER_STATE.labels(self.kind).set(_STATE_NUMBERS[state])


class Targets:
    """The targets of one kind that come and go, such as hosts that users name: the longest unused goes first."""

    def __init__(self, kind: str, rules: TargetRules, *, len_max: int = 1000) -> None:
        self._kind = kind
        self._rules = rules
        self._len_max = len_max
        self._targets: OrderedDict[str, Target] = OrderedDict()

    def __len__(self) -> int:
        return len(self._targets)

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets.values())

    def of(self, name: str) -> Target:
        """The target of this name."""
        target = self._targets.get(name)
        if target is None:
            target = self._targets[name] = Target(name, self._rules, kind=self._kind)
            self._make_room()
        self._targets.move_to_end(name)
        return target

    def _make_room(self) -> None:
        for name, target in list(self._targets.items()):
            if len(self._targets) <= self._len_max:
                return
            if not target.bulkhead.in_flight:
                del self._targets[name]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a process is set up to do: rules by the name of a target, of a method of it, or else for all."""

    target: TargetRules = field(default_factory=TargetRules)
    call: CallRules = field(default_factory=CallRules)
    targets: Mapping[str, TargetRules] = field(default_factory=dict)
    calls: Mapping[str, CallRules] = field(default_factory=dict)
    """By the name of a target ("user"), or of a method ("UserService/CheckUserBlocks"), which goes first."""

    def of_target(self, name: str) -> TargetRules:
        """The rules of a target."""
        return self.targets.get(name, self.target)

    def of_call(self, target: str, method: str) -> CallRules:
        """The rules of a method."""
        return self.calls.get(method) or self.calls.get(target) or self.call
