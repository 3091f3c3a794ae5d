"""Events to emit, consumers that note what they handle, and processes made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream, StreamLimits
from whispr.adapters.postgres import Postgres
from whispr.events import Consumer, Event, Expander, emit
from whispr.events.consumers import Consumers
from whispr.events.envelope import STREAMS
from whispr.events.relay import Relay
from whispr.events.streams import Streams

LIMITS = StreamLimits(age_s=3600, bytes_max=16 << 20, duplicates_s=600)
SUBJECT = "user.events.counted"
PATIENCE_S = 20.0


async def delete_streams(bus: Bus) -> None:
    """Leave NATS as if its data had been wiped."""
    for name in STREAMS.values():
        await bus.bridge.call(bus.client.request, f"$JS.API.STREAM.DELETE.{name}", b"", timeout=5)


async def tell(db: Postgres, about: str, number: int, subject: str = SUBJECT) -> str:
    """Emit a numbered event."""
    async with db.transaction() as tx:
        return await emit(tx, subject, about=about, data={"n": number})


@dataclass
class Noting:
    """A consumer that notes what it handled, after doing what the test wants first."""

    name: str = "noting"
    subjects: tuple[str, ...] = (SUBJECT,)
    options: Mapping[str, Any] = field(default_factory=dict)
    first: Callable[[Event], Any] | None = None
    """Awaited before the event is noted."""
    handled: list[Event] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def consumer(self) -> Consumer:
        return Consumer(self.name, self.subjects, self._handle, **{"retry_min_s": 0.02} | dict(self.options))

    async def _handle(self, event: Event) -> None:
        if self.first is not None:
            await self.first(event)
        self.handled.append(event)
        self._changed.set()
        self._changed = trio.Event()

    def numbers(self, about: str | None = None) -> list[int]:
        """The numbers of what was handled, in order."""
        return [e.data["n"] for e in self.handled if about in (None, e.subject)]

    async def until(self, count: int) -> list[Event]:
        """Wait until that many events were handled."""
        with trio.fail_after(PATIENCE_S):
            while len(self.handled) < count:
                await self._changed.wait()
        return self.handled


@asynccontextmanager
async def process(
    db: Postgres,
    jetstream: JetStream,
    *consumers: Consumer,
    relay: bool = True,
    expanders: Mapping[str, Expander] | None = None,
) -> AsyncIterator[Consumers]:
    """What a process of the product does about events, for the length of the block."""
    streams = Streams(jetstream, LIMITS)
    async with trio.open_nursery() as nursery:
        if relay:
            await nursery.start(Relay(db, jetstream, streams, expanders=expanders).run)
        running = Consumers(db, jetstream, streams, consumers)
        await nursery.start(running.run)
        yield running
        nursery.cancel_scope.cancel(reason="the test is over")


async def empty_outbox(db: Postgres) -> None:
    """Wait until everything is published."""
    with trio.fail_after(PATIENCE_S):
        while await db.fetchval("SELECT EXISTS (SELECT FROM events.outbox)"):  # noqa: ASYNC110
            await trio.sleep(0.01)  # PostgreSQL is looked at; there is no event of ours


async def fetched(db: Postgres, sql: str, wanted: Sequence[Any] | Any) -> None:
    """Wait until a query's first value is what is wanted."""
    seen = None
    with trio.move_on_after(PATIENCE_S):
        while (seen := await db.fetchval(sql)) != wanted:  # noqa: ASYNC110
            await trio.sleep(0.01)  # as above
    assert seen == wanted
