"""SQL of media: what is announced and received, who may have it, what links to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import conflict, denied, exhausted, not_found
from whispr.events import emit
from whispr.ids import new_id
from whispr.services.media.domain import (
    PARTS_MAX,
    Access,
    Announced,
    MediaLimits,
    Medium,
    Status,
    Stored,
)

_COLUMNS: Final = """
    m.id, m.owner_id, m.conversation_id, m.filename, m.content_type, m.kind, m.status, m.error_reason,
    m.error_message, m.declared_bytes, m.received_bytes, m.width, m.height, m.duration_s, m.waveform,
    m.custom_metadata, m.variants, m.created_at, m.upload_expires_at, m.ready_at, m.unlinked_at
"""
# The row of usage is locked first, so that of all uploads announced at once as many fit as fit one by one.
_RESERVE = """
    INSERT INTO media.usage AS u (user_id, bytes) VALUES ($1, 0)
    ON CONFLICT (user_id) DO UPDATE SET bytes = u.bytes
    RETURNING bytes, (SELECT count(*) FROM media.media m WHERE m.owner_id = $1 AND m.status = 'pending') AS pending
"""
_CREATE = f"""
    INSERT INTO media.media AS m (id, owner_id, conversation_id, filename, content_type, kind, declared_bytes,
        reserved_bytes, custom_metadata, upload_expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8::text::jsonb, now() + make_interval(secs => $9))
    RETURNING {_COLUMNS}
"""  # noqa: S608  # constant columns
_ACCESS = f"""
    SELECT {_COLUMNS}, coalesce(m.owner_id = $2, false) AS is_owner, EXISTS (
        SELECT FROM media.links l JOIN conversations.memberships s
            ON s.conversation_id = l.conversation_id AND s.user_id = $2 AND s.left_at IS NULL
        WHERE l.media_id = m.id AND ($3::uuid IS NULL OR l.conversation_id = $3)
    ) OR EXISTS (
        -- Faces are for everybody to see.
        SELECT FROM users.avatars a WHERE a.media_id = m.id AND $2::uuid IS NOT NULL
    ) AS through_link
    FROM media.media m WHERE m.id = $1
"""  # noqa: S608  # constant columns
_IS_MEMBER = """
    SELECT EXISTS (SELECT FROM conversations.memberships s
        WHERE s.conversation_id = $1 AND s.user_id = $2 AND s.left_at IS NULL)
"""
# Either all of the parts continue what was received, or none is entered.
_RECEIVE = """
    WITH moved AS (
        UPDATE media.media m SET
            received_bytes = m.received_bytes + $3,
            part_count = m.part_count + cardinality($4::bigint[]),
            status = CASE WHEN m.received_bytes + $3 = m.declared_bytes THEN 'processing' ELSE 'pending' END,
            completed_at = CASE WHEN m.received_bytes + $3 = m.declared_bytes THEN now() END
        WHERE m.id = $1 AND m.status = 'pending' AND m.received_bytes = $2
            AND m.received_bytes + $3 <= m.declared_bytes AND m.upload_expires_at > now()
            AND m.part_count + cardinality($4::bigint[]) <= $7
        RETURNING m.id, m.status, m.received_bytes
    ), entered AS (
        INSERT INTO media.parts (media_id, start, bytes, key)
        SELECT moved.id, p.start, p.bytes, p.key
        FROM moved, unnest($4::bigint[], $5::bigint[], $6::text[]) AS p (start, bytes, key)
    ), queued AS (
        INSERT INTO media.jobs (media_id) SELECT id FROM moved WHERE status = 'processing'
    )
    SELECT received_bytes FROM moved
"""
_RESTART = """
    WITH emptied AS (
        UPDATE media.media SET received_bytes = 0, part_count = 0
        WHERE id = $1 AND status = 'pending' AND upload_expires_at > now() RETURNING id
    )
    DELETE FROM media.parts WHERE media_id IN (SELECT id FROM emptied) RETURNING start, bytes, key
