from __future__ import annotations

import asyncio
import contextvars
import math
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator

import pytest
import sniffio
import trio
import trio.testing

from whispr.bridge import TURNS_MAX, BridgeError, CancelledByAsyncio, Inbox, open_bridge


async def _echo(value: int, *, plus: int = 0) -> int:
    return value + plus


async def _echo_after_a_turn(value: int) -> int:
    await asyncio.sleep(0)
    return value


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_call_returns_the_result() -> None:
    """Arguments go in, the result comes out, whether the coroutine suspends or not."""
    async with open_bridge() as bridge:
        assert await bridge.call(_echo, 1, plus=2) == 3
        assert await bridge.call(_echo_after_a_turn, 4) == 4


async def test_call_is_a_checkpoint_even_when_nothing_suspends() -> None:
    """The fast path lets other Trio tasks run and notices cancellation, like any async function."""
    async with open_bridge() as bridge:
        with trio.testing.assert_checkpoints():
            await bridge.call(_echo, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await bridge.call(_echo, 1)
        assert scope.cancelled_caught


async def test_nothing_starts_in_a_cancelled_scope() -> None:
    """A call made after its scope was cancelled does not run its coroutine function."""
    ran = False

    async def mark() -> None:
        nonlocal ran
        ran = True

    async with open_bridge() as bridge:
        with trio.CancelScope() as scope:
            scope.cancel()
            await bridge.call(mark)
    assert not ran


async def test_exceptions_pass_through_with_their_traceback() -> None:
    """The caller sees the very exception, and its traceback reaches into the asyncio code."""
    error = ValueError("from asyncio")

    async def fail_deep_inside() -> None:
        await asyncio.sleep(0)
        raise error

    async with open_bridge() as bridge:
        with pytest.raises(ValueError, match="from asyncio") as caught:
            await bridge.call(fail_deep_inside)
    assert caught.value is error
    assert "fail_deep_inside" in "".join(traceback.format_tb(caught.value.__traceback__))


async def test_trio_cancel_cancels_the_asyncio_task_and_waits_for_it() -> None:
    """Cancelled surfaces only after the asyncio task has run its cleanup."""
    steps: list[str] = []

    async def careful() -> None:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            steps.append("told")
            await asyncio.sleep(0.001)
            steps.append("cleaned up")
            raise

    async with open_bridge() as bridge:
        with trio.move_on_after(0.01) as scope:
            await bridge.call(careful)
        steps.append("back")
    assert scope.cancelled_caught
    assert steps == ["told", "cleaned up", "back"]


async def test_a_result_that_beat_the_cancel_is_returned() -> None:
    """A coroutine that finishes in spite of the cancellation is not lost: its value is the call's."""

    async def stubborn() -> str:
        try:
            await _for_ever()
        except asyncio.CancelledError:
            return "committed"
        return "unreachable"

    async with open_bridge() as bridge:
        with trio.move_on_after(0.01) as scope:
            assert await bridge.call(stubborn) == "committed"
    assert not scope.cancelled_caught


async def test_an_error_that_beat_the_cancel_is_raised() -> None:
    """Cleanup that fails during a cancellation is heard, not hidden behind Cancelled."""

    async def broken() -> None:
        try:
            await _for_ever()
        finally:
            raise OSError("cleanup failed")

    async with open_bridge() as bridge:
        with pytest.raises(OSError, match="cleanup failed"), trio.move_on_after(0.01):
            await bridge.call(broken)


async def test_a_cancel_from_asyncio_is_not_trios() -> None:
    """A library that cancels its own task yields an error naming the task; no Trio scope is involved."""

    async def cancelled_from_inside() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_bridge() as bridge:
        with pytest.raises(CancelledByAsyncio, match="cancelled_from_inside"):
            await bridge.call(cancelled_from_inside)


async def test_deadline_bounds_asyncio_work() -> None:
    """`fail_after` around a call raises TooSlowError, as for any Trio operation."""
    async with open_bridge() as bridge:
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
            await bridge.call(_for_ever)


async def test_calls_run_concurrently() -> None:
    """Many Trio tasks have calls in flight at once, and each gets its own answer."""
    results: dict[int, int] = {}

    async with open_bridge() as bridge:
        gate = asyncio.Event()

        async def through_the_gate(n: int) -> int:
            await gate.wait()
            return n * n

        async def one(n: int) -> None:
            results[n] = await bridge.call(through_the_gate, n)

        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(one, n)
            await trio.testing.wait_all_tasks_blocked()
            assert results == {}
            bridge.loop.call_soon(gate.set)
    assert results == {n: n * n for n in range(100)}


async def test_context_variables_follow_the_caller() -> None:
    """The coroutine sees the caller's context; what it sets stays with it, as in a child task."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

    async def read_and_set() -> str:
        seen = var.get()
        await asyncio.sleep(0)
        var.set("inner")
        return seen

    async with open_bridge() as bridge:
        var.set("outer")
        assert await bridge.call(read_and_set) == "outer"
        assert var.get() == "outer"


async def test_libraries_are_told_which_loop_runs_them() -> None:
    """Sniffio says asyncio inside a call and Trio around it; asyncio has no running loop outside."""

    async def sniff() -> str:
        return sniffio.current_async_library()

    async with open_bridge() as bridge:
        assert await bridge.call(sniff) == "asyncio"
        assert sniffio.current_async_library() == "trio"
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()


async def test_sockets_wake_the_loop() -> None:
    """Data arriving on an asyncio transport while Trio is idle completes the call."""
    ours, theirs = socket.socketpair()

    async def read_line() -> bytes:
        reader, writer = await asyncio.open_connection(sock=ours)
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    async with open_bridge() as bridge, trio.open_nursery() as nursery:

        async def send_when_idle() -> None:
            await trio.testing.wait_all_tasks_blocked(0.005)
            theirs.send(b"hello\n")

        nursery.start_soon(send_when_idle)
        assert await bridge.call(read_line) == b"hello\n"
    theirs.close()


async def test_threads_wake_the_loop() -> None:
    """The executor of asyncio, as used for name lookups, completes while Trio is idle."""

    async def in_a_thread() -> int:
        return await asyncio.to_thread(lambda: 42)

    async with open_bridge() as bridge:
        assert await bridge.call(in_a_thread) == 42


async def test_asyncio_timers_follow_trios_clock(autojump_clock: trio.testing.MockClock) -> None:
    """Under MockClock an hour of asyncio sleep passes at once, and both clocks agree."""

    async def nap() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    async with open_bridge() as bridge:
        assert await bridge.call(nap) == pytest.approx(trio.current_time())
    assert trio.current_time() >= 3600
    assert time.monotonic() - started < 5


async def test_a_timer_set_during_a_call_moves_the_drivers_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A driver asleep until a late timer wakes for an earlier one that a later call sets."""
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.call, asyncio.sleep, 100)
        await trio.testing.wait_all_tasks_blocked()
        await bridge.call(asyncio.sleep, 1)
        assert trio.current_time() == pytest.approx(1, abs=0.1)


