"""Background work makes room for calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from whispr.events.pace import PRESSED_S, SAMPLE_S, Pace, demand

RATE = 100.0


class Thread:
    """A thread that computes for calls a share of the time."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self) -> float:
        return trio.current_time() * self.share


@asynccontextmanager
async def paced(share: float) -> AsyncIterator[tuple[Pace, Thread]]:
    thread = Thread(share)
    pace = Pace(RATE, demand=thread)
    async with trio.open_nursery() as nursery:
        await nursery.start(pace.run)
        yield pace, thread
        nursery.cancel_scope.cancel(reason="the test is over")


async def work(pace: Pace, seconds: float, done: list[int], each_s: float = 0.0001) -> None:
    """Work for so long; note each piece."""
    until = trio.current_time() + seconds
    while trio.current_time() < until:
        await trio.sleep(each_s)
        done.append(1)
        await pace.did(1)


async def test_an_idle_process_is_hardly_held_back(autojump_clock: trio.testing.MockClock) -> None:
    """When nobody calls, background work stops only for the moments of measuring."""
    async with paced(0.1) as (pace, _):
        done: list[int] = []
        await work(pace, 10, done, each_s=0.01)
        assert len(done) > 0.9 * 10 / 0.01


async def test_in_a_busy_process_all_workers_share_one_small_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While calls take the thread, background work goes on steadily, in turns, at the rate that is set."""
    async with paced(0.95) as (pace, _):
        await work(pace, 1, [])
        assert pace.busy
        workers: list[list[int]] = [[] for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for done in workers:
                nursery.start_soon(work, pace, 20, done)
        counts = [len(done) for done in workers]
        assert 0.9 * RATE * 20 < sum(counts) < 1.1 * RATE * 20
        assert max(counts) - min(counts) <= 2


async def test_it_speeds_up_again_when_calls_cease(autojump_clock: trio.testing.MockClock) -> None:
    """Busy is what the last measurement has shown, not for ever."""
    async with paced(0.95) as (pace, thread):
        await work(pace, 1, [])
        thread.share = 0.0
        await work(pace, 1, [])
        assert not pace.busy


async def test_it_is_busy_while_much_comes_in(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever sees live traffic pile up can say so, whatever this thread computes."""
    async with paced(0.0) as (pace, _):
        pace.press()
        done: list[int] = []
        await work(pace, PRESSED_S, done)
        assert len(done) <= 1.1 * RATE * PRESSED_S
        await trio.sleep(SAMPLE_S)
        assert not pace.busy


async def test_lifted_it_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    """0 lifts the rate."""
    pace = Pace(0, demand=Thread(1.0))
    pace.press()
    await pace.run()
    began = trio.current_time()
    for _ in range(1000):
        await pace.did(1)
    assert trio.current_time() == began


def test_the_demand_of_a_thread_grows_as_it_computes() -> None:
    """What the operating system says of this thread is at least what it has computed."""
    before, cpu = demand(), time.thread_time()
    while time.thread_time() < cpu + 0.02:
        pass
    assert 0.01 < demand() - before < 5
