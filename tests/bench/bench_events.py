"""Events a second through the outbox: published by the relay, and handled by a consumer.

    just bench-events

On PostgreSQL (fsync on) and NATS of its own in a temporary folder. `cpu µs` is what an event costs this process,
whatever else the machine does; PostgreSQL and NATS have the rest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import structlog
import trio

from whispr import events
from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream, StreamLimits
from whispr.adapters.migrations import Owner, migrate
from whispr.adapters.postgres import Postgres, Transaction, open_postgres
from whispr.bridge import open_bridge
from whispr.embed import run_children
from whispr.events import Batch, Consumer, Event, emit, emit_batch, once, once_each
from whispr.events.consumers import Consumers
from whispr.events.relay import Relay
from whispr.events.streams import Streams

EVENTS = 20_000
ROW_LEN = 100
"""Events of a batch row."""
ABOUTS = 200
SUBJECT = "messaging.events.counted"
LIMITS = StreamLimits(3600, 256 << 20, 600)


async def expand(tx: Transaction, batches: Sequence[Batch]) -> list[list[Event]]:
    """Make the events of rows, as of messages of a kilobyte's envelope or less."""
    await trio.lowlevel.checkpoint()
    return [
        [
            Event(
                id=str(uuid5(NAMESPACE_OID, f"{batch.id}/{n}")), type="counted", time=batch.time,
                source="messaging", subject=f"about-{n % ABOUTS}", data={"n": n, "text": "hello " * 30},
            )
            for n in batch.data["numbers"]
        ]
        for batch in batches
    ]  # fmt: skip


async def fill(db: Postgres, rows: bool) -> None:
    """Put events into the outbox, in batch rows or one by one."""
    async with db.transaction() as tx:
        if rows:
            for first in range(0, EVENTS, ROW_LEN):
                await emit_batch(tx, "numbers", data={"numbers": list(range(first, first + ROW_LEN))})
            return
        for n in range(EVENTS // 10):
            await emit(tx, SUBJECT, about=f"about-{n % ABOUTS}", data={"n": n, "text": "hello " * 30})


async def timed(title: str, count: int, work: Callable[[], object]) -> None:
    """Run and print a row."""
    cpu, began = time.process_time(), time.perf_counter()
    await work()  # type: ignore[misc]  # a coroutine function
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{title:<48}{count / took:>10,.0f}{cpu / count * 1e6:>10.0f}", flush=True)


async def relayed(db: Postgres, relay: Relay) -> None:
    """Publish until the outbox is empty."""
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        while await db.fetchval("SELECT EXISTS (SELECT FROM events.outbox)"):  # noqa: ASYNC110
            await trio.sleep(0.05)  # PostgreSQL is looked at
        nursery.cancel_scope.cancel(reason="all is published")


class Counting:
    """Handles events, and says when all have come."""

    def __init__(
        self, name: str, db: Postgres, count: int, *, marked: bool = False, together: bool = False
    ) -> None:
        self.done = trio.Event()
        self._name, self._db, self._left, self._marked = name, db, count, marked
        self._together = together

    @property
    def consumer(self) -> Consumer:
        """As a service would make it."""
        many = self._handle_many if self._together else None
        return Consumer(self._name, (SUBJECT,), self._handle, handle_many=many)

    async def _handle_many(self, events: Sequence[Event]) -> None:
        async with self._db.transaction() as tx:
            ids = [event.id for event in events]
            assert len(await once_each(tx, self._name, ids)) == len(ids)
        self._count(len(events))

    async def _handle(self, event: Event) -> None:
        if self._marked:
            async with self._db.transaction() as tx:
                assert await once(tx, self._name, event.id)
        self._count(1)

    def _count(self, handled: int) -> None:
        self._left -= handled
        if not self._left:
            self.done.set()


async def handled(db: Postgres, jetstream: JetStream, streams: Streams, counting: Counting) -> None:
    """Handle all that the stream holds."""
    async with trio.open_nursery() as nursery:
        await nursery.start(Consumers(db, jetstream, streams, [counting.consumer]).run)
        await counting.done.wait()
        nursery.cancel_scope.cancel(reason="all is handled")


async def main(folder: Path) -> None:
    """Run all and print a table."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(run_children, folder, ["postgres", "nats"])
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, str(urls.postgres_url)) as db,
            open_bus(bridge, str(urls.nats_url)) as bus,
        ):
            await bus.wait_connected()
            await migrate(db, [Owner("events", events.MIGRATIONS)])
            await measured(db, JetStream(bus))
        nursery.cancel_scope.cancel(reason="measured")


async def measured(db: Postgres, jetstream: JetStream) -> None:
    """The rows of the table."""
    streams = Streams(jetstream, LIMITS)
    await streams.ensure()
    relay = Relay(db, jetstream, streams, expanders={"numbers": expand})
    print(f"{'':<48}{'events/s':>10}{'cpu µs':>10}")
    await fill(db, rows=False)
    few = EVENTS // 10
    await timed("relay, a row each", few, partial(relayed, db, relay))
    await fill(db, rows=True)
    await timed(f"relay, {ROW_LEN} to a row", EVENTS, partial(relayed, db, relay))
    count = EVENTS + few
    plain = Counting("plain", db, count)
    await timed(
        "consumer, a handler that does nothing", count, partial(handled, db, jetstream, streams, plain)
    )
    marked = Counting("marked", db, count, marked=True)
    await timed(
        "consumer, each in a transaction with once", count, partial(handled, db, jetstream, streams, marked)
    )
    together = Counting("together", db, count, together=True)
    await timed(
        "consumer, many in a transaction with once_each",
        count,
        partial(handled, db, jetstream, streams, together),
    )


def run() -> None:
    """Measure in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, Path(folder) / "data")


if __name__ == "__main__":
    run()
