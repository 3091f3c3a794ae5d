"""The events that a snapshot of PostgreSQL leaves under way: out of JetStream, and back into the outbox.

Theory of operation. Everything told of is either in the snapshot's outbox or in a stream; which of the two is
exact if no relay is at work while the snapshot is taken and the streams' ends are noted, so `quiet` holds the
relay's lock for that moment. Of a stream, what lies behind the slowest consumer is done with. The rest is kept with
who had handled which, by the positions in the same snapshot.

A restore puts them into the outbox, before what is there, and marks what was done in `events.handled`. All positions
are moved to the start of streams that do not exist yet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from whispr.adapters.jetstream import JetStream, Stored, StreamState
from whispr.adapters.postgres import Postgres, Transaction
from whispr.events.envelope import STREAMS, Event, decode
from whispr.events.relay import LOCK_KEY

_BEGIN = """
CREATE TEMPORARY TABLE whispr_under_way (LIKE events.outbox) ON COMMIT DROP;
CREATE TEMPORARY TABLE whispr_done (consumer text, event_id text) ON COMMIT DROP;
"""
_EVENTS = (
    "COPY whispr_under_way (position, id, stream_subject, about, actor, version, data, trace, emitted_at)"
    " FROM stdin;\n"
)
_DONE = "COPY whispr_done (consumer, event_id) FROM stdin;\n"
# Times of handling are made new: they are forgotten by their age, and the backup may be old. Of the last hour's, too:
# a relay that died under its turn publishes those events again.
_END = """
INSERT INTO events.outbox (position, id, stream_subject, about, actor, version, data, trace, emitted_at)
    OVERRIDING SYSTEM VALUE
    SELECT least((SELECT min(position) FROM events.outbox), 1) - 1
        - (SELECT max(position) FROM whispr_under_way) + u.position,
        u.id, u.stream_subject, u.about, u.actor, u.version, u.data, u.trace, u.emitted_at
    FROM whispr_under_way u WHERE NOT EXISTS (SELECT FROM events.outbox o WHERE o.id = u.id);
UPDATE events.handled SET handled_at = now()
    WHERE handled_at > (SELECT max(handled_at) FROM events.handled) - interval '1 hour'
        OR event_id IN (SELECT id::text FROM whispr_under_way);
INSERT INTO events.handled (consumer, event_id) SELECT DISTINCT consumer, event_id FROM whispr_done
    ON CONFLICT DO NOTHING;
UPDATE events.consumers SET holder = NULL, lease_until = '-infinity';
UPDATE events.positions SET incarnation = '', floor = 0, done_above = '{}', attempts = '{}';
"""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the streams ended when the snapshot was taken."""

    states: Mapping[str, StreamState]


@asynccontextmanager
async def quiet(db: Postgres) -> AsyncIterator[None]:
    """Keep every relay from publishing for the length of the block, which must be short."""
    async with db.transaction() as tx:
        await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
        yield


async def ends(jetstream: JetStream) -> Ends:
    """Note where the streams end. Raises UNAVAILABLE while NATS is away."""
    found = {name: await jetstream.state(name) for name in STREAMS.values()}
    return Ends({name: state for name, state in found.items() if state is not None})


@dataclass(slots=True)
class _Place:
    floor: int
    done_above: frozenset[int]
    subjects: frozenset[str]
    """What it listens to; empty when it has not said."""

    def done(self, seq: int) -> bool:
        return seq <= self.floor or seq in self.done_above

    def waits_for(self, stored: Stored) -> bool:
        if self.done(stored.seq):
            return False
        every = stored.subject.rpartition(".")[0] + ".*"
        return not self.subjects or stored.subject in self.subjects or every in self.subjects


async def under_way(tx: Transaction, jetstream: JetStream, until: Ends) -> AsyncIterator[bytes]:
    """Yield the SQL that puts back what the snapshot's consumers had still to handle, after its database is there."""
    places = await _places(tx, until)
    yield _BEGIN.encode()
    number = 0
    for source, stream in STREAMS.items():
        if stream not in until.states or not places[stream]:
            continue
        async for stored in _read(jetstream, source, stream, until.states[stream], places[stream]):
            event = _opened(stored)
            if event is None:
                continue  # no envelope: nobody can handle it, now or later
            number += 1
            done = [name for name, place in places[stream].items() if place.done(stored.seq)]
            yield (_EVENTS + _row(number, event) + "\\.\n").encode()
            if done:
                yield (_DONE + "".join(_line(name, event.id) for name in done) + "\\.\n").encode()
    yield _END.encode()


async def _places(tx: Transaction, until: Ends) -> Mapping[str, dict[str, _Place]]:
    """Stream → consumer → how far it had come; a place in another incarnation of a stream is its start."""
    places: dict[str, dict[str, _Place]] = defaultdict(dict)
    for row in await tx.fetch(
        "SELECT consumer, stream, incarnation, floor, done_above, subjects FROM events.positions"
    ):
        state = until.states.get(row["stream"])
        if state is None:
            continue
        known = row["incarnation"] == state.created
        places[row["stream"]][row["consumer"]] = (
            _Place(row["floor"], frozenset(row["done_above"]), frozenset(row["subjects"]))
            if known
            else _Place(0, frozenset(), frozenset(row["subjects"]))
        )
    return places


async def _read(
    jetstream: JetStream, source: str, stream: str, end: StreamState, places: Mapping[str, _Place]
) -> AsyncIterator[Stored]:
    """Read a stream from behind the slowest consumer to its end."""
    begin = max(end.first_seq, 1 + min(place.floor for place in places.values()))
    if begin > end.last_seq or not await jetstream.count(stream, [f"{source}.events.>"], begin - 1):
        return
    async with jetstream.read(stream, "backup", [f"{source}.events.>"], begin) as reader:
        async for stored in reader:
            if stored.seq > end.last_seq:
                return
            if any(place.waits_for(stored) for place in places.values()):
                yield stored
            if stored.seq == end.last_seq or not stored.pending:
                return


def _opened(stored: Stored) -> Event | None:
    try:
        return decode(stored.payload)
    except msgspec.MsgspecError:
        return None


def _row(number: int, event: Event) -> str:
    return _line(
        str(number),
        event.id,
        event.stream_subject,
        event.subject,
        event.actor or None,
        str(event.version),
        msgspec.json.encode(event.data).decode(),
        event.trace or None,
        event.time.isoformat(),
    )


_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _line(*columns: str | None) -> str:
    """Write a row in COPY's text format (PostgreSQL manual, COPY, "Text Format")."""
    return "\t".join("\\N" if each is None else each.translate(_ESCAPES) for each in columns) + "\n"