"""
_LINK = """
    INSERT INTO media.links AS l (id, media_id, message_id, conversation_id, linked_by)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (media_id, message_id) DO UPDATE SET media_id = l.media_id
    RETURNING l.id, l.linked_at, l.conversation_id, xmax = 0 AS is_new
"""
# Of a link to a message and that message's end, one comes first and the other sees it.
_ORDER = "SELECT pg_advisory_xact_lock(hashtextextended('media.message.' || $1, 0))"
_ERASED_AT_ONCE: Final = 200


class Part(msgspec.Struct, frozen=True):
    """A piece of what was received, as an object of its own."""

    start: int
    bytes: int
    key: str


class Link(msgspec.Struct, frozen=True):
    """A message that shows a medium."""

    id: str
    linked_at: datetime


class Exported(msgspec.Struct, frozen=True):
    """What a data export says of a link."""

    link_id: str
    media_id: str
    message_id: str
    conversation_id: str
    linked_at: datetime


def medium_of(row: Any) -> Medium:
    """Build a medium from its columns."""
    return Medium(
        id=str(row["id"]),
        owner_id=str(row["owner_id"]),
        conversation_id=str(row["conversation_id"]) if row["conversation_id"] else None,
        filename=row["filename"],
        content_type=row["content_type"],
        kind=row["kind"],
        status=Status(row["status"]),
        error_reason=row["error_reason"] or "",
        error_message=row["error_message"] or "",
        declared_bytes=row["declared_bytes"],
        received_bytes=row["received_bytes"],
        width=row["width"] or 0,
        height=row["height"] or 0,
        duration_s=row["duration_s"] or 0.0,
        waveform=row["waveform"] or b"",
        custom_metadata=_custom(row["custom_metadata"]) if row["custom_metadata"] else {},
        variants=_variants(row["variants"]) if row["variants"] else (),
        created_at=row["created_at"],
        upload_expires_at=row["upload_expires_at"],
        ready_at=row["ready_at"],
        unlinked_at=row["unlinked_at"],
    )


_custom = msgspec.json.Decoder(dict[str, str]).decode
_variants = msgspec.json.Decoder(tuple[Stored, ...]).decode
_json = msgspec.json.Encoder().encode


class MediaStore:
    """Reads and writes of media."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def create(
        self, owner_id: str, file: Announced, conversation_id: str | None, limits: MediaLimits
    ) -> Medium:
        """Enter a medium that is to be uploaded, within its owner's quota.

        Raises RESOURCE_EXHAUSTED (quota_exceeded, too_many_uploads).
        """
        async with self._db.transaction() as tx:
            usage = await tx.fetchrow(_RESERVE, owner_id)
            assert usage is not None, "an upsert returns its row"
            if limits.user_bytes and usage["bytes"] + file.file_size > limits.user_bytes:
                left = max(0, limits.user_bytes - usage["bytes"])
                raise exhausted(
                    f"the file has {file.file_size} bytes, and {left} of your {limits.user_bytes} are left",
                    reason="quota_exceeded",
                )
            if limits.pending_uploads and usage["pending"] >= limits.pending_uploads:
                raise exhausted(
                    f"finish or delete some of your {usage['pending']} uploads first",
                    reason="too_many_uploads",
                )
            row = await tx.fetchrow(
                _CREATE, new_id(), owner_id, conversation_id, file.filename, file.content_type, file.kind,
                file.file_size, _json(dict(file.custom_metadata)).decode(), limits.upload_url_s,
            )  # fmt: skip
        return medium_of(row)

    async def get(self, media_id: str) -> Medium | None:
        """Return a medium."""
        row = await self._db.fetchrow(f"SELECT {_COLUMNS} FROM media.media m WHERE m.id = $1", media_id)  # noqa: S608
        return medium_of(row) if row is not None else None

    async def access(
        self, media_id: str, user_id: str | None, conversation_id: str | None = None
    ) -> Access | None:
        """Return a medium as somebody may see it; with a conversation, by that one's links alone."""
        row = await self._db.fetchrow(_ACCESS, media_id, user_id, conversation_id)
        if row is None:
            return None
        return Access(medium_of(row), row["is_owner"], row["through_link"])

    async def is_member(self, conversation_id: str, user_id: str) -> bool:
        """Tell whether somebody is in a conversation now."""
        found: bool = await self._db.fetchval(_IS_MEMBER, conversation_id, user_id)
        return found

    async def page(self, owner_id: str, size: int, before: str | None) -> Sequence[Medium]:
        """Return somebody's media, latest first; those before an id."""
        rows = await self._db.fetch(
            f"SELECT {_COLUMNS} FROM media.media m WHERE m.owner_id = $1 AND ($2::uuid IS NULL OR m.id < $2)"  # noqa: S608
            " ORDER BY m.id DESC LIMIT $3",
            owner_id, before, size,
        )  # fmt: skip
        return [medium_of(row) for row in rows]

    async def used_bytes(self, user_id: str) -> int:
        """Return how much of their quota somebody's media take."""
        return int(await self._db.fetchval("SELECT bytes FROM media.usage WHERE user_id = $1", user_id) or 0)

    # Uploads

    async def receive(self, media_id: str, start: int, parts: Sequence[Part]) -> int | None:
        """Enter parts that were received, which continue at `start`; return how much there is now.

        With the last one the medium is processing, and its job waiting. None when they do not fit: another
        request was faster, the upload has ended, or there are too many parts.
        """
        received: int | None = await self._db.fetchval(
            _RECEIVE, media_id, start, sum(part.bytes for part in parts), [part.start for part in parts],
            [part.bytes for part in parts], [part.key for part in parts], PARTS_MAX,
        )  # fmt: skip
        return received

    async def restart(self, media_id: str) -> list[Part]:
        """Forget what was received of an upload; return it, for its objects to be deleted."""
        rows = await self._db.fetch(_RESTART, media_id)
        return [Part(row["start"], row["bytes"], row["key"]) for row in rows]

    async def parts(self, media_id: str) -> Sequence[Part]:
        """Return the parts of a medium in order."""
        rows = await self._db.fetch(
            "SELECT start, bytes, key FROM media.parts WHERE media_id = $1 ORDER BY start", media_id
        )
        return [Part(row["start"], row["bytes"], row["key"]) for row in rows]

    # Ends

    async def delete(self, media_id: str, actor: str | None, reason: str) -> bool:
        """Delete a medium, its links, and in time its objects; False when it is gone already."""
        async with self._db.transaction() as tx:
            return await deleted(tx, media_id, actor, reason)

    async def delete_of_owner(self, owner_id: str) -> None:
        """Delete all of somebody's media, and forget who made the links they made."""
        while True:
            async with self._db.transaction() as tx:
                rows = await tx.fetch(
                    "SELECT id FROM media.media WHERE owner_id = $1 ORDER BY id LIMIT $2 FOR UPDATE",
                    owner_id, _ERASED_AT_ONCE,
                )  # fmt: skip
                for row in rows:
                    await deleted(tx, str(row["id"]), None, "account_deleted")
            if not rows:
                break
        await self._db.execute("UPDATE media.links SET linked_by = NULL WHERE linked_by = $1", owner_id)
        await self._db.execute("DELETE FROM media.usage WHERE user_id = $1 AND bytes = 0", owner_id)

    # Links

    async def link(
        self, media_id: str, message_id: str, conversation_id: str, actor: str, link_id: str
    ) -> Link:
        """Link a medium to a message; a repeat returns the same link.

        Raises NOT_FOUND, PERMISSION_DENIED (media_forbidden, not_a_member), FAILED_PRECONDITION (failed,
        message_deleted, linked_elsewhere).
        """
        async with self._db.transaction() as tx:
            locked = await tx.fetchval(
                "SELECT status FROM media.media WHERE id = $1 FOR NO KEY UPDATE", media_id
            )
            row = await tx.fetchrow(_ACCESS, media_id, actor, None) if locked is not None else None
            if row is None:
                raise not_found("medium", media_id)
            if not (row["is_owner"] or row["through_link"]):
                raise denied("you may not pass on this medium", reason="media_forbidden")
            if row["status"] == Status.ERROR:
                raise conflict(f"the medium cannot be given out: {row['error_message']}", "failed")
            if not await tx.fetchval(_IS_MEMBER, conversation_id, actor):
                raise denied("you are not a member of this conversation", reason="not_a_member")
            if await tx.fetchval("SELECT true FROM media.gone_messages WHERE message_id = $1", message_id):
                raise conflict("the message has been deleted", "message_deleted")
            link = await tx.fetchrow(_LINK, link_id or new_id(), media_id, message_id, conversation_id, actor)
            assert link is not None, "an upsert returns its row"
            if str(link["conversation_id"]) != conversation_id:
                raise conflict("the message is in another conversation", "linked_elsewhere")
            if link["is_new"]:
                data = {
                    "link_id": str(link["id"]), "media_id": media_id, "message_id": message_id,
                    "conversation_id": conversation_id, "kind": row["kind"],
                }  # fmt: skip
                await emit(tx, "user.events.media_linked", about=media_id, actor=actor, data=data)
        return Link(str(link["id"]), link["linked_at"])

    async def exported_links(self, user_id: str) -> AsyncGenerator[Exported, None]:
        """Yield the links that somebody made, oldest first."""
        last = None
        while True:
            rows = await self._db.fetch(
                "SELECT * FROM media.links WHERE linked_by = $1 AND ($2::uuid IS NULL OR id > $2)"
                " ORDER BY id LIMIT 200",
                user_id, last,
            )  # fmt: skip
            for row in rows:
                link_id, media, message, conversation = (
                    str(row[name]) for name in ("id", "media_id", "message_id", "conversation_id")
                )
                yield Exported(link_id, media, message, conversation, row["linked_at"])
            if not rows:
                return
            last = rows[-1]["id"]


