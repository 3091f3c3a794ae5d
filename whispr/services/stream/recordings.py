"""The index of recordings. What is to be recorded is decided here; the engine records, and says how it goes.

A row is RECORDING from the moment that somebody wants it, also before a process has begun; PROCESSING once it is to
end, until its file is stored; then COMPLETED or FAILED. `Recordings` is what both sides call.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.audio.packets import Codec, Quality
from whispr.errors import not_found
from whispr.events import emit
from whispr.ids import new_id
from whispr.services.stream.domain import Visibility

EXTENSIONS: Final = {Codec.OPUS: "ogg", Codec.AAC: "aac"}
MEDIA_TYPES: Final = {Codec.OPUS: "audio/ogg; codecs=opus", Codec.AAC: "audio/aac"}


class RecordingStatus(enum.StrEnum):
    """Where a recording is."""

    RECORDING = "RECORDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A recording, as the database has it."""

    id: str
    stream_id: str
    streamer_id: str
    title: str
    status: RecordingStatus
    quality: Quality
    codec: Codec
    auto_upload: bool
    node: str
    """The node whose disk has it; empty before one has begun."""
    object_key: str
    """In the object store, when it is there."""
    bytes: int
    duration_s: float
    error: str
    created_at: datetime
    ended_at: datetime | None
    expires_at: datetime | None

    @property
    def extension(self) -> str:
        """Of its file: `ogg` or `aac`."""
        return EXTENSIONS[self.codec]


class Changed(msgspec.Struct, frozen=True):
    """News of a recording."""

    recording: Recording
    kind: str
    """recording_completed, or error."""


OnChanged = Callable[[Changed], None]

_COLUMNS: Final = """
    r.id, r.stream_id, r.streamer_id, r.title, r.status, r.quality, r.codec, r.auto_upload, r.node, r.object_key,
    r.bytes, r.duration_s, r.error, r.created_at, r.ended_at, r.expires_at
"""
_PAGE = f"""
    SELECT {_COLUMNS}, count(*) OVER () AS total
    FROM streams.recordings r JOIN streams.streams s ON s.id = r.stream_id
    WHERE r.streamer_id = $1 AND ($2 OR (s.visibility = $3 AND r.status = 'COMPLETED'))
    ORDER BY r.id DESC OFFSET $4 LIMIT $5
"""  # noqa: S608  # our own text


