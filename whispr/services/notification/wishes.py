"""Preferences: what people want to be told. And, of those in question, who does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from whispr.conversations.database import Database, Queries
from whispr.conversations.rows import Row
from whispr.errors import exhausted
from whispr.services.notification.domain import (
    EVERYTHING,
    FOR_EVER,
    NOTHING_SPECIAL,
    TYPES_MAX,
    ConversationPreference,
    Level,
    Preferences,
    QuietHours,
    latest,
)

CONVERSATIONS_MAX = 1000
"""Conversations of one person that differ."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('notifications.preferences:' || $1, 0))"
_SAVE = """
    INSERT INTO notifications.preferences (user_id, enabled, previews, quiet_hours, types)
    VALUES ($1, $2, $3, $4::text::jsonb, $5::text::jsonb)
    ON CONFLICT (user_id) DO UPDATE SET enabled = excluded.enabled, previews = excluded.previews,
        quiet_hours = excluded.quiet_hours, types = excluded.types, updated_at = now()
"""
_SAVE_CONVERSATIONS = """
    INSERT INTO notifications.conversation_preferences (user_id, conversation_id, level, muted_until)
    SELECT $1, c.id, c.level, c.muted_until FROM unnest($2::uuid[], $3::text[], $4::timestamptz[])
        AS c (id, level, muted_until)
    ON CONFLICT (conversation_id, user_id) DO UPDATE SET level = excluded.level, muted_until = excluded.muted_until
"""
_STANDINGS = """
    SELECT u.user_id, p.enabled, p.previews, p.quiet_hours, p.types, c.level, c.muted_until,
        m.user_id IS NOT NULL AS is_member, m.notify_muted_until, coalesce(m.read_seq, 0) AS read_seq
    FROM unnest($1::uuid[]) AS u (user_id)
    LEFT JOIN notifications.preferences p ON p.user_id = u.user_id
    LEFT JOIN notifications.conversation_preferences c
        ON c.conversation_id = $2 AND c.user_id = u.user_id
    LEFT JOIN conversations.memberships m
        ON m.conversation_id = $2 AND m.user_id = u.user_id AND m.left_at IS NULL
"""

_json = msgspec.json.Encoder().encode
_quiet = msgspec.json.Decoder(QuietHours).decode
_types = msgspec.json.Decoder(dict[str, bool]).decode


class Standing(msgspec.Struct, frozen=True):
    """What a person wants, and is in the conversation in question."""

    own: Preferences
    there: ConversationPreference
    is_member: bool
    read_seq: int


