"""Background work makes room for calls."""

from __future__ import annotations

import trio

from whispr.events.pace import WORK_LEN, Pace

RATE = 100.0


class Cpu:
    """A thread that computes for others a share of the time."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self) -> float:
        return trio.current_time() * self.share


async def rate(pace: Pace, count: int) -> float:
    """Work done a second, when the work itself takes no time."""
    began = trio.current_time()
    for _ in range(count):
        await pace.did(1)
    return count / max(trio.current_time() - began, 1e-9)


async def test_an_idle_process_is_hardly_held_back(autojump_clock: trio.testing.MockClock) -> None:
    """When nobody else computes, pauses are short and seldom."""
    assert await rate(Pace(RATE, cpu_time=Cpu(0.1)), 20 * WORK_LEN) > 100 * RATE


async def test_a_busy_process_gives_its_rate_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """When others compute all the time, work goes on steadily at the rate that is set."""
    pace = Pace(RATE, cpu_time=Cpu(0.9))
    await pace.did(WORK_LEN)
    assert pace.busy
    assert 0.8 * RATE < await rate(pace, 1000) <= 1.01 * RATE


async def test_it_speeds_up_again_when_calls_cease(autojump_clock: trio.testing.MockClock) -> None:
    """Busy is what the last pause has shown, not for ever."""
    cpu = Cpu(0.9)
    pace = Pace(RATE, cpu_time=cpu)
    await pace.did(WORK_LEN)
    cpu.share = 0.0
    await rate(pace, 10)
    assert not pace.busy


async def test_lifted_it_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    """0 lifts the rate."""
    pace = Pace(0, cpu_time=Cpu(1.0))
    began = trio.current_time()
    for _ in range(10 * WORK_LEN):
        await pace.did(1)
    assert trio.current_time() == began
