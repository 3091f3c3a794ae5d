"""What `whispr events` does, on whatever backends the settings or the data folder lead to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec
import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.migrations import Owner, pending
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import find_running, run_children
from whispr.errors import WhisprError, conflict, not_found, unavailable
from whispr.events import MIGRATIONS
from whispr.events.consumer import RESERVED
from whispr.events.envelope import STREAMS

REACH_S = 20.0
"""How long the backends may take to answer."""
ERROR_CHARS = 70
"""Of an error, in a list."""

_LETTERS = (
    "SELECT id, died_at, consumer, stream_subject, about, attempts, replay_at, error FROM events.dead_letters"
)
_PUBLISH_AGAIN = """
INSERT INTO events.outbox (id, stream_subject, expander, about, actor, version, data, trace, emitted_at)
SELECT (CASE WHEN body ? 'expander' THEN events.new_id() ELSE (body->>'id')::uuid END),
    nullif(stream_subject, ''), body->>'expander', about, nullif(body->>'actor', '')::uuid,
    coalesce((body->>'version')::integer, 1), body->'data', nullif(body->>'trace', ''), clock_timestamp()
FROM (SELECT d.*, convert_from(d.payload, 'UTF8')::jsonb AS body FROM events.dead_letters d WHERE id = ANY ($1)) d
ORDER BY id
"""


class Backends(NamedTuple):
    """What the commands work on."""

    db: Postgres
    jetstream: JetStream | None


Work: TypeAlias = Callable[[Backends], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters: some by number, or all of a consumer, or all."""

    ids: Sequence[int] = ()
    consumer: str = ""

    async def found(self, db: Postgres) -> list[Any]:
        """Return them. Raises NOT_FOUND for a number that is none's, and for no letters at all."""
        if self.ids:
            rows = await db.fetch(f"{_LETTERS} WHERE id = ANY ($1) ORDER BY id", list(self.ids))
            if absent := set(self.ids) - {row["id"] for row in rows}:
                raise not_found("dead letter", ", ".join(map(str, sorted(absent))))
            return rows
        rows = await db.fetch(f"{_LETTERS} WHERE $1 IN ('', consumer) ORDER BY id", self.consumer)
        if not rows and self.consumer:
            raise not_found("dead letter of", self.consumer)
        return rows


async def reach(settings: Settings, work: Work, nats: bool) -> Sequence[str]:
    """Do the work on the backends. Raises UNAVAILABLE when they do not answer within REACH_S."""
    with trio.move_on_after(REACH_S):
        async with _open(settings, nats) as backends:
            if await pending(backends.db, [Owner("events", MIGRATIONS)]):
                raise conflict("the database has no events yet: run `whispr migrate`", "not_migrated")
            return await work(backends)
    raise unavailable(f"PostgreSQL{' and NATS' if nats else ''} did not answer within {REACH_S:g} s")


@asynccontextmanager
async def _open(settings: Settings, nats: bool) -> AsyncIterator[Backends]:
    async with AsyncExitStack() as stack:
        urls = await stack.enter_async_context(servers(settings, nats))
        bridge = await stack.enter_async_context(open_bridge())
        db = await stack.enter_async_context(open_postgres(bridge, urls["postgres"], pool_size=1))
        if not nats:
            yield Backends(db, None)
            return
        bus = await stack.enter_async_context(open_bus(bridge, urls["nats"]))
        await bus.wait_connected()
        yield Backends(db, JetStream(bus))


@asynccontextmanager
async def servers(settings: Settings, nats: bool) -> AsyncIterator[Mapping[str, str]]:
    """Where the backends are: as set, run by the process that uses the data folder, or run by us meanwhile."""
    urls = {"postgres": settings.postgres.url} | ({"nats": settings.nats.url} if nats else {})
    wanted = [name for name, url in urls.items() if not url]
    if not wanted:
        yield urls
        return
    async with trio.open_nursery() as nursery:
        try:
            ours = await nursery.start(run_children, settings.data_dir, wanted)
        except WhisprError as error:
            if error.reason != "data_dir_in_use":
                raise
            urls |= await find_running(settings.data_dir, wanted)
        else:
            own = {"postgres": ours.postgres_url, "nats": ours.nats_url}
            urls |= {name: str(own[name]) for name in wanted}
        yield urls
        nursery.cancel_scope.cancel(reason="nobody uses them any more")