class Wishes:
    """The preferences of everybody."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def of(self, user_id: str) -> Preferences:
        """Return a person's preferences."""
        row = await self._db.fetchrow("SELECT * FROM notifications.preferences WHERE user_id = $1", user_id)
        return EVERYTHING if row is None else _preferences(row)

    async def conversations_of(self, user_id: str) -> dict[str, ConversationPreference]:
        """Return the conversations in which a person's wishes differ, by id."""
        rows = await self._db.fetch(
            "SELECT conversation_id, level, muted_until FROM notifications.conversation_preferences"
            " WHERE user_id = $1 ORDER BY conversation_id",
            user_id,
        )
        return {
            str(row["conversation_id"]): ConversationPreference(
                Level(row["level"]), _moment(row["muted_until"])
            )
            for row in rows
        }

    async def update(
        self,
        user_id: str,
        change: Callable[[Preferences], Preferences],
        conversations: Mapping[str, ConversationPreference],
    ) -> None:
        """Change preferences, and replace those of the given conversations beside the others.

        Raises RESOURCE_EXHAUSTED (too_many_preferences), and what `change` raises; nothing is changed then.
        """
        async with self._db.transaction() as tx:
            await tx.execute(_LOCK, user_id)
            row: Any = await tx.fetchrow(
                "SELECT * FROM notifications.preferences WHERE user_id = $1", user_id
            )
            own = change(EVERYTHING if row is None else _preferences(row))
            if len(own.types) > TYPES_MAX:
                raise exhausted(f"at most {TYPES_MAX} types", reason="too_many_preferences")
            quiet = _json(own.quiet_hours).decode() if own.quiet_hours is not None else None
            await tx.execute(_SAVE, user_id, own.enabled, own.previews, quiet, _json(own.types).decode())
            await self._save_conversations(tx, user_id, conversations)

    async def _save_conversations(
        self, tx: Queries, user_id: str, conversations: Mapping[str, ConversationPreference]
    ) -> None:
        plain = [each for each, wish in conversations.items() if wish == NOTHING_SPECIAL]
        special = {each: wish for each, wish in conversations.items() if wish != NOTHING_SPECIAL}
        await tx.execute(
            "DELETE FROM notifications.conversation_preferences"
            " WHERE user_id = $1 AND conversation_id = ANY ($2::uuid[])",
            user_id, plain,
        )  # fmt: skip
        levels = [wish.level.value for wish in special.values()]
        mutes = [wish.muted_until for wish in special.values()]
        await tx.execute(_SAVE_CONVERSATIONS, user_id, list(special), levels, mutes)
        count = await tx.fetchval(
            "SELECT count(*) FROM notifications.conversation_preferences WHERE user_id = $1", user_id
        )
        if count > CONVERSATIONS_MAX:
            raise exhausted(f"at most {CONVERSATIONS_MAX} conversations", reason="too_many_preferences")

    async def standings(self, conversation_id: str | None, user_ids: Collection[str]) -> dict[str, Standing]:
        """Return what each of these people wants and is."""
        rows = await self._db.fetch(_STANDINGS, list(user_ids), conversation_id)
        return {str(row["user_id"]): _standing(row) for row in rows}

    async def members(self, conversation_id: str, count_max: int) -> Sequence[str]:
        """Return the members of a conversation, at most so many."""
        rows = await self._db.fetch(
            "SELECT user_id FROM conversations.memberships"
            " WHERE conversation_id = $1 AND left_at IS NULL LIMIT $2",
            conversation_id, count_max,
        )  # fmt: skip
        return [str(row["user_id"]) for row in rows]

    async def who_want_everything(self, conversation_id: str, count_max: int) -> Sequence[str]:
        """Return those who asked to be told everything of a conversation, at most so many."""
        rows = await self._db.fetch(
            "SELECT user_id FROM notifications.conversation_preferences"
            " WHERE conversation_id = $1 AND level = 'all' LIMIT $2",
            conversation_id, count_max,
        )  # fmt: skip
        return [str(row["user_id"]) for row in rows]

    async def names(self, user_ids: Collection[str]) -> dict[str, str]:
        """Return how people are called."""
        rows = await self._db.fetch(
            "SELECT id, coalesce(nullif(display_name, ''), username) AS name FROM auth.people"
            " WHERE id = ANY ($1::uuid[])",
            list(user_ids),
        )
        return {str(row["id"]): row["name"] for row in rows}


def _standing(row: Row) -> Standing:
    own = EVERYTHING if row["enabled"] is None else _preferences(row)
    muted = latest((_moment(row["muted_until"]), _moment(row["notify_muted_until"])))
    there = ConversationPreference(Level(row["level"] or Level.DEFAULT), muted)
    return Standing(own, there, row["is_member"], row["read_seq"])


def _moment(at: datetime | None) -> datetime | None:
    """Read a time: `infinity` arrives as the last moment there is, of no zone."""
    return FOR_EVER if at is not None and at.tzinfo is None else at


def _preferences(row: Row) -> Preferences:
    return Preferences(
        enabled=row["enabled"],
        previews=row["previews"],
        quiet_hours=_quiet(row["quiet_hours"]) if row["quiet_hours"] else None,
        types=_types(row["types"]),
    )