async def test_trio_may_schedule_asyncio_callbacks_directly() -> None:
    """`bridge.loop.call_soon` from Trio code wakes a sleeping loop; the callback may wake Trio back."""
    async with open_bridge() as bridge:
        await trio.testing.wait_all_tasks_blocked()
        happened = trio.Event()
        bridge.loop.call_soon(happened.set)
        with trio.fail_after(1):
            await happened.wait()


async def test_an_idle_bridge_does_nothing() -> None:
    """With no work and no timers the loop is not stepped: no polling."""
    async with open_bridge() as bridge:
        await bridge.call(_echo_after_a_turn, 1)
        await trio.testing.wait_all_tasks_blocked()
        counter = _Counter()
        trio.lowlevel.add_instrument(counter)
        await trio.sleep(0.05)
        trio.lowlevel.remove_instrument(counter)
    assert counter.steps <= 4  # this test's own sleep, and no more


async def test_a_call_that_does_not_suspend_leaves_the_driver_asleep() -> None:
    """The fast path costs one turn of the caller and none of anybody else."""
    async with open_bridge() as bridge:
        await trio.testing.wait_all_tasks_blocked()
        counter = _Counter()
        trio.lowlevel.add_instrument(counter)
        for _ in range(50):
            await bridge.call(_echo, 1)
        trio.lowlevel.remove_instrument(counter)
    assert counter.steps <= 52


