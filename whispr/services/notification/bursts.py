"""Messages that people have not been told of yet, gathered per conversation until they are due."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.conversations.domain import Kind

LEASE_S = 60.0
"""How long a process may take over a burst before another one takes it."""
MESSAGES_MAX = 500
"""Messages told of at once; the rest follows in the next round."""

# Updating the burst's row, though nothing changes, waits for a process that is about to end the burst. A commit that
# a crash forgets takes the later one of the consumer's position with it: the events come again.
_NOTE = """
    WITH new AS MATERIALIZED (
        SELECT m.* FROM (SELECT set_config('synchronous_commit', 'off', true)) AS lightly, unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::boolean[],
            $9::timestamptz[], $10::text[]
        ) AS m (message_id, conversation_id, kind, seq, sender_id, preview, mentions, silent, sent_at, trace)
    ), noted AS (
        INSERT INTO notifications.messages (
            message_id, conversation_id, seq, sender_id, preview, mentions, silent, sent_at, trace)
        SELECT message_id, conversation_id, seq, sender_id, preview, string_to_array(mentions, ' ')::uuid[], silent,
            sent_at, trace FROM new
        ON CONFLICT DO NOTHING
    )
    INSERT INTO notifications.bursts AS b (conversation_id, kind, due_at)
    SELECT DISTINCT ON (conversation_id) conversation_id, kind, now() + make_interval(secs => $11)
    FROM new ORDER BY conversation_id
    ON CONFLICT (conversation_id) DO UPDATE SET due_at = b.due_at
"""
_TAKE = """
    UPDATE notifications.bursts b SET lease_until = now() + make_interval(secs => $2)
    FROM (
        SELECT conversation_id FROM notifications.bursts WHERE due_at <= now() AND lease_until < now()
        ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ) due
    WHERE b.conversation_id = due.conversation_id
    RETURNING b.conversation_id, b.kind, b.lease_until
"""


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as far as telling of it goes."""

    message_id: str
    conversation_id: str
    kind: Kind
    seq: int
    sender_id: str
    preview: str | None
    mentions: Sequence[str] = ()
    silent: bool = False
    sent_at: datetime
    trace: str = ""
    """W3C traceparent of its event; empty for none."""


class Burst(msgspec.Struct, frozen=True):
    """A conversation whose messages are due, in this process's hands until `lease_until`."""

    conversation_id: str
    kind: Kind
    lease_until: datetime


class Bursts:
    """The bursts of all conversations."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def note(self, tx: Transaction, messages: Sequence[NewMessage], batch_s: float) -> None:
        """Keep messages until their burst is due, `batch_s` seconds after the first message of it."""
        rows = [
            (m.message_id, m.conversation_id, m.kind.value, m.seq, m.sender_id, m.preview, " ".join(m.mentions),
                m.silent, m.sent_at, m.trace)
            for m in messages
        ]  # fmt: skip
        await tx.execute(_NOTE, *(list(column) for column in zip(*rows, strict=True)), batch_s)

    async def take(self, count_max: int) -> list[Burst]:
        """Take bursts that are due. No other process takes them while the lease lasts."""
        rows = await self._db.fetch(_TAKE, count_max, LEASE_S)
        return [Burst(str(row["conversation_id"]), Kind(row["kind"]), row["lease_until"]) for row in rows]

    async def messages(self, burst: Burst) -> list[NewMessage]:
        """Return the burst's messages in order, the first MESSAGES_MAX."""
        rows = await self._db.fetch(
            "SELECT * FROM notifications.messages WHERE conversation_id = $1 ORDER BY seq LIMIT $2",
            burst.conversation_id, MESSAGES_MAX,
        )  # fmt: skip
        return [
            NewMessage(
                message_id=str(row["message_id"]),
                conversation_id=burst.conversation_id,
                kind=burst.kind,
                seq=row["seq"],
                sender_id=str(row["sender_id"]),
                preview=row["preview"],
                mentions=tuple(str(each) for each in row["mentions"]),
                silent=row["silent"],
                sent_at=row["sent_at"],
                trace=row["trace"],
            )
            for row in rows
        ]

    async def hold(self, tx: Transaction, burst: Burst) -> bool:
        """Lock the burst; False when another process has taken it over."""
        held = await tx.fetchval(
            "SELECT true FROM notifications.bursts WHERE conversation_id = $1 AND lease_until = $2 FOR UPDATE",
            burst.conversation_id, burst.lease_until,
        )  # fmt: skip
        return bool(held)

    async def done(
        self, tx: Transaction, burst: Burst, messages: Sequence[NewMessage], batch_s: float
    ) -> None:
        """Drop messages that people have been told of; the burst ends unless others came meanwhile."""
        await tx.execute(
            "DELETE FROM notifications.messages WHERE message_id = ANY ($1::uuid[])",
            [message.message_id for message in messages],
        )
        await tx.execute(
            "DELETE FROM notifications.bursts WHERE conversation_id = $1 AND NOT EXISTS"
            " (SELECT FROM notifications.messages WHERE conversation_id = $1)",
            burst.conversation_id,
        )
        await tx.execute(
            "UPDATE notifications.bursts SET lease_until = '-infinity',"
            " due_at = now() + make_interval(secs => $2) WHERE conversation_id = $1",
            burst.conversation_id, 0.0 if len(messages) == MESSAGES_MAX else batch_s,
        )  # fmt: skip

    async def put_back(self, burst: Burst, after_s: float) -> None:
        """Try a burst again after some seconds."""
        await self._db.execute(
            "UPDATE notifications.bursts SET lease_until = '-infinity',"
            " due_at = now() + make_interval(secs => $3) WHERE conversation_id = $1 AND lease_until = $2",
            burst.conversation_id, burst.lease_until, after_s,
        )  # fmt: skip

    async def hide(self, tx: Transaction, message_id: str) -> None:
        """Tell of a message without its words, which are not what they were."""
        await tx.execute("UPDATE notifications.messages SET preview = NULL WHERE message_id = $1", message_id)

    async def forget(self, tx: Transaction, message_id: str) -> None:
        """Leave a message out."""
        await tx.execute("DELETE FROM notifications.messages WHERE message_id = $1", message_id)

    async def seconds_to_next(self) -> float | None:
        """Return when the next burst is due, in seconds from now, None when there is none."""
        seconds: float | None = await self._db.fetchval(
            "SELECT extract(epoch FROM due_at - now())::float8 FROM notifications.bursts"
            " WHERE lease_until < now() ORDER BY due_at LIMIT 1"
        )
        return seconds
