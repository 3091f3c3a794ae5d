"""What consumers keep in PostgreSQL: leases, positions and dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.events.position import Position

HANDLED_KEPT_S = 2 * 24 * 3600
"""How long `once` remembers an event: far longer than one can be under way twice."""
PRUNE_LEN = 2000
LETTERS_LEN = 100
"""Dead letters taken up for replay at once."""

_LEASE = """
INSERT INTO events.consumers AS c (name, holder, lease_until)
SELECT wanted.name, $2, clock_timestamp() + make_interval(secs => $3)
FROM unnest($1::text[]) AS wanted (name),
    -- A lease that a crash forgets is taken again.
    (SELECT set_config('synchronous_commit', 'off', true)) AS lightly
ORDER BY wanted.name
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, lease_until = excluded.lease_until
    WHERE c.holder = excluded.holder OR c.lease_until < clock_timestamp()
RETURNING c.name, c.replay_at
"""

_KEEP = """
UPDATE events.positions p
SET incarnation = n.incarnation, floor = n.floor, done_above = n.done_above::bigint[], attempts = n.attempts::jsonb
FROM unnest($3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[])
        AS n (stream, incarnation, floor, done_above, attempts),
    -- A position that a crash forgets means that some events come again.
    (SELECT set_config('synchronous_commit', 'off', true)) AS lightly
WHERE p.consumer = $1 AND p.stream = n.stream
    AND EXISTS (SELECT FROM events.consumers c WHERE c.name = $1 AND c.holder = $2)