class _Counter(trio.abc.Instrument):
    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_a_busy_asyncio_side_does_not_starve_trio() -> None:
    """An asyncio task that never stops yielding leaves Trio its turns."""

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - a loop that never rests is the point
            await asyncio.sleep(0)

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.call, spin)
        for _ in range(10 * TURNS_MAX):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_tasks_left_behind_are_an_error_that_names_them() -> None:
    """A library that leaves a task running is reported at close; the task is cancelled and awaited."""
    ended = False

    async def forgotten() -> None:
        nonlocal ended
        try:
            await _for_ever()
        finally:
            ended = True

    async def leave_behind() -> None:
        leave_behind.task = asyncio.create_task(forgotten(), name="pinger")  # type: ignore[attr-defined]  # kept alive

    with pytest.raises(BridgeError, match=r"left behind: pinger \(.*forgotten\)"):
        async with open_bridge() as bridge:
            await bridge.call(leave_behind)
    assert ended


async def test_tasks_left_behind_are_reported_when_the_block_is_cancelled() -> None:
    """Cancellation of the block does not hide what the asyncio side left."""

    async def leave_behind() -> None:
        leave_behind.task = asyncio.create_task(_for_ever())  # type: ignore[attr-defined]  # kept alive

    with pytest.raises(BridgeError, match="left behind"), trio.CancelScope() as scope:
        async with open_bridge() as bridge:
            await bridge.call(leave_behind)
            scope.cancel()
            await trio.sleep_forever()


async def test_cleanup_on_the_asyncio_side_goes_on_when_the_block_is_cancelled() -> None:
    """A shielded call in the cleanup of a cancelled block still gets its sockets and timers."""
    cleaned = False
    with trio.CancelScope() as scope:
        async with open_bridge() as bridge:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    await bridge.call(asyncio.sleep, 0.01)
                    await bridge.call(asyncio.to_thread, int)
                cleaned = True
    assert cleaned
    assert scope.cancelled_caught


async def test_an_error_of_the_block_is_not_hidden_by_the_report() -> None:
    """The block's own exception comes out itself, ungrouped, with the asyncio problems as notes."""

    async def leave_behind() -> None:
        leave_behind.task = asyncio.create_task(_for_ever())  # type: ignore[attr-defined]  # kept alive

    with pytest.raises(KeyError) as caught:
        async with open_bridge() as bridge:
            await bridge.call(leave_behind)
            raise KeyError("mine")
    assert any("left behind" in note for note in caught.value.__notes__)


