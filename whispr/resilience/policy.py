"""The one shape of a policy, and those that run the state machines of this package.

A policy surrounds an operation as an interceptor surrounds a call, except that it may run it more than once. The
order in which they are composed matters; `target` says which one is ours and why.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import trio

from whispr.errors import Code, Fault, WhisprError, exhausted, unavailable
from whispr.resilience.breaker import Breaker, State
from whispr.resilience.bulkhead import Bulkhead
from whispr.resilience.retry import BREAKER_OPEN, Budget, RetryRules

T = TypeVar("T")
Attempt = Callable[[], Awaitable[T]]
"""Runs an operation once, anew each time it is called. Raises WhisprError when it fails."""

BULKHEAD_FULL = "bulkhead_full"


class Policy(Protocol):
    """See the module."""

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation. Raises its WhisprError, or one of the policy's own."""
        ...


class Composed:
    """Several policies as one. Made by `compose`."""

    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self._policies = policies

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation inside all of them."""
        for policy in reversed(self._policies):
            attempt = partial(policy.run, attempt)
        return await attempt()


def compose(*policies: Policy) -> Policy:
    """The policies as one, the first of them outermost."""
    return policies[0] if len(policies) == 1 else Composed(policies)


def is_failure(error: WhisprError) -> bool:
    """Whether an error speaks against the target itself.

    What a target that is alive has to say, even that something it depends on is away, does not: other operations
    on it may go well, and a breaker would refuse those too.
    """
    return error.fault is Fault.DEPENDENCY and not error.by_peer and error.reason != BREAKER_OPEN


class Deadline:
    """At most so many seconds for all that is inside, less if the scope around it has less.

    DEADLINE_EXCEEDED is raised for the one; the other's Cancelled goes on.
    """

    def __init__(self, name: str, limit_s: float) -> None:
        self._name = name
        self._limit_s = limit_s

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation within it."""
        deadline = trio.current_time() + self._limit_s
        if trio.current_effective_deadline() <= deadline:
            return await attempt()
        with trio.CancelScope(deadline=deadline):
            return await attempt()
        told = f"{self._name} did not answer within {self._limit_s:g} s"
        raise WhisprError(Code.DEADLINE_EXCEEDED, told)


class Retry:
    """Tries again what may be, after a pause, while the budget of the target lasts."""

    def __init__(
        self, rules: RetryRules, budget: Budget, on_retry: Callable[[WhisprError], None] = lambda _: None
    ) -> None:
        """`on_retry` hears of each failure that is going to be tried again."""
        self._rules = rules
        self._budget = budget
        self._on_retry = on_retry

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation until it succeeds or there is no point in it."""
        try:
            result = await attempt()
        except WhisprError as error:
            return await self.resume(error, attempt)
        self._budget.succeeded()
        return result

    async def resume(self, error: WhisprError, attempt: Attempt[T], attempts: int = 1) -> T:
        """Go on after a first attempt that was made elsewhere. Raises its error if there is no point in it."""
        while True:
            await self._pause(error, attempts)
            try:
                result = await attempt()
            except WhisprError as again:
                error = again
                attempts += 1
            else:
                self._budget.succeeded()
                return result

    async def _pause(self, error: WhisprError, attempts: int) -> None:
        left_s = trio.current_effective_deadline() - trio.current_time()
        pause_s = self._rules.pause_s(error, attempts, left_s, self._budget)
        if pause_s is None:
            raise error
        self._on_retry(error)
        await trio.sleep(pause_s)


class Breaking:
    """Asks a breaker, tells it how things ended, and ends what still waits when it trips.

    An operation counts as failed by `is_failure`, and when its deadline ends it after `hung_s` or longer; given up
    sooner it says nothing.
    """

    def __init__(
        self,
        name: str,
        breaker: Breaker,
        hung_s: float,
        on_failure: Callable[[WhisprError], None] = lambda _: None,
    ) -> None:
        self._name = name
        self._breaker = breaker
        self._hung_s = hung_s
        self._on_failure = on_failure
        self._waiting: set[trio.CancelScope] = set()

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation if it may pass. Raises UNAVAILABLE (breaker_open)."""
        ticket = self.admit()
        began, deadline = trio.current_time(), trio.current_effective_deadline()
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                result = await attempt()
            except WhisprError as error:
                self.ended(ticket, error)
                raise
            except BaseException:
                now = trio.current_time()
                self.given_up(ticket, now - began, now >= deadline)
                raise
            finally:
                self._waiting.discard(scope)
            self._breaker.succeeded(ticket)
            return result
        raise self.refusal("maybe")

    def admit(self) -> int:
        """A ticket for one operation. Raises UNAVAILABLE (breaker_open)."""
        ticket = self._breaker.admit()
        if ticket is None:
            raise self.refusal()
        return ticket

    def ended(self, ticket: int, error: WhisprError) -> None:
        """Take note of how an operation has failed."""
        if is_failure(error):
            self._on_failure(error)
            self._breaker.failed(ticket)
        elif error.by_peer or error.reason != BREAKER_OPEN:
            self._breaker.succeeded(ticket)
        else:
            self._breaker.abandoned(
                ticket
            )  # refused before it got there: a probe must not be waited for ever

    def given_up(self, ticket: int, waited_s: float, late: bool) -> None:
        """Take note of an operation whose caller waits no longer; `late` if that is for a deadline."""
        if late and waited_s >= self._hung_s:
            self._on_failure(WhisprError(Code.DEADLINE_EXCEEDED, f"no answer within {waited_s:.1f} s"))
            self._breaker.failed(ticket)
        else:
            self._breaker.abandoned(ticket)

    def tripped(self) -> None:
        """End what still waits."""
        for scope in list(self._waiting):
            scope.cancel(reason=f"{self._name}: {BREAKER_OPEN}")

    def refusal(self, processed: str = "no") -> WhisprError:
        """What a refused or ended operation fails with, which says whether it may have taken effect."""
        wait_s = self._breaker.open_for_s or self._breaker.rules.open_s
        held = "is being tried" if self._breaker.state is State.HALF_OPEN else "keeps failing"
        told = f"{self._name} {held}: left alone for a moment"
        facts = {"dependency": self._name, "processed": processed}
        return unavailable(told, wait_s, facts, reason=BREAKER_OPEN)


class Limiting:
    """Waits for a place in a bulkhead. What comes when even the line is full fails at once."""

    def __init__(self, name: str, bulkhead: Bulkhead[trio.Event]) -> None:
        self._name = name
        self._bulkhead = bulkhead

    async def run(self, attempt: Attempt[T]) -> T:
        """Run an operation in its turn. Raises RESOURCE_EXHAUSTED (bulkhead_full)."""
        await self.enter()
        try:
            return await attempt()
        finally:
            self.leave()

    async def enter(self) -> None:
        """Take a place, waiting for it in line if need be. Raises RESOURCE_EXHAUSTED (bulkhead_full)."""
        if not self._bulkhead.enter():
            await self._wait()

    def leave(self) -> None:
        """Give a place back that was taken, to the next in line if there is one."""
        following = self._bulkhead.leave()
        if following is not None:
            following.set()

    async def _wait(self) -> None:
        turn = trio.Event()
        if not self._bulkhead.queue(turn):
            raise exhausted(f"too many operations wait for {self._name}", 1.0, reason=BULKHEAD_FULL)
        try:
            await turn.wait()
        except BaseException:
            if not self._bulkhead.give_up(turn):
                self.leave()
            raise
