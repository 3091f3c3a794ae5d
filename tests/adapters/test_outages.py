"""The adapters while their server is killed and comes back, under load."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.cache import RateLimiter, open_cache
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import Bridge
from whispr.embed import Backends, run_children
from whispr.errors import Code, WhisprError


@asynccontextmanager
async def server(data_dir: Path, name: str) -> AsyncIterator[Backends]:
    """Run one server for the length of the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(run_children, data_dir, {name})
        nursery.cancel_scope.cancel()


def check_unavailable(error: WhisprError) -> None:
    """The only error that an outage may show."""
    assert error.code is Code.UNAVAILABLE, error


async def kill(backends: Backends, name: str, number: signal.Signals = signal.SIGKILL) -> int:
    """Signal a server, once it is up."""
    while (pid := backends.status[name].pid) is None:  # noqa: ASYNC110 - nothing tells of it but this field
        await trio.sleep(0.01)
    os.kill(pid, number)
    return pid


class Load:
    """Writers that insert numbers one by one and note which inserts were acknowledged."""

    def __init__(self, db: Postgres) -> None:
        self._db = db
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self._next = 0
        self.progress = trio.Event()

    async def write(self) -> None:
        """Insert until cancelled. Only UNAVAILABLE may come up."""
        while True:
            self._next += 1
            number = self._next
            self.unknown.add(number)
            try:
                await self._db.execute("INSERT INTO t VALUES ($1)", number)
            except WhisprError as error:
                check_unavailable(error)
            else:
                self.unknown.remove(number)
                self.acknowledged.add(number)
                self.progress.set()

    async def advance(self) -> None:
        """Wait until one more insert is acknowledged."""
        self.progress = trio.Event()
        with trio.fail_after(10):
            await self.progress.wait()


@pytest.mark.slow
async def test_postgres_killed_under_load_loses_no_acknowledged_write(bridge: Bridge, tmp_path: Path) -> None:
    """Writers see UNAVAILABLE or wait; service resumes by itself; every acknowledged row is there once."""
    async with (
        server(tmp_path, "postgres") as backends,
        open_postgres(bridge, str(backends.postgres_url)) as db,
    ):
        await db.execute("CREATE TABLE t (n int)")
        load = Load(db)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(load.write)
            for _ in range(2):
                await load.advance()
                await kill(backends, "postgres")
                await load.advance()
            await load.advance()
            nursery.cancel_scope.cancel()
        kept = [row["n"] for row in await db.fetch("SELECT n FROM t")]
    assert len(kept) == len(set(kept))
    assert load.acknowledged <= set(kept)
    assert set(kept) <= load.acknowledged | load.unknown


async def test_a_killed_postgres_backend_is_survived(bridge: Bridge, tmp_path: Path) -> None:
    """When one backend is killed PostgreSQL restarts itself, and the pool finds its way back."""
    async with server(tmp_path, "postgres") as backends:
        async with open_postgres(bridge, str(backends.postgres_url)) as db:
            pid = await db.fetchval("SELECT pg_backend_pid()")
            os.kill(pid, signal.SIGKILL)
            with trio.fail_after(10):
                while True:
                    try:
                        assert await db.fetchval("SELECT 1") == 1
                    except WhisprError as error:
                        check_unavailable(error)
                    else:
                        break
        assert backends.status["postgres"].restarts == 0


@pytest.mark.slow
async def test_a_frozen_postgres_is_bounded_by_the_callers_deadline(bridge: Bridge, tmp_path: Path) -> None:
    """A server that neither answers nor hangs up costs the caller its deadline and little more."""
    async with (
        server(tmp_path, "postgres") as backends,
        open_postgres(bridge, str(backends.postgres_url), pool_size=1) as db,
    ):
        pid = await db.fetchval("SELECT pg_backend_pid()")
        os.kill(pid, signal.SIGSTOP)
        postmaster = await kill(backends, "postgres", signal.SIGSTOP)
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.2):
            await db.fetchval("SELECT 1")
        assert trio.current_time() - began < 8
        for frozen in (pid, postmaster):
            os.kill(frozen, signal.SIGCONT)
        with trio.fail_after(5):
            assert await db.fetchval("SELECT 1") == 1


async def test_a_killed_cache_is_unavailable_and_comes_back(bridge: Bridge, tmp_path: Path) -> None:
    """Calls fail clearly while it is away and work again after; rate limits go on throughout."""
    async with server(tmp_path, "redis") as backends, open_cache(bridge, str(backends.redis_url)) as cache:
        limiter = RateLimiter(cache)
        await cache.set("k", "v")
        await limiter.take("r", 100, 60)
        await kill(backends, "redis")
        with trio.fail_after(10):
            for _ in range(20):
                await limiter.take("r", 100, 60)
            while True:
                try:
                    await cache.set("k", "w")
                except WhisprError as error:
                    check_unavailable(error)
                    await trio.sleep(0.01)
                else:
                    break
            assert await cache.get("k") == b"w"


async def test_a_killed_bus_resumes_with_its_subscriptions(bridge: Bridge, tmp_path: Path) -> None:
    """After the server is back subscribers hear again, `on_up` has told of the gap, publishing never failed."""
    async with server(tmp_path, "nats") as backends:
        url = str(backends.nats_url)
        async with open_bus(bridge, url) as one, open_bus(bridge, url) as two:
            await one.wait_connected()
            await two.wait_connected()
            came_up = trio.Event()
            forget = two.on_up(came_up.set)
            async with two.subscribe("t.a") as messages:
                one.publish("t.a", b"before")
                with trio.fail_after(15):
                    assert (await anext(aiter(messages))).payload == b"before"
                    await kill(backends, "nats")
                    await came_up.wait()
                    one.publish("t.a", b"after")
                    assert (await anext(aiter(messages))).payload == b"after"
            forget()
            assert one.ups >= 1
            assert two.ups == 2


async def test_a_bus_that_starts_before_its_server(bridge: Bridge, tmp_path: Path) -> None:
    """Opening, subscribing and publishing work while NATS is away; all of it comes true when it is there."""
    async with server(tmp_path, "nats") as backends:
        url = str(backends.nats_url)
        pid = await kill(backends, "nats", signal.SIGSTOP)
        async with (
            open_bus(bridge, url) as one,
            open_bus(bridge, url) as two,
            two.subscribe("t.a") as messages,
        ):
            assert not two.connected
            os.kill(pid, signal.SIGCONT)
            with trio.fail_after(15):
                await two.wait_connected()
                one.publish("t.a", b"hello")
                assert (await anext(aiter(messages))).payload == b"hello"
