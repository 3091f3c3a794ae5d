"""The asyncio guest loop: asyncio libraries in Trio's thread, under the scope of the Trio task that calls.

Theory of operation. A stock `asyncio.SelectorEventLoop` never runs by itself; it is *stepped*. One step is a
`run_forever` that stops itself as soon as nothing is ready: while a callback is ready asyncio polls its
sockets without waiting, so a step never blocks. Steps happen in two places:

* One Trio task, the driver, sleeps on the selector's own epoll descriptor (readable when any of its sockets
  is) with the next asyncio timer as its deadline, and steps when either comes. Having handed back results
  it stays awake for a few turns, for the callers' next requests.
* `Bridge.call`, when the driver sleeps, steps by itself after creating its asyncio task: the request is on
  the wire before the caller first waits, and a coroutine that never suspends costs no trip through the
  driver at all.

Everything happens in one thread, so asyncio callbacks may call synchronous Trio functions (`trio.Event.set`,
`Inbox.put`), and Trio code may call `bridge.loop.call_soon`. Nothing global is patched: outside a step there
is no running asyncio loop, Trio's signal handling is untouched, and asyncio never sees a signal. asyncio's
clock is Trio's, so asyncio timers follow a `MockClock` too; but with autojump a MockClock outruns real
sockets here exactly as it does in Trio, so tests that talk to servers use the real clock.

Promises:

* Trio's cancellation cancels the asyncio task, waits for it to end, and surfaces as Trio's `Cancelled`. If
  the coroutine finished all the same, its result or exception wins, as with any Trio operation.
* A task cancelled on the asyncio side surfaces as `CancelledByAsyncio`, never as anybody's cancellation.
* Exceptions pass through with their tracebacks; the asyncio task runs in a copy of the caller's context.
* When the bridge closes, asyncio tasks still alive are cancelled, awaited, and reported by name in a
  `BridgeError`; so is every error that nobody awaited. While running, the latter are logged at once.

Figures: tests/bench/bench_bridge.py, `SELECT $1::int` on embedded PostgreSQL from 32 tasks over 8 connections,
two busy cores, Python 3.11, medians of 7 rounds of one run:

    plain asyncio, asyncpg's pool    11,440 queries/s   1.00
    bridge, asyncpg's pool            9,118 queries/s   0.80
    trio-asyncio, asyncpg's pool      2,532 queries/s   0.22
    bridge, Whispr's own pool        15,811 queries/s   1.38   (adapters/postgres.py: no reset round trip)

A call that does not suspend costs about 10 microseconds, a third of it Trio's checkpoint. What paid off: not
waking the driver from `call` (33 microseconds before), and its staying awake for the callers' next requests
(0.12 steps a query instead of 1). trio-asyncio cannot be used beside it: importing it patches asyncio.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Generic, ParamSpec, TypeVar, TypeVarTuple, Unpack

import outcome
import sniffio
import structlog
import trio

from whispr.nurseries import ungrouped

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TURNS_MAX = 8
"""Times around the asyncio loop in one step, before Trio's other tasks get a turn."""

LINGER_TURNS = 2
"""Turns of Trio's that the driver stays awake after handing back results: callers who got theirs tend to ask
again at once, and all their requests then go out in one step instead of one each."""

UNHANDLED_MAX = 32
"""Unhandled asyncio errors kept for the report at close; all of them are logged."""

WIND_UP_S = 5.0
"""How long asyncio tasks left behind have to end after being cancelled at close."""

log = structlog.get_logger("whispr.bridge")


class BridgeError(Exception):
    """The asyncio side broke a rule: it left tasks behind, or errors that nobody awaited."""


class CancelledByAsyncio(Exception):  # noqa: N818 - names what happened, beside asyncio's own CancelledError
    """The asyncio task was cancelled on the asyncio side, not by Trio."""


