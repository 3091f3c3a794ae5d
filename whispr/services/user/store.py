"""SQL of the user service: its own blocks, and the views that auth and conversations publish."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from whispr.conversations.database import Database
from whispr.conversations.domain import Kind, Role
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import Row
from whispr.errors import not_found
from whispr.services.user.domain import prefix_range

_STANDING = """
    SELECT
        (SELECT m.kind FROM conversations.memberships m WHERE m.conversation_id = $1 LIMIT 1) AS kind,
        own.role, own.muted_until > now() AS muted,
        EXISTS (
            SELECT FROM conversations.memberships peer JOIN users.blocks b
                ON (b.user_id = $2 AND b.blocked_id = peer.user_id)
                OR (b.user_id = peer.user_id AND b.blocked_id = $2)
            WHERE peer.conversation_id = $1 AND peer.kind = 'direct' AND peer.user_id <> $2
        ) AS blocked,
        EXISTS (
            SELECT FROM conversations.memberships peer
            WHERE peer.conversation_id = $1 AND peer.kind = 'direct' AND peer.user_id <> $2
                AND NOT users.admits(peer.user_id, $2)
        ) AS unwanted,
        CASE WHEN own.kind = 'direct' THEN NOT EXISTS (
            SELECT FROM conversations.memberships peer
            WHERE peer.conversation_id = $1 AND peer.user_id <> $2 AND NOT users.shows($2, peer.user_id)
        ) ELSE NOT EXISTS (
            SELECT FROM users.profiles p WHERE p.user_id = $2 AND p.presence_privacy <> 'everyone'
        ) END AS shows
    FROM (SELECT) nothing LEFT JOIN (
        SELECT m.role, m.kind, m.muted_until FROM conversations.memberships m
        WHERE m.conversation_id = $1 AND m.user_id = $2 AND m.left_at IS NULL
    ) own ON true
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
    SELECT m.user_id, m.role, m.left_at IS NULL AS is_active, m.joined_at
    FROM conversations.memberships m
    WHERE m.conversation_id = $1 AND ($2 OR m.left_at IS NULL)
        AND ($4::timestamptz IS NULL OR (m.joined_at, m.user_id) > ($4, $5::uuid))
    ORDER BY m.joined_at, m.user_id LIMIT $3
"""
_COUNT = """
    SELECT count(*) FROM conversations.memberships m
    WHERE m.conversation_id = $1 AND ($2 OR m.left_at IS NULL)
"""
_BLOCKS_BETWEEN = """
    SELECT target, is_blocked, has_blocked,
        NOT is_blocked AND NOT has_blocked AND users.admits(target, $1) AS may_message
    FROM (
        SELECT target,
            EXISTS (SELECT FROM users.blocks b WHERE b.user_id = $1 AND b.blocked_id = target) AS is_blocked,
            EXISTS (SELECT FROM users.blocks b WHERE b.user_id = target AND b.blocked_id = $1) AS has_blocked
        FROM unnest($2::uuid[]) AS target
    ) between_them
"""
_VISIBLE = """
    SELECT target FROM unnest($2::uuid[]) AS target
    WHERE target = $1 OR NOT users.blocked($1, target) AND users.shows(target, $1)
"""
_PERSON = """
    SELECT p.id, p.username, p.display_name, p.created_at,
        coalesce(f.bio, '') AS bio, f.avatar_media_id::text, coalesce(f.status_text, '') AS status_text,
        coalesce(f.locale, '') AS locale, coalesce(f.time_zone, '') AS time_zone,
        coalesce(f.message_privacy, 'everyone') AS message_privacy,
        coalesce(f.presence_privacy, 'everyone') AS presence_privacy
    FROM auth.people p LEFT JOIN users.profiles f ON f.user_id = p.id
"""
# One index scan for each kind of match, in the order of its index: the exact username, usernames, display names.
# Whoever is found by their username is not found again by their display name. Operators of text_pattern_ops
# compare by code point, whatever the database's collation; $3 is no upper end when null.
_NOT_BLOCKED = """
    AND NOT EXISTS (SELECT FROM users.blocks b WHERE b.user_id = $6 AND b.blocked_id = p.id)
    AND NOT EXISTS (SELECT FROM users.blocks b WHERE b.user_id = p.id AND b.blocked_id = $6)
"""
_SEARCH = f"""
    SELECT found.place, found.key, person.* FROM (
        (SELECT 0 AS place, lower(p.username) AS key, p.id FROM auth.people p
            WHERE lower(p.username) = $1 AND $4 < 0 {_NOT_BLOCKED})
        UNION ALL
        (SELECT 1, lower(p.username), p.id FROM auth.people p
            WHERE lower(p.username) ~>=~ $1 AND ($2::text IS NULL OR lower(p.username) ~<~ $2)
                AND lower(p.username) <> $1
                AND ($4 < 1 OR $4 = 1 AND lower(p.username) ~>~ $5) {_NOT_BLOCKED}
            ORDER BY lower(p.username) USING ~<~ LIMIT $3)
        UNION ALL
        (SELECT 2, lower(p.display_name) || E'\\t' || p.id, p.id FROM auth.people p
            WHERE lower(p.display_name) ~>=~ $1 AND ($2::text IS NULL OR lower(p.display_name) ~<~ $2)
                AND NOT (lower(p.username) ~>=~ $1 AND ($2::text IS NULL OR lower(p.username) ~<~ $2))
                AND ($4 < 2 OR lower(p.display_name) ~>=~ split_part($5, E'\\t', 1))
                AND ($4 < 2 OR lower(p.display_name) || E'\\t' || p.id ~>~ $5) {_NOT_BLOCKED}
            ORDER BY lower(p.display_name) USING ~<~, p.id LIMIT $3)
    ) found JOIN ({_PERSON}) person ON person.id = found.id
    ORDER BY found.place, found.key COLLATE "C" LIMIT $3
