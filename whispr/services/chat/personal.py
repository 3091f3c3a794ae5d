"""What chat holds about one person: exported on request, erased when the account is deleted.

Messages and direct conversations are the messaging service's to export. The audit log stays: it says what
moderators did, by ids that then lead to nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from whispr.conversations import seats
from whispr.conversations.changes import Change
from whispr.conversations.database import Database
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.room_rules import Person, RoomLimits
from whispr.conversations.rooms import locked, shut, take_out
from whispr.errors import Code, WhisprError
from whispr.events import Consumer, Event

PAGE_LEN = 500

# Each kind of record: its rows after a key, in the order of the key.
_RECORDS: Mapping[str, str] = {
    "room": """
        SELECT c.id::text AS key, c.id AS room_id, c.name, r.type, r.visibility, r.description, m.role,
            m.joined_at, m.left_at, c.created_by = $1 AS created_by_you,
            CASE WHEN m.muted_until > now() THEN m.muted_until END AS muted_until
        FROM conversations.members m
        JOIN conversations.conversations c ON c.id = m.conversation_id
        JOIN conversations.rooms r ON r.id = c.id
        WHERE m.user_id = $1 AND c.id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "ban": """
        SELECT conversation_id::text AS key, conversation_id AS room_id, until, reason, banned_at
        FROM conversations.bans WHERE user_id = $1 AND conversation_id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "invitation": """
        SELECT id::text AS key, conversation_id AS room_id, user_id, created_by, created_at, expires_at, uses
        FROM conversations.invitations
        WHERE (user_id = $1 OR created_by = $1) AND id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "report": """
        SELECT message_id::text AS key, message_id, conversation_id, reason, reported_at
        FROM conversations.reports WHERE reporter_id = $1 AND message_id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "moderation": """
        SELECT id::text AS key, conversation_id AS room_id, at, action, actor_id = $1 AS by_you, message_id,
            reason, details
        FROM conversations.audit WHERE (target_id = $1 OR actor_id = $1) AND id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "activity": """
        SELECT user_id::text AS key, messages_sent, last_message_at
        FROM conversations.sent_counts WHERE user_id = $1 AND user_id::text > $2 ORDER BY 1 LIMIT $3
    """,
}
_ROOMS = """
    SELECT c.id FROM conversations.members m JOIN conversations.rooms r ON r.id = m.conversation_id
    JOIN conversations.conversations c ON c.id = r.id
    WHERE m.user_id = $1 AND m.left_at IS NULL ORDER BY c.id
"""
# Whoever takes the last seat away: a room without people is closed. Messaging takes away seats too.
_EMPTY = """
    SELECT c.id FROM conversations.members m JOIN conversations.rooms r ON r.id = m.conversation_id
    JOIN conversations.conversations c ON c.id = r.id
    WHERE m.user_id = $1 AND m.left_at IS NOT NULL AND c.member_count = 0 AND c.is_active ORDER BY c.id
"""
_ERASE = (
    "DELETE FROM conversations.bans WHERE user_id = $1",
    "DELETE FROM conversations.invitations WHERE user_id = $1 OR created_by = $1",
    "DELETE FROM conversations.reports WHERE reporter_id = $1",
    "DELETE FROM conversations.withheld WHERE sender_id = $1",
    "DELETE FROM conversations.sent_counts WHERE user_id = $1",
)

_json = msgspec.json.Encoder().encode


class PersonalData:
    """Exports and erases."""

    def __init__(self, db: Database, limits: RoomLimits, announcer: RoomAnnouncer) -> None:
        self._db = db
        self._limits = limits
        self._announcer = announcer

    @property
    def consumer(self) -> Consumer:
        """What listens to deleted accounts."""
        return Consumer("chat-erasure", ("user.events.account_deleted",), self.account_deleted)

    async def export(self, user_id: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield the kind and the JSON of everything held about a person."""
        for kind, sql in _RECORDS.items():
            last = ""
            while rows := await self._db.fetch(sql, user_id, last, PAGE_LEN):
                for row in rows:
                    record: dict[str, Any] = dict(row)
                    last = record.pop("key")
                    if "details" in record:
                        record["details"] = msgspec.Raw(record["details"].encode())
                    yield kind, _json(record)

    async def account_deleted(self, event: Event) -> None:
        """Take a person out of their rooms, and forget the rest; again changes nothing."""
        user_id = event.subject
        for row in await self._db.fetch(_ROOMS, user_id):
            self._announcer.changed(await self._leave(user_id, str(row["id"])))
        for row in await self._db.fetch(_EMPTY, user_id):
            self._announcer.changed(await self._close(str(row["id"])))
        async with self._db.transaction() as tx:
            for sql in _ERASE:
                await tx.execute(sql, user_id)

    async def _leave(self, user_id: str, room_id: str) -> tuple[Change, ...]:
        person = Person(user_id)
        async with self._db.transaction() as tx:
            try:
                seen = await locked(tx, room_id, person, self._limits)
            except WhisprError as error:
                if error.code is Code.NOT_FOUND:
                    return ()
                raise
            seat = await seats.seat_or_none(tx, room_id, user_id)
            if seat is None:
                return ()
            return await take_out(tx, seen.room, seat, "user_left", user_id, {"reason": "account_deleted"})

    async def _close(self, room_id: str) -> tuple[Change, ...]:
        async with self._db.transaction() as tx:
            room = await seats.lock(tx, room_id)
            if room["member_count"] or not room["is_active"]:
                return ()
            return (await shut(tx, room_id, None, "nobody is left"),)