async def test_a_task_that_will_not_die_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Close waits for stubborn tasks for WIND_UP_S seconds, then says so."""
    release: list[asyncio.Future[None]] = []

    async def stubborn() -> None:
        while not release:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue

    async def leave_behind() -> None:
        leave_behind.task = asyncio.create_task(stubborn())  # type: ignore[attr-defined]  # kept alive

    with pytest.raises(BridgeError, match="did not end within 5 s"):
        async with open_bridge() as bridge:
            await bridge.call(leave_behind)
    task: asyncio.Task[None] = leave_behind.task  # type: ignore[attr-defined]  # set above
    task.get_coro().close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it was reported, and that is the test


async def test_errors_nobody_awaits_are_reported() -> None:
    """An exception in a bare asyncio callback is raised when the bridge closes, with its cause."""

    def explode() -> None:
        raise ZeroDivisionError("in a callback")

    with pytest.raises(BridgeError, match="explode") as caught:
        async with open_bridge() as bridge:
            bridge.loop.call_soon(explode)
            await bridge.call(_echo_after_a_turn, 1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_several_problems_are_reported_together() -> None:
    """No problem hides another."""

    def explode(what: str) -> None:
        raise RuntimeError(what)

    with pytest.raises(BridgeError) as caught:
        async with open_bridge() as bridge:
            bridge.loop.call_soon(explode, "one")
            bridge.loop.call_soon(explode, "two")
            await bridge.call(_echo_after_a_turn, 1)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


async def test_calls_after_close_are_refused() -> None:
    """A bridge kept past its block says that it is closed."""
    async with open_bridge() as bridge:
        pass
    with pytest.raises(RuntimeError, match="bridge is closed"):
        await bridge.call(_echo, 1)


async def test_open_async_generators_are_closed() -> None:
    """An asyncio generator abandoned half way runs its cleanup on the asyncio side."""
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(sniffio.current_async_library())

    kept = numbers()

    async def first() -> int:
        return await anext(kept)

    async with open_bridge() as bridge:
        assert await bridge.call(first) == 1
    assert closed == ["asyncio"]


async def test_signal_handling_and_hooks_are_left_alone() -> None:
    """Opening, using and closing a bridge changes no signal handler and no generator hook."""
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1), sys.get_asyncgen_hooks()
    signal.set_wakeup_fd(before[1])
    async with open_bridge() as bridge:
        await bridge.call(_echo_after_a_turn, 1)
        during = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1), sys.get_asyncgen_hooks()
        signal.set_wakeup_fd(during[1])
    assert during == before


async def test_two_bridges_do_not_disturb_each_other() -> None:
    """Bridges are values, not global state."""
    async with open_bridge() as one, open_bridge() as two:
        assert await one.call(_echo_after_a_turn, 1) == 1
        assert await two.call(_echo_after_a_turn, 2) == 2
        assert one.loop is not two.loop


async def test_inbox_hands_items_over_in_order() -> None:
    """Items put by asyncio callbacks reach the Trio reader in order, and close ends the iteration."""
    inbox: Inbox[int] = Inbox(10)

    async def produce() -> None:
        for n in range(5):
            inbox.put(n)
            await asyncio.sleep(0)
        inbox.close()

    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        nursery.start_soon(bridge.call, produce)
        assert [n async for n in inbox] == [0, 1, 2, 3, 4]
    assert not inbox.put(6)


async def test_a_full_inbox_drops_the_oldest_and_counts() -> None:
    """A lagging reader loses the past: put says so, and `dropped` counts."""
    inbox: Inbox[int] = Inbox(2)
    assert [inbox.put(n) for n in range(4)] == [True, True, False, False]
    assert inbox.dropped == 2
    inbox.close()
    assert [n async for n in inbox] == [2, 3]


async def test_inbox_reading_is_a_checkpoint() -> None:
    """A reader of a full inbox yields at every item."""
    inbox: Inbox[int] = Inbox(2)
    inbox.put(1)
    with trio.testing.assert_checkpoints():
        assert await anext(inbox) == 1


async def test_the_loops_timer_peek_matches_asyncio() -> None:
    """The one private field read from asyncio still means what we think: the next timer's time."""
    async with open_bridge() as bridge:
        loop = bridge._loop
        assert loop.next_timer == math.inf
        assert not loop.busy
        late, soon = loop.call_at(loop.time() + 50, print), loop.call_at(loop.time() + 20, print)
        assert loop.next_timer == soon.when()
        late.cancel()
        soon.cancel()
