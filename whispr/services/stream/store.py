"""Streams in PostgreSQL, and who may listen to them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.audio.packets import Quality
from whispr.errors import exhausted, not_found
from whispr.events import emit
from whispr.ids import is_id, new_id
from whispr.services.stream.domain import (
    Category,
    Metadata,
    Status,
    Stream,
    StreamConfig,
    StreamLimits,
    Visibility,
)

KEY_PREFIX: Final = "wsk_"
"""Of stream keys, by which people and scanners of leaked secrets know them."""
SORTS: Final[Mapping[str, str]] = {
    "RECENT": "s.started_at DESC, s.id DESC",
    "POPULAR": "coalesce(p.listen_ms, 0) DESC, s.started_at DESC, s.id DESC",
    "TITLE": "lower(s.title), s.id",
    "LISTENERS": "coalesce(c.listeners, 0) DESC, s.started_at DESC, s.id DESC",
}
"""How a page of running streams may be sorted; counts of listeners are the caller's."""

_COLUMNS = """
    s.id, s.title, s.description, s.category, s.visibility, s.streamer_id, s.status, s.default_quality,
    s.config::text AS config, s.metadata::text AS metadata, s.volume, s.room_id, s.created_at, s.started_at,
    s.ended_at, s.end_reason, coalesce(a.username, '') AS streamer_username,
    EXISTS (SELECT FROM streams.recordings r WHERE r.stream_id = s.id AND r.status = 'RECORDING') AS is_recording
"""
_FROM = "FROM streams.streams s LEFT JOIN auth.people a ON a.id = s.streamer_id"
_ONE = f"SELECT {_COLUMNS} {_FROM} WHERE s.id = $1"  # our own text
_STANDING = f"""
    SELECT {_COLUMNS},
        EXISTS (SELECT FROM streams.invitations i WHERE i.stream_id = s.id AND i.user_id = $2) AS invited,
        EXISTS (SELECT FROM streams.removals x WHERE x.stream_id = s.id AND x.user_id = $2) AS removed,
        EXISTS (SELECT FROM auth.ended_sessions e WHERE e.id = $3) AS signed_out
    {_FROM} WHERE s.id = $1
"""  # noqa: S608  # our own text
_OWN = f"""
    SELECT {_COLUMNS} {_FROM} WHERE s.streamer_id = $1 AND ($2::uuid IS NULL OR s.id < $2) ORDER BY s.id DESC LIMIT $3
"""  # our own text
_LISTED = "s.status IN ('LIVE', 'PAUSED') AND s.visibility IN ('PUBLIC_STREAM', 'PREMIUM_ONLY')"


@dataclass(frozen=True, slots=True)
class Standing:
    """A stream in somebody's eyes."""

    stream: Stream
    invited: bool
    removed: bool
    signed_out: bool = False
    """Whether the sign-in that they came with has ended."""