class _GuestLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on Trio's clock that says when it has been given something to do between steps."""

    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, clock: Callable[[], float], on_work: Callable[[float], None]) -> None:
        self._clock = clock
        self._on_work = on_work
        self._turns = 0
        self._selector_fd_owner = selectors.EpollSelector()
        super().__init__(self._selector_fd_owner)

    def fileno(self) -> int:
        """The epoll descriptor: readable when any of the loop's sockets is."""
        return self._selector_fd_owner.fileno()

    def time(self) -> float:
        return self._clock()

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self._on_work(-math.inf)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self._on_work(when)
        return handle

    def run_ready(self) -> None:
        """Poll the sockets and run callbacks until none is ready, at most `TURNS_MAX` times around."""
        self._turns = TURNS_MAX
        super().call_soon(self._end_of_turn)
        self.run_forever()

    def _end_of_turn(self) -> None:
        """Stop the loop, or go around once more: what is behind us in the queue came up meanwhile."""
        self._turns -= 1
        if self._ready and self._turns:
            super().call_soon(self._end_of_turn)
        else:
            self.stop()

    @property
    def busy(self) -> bool:
        """Whether callbacks are ready to run now."""
        return bool(self._ready)

    @property
    def next_timer(self) -> float:
        """When the next timer is due on Trio's clock, or infinity."""
        return self._scheduled[0].when() if self._scheduled else math.inf


class Bridge:
    """Runs coroutine functions of asyncio libraries for Trio tasks. Made by `open_bridge`."""

    def __init__(self) -> None:
        clock = trio.lowlevel.current_clock()
        self._loop = _GuestLoop(clock.current_time, self._has_work)
        self._loop.set_exception_handler(self._unhandled)
        self._driving = trio.CancelScope(shield=True)
        self._nap: trio.CancelScope | None = None
        self._closed = False
        self._handed_back = 0  # results given to waiting callers so far
        self._problems: deque[BridgeError] = deque(maxlen=UNHANDLED_MAX)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop, for constructors that must be bound to it. Never run it."""
        return self._loop

    async def call(self, fn: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `await fn(*args, **kwargs)` as an asyncio task and return its result.

        Raises whatever the coroutine raises; Trio's `Cancelled` when this scope is cancelled (the asyncio
        task has then ended); `CancelledByAsyncio` when asyncio cancelled the task; `RuntimeError` when
        the bridge is closed. Nothing is started in a scope that is already cancelled.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise RuntimeError("the asyncio bridge is closed")
        task = self._created(fn(*args, **kwargs))
        if self._nap is not None:
            self._step()
            if task.done():
                await trio.lowlevel.cancel_shielded_checkpoint()
                return _result(task, None)
        return await self._wait(task)

    def _created(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Make an asyncio task without waking the driver for it: our own step comes next."""
        nap, self._nap = self._nap, None
        try:
            return self._loop.create_task(coroutine)
        finally:
            self._nap = nap

    async def _wait(self, task: asyncio.Task[T]) -> T:
        """Wait for the asyncio task; a Trio cancellation is passed on to it and waited out."""
        waiter = trio.lowlevel.current_task()
        cancelled: list[Callable[[], Any]] = []

        def done(task: asyncio.Task[T]) -> None:
            self._handed_back += 1
            raise_cancel = cancelled[0] if cancelled else None
            trio.lowlevel.reschedule(waiter, outcome.capture(_result, task, raise_cancel))

        def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            cancelled.append(raise_cancel)
            task.cancel()
            return trio.lowlevel.Abort.FAILED

        task.add_done_callback(done)
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    @trio.lowlevel.enable_ki_protection
    def _step(self) -> None:
        """Let asyncio run until it waits for I/O or a timer, or has had its `TURNS_MAX` turns.

        Protected from KeyboardInterrupt: raised inside a callback of somebody else's task it would tear
        the loop; Trio delivers it to the main task instead.
        """
        nap, self._nap = self._nap, None
        library, sniffio.thread_local.name = sniffio.thread_local.name, "asyncio"
        try:
            self._loop.run_ready()
        finally:
            sniffio.thread_local.name = library
            self._nap = nap
        if nap is not None:
            self._has_work(-math.inf if self._loop.busy else self._loop.next_timer)

    def _has_work(self, when: float) -> None:
        """Wake the driver at `when`, if it sleeps; during a step the driver is awake (or told at its end)."""
        if self._nap is not None and when < self._nap.deadline:
            self._nap.deadline = when

    async def _drive(self) -> None:
        """Step the loop whenever it has something to do, until `_driving` is cancelled.

        That scope is shielded: whoever cancels the block must not stop the loop that its cleanup needs.
        """
        lingering = 0  # turns left to stay awake
        with self._driving:
            while True:
                before = self._handed_back
                self._step()
                if self._handed_back != before:
                    lingering = LINGER_TURNS
                elif lingering:
                    lingering -= 1
                if self._loop.busy or lingering:
                    await trio.lowlevel.checkpoint()
                    continue
                with trio.CancelScope(deadline=self._loop.next_timer) as self._nap:
                    await trio.lowlevel.wait_readable(self._loop.fileno())
                self._nap = None

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what asyncio could hand to nobody, and keep it for the report at close."""
        error = context.get("exception")
        message = str(context.get("message", "unhandled asyncio error"))
        log.error("asyncio_unhandled", message=message, exc_info=error)
        problem = BridgeError(message)
        problem.__cause__ = error
        self._problems.append(problem)

    async def _wind_up(self) -> None:
        """Cancel and await what is left, report it, close generators and helper threads."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            if task.cancelling():
                continue  # its owner has told it to end: not forgotten, only not gone yet
            self._problems.append(BridgeError(f"asyncio task left behind: {_described(task)}"))
            task.cancel("the asyncio bridge is closing")
        with trio.move_on_after(WIND_UP_S) as bound:
            if left:
                self._problems.extend(
                    BridgeError(f"ended with {error!r}") for error in await self.call(_settled, left)
                )
            await self.call(self._loop.shutdown_asyncgens)
            await self.call(self._loop.shutdown_default_executor)
        if bound.cancelled_caught:
            self._problems.append(BridgeError(f"the asyncio side did not end within {WIND_UP_S:g} s"))
        self._closed = True

    def _report(self) -> None:
        """Raise what went wrong on the asyncio side, if anything did."""
        problems = list(self._problems)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            listed = "; ".join(str(problem) for problem in problems)
            raise BridgeError(listed) from ExceptionGroup("on the asyncio side", problems)


