"""The state machines against models, step by step."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from whispr.errors import Code, WhisprError, denied, unavailable
from whispr.resilience.breaker import Breaker, BreakerRules, State
from whispr.resilience.bulkhead import Bulkhead, BulkheadRules
from whispr.resilience.retry import BREAKER_OPEN, Backoff, Budget, RetryRules

RULES = BreakerRules(failures_in_a_row=3, window_len=6, failure_ratio=0.5, open_s=1.0, open_s_max=4.0)


class BreakerModel(RuleBasedStateMachine):
    """The breaker beside a model that keeps every outcome there ever was, and the time it opened."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.states: list[State] = []
        self.breaker = Breaker(RULES, lambda: self.now, self.states.append)
        self.state = State.CLOSED
        self.outcomes: list[bool] = []
        """Failures since the state was entered."""
        self.opened_at = 0.0
        self.trips_in_a_row = 0
        self.probe: int | None = None
        self.out: list[int] = []
        self.stale: list[int] = []

    def turn(self, state: State) -> None:
        self.state, self.outcomes, self.probe = state, [], None
        self.stale += self.out
        self.out = []

    def open_s(self) -> float:
        return min(4.0, 2.0 ** (self.trips_in_a_row - 1))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def admit(self) -> None:
        if self.state is State.OPEN and self.now >= self.opened_at + self.open_s():
            self.turn(State.HALF_OPEN)
        passes = self.state is State.CLOSED or (self.state is State.HALF_OPEN and self.probe is None)
        ticket = self.breaker.admit()
        assert (ticket is not None) == passes
        if ticket is not None:
            self.out.append(ticket)
            if self.state is State.HALF_OPEN:
                self.probe = ticket

    @precondition(lambda self: self.out)
    @rule()
    def succeed(self) -> None:
        self.breaker.succeeded(self.out.pop())
        self.outcomes.append(False)
        if self.state is State.HALF_OPEN:
            self.trips_in_a_row = 0
            self.turn(State.CLOSED)

    @precondition(lambda self: self.out)
    @rule()
    def fail(self) -> None:
        self.breaker.failed(self.out.pop())
        self.outcomes.append(True)
        in_a_row = self.outcomes[-3:] == [True] * 3
        if self.state is State.HALF_OPEN or in_a_row or sum(self.outcomes[-6:]) >= 3:
            self.trips_in_a_row = self.trips_in_a_row + 1 if self.state is State.HALF_OPEN else 1
            self.opened_at = self.now
            self.turn(State.OPEN)

    @precondition(lambda self: self.out)
    @rule()
    def abandon(self) -> None:
        self.breaker.abandoned(self.out.pop())
        self.probe = None

    @precondition(lambda self: self.stale)
    @rule(how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def come_late(self, how: str) -> None:
        """What was on its way when the state changed changes nothing any more."""
        getattr(self.breaker, how)(self.stale.pop())

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state is self.state
        if self.states:
            assert self.states[-1] is self.state
        if self.breaker.untroubled:
            assert self.state is State.CLOSED
            assert not any(self.outcomes[-6:])
        left = max(0.0, self.opened_at + self.open_s() - self.now) if self.state is State.OPEN else 0.0
        assert self.breaker.open_for_s == pytest.approx(left)


BreakerModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_breaker_agrees_with_its_model = BreakerModel.TestCase


class BulkheadModel(RuleBasedStateMachine):
    """The bulkhead beside a list of who is in and who waits."""

    @initialize(in_flight=st.integers(1, 3), queue=st.integers(0, 3))
    def begin(self, in_flight: int, queue: int) -> None:
        self.bulkhead: Bulkhead[int] = Bulkhead(BulkheadRules(in_flight, queue))
        self.places, self.room = in_flight, queue
        self.inside = 0
        self.line: deque[int] = deque()
        self.number = 0

    @rule()
    def come(self) -> None:
        self.number += 1
        free = self.inside < self.places
        assert self.bulkhead.enter() is free
        if free:
            self.inside += 1
        else:
            fits = len(self.line) < self.room
            assert self.bulkhead.queue(self.number) is fits
            if fits:
                self.line.append(self.number)

    @precondition(lambda self: self.inside)
    @rule()
    def leave(self) -> None:
        following = self.bulkhead.leave()
        assert following == (self.line.popleft() if self.line else None)
        self.inside -= following is None

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.line)))
        assert self.bulkhead.give_up(waiter)
        assert not self.bulkhead.give_up(waiter)
        self.line.remove(waiter)

    @invariant()
    def agrees(self) -> None:
        assert self.bulkhead.in_flight == self.inside <= self.places
        assert self.bulkhead.queued == len(self.line) <= self.room
        assert not self.line or self.inside == self.places, "nobody waits while a place is free"


BulkheadModel.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
test_bulkhead_agrees_with_its_model = BulkheadModel.TestCase


@given(st.lists(st.booleans(), max_size=300))
def test_a_budget_bounds_retries_whatever_happens(outcomes: list[bool]) -> None:
    """Of any failures and successes, those allowed to be retried are at most half the tokens and what was earned."""
    budget, retries, good = Budget(10, 0.1), 0, 0
    for succeeded in outcomes:
        if succeeded:
            budget.succeeded()
            good += 1
        else:
            budget.failed()
            retries += budget.allows
    assert retries <= 5 + good * 0.1
    assert 0 <= budget.tokens <= 10
    assert budget.full == (budget.tokens == 10)


@given(st.integers(1, 10_000), st.integers())
def test_pauses_are_jittered_from_nothing_to_a_bounded_span(failures: int, seed: int) -> None:
    """However often it failed, a pause lies between 0 and the span, and the span doubles up to its limit."""
    backoff = Backoff(0.1, 5.0)
    assert 0 <= backoff.pause_s(failures, random.Random(seed)) <= backoff.span_s(failures) <= 5.0
    assert backoff.span_s(failures + 1) in (5.0, 2 * backoff.span_s(failures))


def _pause(error: WhisprError, attempts: int = 1, left_s: float = 10.0) -> float | None:
    return RetryRules(attempts=3).pause_s(error, attempts, left_s, Budget())


def test_the_servers_word_goes_before_our_jitter() -> None:
    """A pushback is obeyed exactly, a negative one is a no, and RetryInfo is the least that is waited."""
    pushed = unavailable("later", retry_after_s=0)
    pushed.pushback_s = 2.5
    assert _pause(pushed) == 2.5
    assert _pause(pushed, left_s=2) is None
    pushed.pushback_s = -1
    assert _pause(pushed) is None
    assert (_pause(unavailable("later", retry_after_s=1.5)) or 0) >= 1.5


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (unavailable("away", 0), 3),
        (denied("no"), 1),
        (WhisprError(Code.DEADLINE_EXCEEDED, "late"), 1),
        (unavailable("open", 0, reason=BREAKER_OPEN), 1),
    ],
)
def test_what_is_not_tried_again(error: WhisprError, attempts: int) -> None:
    """Neither the last attempt, nor a refusal, nor a passed deadline, nor what a breaker says."""
    assert _pause(error, attempts) is None
    assert _pause(unavailable("away", 0), 2) is not None
