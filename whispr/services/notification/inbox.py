"""The inbox: what each person was told, and has seen of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from whispr.conversations.database import Database, Queries
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import Row
from whispr.services.notification.domain import Priority

_ADD = """
    INSERT INTO notifications.inbox AS i (
        user_id, id, type, conversation_id, actor_id, message_id, seq, title, body, data, priority, count, at,
        gathers)
    SELECT e.user_id, e.id, e.type, $2, e.actor_id, e.message_id, e.seq, e.title, e.body, e.data::jsonb,
        e.priority, e.count, $3, $4
    FROM unnest($1::uuid[], $5::uuid[], $6::text[], $7::uuid[], $8::uuid[], $9::bigint[], $10::text[], $11::text[],
        $12::text[], $13::smallint[], $14::integer[])
        AS e (user_id, id, type, actor_id, message_id, seq, title, body, data, priority, count)
    {conflict}
"""
_GATHER = _ADD.format(
    conflict="""ON CONFLICT (user_id, conversation_id) WHERE read_at IS NULL AND gathers DO UPDATE SET
        type = excluded.type, actor_id = excluded.actor_id, message_id = excluded.message_id, seq = excluded.seq,
        title = excluded.title, body = excluded.body, data = excluded.data, count = excluded.count, at = excluded.at,
        priority = greatest(i.priority, excluded.priority)"""
)
_INSERT = _ADD.format(conflict="ON CONFLICT (user_id, id) DO NOTHING")
_TRIM = """
    DELETE FROM notifications.inbox i USING unnest($1::uuid[]) AS u (user_id) CROSS JOIN LATERAL (
        SELECT o.id FROM notifications.inbox o WHERE o.user_id = u.user_id
        ORDER BY o.at DESC, o.id DESC OFFSET $2 LIMIT 100
    ) AS old
    WHERE i.user_id = u.user_id AND i.id = old.id
"""
_LIST = """
    SELECT * FROM notifications.inbox
    WHERE user_id = $1 AND ($3::timestamptz IS NULL OR (at, id) < ($3, $4::uuid))
        AND (NOT $5 OR read_at IS NULL) AND ($6::uuid IS NULL OR conversation_id = $6)
    ORDER BY at DESC, id DESC LIMIT $2
"""
_READ = """
    UPDATE notifications.inbox SET read_at = $2
    WHERE user_id = $1 AND read_at IS NULL AND {which}
    RETURNING id, conversation_id
"""
_READ_IDS = _READ.format(which="id = ANY ($3::uuid[])")
_READ_CONVERSATION = _READ.format(which="conversation_id = $3::uuid")
_READ_EVERYTHING = _READ.format(which="$3::uuid IS NULL")
_READ_UP_TO = _READ.format(which="conversation_id = $3::uuid AND seq <= $4")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of somebody's inbox."""

    user_id: str
    id: str
    type: str
    conversation_id: str = ""
    actor_id: str = ""
    message_id: str = ""
    seq: int = 0
    title: str
    body: str
    data: Mapping[str, str] = {}
    priority: Priority = Priority.NORMAL
    count: int = 1
    at: datetime
    read_at: datetime | None = None


