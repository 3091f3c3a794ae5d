"""An engine behind its breaker: watched, refused while away, and back by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from whispr.errors import Code, WhisprError, unavailable
from whispr.resilience.backend import PROBE_AGAIN_S, PROBE_EVERY_S, PROBE_S, Backend
from whispr.resilience.breaker import State
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.retry import BREAKER_OPEN

AWAY = unavailable("away")


class Engine:
    """It answers, or fails, or says nothing at all."""

    def __init__(self) -> None:
        self.error: WhisprError | None = None
        self.silent = False
        self.probes = 0

    async def ask(self) -> str:
        """One operation."""
        await trio.lowlevel.checkpoint()
        if self.silent:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        return "answer"

    async def ping(self) -> None:
        """What the watch asks."""
        self.probes += 1
        await self.ask()


def backend() -> Backend:
    """An engine's guard."""
    return Backend("engine", BulkheadRules(2, 2))


async def watch(guard: Backend, engine: Engine) -> None:
    """Ask it for ever how it is."""
    with guard.watched():
        while True:
            with contextlib.suppress(WhisprError):  # the breaker has heard of it
                await guard.probe(engine.ping)
            await guard.pause()


Operate = Callable[[Callable[[], Awaitable[str]]], Awaitable[str]]


@pytest.mark.parametrize("lean", [False, True])
async def test_an_engine_that_is_gone_is_refused_at_once_and_comes_back_by_itself(
    autojump_clock: trio.testing.MockClock, lean: bool
) -> None:
    """Three failures trip it; refusals name the engine and when to come; one probe, and all is well again."""
    guard, engine = backend(), Engine()
    operate: Operate = guard.operate_lean if lean else guard.operate
    returns: list[float] = []
    guard.on_return = lambda: returns.append(trio.current_time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, guard, engine)
        await trio.testing.wait_all_tasks_blocked()
        assert await operate(engine.ask) == "answer"
        engine.error = AWAY
        for _ in range(3):
            with pytest.raises(WhisprError):
                await operate(engine.ask)
        assert guard.away
        with pytest.raises(WhisprError) as refused:
            await operate(engine.ask)
        error = refused.value
        assert (error.code, error.reason) == (Code.UNAVAILABLE, BREAKER_OPEN)
        assert error.facts == {"dependency": "engine", "processed": "no"}
        assert error.retry_after_s is not None
        await trio.sleep(60)
        assert guard.away, "nobody but the watch asks, and it gets no answer"
        engine.error = None
        began = trio.current_time()
        await trio.sleep(2 * PROBE_AGAIN_S)
        assert not guard.away
        assert returns[-1] - began <= PROBE_AGAIN_S + 0.01
        assert await operate(engine.ask) == "answer"
        assert guard.calm
        nursery.cancel_scope.cancel()


async def test_an_engine_that_says_nothing_costs_those_who_wait_three_probes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What waits is ended, with the reason; no operation is ever the probe, which would wait as long as a person."""
    guard, engine = backend(), Engine()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, guard, engine)
        await trio.testing.wait_all_tasks_blocked()
        engine.silent = True
        began = trio.current_time()
        with pytest.raises(WhisprError) as ended:
            await guard.operate(engine.ask)
        assert trio.current_time() - began <= PROBE_EVERY_S + 3 * (PROBE_S + PROBE_AGAIN_S)
        assert ended.value.facts == {"dependency": "engine", "processed": "maybe"}
        await trio.sleep(10.1)
        engine.silent = False
        await trio.sleep(PROBE_S + 2 * PROBE_AGAIN_S)
        assert await guard.operate(engine.ask) == "answer"
        nursery.cancel_scope.cancel()


async def test_a_driver_that_ends_its_operations_itself_is_told_to(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However it ends them: they fail as refused, and may have taken effect."""
    guard, engine = backend(), Engine()
    ended = trio.Event()
    guard.on_trip = ended.set

    async def hang() -> str:
        await ended.wait()
        raise unavailable("the connection was cut")

    async def wait() -> None:
        with pytest.raises(WhisprError) as cut:
            await guard.operate_lean(hang)
        assert cut.value.reason == BREAKER_OPEN
        assert cut.value.facts["processed"] == "maybe"

    with guard.watched():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            engine.error = AWAY
            for _ in range(3):
                with pytest.raises(WhisprError):
                    await guard.operate_lean(engine.ask)


async def test_what_a_living_engine_refuses_does_not_trip_it() -> None:
    """A full disk, or a statement that somebody has ended, says that the engine is there."""
    guard, engine = backend(), Engine()
    engine.error = unavailable("the disk is full")
    engine.error.by_peer = True
    with guard.watched():
        for _ in range(10):
            with pytest.raises(WhisprError):
                await guard.operate_lean(engine.ask)
            with pytest.raises(WhisprError):
                await guard.operate(engine.ask)
        assert not guard.away


async def test_operations_given_up_say_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Ten that outlast their callers are not held against an engine that answers its probes."""
    guard, engine = backend(), Engine()

    async def slow() -> str:
        await trio.sleep(60)
        return "late"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, guard, engine)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            with trio.move_on_after(5):
                await guard.operate(slow)
        assert not guard.away
        nursery.cancel_scope.cancel()


async def test_without_a_watch_operations_are_their_callers_affair() -> None:
    """Before a process serves, and in commands, whoever waits for the engine waits as long as they like."""
    guard, engine = backend(), Engine()
    engine.error = AWAY
    for _ in range(10):
        with pytest.raises(WhisprError, match="away"):
            await guard.operate(engine.ask)
        with pytest.raises(WhisprError, match="away"):
            await guard.operate_lean(engine.ask)
    assert guard.breaker.state is State.CLOSED
