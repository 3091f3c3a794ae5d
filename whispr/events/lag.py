"""What waits: in the outbox, in the streams, and before each consumer."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.events.envelope import STREAMS

_OUTBOX = """
SELECT count(*) AS rows, coalesce(extract(epoch FROM now() - min(emitted_at)), 0)::float8 AS age_s
FROM events.outbox
"""
_CONSUMERS = """
SELECT c.name,
    (SELECT count(*) FROM events.dead_letters d WHERE d.consumer = c.name) AS dead,
    CASE WHEN c.replay_at IS NOT NULL THEN 'to replay'
        WHEN c.lease_until > clock_timestamp() THEN 'running' ELSE 'stopped' END AS state,
    coalesce((
        SELECT jsonb_agg(jsonb_build_object('stream', p.stream, 'incarnation', p.incarnation, 'floor', p.floor,
            'done', cardinality(p.done_above), 'subjects', p.subjects))
        FROM events.positions p WHERE p.consumer = c.name
    ), '[]') AS positions
FROM events.consumers c ORDER BY c.name
"""


@dataclass(frozen=True, slots=True)
class StreamSize:
    """A stream of the bus, and what it holds."""

    name: str
    events: int | None
    """None for a stream that nobody has made yet."""
    bytes: int


@dataclass(frozen=True, slots=True)
class ConsumerLag:
    """A consumer, and how many events wait for it."""

    name: str
    lag: int
    dead: int
    """Its dead letters."""
    state: str
    """running, stopped, or to replay."""


@dataclass(frozen=True, slots=True)
class Lag:
    """All of it, as of one moment."""

    outbox_rows: int
    outbox_age_s: float
    """Of the oldest row."""
    streams: list[StreamSize]
    consumers: list[ConsumerLag]


async def read(db: Postgres, jetstream: JetStream) -> Lag:
    """Ask the database and the bus. Raises UNAVAILABLE."""
    outbox = await db.fetchrow(_OUTBOX)
    assert outbox is not None
    created, streams = {}, []
    for name in STREAMS.values():
        if (state := await jetstream.state(name)) is None:
            streams.append(StreamSize(name, None, 0))
            continue
        created[name] = state.created
        held = state.last_seq - state.first_seq + 1 if state.last_seq else 0
        streams.append(StreamSize(name, held, state.bytes))
    consumers = []
    for row in await db.fetch(_CONSUMERS):
        behind = 0
        for position in msgspec.json.decode(row["positions"]):
            if position["stream"] in created and position["subjects"]:
                known = position["incarnation"] == created[position["stream"]]
                after = position["floor"] if known else 0
                behind += await jetstream.count(position["stream"], position["subjects"], after)
                behind -= position["done"] if known else 0
        consumers.append(ConsumerLag(row["name"], behind, row["dead"], row["state"]))
    return Lag(outbox["rows"], outbox["age_s"], streams, consumers)
