"""SQL of the user service: its own blocks, and the views that auth and conversations publish."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec

from whispr.conversations.database import Database
from whispr.conversations.domain import Kind, Role
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import Row
from whispr.errors import not_found

_STANDING = """
    SELECT
        (SELECT m.kind FROM conversations.memberships m WHERE m.conversation_id = $1 LIMIT 1) AS kind,
        (SELECT m.role FROM conversations.memberships m
            WHERE m.conversation_id = $1 AND m.user_id = $2 AND m.left_at IS NULL) AS role,
        EXISTS (
            SELECT FROM conversations.memberships peer JOIN users.blocks b
                ON (b.user_id = $2 AND b.blocked_id = peer.user_id)
                OR (b.user_id = peer.user_id AND b.blocked_id = $2)
            WHERE peer.conversation_id = $1 AND peer.kind = 'direct' AND peer.user_id <> $2
        ) AS blocked
"""
_RECIPIENTS = """
    SELECT m.user_id,
        EXISTS (SELECT FROM users.blocks b WHERE b.user_id = $2 AND b.blocked_id = m.user_id)
        OR EXISTS (SELECT FROM users.blocks b WHERE b.user_id = m.user_id AND b.blocked_id = $2) AS blocked
    FROM conversations.memberships m
    WHERE m.conversation_id = $1 AND m.left_at IS NULL AND m.user_id <> $2
        AND ($3::uuid[] IS NULL OR m.user_id = ANY ($3))
    ORDER BY m.user_id
"""
_PARTICIPANTS = """
    SELECT m.user_id, m.role, m.left_at IS NULL AS is_active, m.joined_at, m.read_at
    FROM conversations.memberships m
    WHERE m.conversation_id = $1 AND ($2 OR m.left_at IS NULL)
    ORDER BY m.joined_at, m.user_id
"""
_BLOCKS_BETWEEN = """
    SELECT target,
        EXISTS (SELECT FROM users.blocks b WHERE b.user_id = $1 AND b.blocked_id = target) AS is_blocked,
        EXISTS (SELECT FROM users.blocks b WHERE b.user_id = target AND b.blocked_id = $1) AS has_blocked
    FROM unnest($2::uuid[]) AS target
"""
_BLOCK = """
    INSERT INTO users.blocks (user_id, blocked_id)
    SELECT $1, p.id FROM auth.people p WHERE p.id = $2
    ON CONFLICT DO NOTHING
"""
_BLOCKS = """
    SELECT blocked_id, blocked_at FROM users.blocks
    WHERE user_id = $1 AND ($3::timestamptz IS NULL OR (blocked_at, blocked_id) < ($3, $4::uuid))
    ORDER BY blocked_at DESC, blocked_id DESC LIMIT $2
"""
# Two index scans rather than one OR over both columns, so that each runs in the order of its index.
_SEARCH = """
    SELECT DISTINCT ON (lower(username)) id, username, display_name, created_at FROM (
        (SELECT * FROM auth.people WHERE lower(username) LIKE $1 AND lower(username) > $2
            ORDER BY lower(username) LIMIT $3)
        UNION ALL
        (SELECT * FROM auth.people WHERE lower(display_name) LIKE $1 AND lower(username) > $2
            ORDER BY lower(username) LIMIT $3)
    ) found
    ORDER BY lower(username) LIMIT $3
"""


class Standing(msgspec.Struct, frozen=True):
    """What a person is in a conversation; `role` None is a stranger. `blocked`: either of a direct pair."""

    kind: Kind
    role: Role | None
    blocked: bool


class Recipient(msgspec.Struct, frozen=True):
    """Somebody else in the conversation, and whether a block stands between them and the sender."""

    user_id: str
    blocked: bool


class Participant(msgspec.Struct, frozen=True):
    """A person of a conversation; `read_at` is when they last read, None when never."""

    user_id: str
    role: str
    is_active: bool
    joined_at: datetime
    read_at: datetime | None


class Person(msgspec.Struct, frozen=True):
    """A person as others see them."""

    id: str
    username: str
    display_name: str
    created_at: datetime


class Users:
    """Reads and writes of the user service."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def standing(self, conversation_id: str, user_id: str) -> Standing:
        """Say what a person is in a conversation. Raises NOT_FOUND."""
        row = await self._db.fetchrow(_STANDING, conversation_id, user_id)
        if row["kind"] is None:
            raise not_found("conversation", conversation_id)
        role = Role(row["role"]) if row["role"] is not None else None
        return Standing(Kind(row["kind"]), role, row["blocked"])

    async def recipients(
        self, conversation_id: str, sender_id: str, among: Collection[str] | None
    ) -> list[Recipient]:
        """Return the others present, or those of `among` who are."""
        chosen = list(among) if among is not None else None
        rows = await self._db.fetch(_RECIPIENTS, conversation_id, sender_id, chosen)
        return [Recipient(str(row["user_id"]), row["blocked"]) for row in rows]

    async def participants(self, conversation_id: str, *, include_inactive: bool) -> list[Participant]:
        """Return the people of a conversation in the order they came."""
        rows = await self._db.fetch(_PARTICIPANTS, conversation_id, include_inactive)
        return [
            Participant(str(row["user_id"]), row["role"], row["is_active"], row["joined_at"], row["read_at"])
            for row in rows
        ]

    async def blocks_between(self, user_id: str, target_ids: Sequence[str]) -> dict[str, tuple[bool, bool]]:
        """Return for each target whether the user blocked them, and whether they blocked the user."""
        rows = await self._db.fetch(_BLOCKS_BETWEEN, user_id, list(target_ids))
        return {str(row["target"]): (row["is_blocked"], row["has_blocked"]) for row in rows}

    async def block(self, user_id: str, target_id: str) -> None:
        """Block a person; again changes nothing. Raises NOT_FOUND."""
        await self.person(target_id)
        await self._db.execute(_BLOCK, user_id, target_id)

    async def unblock(self, user_id: str, target_id: str) -> None:
        """Take a block back; without one nothing changes."""
        await self._db.execute(
            "DELETE FROM users.blocks WHERE user_id = $1 AND blocked_id = $2", user_id, target_id
        )

    async def blocks(self, user_id: str, size: int, page_token: str) -> tuple[list[Place], str]:
        """Return a page of those blocked and when, the latest first, and the next token."""
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_BLOCKS, user_id, size + 1, at, last_id)
        page = [Place(row["blocked_at"], str(row["blocked_id"])) for row in rows[:size]]
        return page, to_token(page[-1]) if len(rows) > size else ""

    async def person(self, user_id: str) -> Person:
        """Return a person as others see them. Raises NOT_FOUND."""
        row = await self._db.fetchrow(
            "SELECT id, username, display_name, created_at FROM auth.people WHERE id = $1", user_id
        )
        if row is None:
            raise not_found("user", user_id)
        return _person_of(row)

    async def search(self, query: str, size: int, page_token: str) -> tuple[list[Person], str]:
        """Return people whose username or display name begins with `query`, by username; and the next token."""
        after = from_token(page_token, str) or ""
        rows = await self._db.fetch(_SEARCH, _prefix_pattern(query.lower()), after, size + 1)
        page = [_person_of(row) for row in rows[:size]]
        return page, to_token(page[-1].username.lower()) if len(rows) > size else ""


def _prefix_pattern(prefix: str) -> str:
    """Escape what LIKE would read as a wildcard."""
    escaped = prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"{escaped}%"


def _person_of(row: Row) -> Person:
    return Person(str(row["id"]), row["username"], row["display_name"], row["created_at"])
