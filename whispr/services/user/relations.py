"""SQL of what people make of each other: blocks and contacts; and of what they say about themselves.

What one person changes is ordered by a lock of their own: limits hold however many calls come at once, and events
about a person leave in the order of the changes. The lock is advisory, for there may be no row to lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.conversations.paging import Place, from_token, to_token
from whispr.errors import conflict, exhausted, not_found
from whispr.events import Event, emit, once
from whispr.ids import UUID_PATTERN
from whispr.services.user.domain import Changes

ERASURE = "user-erasure"
"""The consumer that erases what is held about people who deleted their accounts."""


Id = Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]


class Known(msgspec.Struct, frozen=True):
    """Somebody among a person's contacts."""

    user_id: str
    added_at: datetime
    mutual: bool


class Relations:
    """Blocks, contacts and profiles."""

    def __init__(self, db: Postgres, *, blocks_max: int, contacts_max: int) -> None:
        self._db = db
        self._blocks_max = blocks_max
        self._contacts_max = contacts_max

    @asynccontextmanager
    async def _changing(self, user_id: str) -> AsyncIterator[Transaction]:
        async with self._db.transaction() as tx:
            await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7573657273))", user_id)
            yield tx

    async def block(self, user_id: str, target_id: str) -> None:
        """Block a person, who also leaves the contacts; again changes nothing.

        Raises NOT_FOUND, RESOURCE_EXHAUSTED (too_many_blocks).
        """
        async with self._changing(user_id) as tx:
            await _check_exists(tx, target_id)
            if await tx.fetchval(_IS_BLOCKED, user_id, target_id):
                return
            if self._blocks_max and await tx.fetchval(_COUNT_BLOCKS, user_id) >= self._blocks_max:
                raise exhausted(f"at most {self._blocks_max} blocks", reason="too_many_blocks")
            await tx.execute(
                "INSERT INTO users.blocks (user_id, blocked_id) VALUES ($1, $2)", user_id, target_id
            )
            await tx.execute(_REMOVE_CONTACT, user_id, target_id)
            await _tell(tx, "user_blocked", user_id, {"target_id": target_id})

    async def unblock(self, user_id: str, target_id: str) -> None:
        """Take a block back; without one nothing changes."""
        async with self._changing(user_id) as tx:
            if await tx.fetchval(_UNBLOCK, user_id, target_id):
                await _tell(tx, "user_unblocked", user_id, {"target_id": target_id})

    async def blocks(self, user_id: str, size: int, page_token: str) -> tuple[list[Place], str]:
        """Return a page of those blocked and when, the latest first, and the next token."""
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_BLOCKS, user_id, size + 1, at, last_id)
        page = [Place(row["blocked_at"], str(row["blocked_id"])) for row in rows[:size]]
        return page, to_token(page[-1]) if len(rows) > size else ""

    async def add_contact(self, user_id: str, contact_id: str) -> Known:
        """Add a contact; again changes nothing.

        Raises NOT_FOUND, FAILED_PRECONDITION (blocked), RESOURCE_EXHAUSTED (too_many_contacts).
        """
        async with self._changing(user_id) as tx:
            await _check_exists(tx, contact_id)
            known = await tx.fetchrow(_CONTACT, user_id, contact_id)
            if known is None:
                await self._insert_contact(tx, user_id, contact_id)
                known = await tx.fetchrow(_CONTACT, user_id, contact_id)
            return _known(known)

    async def _insert_contact(self, tx: Transaction, user_id: str, contact_id: str) -> None:
        if await tx.fetchval(_IS_BLOCKED, user_id, contact_id):
            raise conflict("you have blocked this person: take that back first", "blocked")
        if self._contacts_max and await tx.fetchval(_COUNT_CONTACTS, user_id) >= self._contacts_max:
            raise exhausted(f"at most {self._contacts_max} contacts", reason="too_many_contacts")
        await tx.execute(
            "INSERT INTO users.contacts (user_id, contact_id) VALUES ($1, $2)", user_id, contact_id
        )
        await _tell(tx, "contact_added", user_id, {"contact_id": contact_id})

    async def remove_contact(self, user_id: str, contact_id: str) -> None:
        """Remove a contact; without one nothing changes."""
        async with self._changing(user_id) as tx:
            if await tx.fetchval(_REMOVE_CONTACT, user_id, contact_id):
                await _tell(tx, "contact_removed", user_id, {"contact_id": contact_id})

    async def contacts(self, user_id: str, size: int, page_token: str) -> tuple[list[Known], str]:
        """Return a page of contacts, the latest first, and the next token."""
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_CONTACTS, user_id, size + 1, at, last_id)
        page = [_known(row) for row in rows[:size]]
        return page, to_token(Place(page[-1].added_at, page[-1].user_id)) if len(rows) > size else ""

    async def visible_contacts(
        self, user_id: str, among: Sequence[str], size: int, page_token: str
    ) -> tuple[dict[str, bool], str]:
        """Return contacts, by id, and whether each shows the person their presence; and the next token."""
        after = from_token(page_token, Id)
        rows = await self._db.fetch(_VISIBLE_CONTACTS, user_id, size + 1, after, list(among) or None)
        page = {str(row["contact_id"]): row["visible"] for row in rows[:size]}
        return page, to_token(list(page)[-1]) if len(rows) > size else ""

    async def update_profile(self, user_id: str, changes: Changes) -> None:
        """Change a profile, all but the display name, which auth has. Raises NOT_FOUND."""
        given = {name: value for name, value in changes.given().items() if name != "display_name"}
        async with self._changing(user_id) as tx:
            await _check_exists(tx, user_id)
            await tx.execute(
                "INSERT INTO users.profiles (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user_id
            )
            values = [given.get(name) for name in _COLUMNS]
            await tx.execute(_UPDATE_PROFILE, user_id, *values)
            facts: dict[str, Any] = {"changed": sorted(changes.given())}
            if changes.avatar_media_id is not None:
                facts["avatar_media_id"] = changes.avatar_media_id
            await _tell(tx, "profile_updated", user_id, facts)

    async def held(self, user_id: str) -> list[tuple[str, bytes]]:
        """Return all that is held about a person: what each thing is, and the thing as JSON."""
        found: list[tuple[str, bytes]] = []
        for kind, statement in _HELD.items():
            rows = await self._db.fetch(statement, user_id)
            found += [(kind, _json(dict(row))) for row in rows]
        return found

    async def erase(self, event: Event) -> None:
        """Erase what is held about a person who deleted their account."""
        async with self._db.transaction() as tx:
            if await once(tx, ERASURE, event.id):
                for statement in _ERASE:
                    await tx.execute(statement, event.subject)