class Inbox(Generic[T]):
    """A bounded mailbox from asyncio callbacks to one Trio task: `put` never waits, iteration does.

    Full, it drops its oldest item and counts it in `dropped`: a reader that lags loses the past, never
    the present. After `close` the reader gets what is left, then the iteration ends.
    """

    def __init__(self, len_max: int) -> None:
        assert len_max > 0
        self._items: deque[T] = deque()
        self._len_max = len_max
        self._arrived = trio.lowlevel.ParkingLot()
        self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add an item; False when the oldest had to go for it, or when the inbox is closed."""
        if self._closed:
            return False
        full = len(self._items) >= self._len_max
        if full:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._arrived.unpark()
        return not full

    def close(self) -> None:
        """End the iteration once the items already here are read."""
        self._closed = True
        self._arrived.unpark_all()

    def __aiter__(self) -> Inbox[T]:
        return self

    async def __anext__(self) -> T:
        if self._items:
            await trio.lowlevel.checkpoint()
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            await self._arrived.park()
        return self._items.popleft()


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Run the guest loop for the length of the block.

    An exception of the block passes through unchanged (not in a group), with a note if the asyncio side had
    problems too. Otherwise, and also when the block was cancelled, `BridgeError` is raised at the end for
    asyncio tasks left behind and for errors that nobody awaited.
    """
    bridge = Bridge()
    try:
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bridge._drive, name="asyncio bridge")
                try:
                    yield bridge
                finally:
                    with trio.CancelScope(shield=True):
                        await bridge._wind_up()
                    bridge._driving.cancel(reason="the asyncio bridge is closing")
    except Exception as error:
        for problem in bridge._problems:
            error.add_note(f"on the asyncio side: {problem}")
        raise
    except trio.Cancelled:
        bridge._report()
        raise
    finally:
        bridge._loop.close()
    bridge._report()


def _result(task: asyncio.Task[T], raise_cancel: Callable[[], Any] | None) -> T:
    """Return or raise what a finished task came to, with its cancellation told apart by who asked for it."""
    try:
        return task.result()
    except asyncio.CancelledError as cancelled:
        if raise_cancel is not None:
            raise_cancel()
        raise CancelledByAsyncio(f"asyncio cancelled {_described(task)}") from cancelled


async def _settled(tasks: set[asyncio.Task[Any]]) -> list[BaseException]:
    """Wait for cancelled tasks to end; return the errors they ended with instead."""
    done, _ = await asyncio.wait(tasks)
    errors = (task.exception() for task in done if not task.cancelled())
    return [error for error in errors if error is not None]


def _described(task: asyncio.Task[Any]) -> str:
    """Name a task by what it runs, which says more than `Task-7`."""
    coroutine = task.get_coro()
    return f"{task.get_name()} ({getattr(coroutine, '__qualname__', coroutine)})"
