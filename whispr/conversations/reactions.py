"""Reactions and pins: what members hang on messages. Decided under the conversation's lock, so limits hold."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from whispr.conversations import seats, targets
from whispr.conversations.announcer import Announcer
from whispr.conversations.changes import record
from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, Message
from whispr.conversations.message_rules import check_emoji, check_may_pin
from whispr.conversations.rows import EXTRA_COLUMNS, MESSAGE_COLUMNS, message_of
from whispr.errors import exhausted

_DISTINCT = """
    SELECT count(DISTINCT r.emoji) AS emoji, coalesce(bool_or(r.emoji = $3), false) AS known
    FROM conversations.reactions r WHERE r.conversation_id = $1 AND r.seq = $2
"""
_REACT = """
    INSERT INTO conversations.reactions (conversation_id, seq, emoji, user_id, reacted_at)
    VALUES ($1, $2, $3, $4, clock_timestamp()) ON CONFLICT DO NOTHING
"""
_UNREACT = """
    DELETE FROM conversations.reactions
    WHERE conversation_id = $1 AND seq = $2 AND emoji = $3 AND user_id = $4
"""
_PIN = """
    INSERT INTO conversations.pins (conversation_id, seq, pinned_by, pinned_at)
    SELECT $1, $2, $3, clock_timestamp()
    ON CONFLICT DO NOTHING RETURNING pinned_at
"""
_PINS = f"""
    SELECT p.pinned_by, p.pinned_at, c.kind,
        {", ".join("m." + name.strip() for name in MESSAGE_COLUMNS.split(","))}, {EXTRA_COLUMNS}
    FROM conversations.pins p
    JOIN conversations.messages m ON m.conversation_id = p.conversation_id AND m.seq = p.seq
    JOIN conversations.conversations c ON c.id = p.conversation_id
    WHERE p.conversation_id = $1 AND NOT EXISTS (
        SELECT FROM conversations.hidden h
        WHERE h.conversation_id = $1 AND h.user_id = $2 AND h.seq = p.seq)
    ORDER BY p.pinned_at DESC, p.seq DESC
"""  # noqa: S608  # constants of ours


class Pin(msgspec.Struct, frozen=True):
    """A pinned message, and who pinned it when."""

    message: Message
    pinned_by: str
    pinned_at: datetime


class Reactions:
    """Adds and removes reactions and pins; tells everybody."""

    def __init__(self, db: Database, announcer: Announcer, limits: Limits) -> None:
        self._db = db
        self._announcer = announcer
        self._limits = limits

    async def add(self, conversation_id: str, message_id: str, actor_id: str, emoji: str) -> None:
        """Add the actor's reaction; again changes nothing.

        Raises INVALID_ARGUMENT, RESOURCE_EXHAUSTED (too_many_reactions), PERMISSION_DENIED, NOT_FOUND.
        """
        emoji = check_emoji(emoji)
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            target.check_there()
            target.check_may_speak()
            place = (conversation_id, target.message.seq, emoji)
            distinct = await tx.fetchrow(_DISTINCT, *place)
            assert distinct is not None
            limit = self._limits.message_reactions
            if limit and not distinct["known"] and distinct["emoji"] >= limit:
                raise exhausted(f"at most {limit} different reactions", reason="too_many_reactions")
            if (await tx.execute(_REACT, *place, actor_id)).endswith(" 0"):
                return
            data = _reaction(target.message, actor_id, emoji)
            change = await record(
                tx, conversation_id, "reaction_added", actor_id=actor_id, data=data, seq=target.message.seq
            )
        self._announcer.changed(change)

    async def remove(self, conversation_id: str, message_id: str, actor_id: str, emoji: str) -> None:
        """Take the actor's reaction back; without one nothing changes. Raises as `add`."""
        emoji = check_emoji(emoji)
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            target.check_there()
            if (await tx.execute(_UNREACT, conversation_id, target.message.seq, emoji, actor_id)).endswith(
                " 0"
            ):
                return
            data = _reaction(target.message, actor_id, emoji)
            change = await record(
                tx, conversation_id, "reaction_removed", actor_id=actor_id, data=data, seq=target.message.seq
            )
        self._announcer.changed(change)

    # Pins

    async def pin(self, conversation_id: str, message_id: str, actor_id: str) -> None:
        """Pin a message; again changes nothing.

        Raises RESOURCE_EXHAUSTED (too_many_pins), PERMISSION_DENIED, NOT_FOUND.
        """
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            target.check_there()
            check_may_pin(target.kind, target.role)
            pinned = await tx.fetchval(
                "SELECT count(*) FROM conversations.pins WHERE conversation_id = $1 AND seq <> $2",
                *(conversation_id, target.message.seq),
            )
            limit = self._limits.conversation_pins
            if limit and pinned >= limit:
                raise exhausted(f"at most {limit} pinned messages", reason="too_many_pins")
            pinned_at = await tx.fetchval(_PIN, conversation_id, target.message.seq, actor_id)
            if pinned_at is None:
                return
            data = {"message_id": message_id, "pinned_by": actor_id, "pinned_at": pinned_at}
            change = await record(
                tx, conversation_id, "message_pinned", actor_id=actor_id, data=data, seq=target.message.seq
            )
        self._announcer.changed(change)

    async def unpin(self, conversation_id: str, message_id: str, actor_id: str) -> None:
        """Take a pin off; without one nothing changes. Raises PERMISSION_DENIED, NOT_FOUND."""
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            check_may_pin(target.kind, target.role)
            done = await tx.execute(
                "DELETE FROM conversations.pins WHERE conversation_id = $1 AND seq = $2",
                *(conversation_id, target.message.seq),
            )
            if done.endswith(" 0"):
                return
            data = {"message_id": message_id, "unpinned_by": actor_id}
            change = await record(
                tx, conversation_id, "message_unpinned", actor_id=actor_id, data=data, seq=target.message.seq
            )
        self._announcer.changed(change)

    async def pins(self, conversation_id: str, viewer_id: str) -> list[Pin]:
        """Return what is pinned, the latest pin first. Raises not_a_member, NOT_FOUND."""
        async with self._db.transaction() as tx:
            await seats.check_reader(tx, conversation_id, viewer_id)
            rows = await tx.fetch(_PINS, conversation_id, viewer_id)
        shown = [
            Pin(message_of(row, row["kind"]), str(row["pinned_by"]), row["pinned_at"])  # type: ignore[arg-type]  # a Record is a Mapping
            for row in rows
        ]
        return [pin for pin in shown if pin.message.deleted_at is None]


def _reaction(message: Message, actor_id: str, emoji: str) -> dict[str, Any]:
    return {"message_id": message.id, "sender_id": message.sender_id, "user_id": actor_id, "emoji": emoji}
