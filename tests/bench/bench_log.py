"""Appends per second through the message log, by how many are in flight: `python -m tests.bench.bench_log URL`.

Not a test: it prints. The database at URL must be migrated (`whispr migrate`) and is written to.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import trio

from tests.conversations.kit import a_group, draft, running_log
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge

SECONDS = 2.0


async def _measure(db: Postgres, lanes: int, in_flight: int, conversations: int) -> None:
    groups = [await a_group(db) for _ in range(conversations)]
    delays: list[float] = []
    body = "x" * 100

    async def sender(n: int, until: float) -> None:
        conversation, people = groups[n % conversations]
        while time.perf_counter() < until:
            began = time.perf_counter()
            await log.append(draft(conversation, people[0], body, client_id=f"{n}-{began}")).wait()
            delays.append(time.perf_counter() - began)

    async with running_log(db, lanes=lanes) as written:
        log = written.log
        began, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for n in range(in_flight):
                nursery.start_soon(sender, n, began + SECONDS)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    delays.sort()
    rate = len(delays) / took
    mean = len(written.committed) / len(written.batches)
    print(
        f"lanes {lanes}  in flight {in_flight:4}  conversations {conversations:3}  {rate:8.0f}/s"
        f"  p50 {_ms(delays, 0.5)}  p99 {_ms(delays, 0.99)} ms  batch {mean:5.1f}"
        f"  our CPU {cpu / len(delays) * 1e6:4.0f} us a message"
    )


def _ms(delays: Sequence[float], quantile: float) -> str:
    return f"{delays[min(int(len(delays) * quantile), len(delays) - 1)] * 1e3:6.2f}"


async def main(url: str) -> None:
    """Print a line for each setting."""
    async with open_bridge() as bridge, open_postgres(bridge, url) as db:
        for lanes in (1, 2, 4):
            for in_flight in (1, 10, 50, 200, 500):
                await _measure(db, lanes, in_flight, conversations=min(in_flight, 50))
        await _measure(db, 2, 200, conversations=1)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
