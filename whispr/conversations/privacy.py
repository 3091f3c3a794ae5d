"""What is held of a person: handed over on request, and taken away with their account.

When an account is deleted its messages are erased for everyone, like those that people delete themselves
(tombstones keep seq and times, so that histories stay whole); with `keep_messages` they stay, as of a deleted
account, whose name the auth service no longer tells. Either way the person leaves every group and room, direct
conversations are closed, and reactions, drafts and scheduled messages go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from whispr.conversations import seats
from whispr.conversations.announcer import Announcer
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database
from whispr.conversations.domain import Kind
from whispr.conversations.editing import erase
from whispr.conversations.membership import remove_seat
from whispr.conversations.rows import MESSAGE_COLUMNS, message_of
from whispr.conversations.wire import message_json
from whispr.events import Consumer, Event

TOGETHER = 200
"""Messages read or erased at once."""

STRETCH = 4096
"""Seqs looked through by one statement: whose messages they are has no index, and a conversation may be large."""

_SEATS = """
    SELECT m.conversation_id, c.kind, c.name, m.role, m.joined_at, m.left_at, m.read_seq, m.delivered_seq,
        m.read_at, m.archived_at, m.muted_until, m.notify_muted_until, c.last_seq
    FROM conversations.members m JOIN conversations.conversations c ON c.id = m.conversation_id
    WHERE m.user_id = $1 AND (m.left_at IS NULL OR m.left_at IS NOT NULL) ORDER BY m.conversation_id
"""
_SENT = f"""
    SELECT {MESSAGE_COLUMNS} FROM conversations.messages
    WHERE conversation_id = $1 AND sender_id = $2 AND seq > $3 AND seq <= $4 AND deleted_at IS NULL
    ORDER BY seq LIMIT {TOGETHER}
"""  # noqa: S608  # constants of ours
_REACTIONS = """
    SELECT r.conversation_id, r.seq, r.emoji, r.reacted_at, m.id AS message_id, m.sender_id
    FROM conversations.reactions r
    JOIN conversations.messages m ON m.conversation_id = r.conversation_id AND m.seq = r.seq
    WHERE r.user_id = $1 ORDER BY r.conversation_id, r.seq, r.emoji
"""

_json = msgspec.json.Encoder().encode

Record = tuple[str, bytes]
"""What it is, and the thing itself as JSON."""


class Privacy:
    """Exports and erases what is held of a person; `consumer` listens for deleted accounts."""

    def __init__(self, db: Database, announcer: Announcer, *, keep_messages: bool = False) -> None:
        self._db = db
        self._announcer = announcer
        self._keep_messages = keep_messages
        self.consumer = Consumer(
            "messaging-accounts", ("user.events.account_deleted",), self.account_deleted, deadline_s=600.0
        )

    async def export(self, user_id: str) -> AsyncGenerator[Record, None]:
        """Yield everything held of a person: memberships, messages, reactions, drafts, what waits to be sent."""
        memberships = await self._db.fetch(_SEATS, user_id)
        for seat in memberships:
            yield "membership", _json(_plain(seat))
            async with aclosing(self._sent(seat, user_id)) as stretches:
                async for rows in stretches:
                    for row in rows:
                        yield "message", _json(message_json(message_of(row, seat["kind"])))
        for row in await self._db.fetch(_REACTIONS, user_id):
            yield "reaction", _json({**_plain(row), "sender_id": None})
        for table in ("drafts", "scheduled"):
            owner = "user_id" if table == "drafts" else "sender_id"
            rows = await self._db.fetch(f"SELECT * FROM conversations.{table} WHERE {owner} = $1", user_id)  # noqa: S608  # constants of ours
            for row in rows:
                yield table.removesuffix("s"), _json(_plain(row))

    async def account_deleted(self, event: Event) -> None:
        """Take away what is held of a deleted account. Harmless when repeated: what is gone is gone."""
        user_id = event.subject
        await self._db.execute("DELETE FROM conversations.scheduled WHERE sender_id = $1", user_id)
        await self._db.execute("DELETE FROM conversations.drafts WHERE user_id = $1", user_id)
        for row in await self._db.fetch(_REACTIONS, user_id):
            await self._take_back(row, user_id)
        for seat in await self._db.fetch(_SEATS, user_id):
            conversation_id = str(seat["conversation_id"])
            if not self._keep_messages:
                await self._erase_messages(seat, user_id)
            await self._leave(conversation_id, user_id)
        await self._db.execute("DELETE FROM conversations.hidden WHERE user_id = $1", user_id)

    async def _erase_messages(self, seat: Mapping[str, Any], user_id: str) -> None:
        conversation_id = str(seat["conversation_id"])
        async with aclosing(self._sent(seat, user_id)) as stretches:
            async for rows in stretches:
                seqs = [row["seq"] for row in rows]
                async with self._db.transaction() as tx:
                    await seats.lock(tx, conversation_id)
                    changes = await erase(tx, conversation_id, seqs, user_id, reason="account_deleted")
                self._tell(changes)

    async def _sent(self, seat: Mapping[str, Any], user_id: str) -> AsyncGenerator[Sequence[Any], None]:
        """Yield what a person has sent to a conversation and not erased, some at a time, in order."""
        after = 0
        while after < seat["last_seq"]:
            until = after + STRETCH
            rows = await self._db.fetch(_SENT, seat["conversation_id"], user_id, after, until)
            if rows:
                yield rows
            after = rows[-1]["seq"] if len(rows) == TOGETHER else until

    async def _leave(self, conversation_id: str, user_id: str) -> None:
        """Give up a seat; the direct conversations of nobody are closed, and stay for the other to read."""
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            seat = await seats.seat_or_none(tx, conversation_id, user_id)
            if seat is None:
                return
            if conversation["kind"] != Kind.DIRECT:
                removed = await remove_seat(tx, conversation_id, seat, user_id)
                changes = list(removed.changes)
            elif conversation["is_active"]:
                await tx.execute(
                    "UPDATE conversations.conversations SET is_active = false WHERE id = $1", conversation_id
                )
                data = {"is_active": False, "reason": "account_deleted"}
                changes = [await record(tx, conversation_id, "settings_changed", actor_id=user_id, data=data)]
            else:
                return
        self._announcer.removed(changes)

    async def _take_back(self, row: Mapping[str, Any], user_id: str) -> None:
        conversation_id, emoji = str(row["conversation_id"]), row["emoji"]
        async with self._db.transaction() as tx:
            await seats.lock(tx, conversation_id)
            done = await tx.execute(
                "DELETE FROM conversations.reactions"
                " WHERE conversation_id = $1 AND seq = $2 AND emoji = $3 AND user_id = $4",
                *(conversation_id, row["seq"], emoji, user_id),
            )
            if done.endswith(" 0"):
                return
            data = {
                "message_id": str(row["message_id"]),
                "sender_id": str(row["sender_id"]),
                "user_id": user_id,
                "emoji": emoji,
            }
            change = await record(
                tx, conversation_id, "reaction_removed", actor_id=user_id, data=data, seq=row["seq"]
            )
        self._tell([change])

    def _tell(self, changes: list[Change]) -> None:
        for change in changes:
            self._announcer.changed(change)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row into what JSON can say: bytes become text where they are, else base64."""
    plain: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            try:
                plain[name] = value.decode()
            except UnicodeDecodeError:
                plain[f"{name}_base64"] = value
        elif value is not None:
            plain[name] = value
    return plain