class StreamStore:
    """The tables of streams and of those who may listen."""

    def __init__(self, db: Postgres, limits: StreamLimits) -> None:
        self._db = db
        self._limits = limits

    async def create(
        self,
        streamer_id: str,
        title: str,
        description: str,
        category: Category,
        visibility: Visibility,
        default_quality: str | None,
    ) -> tuple[Stream, str]:
        """Make a stream; return it and its key. Raises RESOURCE_EXHAUSTED (too_many_streams)."""
        stream_id, key = new_id(), new_key()
        async with self._db.transaction() as tx:
            await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 7))", streamer_id)
            await self._check_room(tx, streamer_id)
            await tx.execute(
                "INSERT INTO streams.streams (id, title, description, category, visibility, streamer_id,"
                " default_quality, key_sha256) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                stream_id, title, description, category.value, visibility.value, streamer_id, default_quality,
                digest(key),
            )  # fmt: skip
            stream = await _one(tx, stream_id)
            data = {"title": title, "category": category.value, "visibility": visibility.value}
            await emit(tx, "stream.events.stream_created", about=stream_id, actor=streamer_id, data=data)
        return stream, key

    async def _check_room(self, tx: Transaction, streamer_id: str) -> None:
        if not self._limits.user_streams:
            return
        count = await tx.fetchval(
            "SELECT count(*) FROM streams.streams WHERE streamer_id = $1 AND ended_at IS NULL", streamer_id
        )
        if count >= self._limits.user_streams:
            raise exhausted(
                f"at most {self._limits.user_streams} streams that have not ended", reason="too_many_streams"
            )

    async def find(self, stream_id: str) -> Stream:
        """Return a stream. Raises NOT_FOUND."""
        row = await self._db.fetchrow(_ONE, stream_id)
        if row is None:
            raise not_found("stream", stream_id)
        return stream_of(row)

    async def standing(self, stream_id: str, user_id: str, session_id: str = "") -> Standing:
        """Return a stream as somebody sees it; `user_id` empty for somebody unknown. Raises NOT_FOUND.

        `session_id`: the sign-in that they came with, if that is to be looked at.
        """
        session = session_id if is_id(session_id) else None
        row = await self._db.fetchrow(_STANDING, stream_id, user_id or None, session)
        if row is None:
            raise not_found("stream", stream_id)
        return Standing(stream_of(row), bool(row["invited"]), bool(row["removed"]), bool(row["signed_out"]))

    async def key_sha256(self, stream_id: str) -> bytes:
        """Return the digest of a stream's key. Raises NOT_FOUND."""
        found = await self._db.fetchval("SELECT key_sha256 FROM streams.streams WHERE id = $1", stream_id)
        if found is None:
            raise not_found("stream", stream_id)
        return bytes(found)

    async def rotate_key(self, stream_id: str) -> str:
        """Give a stream another key; return it."""
        key = new_key()
        await self._db.execute(
            "UPDATE streams.streams SET key_sha256 = $2 WHERE id = $1", stream_id, digest(key)
        )
        return key

    async def own(self, streamer_id: str, before: str | None, limit: int) -> list[Stream]:
        """Return a page of somebody's streams, the newest first."""
        return [stream_of(row) for row in await self._db.fetch(_OWN, streamer_id, before, limit)]

    async def running_ids(self) -> list[str]:
        """Name the streams that run."""
        rows = await self._db.fetch("SELECT id FROM streams.streams WHERE status IN ('LIVE', 'PAUSED')")
        return [str(row["id"]) for row in rows]

    async def listed(
        self, category: str | None, sort: str, counts: Mapping[str, int], offset: int, limit: int
    ) -> tuple[list[Stream], int]:
        """Return a page of the streams that run and are listed, and how many there are."""
        total = await self._db.fetchval(
            f"SELECT count(*) FROM streams.streams s WHERE {_LISTED} AND ($1::text IS NULL OR s.category = $1)",  # noqa: S608  # our own text
            category,
        )
        rows = await self._db.fetch(
            f"""
            SELECT {_COLUMNS} {_FROM}
            LEFT JOIN unnest($2::uuid[], $3::int[]) AS c (id, listeners) ON c.id = s.id
            LEFT JOIN LATERAL (
                SELECT sum(h.listen_ms) AS listen_ms FROM streams.hours h
                WHERE $6 = 'POPULAR' AND h.stream_id = s.id AND h.hour > now() - interval '1 day'
            ) p ON true
            WHERE {_LISTED} AND ($1::text IS NULL OR s.category = $1)
            ORDER BY {SORTS[sort]} OFFSET $4 LIMIT $5
            """,  # noqa: S608  # our own text
            category, list(counts), list(counts.values()), offset, limit, sort,
        )  # fmt: skip
        return [stream_of(row) for row in rows], int(total)

    async def invite(self, stream_id: str, user_id: str) -> None:
        """Let somebody listen. Raises RESOURCE_EXHAUSTED (too_many_invitations), NOT_FOUND for the person."""
        async with self._db.transaction() as tx:
            await lock(tx, stream_id)
            if not await tx.fetchval("SELECT EXISTS (SELECT FROM auth.people WHERE id = $1)", user_id):
                raise not_found("user", user_id)
            most = self._limits.invitations
            count = await tx.fetchval(
                "SELECT count(*) FROM streams.invitations WHERE stream_id = $1 AND user_id <> $2",
                stream_id,
                user_id,
            )
            if most and count >= most:
                raise exhausted(f"at most {most} invitations to a stream", reason="too_many_invitations")
            await tx.execute(
                "INSERT INTO streams.invitations (stream_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                stream_id, user_id,
            )  # fmt: skip
            await tx.execute(
                "DELETE FROM streams.removals WHERE stream_id = $1 AND user_id = $2", stream_id, user_id
            )

    async def uninvite(self, stream_id: str, user_id: str) -> None:
        """Take an invitation back, if there is one."""
        await self._db.execute(
            "DELETE FROM streams.invitations WHERE stream_id = $1 AND user_id = $2", stream_id, user_id
        )

    async def remove(self, stream_id: str, user_id: str) -> None:
        """Keep somebody out from now on."""
        async with self._db.transaction() as tx:
            await tx.execute(
                "INSERT INTO streams.removals (stream_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                stream_id, user_id,
            )  # fmt: skip
            await tx.execute(
                "DELETE FROM streams.invitations WHERE stream_id = $1 AND user_id = $2", stream_id, user_id
            )