"""

_BURY = """
INSERT INTO events.dead_letters (consumer, event_id, stream_subject, about, payload, error, attempts)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (consumer, event_id) DO UPDATE
SET error = excluded.error, attempts = excluded.attempts, died_at = now(), replay_at = NULL
"""


class Held(NamedTuple):
    """What a renewal says of the consumers this process holds."""

    names: frozenset[str]
    replays: frozenset[str]
    """Those to be started over."""


class Kept(NamedTuple):
    """A position as it was kept."""

    position: Position
    attempts: Mapping[str, int]


class Letter(NamedTuple):
    """A dead letter that is to be tried again."""

    id: int
    consumer: str
    event_id: str
    stream_subject: str
    about: str
    payload: bytes


class Ledger:
    """The tables of one process's consumers, written under its name."""

    def __init__(self, db: Postgres, holder: str) -> None:
        self._db = db
        self._holder = holder

    async def lease(self, names: Sequence[str], lease_s: float) -> Held:
        """Take or renew the leases of consumers that nobody else holds."""
        rows = await self._db.fetch(_LEASE, list(names), self._holder, lease_s)
        return Held(
            frozenset(row["name"] for row in rows), frozenset(row["name"] for row in rows if row["replay_at"])
        )

    async def release(self) -> None:
        """Give all leases back, for others to take at once."""
        await self._db.execute(
            "UPDATE events.consumers SET lease_until = '-infinity' WHERE holder = $1", self._holder
        )

    async def position(self, consumer: str, stream: str) -> Kept | None:
        """Return the position that was kept; None for a new consumer."""
        row = await self._db.fetchrow(
            "SELECT incarnation, floor, done_above, attempts FROM events.positions"
            " WHERE consumer = $1 AND stream = $2",
            consumer, stream,
        )  # fmt: skip
        if row is None:
            return None
        position = Position(row["incarnation"], row["floor"], row["done_above"])
        return Kept(position, msgspec.json.decode(row["attempts"]))

    async def begin(self, consumer: str, stream: str, position: Position) -> None:
        """Keep the first position in a stream, or in a later incarnation of it."""
        await self._db.execute(
            "INSERT INTO events.positions (consumer, stream, incarnation, floor) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (consumer, stream) DO UPDATE SET incarnation = excluded.incarnation,"
            " floor = excluded.floor, done_above = '{}', attempts = '{}'",
            consumer, stream, position.incarnation, position.floor,
        )  # fmt: skip

    async def listens(self, consumer: str, stream: str, subjects: Sequence[str]) -> None:
        """Note what a consumer listens to, for those who look at its lag from outside."""
        await self._db.execute(
            "UPDATE events.positions SET subjects = $3"
            " WHERE consumer = $1 AND stream = $2 AND subjects IS DISTINCT FROM $3",
            consumer, stream, list(subjects),
        )  # fmt: skip

    async def keep(self, consumer: str, positions: Iterable[tuple[str, Position, Mapping[str, int]]]) -> bool:
        """Keep positions; False when the lease is somebody else's by now, and nothing was written."""
        rows = [
            (stream, at.incarnation, at.floor, "{" + ",".join(map(str, at.done_above)) + "}", _json(attempts))
            for stream, at, attempts in positions
        ]
        columns = [list(column) for column in zip(*rows, strict=True)]
        tag = await self._db.execute(_KEEP, consumer, self._holder, *columns)
        return tag == f"UPDATE {len(rows)}"

    async def start_over(self, tx: Transaction, consumer: str, streams: Sequence[str]) -> bool:
        """Forget how far a consumer has come, and what it has handled; False if it is not ours or not to."""
        held = await tx.fetchval(
            "UPDATE events.consumers SET replay_at = NULL WHERE name = $1 AND holder = $2"
            " AND replay_at IS NOT NULL RETURNING true",
            consumer, self._holder,
        )  # fmt: skip
        if not held:
            return False
        await tx.execute("DELETE FROM events.handled WHERE consumer = $1", consumer)
        for stream in streams:
            await tx.execute(
                # No stream has this incarnation, and in another one a consumer begins at the start.
                "INSERT INTO events.positions (consumer, stream, incarnation, floor) VALUES ($1, $2, '', 0)"
                " ON CONFLICT (consumer, stream) DO UPDATE SET incarnation = '', floor = 0, done_above = '{}',"
                " attempts = '{}'",
                consumer, stream,
            )  # fmt: skip
        return True

    async def bury(
        self,
        consumer: str,
        event_id: str,
        subject: str,
        about: str,
        payload: bytes,
        error: str,
        attempts: int,
    ) -> None:
        """Keep an event that a consumer gave up on."""
        await self._db.execute(_BURY, consumer, event_id, subject, about, payload, error, attempts)

    async def revived(self, letter: int) -> None:
        """Remove a dead letter that was handled after all."""
        await self._db.execute("DELETE FROM events.dead_letters WHERE id = $1", letter)

    async def to_revive(self, consumers: Iterable[str]) -> list[Letter]:
        """Return dead letters that somebody wants tried again, oldest first."""
        rows = await self._db.fetch(
            "SELECT id, consumer, event_id, stream_subject, about, payload FROM events.dead_letters"
            " WHERE replay_at IS NOT NULL AND consumer = ANY ($1) ORDER BY id LIMIT $2",
            list(consumers), LETTERS_LEN,
        )  # fmt: skip
        return [Letter(*row) for row in rows]

    async def dead(self, consumers: Iterable[str]) -> Mapping[str, int]:
        """Count dead letters."""
        rows = await self._db.fetch(
            "SELECT consumer, count(*) AS n FROM events.dead_letters WHERE consumer = ANY ($1) GROUP BY consumer",
            list(consumers),
        )
        return {row["consumer"]: row["n"] for row in rows}

    async def prune(self) -> bool:
        """Forget some of what was handled long ago; return whether there may be more of it."""
        tag = await self._db.execute(
            "DELETE FROM events.handled WHERE ctid = ANY (ARRAY(SELECT ctid FROM events.handled"
            " WHERE handled_at < now() - make_interval(secs => $1) LIMIT $2))",
            float(HANDLED_KEPT_S), PRUNE_LEN,
        )  # fmt: skip
        return tag == f"DELETE {PRUNE_LEN}"


def _json(attempts: Mapping[str, int]) -> str:
    return msgspec.json.encode(attempts).decode()