async def deleted(tx: Transaction, media_id: str, actor: str | None, reason: str) -> bool:
    """Delete a medium in a transaction, and tell of it; False when it is gone already."""
    row = await tx.fetchrow("DELETE FROM media.media WHERE id = $1 RETURNING owner_id", media_id)
    if row is None:
        return False
    data = {"media_id": media_id, "owner_id": str(row["owner_id"]), "reason": reason}
    await emit(tx, "user.events.media_deleted", about=media_id, actor=actor, data=data)
    return True


async def unlinked(tx: Transaction, media_id: str, message_id: str) -> None:
    """Take back a link to a message that there is not."""
    await tx.execute("SELECT FROM media.media WHERE id = $1 FOR NO KEY UPDATE", media_id)
    await tx.execute("DELETE FROM media.links WHERE media_id = $1 AND message_id = $2", media_id, message_id)


async def message_gone(tx: Transaction, message_id: str) -> None:
    """Unlink what a deleted message showed, and refuse links to it that are still on their way."""
    await tx.execute(_ORDER, message_id)
    await tx.execute(
        "INSERT INTO media.gone_messages (message_id) VALUES ($1) ON CONFLICT DO NOTHING", message_id
    )
    # Rows of media are locked before their links go, in the order of their ids: the trigger updates them.
    await tx.execute(
        "SELECT FROM media.media WHERE id IN (SELECT media_id FROM media.links WHERE message_id = $1)"
        " ORDER BY id FOR NO KEY UPDATE",
        message_id,
    )
    await tx.execute("DELETE FROM media.links WHERE message_id = $1", message_id)
