"""Consumers: at least once, in order, with patience, on real PostgreSQL and NATS."""

from __future__ import annotations

from tests.events.kit import Noting, fetched, process, tell
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres


async def test_events_arrive_in_order_per_subject(db: Postgres, jetstream: JetStream) -> None:
    """What is emitted is handled, once, with its envelope, in the order emitted about each thing."""
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        for n in range(100):
            await tell(db, f"about-{n % 5}", n)
        await noting.until(100)
        for k in range(5):
            assert noting.numbers(f"about-{k}") == list(range(k, 100, 5))
        event = noting.handled[0]
        assert (event.source, event.type, event.version) == ("user", "counted", 1)
        assert event.time.tzinfo is not None
        await fetched(db, "SELECT floor FROM events.positions", 100)
