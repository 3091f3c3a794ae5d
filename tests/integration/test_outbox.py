"""Kill the relay and consumer, NATS, or PostgreSQL between every two steps: each event has its effect exactly once.

Run by `just test-resilience`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from tests.events.kit import delete_streams
from tests.integration.outbox_worker import STEPS, SUBJECT, id_of
from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import WhisprError
from whispr.events import emit, emit_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

ABOUTS = 4
EACH = 12
PATIENCE_S = 40.0


def data_dir(backends: Backends) -> Path:
    """The folder the servers run in."""
    assert backends.postgres_url is not None
    (sockets,) = parse_qs(urlsplit(backends.postgres_url).query)["host"]
    return Path(sockets).parents[1]


@contextmanager
def worker(
    postgres_url: str, backends: Backends, step: str, victim: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a relay and a consumer as a process of their own."""
    command = [sys.executable, "-m", "tests.integration.outbox_worker"]
    command += [postgres_url, str(backends.nats_url), step, str(victim)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as it:
        assert it.stdin is not None
        try:
            yield it
        finally:
            it.stdin.close()
            try:
                it.wait(10)
            except subprocess.TimeoutExpired:
                it.kill()
                raise


async def tell(db: Postgres, first: int, last: int) -> None:
    """Emit numbered events about some things, some alone and some three in a row; each number once."""
    n = first
    while n < last:
        batch = range(n, min(n + 3, last)) if n % 4 == 0 else range(n, n + 1)
        for k in range(ABOUTS):
            while not await told(db, f"about-{k}", batch):  # noqa: ASYNC110
                await trio.sleep(0.05)  # it is PostgreSQL that was killed
        n += len(batch)


async def told(db: Postgres, about: str, numbers: range) -> bool:
    """Emit once more; False when it is not known whether that was committed. Ids make repeats harmless."""
    try:
        async with db.transaction() as tx:
            if len(numbers) > 1:
                await emit_batch(tx, "numbers", about=about, data={"numbers": list(numbers)})
            else:
                event_id = id_of(about, numbers[0])
                await emit(tx, SUBJECT, about=about, data={"n": numbers[0]}, event_id=event_id)
    except WhisprError:
        return False
    return True


async def effects(db: Postgres) -> dict[str, list[int]]:
    """What handlers have done, in the order they did it."""
    rows = await db.fetch("SELECT about, array_agg(n ORDER BY id) AS ns FROM effects GROUP BY about")
    return {row["about"]: row["ns"] for row in rows}


async def until_all(db: Postgres, jetstream: JetStream) -> None:
    """Wait until the outbox is empty and the consumer has done all that its stream holds."""
    with trio.fail_after(PATIENCE_S):
        while not await all_done(db, jetstream):  # noqa: ASYNC110
            await trio.sleep(0.05)  # other processes are at work; there is no event of ours


async def all_done(db: Postgres, jetstream: JetStream) -> bool:
    try:
        state = await jetstream.state("MESSAGING_EVENTS")
        row = await db.fetchrow(
            "SELECT floor, incarnation, EXISTS (SELECT FROM events.outbox) AS waiting FROM events.positions"
        )
    except WhisprError:
        return False  # it is one of these that was killed
    return (
        state is not None
        and row is not None
        and not row["waiting"]
        and (row["incarnation"], row["floor"]) == (state.created, state.last_seq)
        and state.last_seq > 0
    )


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has died."""
    stat = Path(f"/proc/{pid}/stat")
    with trio.fail_after(PATIENCE_S):
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":  # noqa: ASYNC110
            await trio.sleep(0.02)  # a process that is not ours


async def ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has died."""
    with trio.fail_after(PATIENCE_S):
        while process.poll() is None:  # noqa: ASYNC110
            await trio.sleep(0.02)  # a process of the system's


@pytest.mark.parametrize("victim", ["worker", "nats", "postgres"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_between_any_two_steps_each_effect_happens_once(
    bridge: Bridge, backends: Backends, postgres_url: str, db: Postgres, step: str, victim: str
) -> None:
    """Whatever dies wherever, every event is handled exactly once, in order about each thing."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as bus:
        await bus.wait_connected()
        await delete_streams(bus)
        jetstream = JetStream(bus)
        await db.execute("CREATE TABLE effects (id bigserial PRIMARY KEY, about text, n integer)")
        await tell(db, 0, EACH // 2)
        pid = 0 if victim == "worker" else int((data_dir(backends) / "run" / f"{victim}.pid").read_text())
        with worker(postgres_url, backends, step, pid) as first:
            if victim == "worker":
                await ended(first)
            else:
                await gone(pid)
            await tell(db, EACH // 2, EACH)
            if victim != "worker":
                await until_all(db, jetstream)
                assert first.poll() is None, "the worker outlives what it depends on"
        if victim == "worker":
            with worker(postgres_url, backends, "none", 0):
                await until_all(db, jetstream)
        assert await effects(db) == {f"about-{k}": list(range(EACH)) for k in range(ABOUTS)}
        assert await db.fetchval("SELECT count(*) FROM events.dead_letters") == 0
        await delete_streams(bus)
