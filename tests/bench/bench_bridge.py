"""Queries a second through asyncpg: the bridge beside plain asyncio, trio-asyncio and our own pool.

    python -m tests.bench.bench_bridge [rounds]

The server is an embedded PostgreSQL in a process of its own; the load is `SELECT $1::int` from 32 tasks over
8 connections. Contenders take turns within each round, so that a noisy machine treats them alike; the
figure is the median of the rounds, the ratio is to plain asyncio. Each runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

import asyncpg
import trio

from whispr.adapters.postgres import open_postgres
from whispr.bridge import open_bridge

TASKS = 32
POOL = 8
QUERIES = 6400
SQL = "SELECT $1::int"


async def _pool(url: str) -> asyncpg.Pool[asyncpg.Record]:
    return await asyncpg.create_pool(url, min_size=POOL, max_size=POOL)


def plain_asyncio(url: str) -> float:
    """Measure asyncpg's pool under asyncio.run."""

    async def main() -> float:
        pool = await _pool(url)

        async def work() -> None:
            for _ in range(QUERIES // TASKS):
                await pool.fetchval(SQL, 1)

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(TASKS)))
        rate = QUERIES / (time.perf_counter() - began)
        await pool.close()
        return rate

    return asyncio.run(main())


def bridge(url: str) -> float:
    """Measure the same pool called from Trio through the bridge."""

    async def main() -> float:
        async with open_bridge() as bridge:
            pool = await bridge.call(_pool, url)

            async def work() -> None:
                for _ in range(QUERIES // TASKS):
                    await bridge.call(pool.fetchval, SQL, 1)

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(work)
            rate = QUERIES / (time.perf_counter() - began)
            await bridge.call(pool.close)
            return rate

    return trio.run(main)


def through_trio_asyncio(url: str) -> float:
    """Measure the same pool called from Trio through trio-asyncio.

    It is imported here alone, because importing it patches asyncio for the whole process.
    """
    import trio_asyncio

    async def main() -> float:
        async with trio_asyncio.open_loop():
            pool = await trio_asyncio.aio_as_trio(_pool)(url)
            query = trio_asyncio.aio_as_trio(pool.fetchval)

            async def work() -> None:
                for _ in range(QUERIES // TASKS):
                    await query(SQL, 1)

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(work)
            rate = QUERIES / (time.perf_counter() - began)
            await trio_asyncio.aio_as_trio(pool.close)()
            return rate

    return trio.run(main)


def own_pool(url: str) -> float:
    """Measure `whispr.adapters.postgres`: the pool that the product uses, on the bridge."""

    async def main() -> float:
        async with open_bridge() as bridge, open_postgres(bridge, url, pool_size=POOL) as db:
            await db.ping()

            async def work() -> None:
                for _ in range(QUERIES // TASKS):
                    await db.fetchval(SQL, 1)

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(TASKS):
                    nursery.start_soon(work)
            return QUERIES / (time.perf_counter() - began)

    return trio.run(main)


CONTENDERS: Mapping[str, Callable[[str], float]] = {
    "plain asyncio, asyncpg's pool": plain_asyncio,
    "bridge, asyncpg's pool": bridge,
    "trio-asyncio, asyncpg's pool": through_trio_asyncio,
    "bridge, Whispr's pool": own_pool,
}


def measured_apart(name: str, url: str) -> float:
    """Run one contender in a fresh process."""
    command = [sys.executable, "-m", "tests.bench.bench_bridge", "--one", name, url]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    """Run the rounds and print the table."""
    if sys.argv[1:2] == ["--one"]:
        print(CONTENDERS[sys.argv[2]](sys.argv[3]))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "whispr.embed", folder, "postgres"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            url = json.loads(server.stdout.readline())["postgres_url"]
            rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for _ in range(rounds):
                for name in CONTENDERS:
                    rates[name].append(measured_apart(name, url))
            server.stdin.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    reference = medians["plain asyncio, asyncpg's pool"]
    for name, rate in medians.items():
        print(f"{name:32} {rate:8,.0f} queries/s   {rate / reference:5.2f}")


if __name__ == "__main__":
    main()
