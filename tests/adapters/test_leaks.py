"""Engines that come and go, again and again, under load and cancels: nothing is left behind on either side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache, open_cache
from whispr.adapters.jetstream import JetStream, Outgoing, StreamLimits
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.embed import ALL, Backends, run_children
from whispr.errors import Code, WhisprError
from whispr.resilience.backend import Backend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROUNDS = 3
WITHIN_S = 60.0


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def signal_all(running: Backends, name: str, number: signal.Signals) -> None:
    """Signal an engine and every process of it."""
    pid = running.status[name].pid
    assert pid is not None, "it runs"
    for each in _family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


async def until(check: Callable[[], bool]) -> None:
    """Wait until something is so."""
    with trio.fail_after(WITHIN_S):
        while not check():  # noqa: ASYNC110  # processes of others tell nobody
            await trio.sleep(0.02)


class Users:
    """Tasks that use an engine as people do: many at once, with deadlines, and giving up now and then."""

    def __init__(self, *uses: Callable[[], Awaitable[Any]]) -> None:
        self._uses = uses
        self._random = random.Random(7)
        self.answers = dict.fromkeys(uses, 0)

    async def run(self) -> None:
        """Use all of them until cancelled."""
        async with trio.open_nursery() as nursery:
            for use in self._uses:
                for _ in range(6):
                    nursery.start_soon(self._again_and_again, use)

    def ahead_of(self, answers: dict[Callable[[], Awaitable[Any]], int]) -> bool:
        """Whether every use has been answered a few times since."""
        return all(self.answers[use] > count + 3 for use, count in answers.items())

    async def _again_and_again(self, use: Callable[[], Awaitable[Any]]) -> None:
        while True:
            with trio.move_on_after(self._random.choice([0.001, 0.05, 5.0])):
                try:
                    await use()
                    self.answers[use] += 1
                except WhisprError as error:
                    if error.code not in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED):
                        raise
            await trio.sleep(0.01)


async def probing(backend: Backend, probe: Callable[[], Awaitable[None]]) -> None:
    """Watch an engine."""
    with backend.watched():
        while True:
            with contextlib.suppress(WhisprError):
                await backend.probe(probe)
            await backend.pause()


def descriptors() -> int:
    """Files and sockets that this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def test_engines_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    """After each outage: no place taken, no asyncio task or descriptor more than before, no connection too many."""
    async with trio.open_nursery() as children:
        running: Backends = await children.start(run_children, tmp_path, ALL)
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, str(running.postgres_url), pool_size=4) as db,
            open_cache(bridge, str(running.redis_url)) as cache,
            open_bus(bridge, str(running.nats_url)) as bus,
        ):
            await bus.wait_connected()
            await come_and_go(running, db, cache, bus, bridge.loop)
        children.cancel_scope.cancel()


async def come_and_go(
    running: Backends, db: Postgres, cache: Cache, bus: Bus, loop: asyncio.AbstractEventLoop
) -> None:
    """Take each engine away by turns, in each way, while everybody uses all of them."""
    jetstream = JetStream(bus)
    await jetstream.ensure_stream("T", ["t.>"], StreamLimits(60, 1 << 20, 60))

    async def transact() -> None:
        async with db.transaction() as tx:
            await tx.fetchval("SELECT 1")
            await tx.fetchval("SELECT pg_sleep(0.01)")

    async def publish() -> None:
        await jetstream.publish([Outgoing("T", "t.a", os.urandom(8).hex(), b"x")])

    async def subscribe() -> None:
        async with bus.subscribe(f"u.{os.urandom(4).hex()}"):
            bus.publish("u.a", b"x")

    users = Users(
        lambda: db.fetchval("SELECT pg_sleep(0.002)"), transact, lambda: cache.get("k"), publish, subscribe
    )
    engines = {each.backend.name: each for each in (db, cache, bus)}
    before: tuple[int, int] | None = None
    for number in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            for each in engines.values():
                nursery.start_soon(probing, each.backend, each.probe)
            nursery.start_soon(users.run)
            for name, each in engines.items():
                await outage(running, name, each.backend, frozen=number % 2 == 0)
                at = dict(users.answers)
                await until(partial(users.ahead_of, at))
            nursery.cancel_scope.cancel()
        await until(lambda: all(each.backend.bulkhead.in_flight == 0 for each in engines.values()))
        assert [each.backend.bulkhead.queued for each in engines.values()] == [0, 0, 0]
        connections = await db.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'whispr'"
        )
        assert connections <= 4 + 1
        await check_even(before := before or await settled(loop), loop)


async def outage(running: Backends, name: str, backend: Backend, *, frozen: bool) -> None:
    """Freeze an engine until it counts as away, or kill it; then have it back."""
    if frozen:
        signal_all(running, name, signal.SIGSTOP)
        await until(lambda: backend.away)
        signal_all(running, name, signal.SIGCONT)
    else:
        restarts = running.status[name].restarts
        os.kill(running.status[name].pid or 0, signal.SIGKILL)
        await until(lambda: running.status[name].restarts > restarts)
    await until(lambda: not backend.away)


async def settled(loop: asyncio.AbstractEventLoop) -> tuple[int, int]:
    """How many asyncio tasks and descriptors there are once everything is quiet."""
    await trio.sleep(1.5)  # what was cancelled ends, each within its bound
    return len(asyncio.all_tasks(loop)), descriptors()


async def check_even(before: tuple[int, int], loop: asyncio.AbstractEventLoop) -> None:
    """No more of them than after the first round, but for a connection that one pool had not needed then."""
    tasks, files = await settled(loop)
    assert tasks <= before[0] + 3, asyncio.all_tasks(loop)
    assert files <= before[1] + 8