async def lag(backends: Backends) -> Sequence[str]:
    """Say what waits: in the outbox, in the streams, before each consumer."""
    db, jetstream = backends
    assert jetstream is not None
    outbox = await db.fetchrow(
        "SELECT count(*) AS rows, coalesce(extract(epoch FROM now() - min(emitted_at)), 0)::float8 AS age_s"
        " FROM events.outbox"
    )
    assert outbox is not None
    lines = [f"outbox: {outbox['rows']} waiting, the oldest for {outbox['age_s']:.0f} s", ""]
    lines.append(f"{'STREAM':<18} {'EVENTS':>10} {'MIB':>8}")
    created = {}
    for name in STREAMS.values():
        if (state := await jetstream.state(name)) is None:
            lines.append(f"{name:<18} {'none':>10}")
            continue
        created[name] = state.created
        held = state.last_seq - state.first_seq + 1 if state.last_seq else 0
        lines.append(f"{name:<18} {held:>10} {state.bytes / 2**20:>8.1f}")
    lines += ["", f"{'CONSUMER':<32} {'LAG':>10} {'DEAD':>6}  {'STATE':<10}"]
    for row in await db.fetch(_CONSUMERS):
        behind = 0
        for position in msgspec.json.decode(row["positions"]):
            if position["stream"] in created and position["subjects"]:
                known = position["incarnation"] == created[position["stream"]]
                after = position["floor"] if known else 0
                behind += await jetstream.count(position["stream"], position["subjects"], after)
                behind -= position["done"] if known else 0
        lines.append(f"{row['name']:<32} {behind:>10} {row['dead']:>6}  {row['state']:<10}")
    return lines


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


def listing(consumer: str, limit: int) -> Work:
    """List dead letters."""

    async def work(backends: Backends) -> Sequence[str]:
        rows = await backends.db.fetch(
            f"{_LETTERS} WHERE $1 IN ('', consumer) ORDER BY id LIMIT $2", consumer, limit
        )
        if not rows:
            return ["no dead letters"]
        head = f"{'ID':>6}  {'DIED':<19}  {'CONSUMER':<24} {'EVENT':<32} {'TRIES':>5}  ERROR"
        return [head, *(_line(row) for row in rows)]

    return work


def _line(row: Any) -> str:
    error = " ".join(row["error"].split())
    short = error if len(error) <= ERROR_CHARS else f"{error[:ERROR_CHARS]}…"
    again = "(to be replayed) " if row["replay_at"] else ""
    what = row["stream_subject"] or "a batch"
    return (
        f"{row['id']:>6}  {row['died_at']:%Y-%m-%d %H:%M:%S}  {row['consumer']:<24} {what:<32}"
        f" {row['attempts']:>5}  {again}{short}"
    )


def showing(letter: int) -> Work:
    """Show one dead letter."""

    async def work(backends: Backends) -> Sequence[str]:
        row = await backends.db.fetchrow("SELECT * FROM events.dead_letters WHERE id = $1", letter)
        if row is None:
            raise not_found("dead letter", str(letter))
        facts = {
            "id": row["id"],
            "consumer": row["consumer"],
            "event": row["stream_subject"] or "a batch",
            "event id": row["event_id"],
            "about": row["about"].lstrip("\0"),
            "died": f"{row['died_at']:%Y-%m-%d %H:%M:%S %Z}",
            "attempts": row["attempts"],
            "to replay": "yes" if row["replay_at"] else "no",
            "error": row["error"],
        }
        return [*(f"{name:<10} {value}" for name, value in facts.items()), "", _payload(row["payload"])]

    return work


def _payload(payload: bytes) -> str:
    """Show JSON laid out, anything else as it is."""
    try:
        return msgspec.json.format(payload, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return repr(payload)


def replaying_dead(choice: Choice) -> Work:
    """Mark dead letters to be tried again; those of the relay go back into the outbox."""

    async def work(backends: Backends) -> Sequence[str]:
        rows = await choice.found(backends.db)
        relays = [row["id"] for row in rows if row["consumer"] == RESERVED]
        others = [row["id"] for row in rows if row["consumer"] != RESERVED]
        async with backends.db.transaction() as tx:
            await tx.execute(_PUBLISH_AGAIN, relays)
            await tx.execute("DELETE FROM events.dead_letters WHERE id = ANY ($1)", relays)
            await tx.execute("UPDATE events.dead_letters SET replay_at = now() WHERE id = ANY ($1)", others)
        return [f"{len(rows)} to be handled again"]

    return work


def dropping(choice: Choice) -> Work:
    """Delete dead letters."""

    async def work(backends: Backends) -> Sequence[str]:
        ids = [row["id"] for row in await choice.found(backends.db)]
        await backends.db.execute("DELETE FROM events.dead_letters WHERE id = ANY ($1)", ids)
        return [f"{len(ids)} dropped"]

    return work


def replaying(consumer: str) -> Work:
    """Have a consumer start over."""

    async def work(backends: Backends) -> Sequence[str]:
        tag = await backends.db.execute(
            "UPDATE events.consumers SET replay_at = now() WHERE name = $1", consumer
        )
        if tag.endswith(" 0"):
            names = await backends.db.fetch("SELECT name FROM events.consumers ORDER BY name")
            known = ", ".join(row["name"] for row in names) or "none yet"
            raise not_found("consumer", f"{consumer} (there are: {known})")
        return [f"{consumer} starts over within a second of running"]

    return work