class Recordings:
    """The rows."""

    def __init__(self, db: Postgres, *, keep_s: float = 0.0, on_changed: OnChanged = lambda _: None) -> None:
        """`keep_s`: how long a recording is kept once it is complete; 0 for ever."""
        self._db = db
        self._keep_s = keep_s
        self._on_changed = on_changed

    # What the service does

    async def want(
        self, tx: Transaction, stream_id: str, streamer_id: str, title: str, quality: Quality, codec: Codec,
        *, auto_upload: bool,
    ) -> tuple[Recording, bool]:  # fmt: skip
        """Have a stream recorded, whose row is locked; returns the recording under way, and whether it is new."""
        row = await tx.fetchrow(
            f"SELECT {_COLUMNS} FROM streams.recordings r WHERE stream_id = $1 AND status = 'RECORDING'",  # noqa: S608  # our own text
            stream_id,
        )
        if row is not None:
            return _recording(row), False
        row = await tx.fetchrow(
            "INSERT INTO streams.recordings AS r (id, stream_id, streamer_id, title, quality, codec, auto_upload)"  # noqa: S608  # our own text
            f" VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_COLUMNS}",
            new_id(), stream_id, streamer_id, title, quality.value, codec.value, auto_upload,
        )  # fmt: skip
        recording = _recording(row)
        data = {"recording_id": recording.id, "quality": quality.value, "codec": codec.value}
        await emit(tx, "stream.events.recording_started", about=stream_id, actor=streamer_id, data=data)
        return recording, True

    async def part(self, recording: Recording) -> Recording:
        """End a recording under way, whose node makes the stream no more, and go on with another of the same kind.

        Returns the one that is under way now, which another process may have begun; as it was, when none is.
        """
        async with self._db.transaction() as tx:
            ended = await tx.fetchrow(
                "UPDATE streams.recordings SET status = 'PROCESSING', ended_at = now()"
                " WHERE id = $1 AND status = 'RECORDING' RETURNING id",
                recording.id,
            )
            if ended is None:
                row = await tx.fetchrow(
                    f"SELECT {_COLUMNS} FROM streams.recordings r WHERE stream_id = $1 AND status = 'RECORDING'",  # noqa: S608  # our own text
                    recording.stream_id,
                )
                return _recording(row) if row is not None else recording
            second, _ = await self.want(
                tx, recording.stream_id, recording.streamer_id, recording.title, recording.quality,
                recording.codec, auto_upload=recording.auto_upload,
            )  # fmt: skip
            return second

    async def end_all(self, tx: Transaction, stream_id: str) -> None:
        """Have every recording of a stream end, for the stream does."""
        await tx.execute(
            "UPDATE streams.recordings SET status = 'PROCESSING', ended_at = now()"
            " WHERE stream_id = $1 AND status = 'RECORDING'",
            stream_id,
        )

    async def end(self, recording_id: str) -> Recording:
        """Have a recording end; again changes nothing. Raises NOT_FOUND."""
        await self._db.execute(
            "UPDATE streams.recordings SET status = 'PROCESSING', ended_at = now()"
            " WHERE id = $1 AND status = 'RECORDING'",
            recording_id,
        )
        return await self.find(recording_id)

    async def find(self, recording_id: str) -> Recording:
        """Return a recording. Raises NOT_FOUND."""
        row = await self._db.fetchrow(
            f"SELECT {_COLUMNS} FROM streams.recordings r WHERE id = $1",  # noqa: S608  # our own text
            recording_id,
        )
        if row is None:
            raise not_found("recording", recording_id)
        return _recording(row)

    async def page(
        self, streamer_id: str, offset: int, limit: int, *, own: bool
    ) -> tuple[Sequence[Recording], int]:
        """Return a page of somebody's, the newest first, and how many there are; of others, of public streams."""
        rows = await self._db.fetch(_PAGE, streamer_id, own, Visibility.PUBLIC_STREAM.value, offset, limit)
        return [_recording(row) for row in rows], int(rows[0]["total"]) if rows else 0

    async def delete(self, recording_id: str) -> None:
        """Delete the row; the file is deleted by whoever finds it without one."""
        await self._db.execute("DELETE FROM streams.recordings WHERE id = $1", recording_id)

    async def expired(self, limit: int) -> Sequence[Recording]:
        """Return recordings whose time is over."""
        rows = await self._db.fetch(
            f"SELECT {_COLUMNS} FROM streams.recordings r WHERE expires_at <= now() ORDER BY expires_at LIMIT $1",  # noqa: S608  # our own text
            limit,
        )
        return [_recording(row) for row in rows]

    # What the engine calls

    async def known(self, recording_ids: Sequence[str]) -> set[str]:
        """Return which of these there are."""
        rows = await self._db.fetch(
            "SELECT id FROM streams.recordings WHERE id = ANY($1::uuid[])", list(recording_ids)
        )
        return {str(row["id"]) for row in rows}

    async def wanted(self, stream_ids: Sequence[str]) -> Sequence[Recording]:
        """Return what is to be recorded of these streams now."""
        rows = await self._db.fetch(
            f"SELECT {_COLUMNS} FROM streams.recordings r"  # noqa: S608  # our own text
            " WHERE stream_id = ANY($1::uuid[]) AND status = 'RECORDING' ORDER BY id",
            list(stream_ids),
        )
        return [_recording(row) for row in rows]

    async def unfinished(self, node: str) -> Sequence[Recording]:
        """Return what a node's disk has that is not settled, as when it died."""
        rows = await self._db.fetch(
            f"SELECT {_COLUMNS} FROM streams.recordings r"  # noqa: S608  # our own text
            " WHERE node = $1 AND status IN ('RECORDING', 'PROCESSING') ORDER BY id",
            node,
        )
        return [_recording(row) for row in rows]

    async def taken(self, recording_id: str, node: str) -> None:
        """Say which node's disk has it."""
        await self._db.execute("UPDATE streams.recordings SET node = $2 WHERE id = $1", recording_id, node)

    async def grown(self, recording_id: str, bytes_len: int, duration_s: float) -> None:
        """Say how far it has come."""
        await self._db.execute(
            "UPDATE streams.recordings SET bytes = $2, duration_s = $3 WHERE id = $1 AND status <> 'COMPLETED'",
            recording_id, bytes_len, duration_s,
        )  # fmt: skip

    async def completed(self, recording_id: str, object_key: str, bytes_len: int, duration_s: float) -> None:
        """Say that its file is stored, with the event of it. Again changes nothing; a deleted one stays deleted."""
        expiry = timedelta(seconds=self._keep_s) if self._keep_s else None
        await self._settle(
            recording_id,
            "recording_completed",
            "UPDATE streams.recordings r SET status = 'COMPLETED', object_key = $2, bytes = $3, duration_s = $4,"  # noqa: S608  # our own text
            " ended_at = coalesce(ended_at, now()), expires_at = now() + $5::interval"
            f" WHERE id = $1 AND status IN ('RECORDING', 'PROCESSING') RETURNING {_COLUMNS}",
            object_key, bytes_len, duration_s, expiry,
        )  # fmt: skip

    async def failed(self, recording_id: str, error: str) -> None:
        """Say that nothing comes of it, and why."""
        await self._settle(
            recording_id,
            "error",
            "UPDATE streams.recordings r SET status = 'FAILED', error = $2, ended_at = coalesce(ended_at, now())"  # noqa: S608  # our own text
            f" WHERE id = $1 AND status IN ('RECORDING', 'PROCESSING') RETURNING {_COLUMNS}",
            error,
        )  # fmt: skip

    async def _settle(self, recording_id: str, kind: str, sql: str, *args: object) -> None:
        async with self._db.transaction() as tx:
            row = await tx.fetchrow(sql, recording_id, *args)
            if row is None:
                return
            recording = _recording(row)
            data: dict[str, Any] = {
                "recording_id": recording.id,
                "duration_s": recording.duration_s,
                "bytes": recording.bytes,
            }
            if recording.error:
                data = {"recording_id": recording.id, "error": "recording_failed", "message": recording.error}
            await emit(tx, f"stream.events.{kind}", about=recording.stream_id, actor=None, data=data)
        self._on_changed(Changed(recording, kind))


def _recording(row: Any) -> Recording:
    return Recording(
        id=str(row["id"]),
        stream_id=str(row["stream_id"]),
        streamer_id=str(row["streamer_id"]),
        title=row["title"],
        status=RecordingStatus(row["status"]),
        quality=Quality(row["quality"]),
        codec=Codec(row["codec"]),
        auto_upload=row["auto_upload"],
        node=row["node"],
        object_key=row["object_key"],
        bytes=row["bytes"],
        duration_s=row["duration_s"],
        error=row["error"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        expires_at=row["expires_at"],
    )