async def _check_exists(tx: Transaction, user_id: str) -> None:
    if not await tx.fetchval("SELECT true FROM auth.people WHERE id = $1", user_id):
        raise not_found("user", user_id)


async def _tell(tx: Transaction, what: str, user_id: str, data: Mapping[str, Any]) -> None:
    await emit(tx, f"user.events.{what}", about=user_id, actor=user_id, data={"user_id": user_id, **data})


def _known(row: Any) -> Known:
    return Known(str(row["contact_id"]), row["added_at"], row["mutual"])


# PostgreSQL's UUIDs come as a class of asyncpg's, which msgspec does not know.
_json = msgspec.json.Encoder(enc_hook=str).encode

_IS_BLOCKED = "SELECT true FROM users.blocks WHERE user_id = $1 AND blocked_id = $2"
_COUNT_BLOCKS = "SELECT count(*) FROM users.blocks WHERE user_id = $1"
_COUNT_CONTACTS = "SELECT count(*) FROM users.contacts WHERE user_id = $1"
_UNBLOCK = "DELETE FROM users.blocks WHERE user_id = $1 AND blocked_id = $2 RETURNING true"
_REMOVE_CONTACT = "DELETE FROM users.contacts WHERE user_id = $1 AND contact_id = $2 RETURNING true"

