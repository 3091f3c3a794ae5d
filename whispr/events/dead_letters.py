"""Events that were given up on: found, looked at, handed to their consumers again, or forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from whispr.adapters.postgres import Postgres
from whispr.errors import not_found
from whispr.events.consumer import RESERVED

_LETTERS = (
    "SELECT id, died_at, consumer, stream_subject, about, attempts, replay_at, error FROM events.dead_letters"
)
_PAGE = f"{_LETTERS} WHERE $1 IN ('', consumer) AND id > $2 ORDER BY id LIMIT $3"
# Those of the relay go back into the outbox.
_PUBLISH_AGAIN = """
INSERT INTO events.outbox (id, stream_subject, expander, about, actor, version, data, trace, emitted_at)
SELECT (CASE WHEN body ? 'expander' THEN events.new_id() ELSE (body->>'id')::uuid END),
    nullif(stream_subject, ''), body->>'expander', about, nullif(body->>'actor', '')::uuid,
    coalesce((body->>'version')::integer, 1), body->'data', nullif(body->>'trace', ''), clock_timestamp()
FROM (SELECT d.*, convert_from(d.payload, 'UTF8')::jsonb AS body FROM events.dead_letters d WHERE id = ANY ($1)) d
ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Letter:
    """One event that a consumer, or the relay, gave up on."""

    id: int
    consumer: str
    event: str
    """What happened, as its subject says; "a batch" for rows that stand for many events."""
    about: str
    died_at: datetime
    attempts: int
    to_replay: bool
    error: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters: some by number, or all of a consumer, or all."""

    ids: Sequence[int] = ()
    consumer: str = ""

    async def found(self, db: Postgres) -> list[Letter]:
        """Return them. Raises NOT_FOUND for a number that is none's, and for no letters at all."""
        if self.ids:
            rows = await db.fetch(f"{_LETTERS} WHERE id = ANY ($1) ORDER BY id", list(self.ids))
            if absent := set(self.ids) - {row["id"] for row in rows}:
                raise not_found("dead letter", ", ".join(map(str, sorted(absent))))
        else:
            rows = await db.fetch(f"{_LETTERS} WHERE $1 IN ('', consumer) ORDER BY id", self.consumer)
            if not rows and self.consumer:
                raise not_found("dead letter of", self.consumer)
        return [_letter(row) for row in rows]


async def page(db: Postgres, consumer: str, limit: int, after: int = 0) -> list[Letter]:
    """Return dead letters with higher numbers than `after`, oldest first; of all consumers when it is empty."""
    return [_letter(row) for row in await db.fetch(_PAGE, consumer, after, limit)]


async def one(db: Postgres, letter: int) -> tuple[Letter, str, bytes]:
    """Return a dead letter with its event's id and bytes. Raises NOT_FOUND."""
    row = await db.fetchrow("SELECT * FROM events.dead_letters WHERE id = $1", letter)
    if row is None:
        raise not_found("dead letter", str(letter))
    return _letter(row), str(row["event_id"]), row["payload"]


async def replay(db: Postgres, choice: Choice) -> int:
    """Have dead letters handled again, with all attempts; return how many. Raises NOT_FOUND."""
    letters = await choice.found(db)
    relays = [letter.id for letter in letters if letter.consumer == RESERVED]
    others = [letter.id for letter in letters if letter.consumer != RESERVED]
    async with db.transaction() as tx:
        await tx.execute(_PUBLISH_AGAIN, relays)
        await tx.execute("DELETE FROM events.dead_letters WHERE id = ANY ($1)", relays)
        await tx.execute("UPDATE events.dead_letters SET replay_at = now() WHERE id = ANY ($1)", others)
    return len(letters)


async def drop(db: Postgres, choice: Choice) -> int:
    """Forget dead letters; return how many. Raises NOT_FOUND."""
    ids = [letter.id for letter in await choice.found(db)]
    await db.execute("DELETE FROM events.dead_letters WHERE id = ANY ($1)", ids)
    return len(ids)


def _letter(row: Any) -> Letter:
    return Letter(
        id=row["id"],
        consumer=row["consumer"],
        event=row["stream_subject"] or "a batch",
        about=row["about"].lstrip("\0"),
        died_at=row["died_at"],
        attempts=row["attempts"],
        to_replay=row["replay_at"] is not None,
        error=row["error"],
    )