"""  # noqa: S608 our own text


class Standing(msgspec.Struct, frozen=True):
    """What a person is in a conversation; `role` None is a stranger.

    `blocked`: either of a direct pair by the other. `unwanted`: the other does not take their direct messages.
    """

    kind: Kind
    role: Role | None
    blocked: bool
    unwanted: bool = False
    muted: bool = False
    shows: bool = True
    """Whether their presence is shown there."""


class Recipient(msgspec.Struct, frozen=True):
    """Somebody else in the conversation, and whether a block stands between them and the sender."""

    user_id: str
    blocked: bool


class Participant(msgspec.Struct, frozen=True):
    """A person of a conversation."""

    user_id: str
    role: str
    is_active: bool
    joined_at: datetime


class Between(msgspec.Struct, frozen=True):
    """What stands between two people."""

    is_blocked: bool
    has_blocked: bool
    may_message: bool


class Person(msgspec.Struct, frozen=True):
    """A person, with what they say about themselves."""

    id: str
    username: str
    display_name: str
    created_at: datetime
    bio: str
    avatar_media_id: str | None
    status_text: str
    locale: str
    time_zone: str
    message_privacy: str
    presence_privacy: str


class Found(msgspec.Struct, array_like=True, frozen=True):
    """Where a page of a search ended: which kind of match, and its sort key."""

    place: Annotated[int, msgspec.Meta(ge=-1, le=2)]
    key: Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00]*$")]


class Users:
    """Reads of the user service."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def standing(self, conversation_id: str, user_id: str) -> Standing:
        """Say what a person is in a conversation. Raises NOT_FOUND."""
        row = await self._db.fetchrow(_STANDING, conversation_id, user_id)
        if row["kind"] is None:
            raise not_found("conversation", conversation_id)
        role = Role(row["role"]) if row["role"] is not None else None
        blocked, shows = row["blocked"], role is not None and row["shows"] and not row["blocked"]
        return Standing(Kind(row["kind"]), role, blocked, row["unwanted"], bool(row["muted"]), shows)

    async def recipients(
        self, conversation_id: str, sender_id: str, among: Collection[str] | None
    ) -> list[Recipient]:
        """Return the others present, or those of `among` who are."""
        chosen = list(among) if among is not None else None
        rows = await self._db.fetch(_RECIPIENTS, conversation_id, sender_id, chosen)
        return [Recipient(str(row["user_id"]), row["blocked"]) for row in rows]

    async def participants(
        self, conversation_id: str, size: int, page_token: str, *, include_inactive: bool
    ) -> tuple[list[Participant], int, str]:
        """Return a page of the people of a conversation in the order they came, their number, the next token."""
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_PARTICIPANTS, conversation_id, include_inactive, size + 1, at, last_id)
        page = [
            Participant(str(row["user_id"]), row["role"], row["is_active"], row["joined_at"])
            for row in rows[:size]
        ]
        more = len(rows) > size
        total = len(rows)
        if more or after is not None:
            total = await self._db.fetchval(_COUNT, conversation_id, include_inactive)
        return page, total, to_token(Place(page[-1].joined_at, page[-1].user_id)) if more else ""

    async def between(self, user_id: str, target_ids: Sequence[str]) -> dict[str, Between]:
        """Return for each target what stands between them and the user."""
        rows = await self._db.fetch(_BLOCKS_BETWEEN, user_id, list(target_ids))
        return {
            str(row["target"]): Between(row["is_blocked"], row["has_blocked"], row["may_message"])
            for row in rows
        }

    async def visible(self, viewer_id: str, user_ids: Collection[str]) -> set[str]:
        """Return those of the users whose presence the viewer may see."""
        rows = await self._db.fetch(_VISIBLE, viewer_id, list(user_ids))
        return {str(row["target"]) for row in rows}

    async def person(self, user_id: str) -> Person:
        """Return a person. Raises NOT_FOUND."""
        row = await self._db.fetchrow(f"{_PERSON} WHERE p.id = $1", user_id)
        if row is None:
            raise not_found("user", user_id)
        return person_of(row)

    async def people(self, user_ids: Collection[str]) -> dict[str, Person]:
        """Return those of the people who exist."""
        rows = await self._db.fetch(f"{_PERSON} WHERE p.id = ANY ($1::uuid[])", list(user_ids))
        return {str(row["id"]): person_of(row) for row in rows}

    async def search(
        self, searcher_id: str, query: str, size: int, page_token: str
    ) -> tuple[list[Person], str]:
        """Return people whose username or display name begins with `query`, and the next token.

        The exact username comes first, then usernames in order, then display names in order. Without those whom
        the searcher blocked or who blocked them.
        """
        after = from_token(page_token, Found) or Found(-1, "")
        first, end = prefix_range(query.lower())
        rows = await self._db.fetch(_SEARCH, first, end, size + 1, after.place, after.key, searcher_id)
        page = [person_of(row) for row in rows[:size]]
        if len(rows) <= size:
            return page, ""
        return page, to_token(Found(rows[size - 1]["place"], rows[size - 1]["key"]))


def person_of(row: Row) -> Person:
    """Read a row of `_PERSON`."""
    fields = {name: row[name] for name in Person.__struct_fields__}
    return Person(**fields | {"id": str(row["id"])})