_BLOCKS = """
    SELECT blocked_id, blocked_at FROM users.blocks
    WHERE user_id = $1 AND ($3::timestamptz IS NULL OR (blocked_at, blocked_id) < ($3, $4::uuid))
    ORDER BY blocked_at DESC, blocked_id DESC LIMIT $2
"""

_MUTUAL = """
    SELECT c.contact_id, c.added_at, EXISTS (
        SELECT FROM users.contacts back WHERE back.user_id = c.contact_id AND back.contact_id = c.user_id
    ) AS mutual
    FROM users.contacts c
"""
_CONTACT = f"{_MUTUAL} WHERE c.user_id = $1 AND c.contact_id = $2"
# Whoever closed their account is still a contact, but nobody to be shown.
_CONTACTS = f"""
    {_MUTUAL} JOIN auth.people p ON p.id = c.contact_id
    WHERE c.user_id = $1 AND ($3::timestamptz IS NULL OR (c.added_at, c.contact_id) < ($3, $4::uuid))
    ORDER BY c.added_at DESC, c.contact_id DESC LIMIT $2
"""

_VISIBLE_CONTACTS = """
    SELECT c.contact_id, NOT EXISTS (
            SELECT FROM users.blocks b WHERE b.user_id = c.contact_id AND b.blocked_id = c.user_id
        ) AND NOT EXISTS (
            SELECT FROM users.blocks b WHERE b.user_id = c.user_id AND b.blocked_id = c.contact_id
        ) AND (
            coalesce(f.presence_privacy, 'everyone') = 'everyone'
            OR f.presence_privacy = 'contacts' AND EXISTS (
                SELECT FROM users.contacts back
                WHERE back.user_id = c.contact_id AND back.contact_id = c.user_id
            )
        ) AS visible
    FROM users.contacts c LEFT JOIN users.profiles f ON f.user_id = c.contact_id
    WHERE c.user_id = $1 AND ($3::uuid IS NULL OR c.contact_id > $3)
        AND ($4::uuid[] IS NULL OR c.contact_id = ANY ($4))
    ORDER BY c.contact_id LIMIT $2
"""

_COLUMNS = (
    "bio",
    "avatar_media_id",
    "status_text",
    "locale",
    "time_zone",
    "message_privacy",
    "presence_privacy",
)
# Null leaves a column; an empty avatar is none.
_UPDATE_PROFILE = """
    UPDATE users.profiles SET
        bio = coalesce($2, bio),
        avatar_media_id = CASE WHEN $3::text IS NULL THEN avatar_media_id ELSE nullif($3, '')::uuid END,
        status_text = coalesce($4, status_text),
        locale = coalesce($5, locale),
        time_zone = coalesce($6, time_zone),
        message_privacy = coalesce($7, message_privacy),
        presence_privacy = coalesce($8, presence_privacy),
        updated_at = now()
    WHERE user_id = $1
"""

_HELD = {
    "profile": "SELECT bio, avatar_media_id, status_text, locale, time_zone, message_privacy, presence_privacy,"
    " updated_at FROM users.profiles WHERE user_id = $1",
    "contact": "SELECT contact_id, added_at FROM users.contacts WHERE user_id = $1 ORDER BY added_at, contact_id",
    "block": "SELECT blocked_id, blocked_at FROM users.blocks WHERE user_id = $1 ORDER BY blocked_at, blocked_id",
}

_ERASE: Sequence[str] = (
    "DELETE FROM users.profiles WHERE user_id = $1",
    "DELETE FROM users.contacts WHERE user_id = $1 OR contact_id = $1",
    "DELETE FROM users.blocks WHERE user_id = $1 OR blocked_id = $1",
)