class Inbox:
    """The inboxes of everybody."""

    def __init__(self, db: Database, length_max: int) -> None:
        self._db = db
        self._length_max = length_max

    async def gathering(
        self, tx: Queries, conversation_id: str, user_ids: Collection[str]
    ) -> dict[str, tuple[str, int, str]]:
        """Lock and return the unread entries that gather a conversation's messages: user → (id, count, type)."""
        rows = await tx.fetch(
            "SELECT user_id, id, count, type FROM notifications.inbox WHERE user_id = ANY ($1::uuid[])"
            " AND conversation_id = $2 AND read_at IS NULL AND gathers ORDER BY user_id FOR UPDATE",
            list(user_ids), conversation_id,
        )  # fmt: skip
        return {str(row["user_id"]): (str(row["id"]), row["count"], row["type"]) for row in rows}

    async def add(self, tx: Queries, entries: Sequence[Entry], *, gathers: bool) -> None:
        """Write entries of one conversation and time; a gathering one takes its predecessor's place."""
        if not entries:
            return
        first = entries[0]
        await tx.execute(
            _GATHER if gathers else _INSERT,
            [e.user_id for e in entries], first.conversation_id or None, first.at, gathers,
            [e.id for e in entries], [e.type for e in entries], [e.actor_id or None for e in entries],
            [e.message_id or None for e in entries], [e.seq or None for e in entries],
            [e.title for e in entries], [e.body for e in entries],
            [msgspec.json.encode(dict(e.data)).decode() for e in entries],
            [int(e.priority) for e in entries], [e.count for e in entries],
        )  # fmt: skip

    async def trim(self, tx: Queries, user_ids: Collection[str]) -> None:
        """Drop what is over the length from the old end."""
        if self._length_max:
            await tx.execute(_TRIM, list(user_ids), self._length_max)

    async def sent_for(self, tx: Queries, message_id: str) -> str | None:
        """Lock a message's notification and return its id, None when there is none yet."""
        await tx.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('notifications.message:' || $1, 0))", message_id
        )
        found = await tx.fetchval(
            "SELECT id FROM notifications.inbox WHERE message_id = $1 AND NOT gathers LIMIT 1", message_id
        )
        return str(found) if found else None

    async def unread(self, user_ids: Collection[str], on: Queries | None = None) -> dict[str, int]:
        """Count the unread entries of people."""
        rows = await (on or self._db).fetch(
            "SELECT user_id, count(*) AS unread FROM notifications.inbox"
            " WHERE user_id = ANY ($1::uuid[]) AND read_at IS NULL GROUP BY user_id",
            list(user_ids),
        )
        found = {str(row["user_id"]): row["unread"] for row in rows}
        return {user_id: found.get(user_id, 0) for user_id in user_ids}

    async def page(
        self, user_id: str, size: int, page_token: str, *, unread_only: bool, conversation_id: str
    ) -> tuple[list[Entry], str]:
        """Return a page of the inbox, the latest first, and the next token."""
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(
            _LIST, user_id, size + 1, at, last_id, unread_only, conversation_id or None
        )
        page = [entry_of(row) for row in rows[:size]]
        return page, to_token(Place(page[-1].at, page[-1].id)) if len(rows) > size else ""

    async def known(self, user_id: str, ids: Collection[str]) -> set[str]:
        """Return those of the ids that are in the inbox."""
        rows = await self._db.fetch(
            "SELECT id FROM notifications.inbox WHERE user_id = $1 AND id = ANY ($2::uuid[])",
            user_id,
            list(ids),
        )
        return {str(row["id"]) for row in rows}

    async def read(
        self, tx: Queries, user_id: str, at: datetime, *, ids: Collection[str] = (), conversation_id: str = ""
    ) -> list[tuple[str, str]]:
        """Mark entries as read: those ids, that conversation, or without either everything: (id, conversation)."""
        rows: list[Row] = []
        if ids:
            rows += await tx.fetch(_READ_IDS, user_id, at, list(ids))
        if conversation_id:
            rows += await tx.fetch(_READ_CONVERSATION, user_id, at, conversation_id)
        if not ids and not conversation_id:
            rows += await tx.fetch(_READ_EVERYTHING, user_id, at, None)
        return [_pair(row) for row in rows]

    async def read_up_to(
        self, tx: Queries, user_id: str, conversation_id: str, seq: int, at: datetime
    ) -> list[tuple[str, str]]:
        """Mark what a read watermark covers; an entry that it covers in part stands for what is left."""
        rows = await tx.fetch(_READ_UP_TO, user_id, at, conversation_id, seq)
        await tx.execute(
            "UPDATE notifications.inbox SET count = least(count, seq - $3)"
            " WHERE user_id = $1 AND conversation_id = $2 AND read_at IS NULL AND gathers AND seq > $3"
            " AND count > seq - $3",
            user_id, conversation_id, seq,
        )  # fmt: skip
        return [_pair(row) for row in rows]

    async def forget(self, tx: Queries, message_id: str, instead: str) -> None:
        """Take the words of a message out of the entries that show them."""
        await tx.execute(
            "UPDATE notifications.inbox SET body = $2 WHERE message_id = $1 AND count = 1",
            message_id,
            instead,
        )


def _pair(row: Row) -> tuple[str, str]:
    return str(row["id"]), str(row["conversation_id"] or "")


def entry_of(row: Row) -> Entry:
    """Build an entry from its row."""
    return Entry(
        user_id=str(row["user_id"]),
        id=str(row["id"]),
        type=row["type"],
        conversation_id=str(row["conversation_id"] or ""),
        actor_id=str(row["actor_id"] or ""),
        message_id=str(row["message_id"] or ""),
        seq=row["seq"] or 0,
        title=row["title"],
        body=row["body"],
        data=msgspec.json.decode(row["data"], type=dict[str, str]),
        priority=Priority(row["priority"]),
        count=row["count"],
        at=row["at"],
        read_at=row["read_at"],
    )


def now() -> datetime:
    """Return this moment, aware."""
    return datetime.now(UTC)