async def lock(tx: Transaction, stream_id: str) -> Stream:
    """Lock a stream's row for the rest of the transaction; return it. Raises NOT_FOUND."""
    found = await tx.fetchval("SELECT id FROM streams.streams WHERE id = $1 FOR UPDATE", stream_id)
    if found is None:
        raise not_found("stream", stream_id)
    return await _one(tx, stream_id)


async def change(tx: Transaction, stream_id: str, columns: Mapping[str, object]) -> Stream:
    """Set columns of a stream that is locked; return it as it is then. The names are the program's own."""
    sets = ", ".join(f"{name} = ${n}{_CASTS.get(name, '')}" for n, name in enumerate(columns, 2))
    await tx.execute(f"UPDATE streams.streams SET {sets} WHERE id = $1", stream_id, *columns.values())  # noqa: S608  # names are ours
    return await _one(tx, stream_id)


_CASTS = {"config": "::text::jsonb", "metadata": "::text::jsonb"}


async def _one(tx: Transaction, stream_id: str) -> Stream:
    row = await tx.fetchrow(_ONE, stream_id)
    assert row is not None, "locked or just made"
    return stream_of(row)


def stream_of(row: Any) -> Stream:
    """Read a row."""
    return Stream(
        id=str(row["id"]),
        title=row["title"],
        description=row["description"],
        category=Category(row["category"]),
        visibility=Visibility(row["visibility"]),
        streamer_id=str(row["streamer_id"]),
        streamer_username=row["streamer_username"],
        status=Status(row["status"]),
        default_quality=Quality(row["default_quality"]) if row["default_quality"] else None,
        config=msgspec.json.decode(row["config"], type=StreamConfig),
        metadata=msgspec.json.decode(row["metadata"], type=Metadata),
        volume=row["volume"],
        room_id=str(row["room_id"]) if row["room_id"] else None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        end_reason=row["end_reason"],
        is_recording=bool(row["is_recording"]),
    )


def to_json(value: msgspec.Struct) -> str:
    """Encode a column."""
    return msgspec.json.encode(value).decode()


def new_key() -> str:
    """Return a fresh stream key: 160 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(20)


def digest(key: str) -> bytes:
    """Return what is stored of a key. Keys are random and long, so a plain hash gives nothing away."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
