"""An engine that a process cannot do without, used through a driver of its own: PostgreSQL, Redis, NATS.

    backend = Backend("postgres", BulkheadRules(8, 1000))
    row = await backend.operate(lambda: connection.fetchrow(sql))

Its operations are many and short, and somebody looks after it: a *watch* asks it every moment how it is. So it
differs from a service in three ways. Operations pass while the breaker is closed, and none of them is ever its
probe, for it would wait as long as a person does; the watch brings it back. An operation that its caller has given
up says nothing of the engine, for there is no telling whether it was only large; answers to the watch do. And while
nobody watches (before a process serves, in commands), operations wait for the engine as long as their callers do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TypeVar

import trio

from whispr.errors import WhisprError, unavailable
from whispr.resilience.breaker import BreakerRules, State
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.policy import Attempt
from whispr.resilience.target import Target, TargetRules

T = TypeVar("T")

PROBE_S = 0.75
"""How long an engine may take to say that it is there."""
PROBE_EVERY_S = 1.0
PROBE_AGAIN_S = 0.25
"""The same while it is in trouble."""

_BREAKER = BreakerRules(failures_in_a_row=3, open_s=0.2, open_s_max=0.2)


class Backend(Target):
    """An engine. Its bulkhead is for its driver to enter: as many operations as it has connections."""

    def __init__(self, name: str, bulkhead: BulkheadRules) -> None:
        super().__init__(name, TargetRules(breaker=_BREAKER, bulkhead=bulkhead, hung_s=inf))
        self.on_return: Callable[[], None] = lambda: None
        """Told as the breaker closes."""
        self._watches = 0
        self._troubled = trio.lowlevel.ParkingLot()

    @property
    def away(self) -> bool:
        """Whether operations are refused."""
        return self._watches > 0 and self.breaker.state is not State.CLOSED

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have its breaker in force over the block, in which somebody calls `probe` again and again."""
        self._watches += 1
        try:
            yield
        finally:
            self._watches -= 1

    async def operate(self, attempt: Attempt[T]) -> T:
        """Make an operation. Raises what it fails with, or UNAVAILABLE (breaker_open), at once or as it trips."""
        if not self._watches:
            return await attempt()
        self.check()
        try:
            return await self.breaking.run(attempt)
        except WhisprError as error:
            self.rejected(error)
            raise

    async def operate_lean(self, attempt: Attempt[T]) -> T:
        """The same, without a scope, for a driver that ends its operations itself as it trips (`on_trip`)."""
        if not self._watches:
            return await attempt()
        breaker = self.breaker
        if breaker.state is not State.CLOSED:
            self.check()
        ticket = breaker.ticket
        try:
            result = await attempt()
        except WhisprError as error:
            if ticket != breaker.ticket and self.away:
                cut = self.breaking.refusal("maybe")
                self.rejected(cut)
                raise cut from error
            self.breaking.ended(ticket, error)
            raise
        if not self.calm:
            breaker.succeeded(ticket)
            self.settle()
        return result

    def check(self) -> None:
        """Raise UNAVAILABLE (breaker_open) while operations are refused."""
        if self.away:
            error = self.breaking.refusal()
            self.rejected(error)
            raise error

    async def probe(self, ping: Callable[[], Awaitable[None]]) -> None:
        """Ask how it is. Raises UNAVAILABLE if it does not say so in time, or has been asked a moment ago."""
        try:
            await self.breaking.run(partial(self._answered, ping))
        finally:
            self.settle()

    async def pause(self) -> None:
        """Wait until it is to be asked again."""
        if not self.breaker.untroubled:
            await trio.sleep(PROBE_AGAIN_S)
            return
        with trio.move_on_after(PROBE_EVERY_S):
            await self._troubled.park()

    async def _answered(self, ping: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(PROBE_S):
            await ping()
            return
        raise unavailable(f"{self.name} did not answer within {PROBE_S:g} s")

    def _changed(self, state: State) -> None:
        super()._changed(state)
        if state is State.OPEN:
            self._troubled.unpark_all()
        elif state is State.CLOSED:
            self.on_return()
