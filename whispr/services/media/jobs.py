"""SQL of processing: who works on what, under which lease, and what came of it.

A lease is taken with the job and renewed while the work goes on. When it runs out, the worker has died, or the
database was away from it for too long; another takes the job, and whatever the first one still writes changes
nothing, for it names a lease that holds no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.events import emit
from whispr.ids import new_id
from whispr.services.media.domain import Medium, Stored
from whispr.services.media.findings import Result
from whispr.services.media.store import medium_of

LEASE_S: Final = 30.0
_TAKE = """
    UPDATE media.jobs SET lease = $1, lease_until = now() + make_interval(secs => $2), attempts = attempts + 1
    WHERE media_id = (
        SELECT media_id FROM media.jobs
        WHERE run_at <= now() AND (lease IS NULL OR lease_until < now())
        ORDER BY run_at LIMIT 1 FOR UPDATE SKIP LOCKED
    ) RETURNING media_id, attempts
"""
_READY = """
    UPDATE media.media SET status = 'ready', content_type = $2, kind = $3, width = nullif($4, 0),
        height = nullif($5, 0), duration_s = nullif($6::float8, 0), waveform = $7, variants = $8::text::jsonb,
        sha256 = $9, reserved_bytes = $10, ready_at = now()
    WHERE id = $1
"""
_FAILED = """
    UPDATE media.media SET status = 'error', error_reason = $2, error_message = $3, reserved_bytes = 0 WHERE id = $1
"""
_json = msgspec.json.Encoder().encode


class Job(msgspec.Struct, frozen=True):
    """A medium to be processed, and the right to do it."""

    medium: Medium
    lease: str
    attempt: int


class Jobs:
    """The queue of processing."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def take(self) -> Job | None:
        """Take the job that is due for longest; None when none is."""
        lease = new_id()
        row = await self._db.fetchrow(_TAKE, lease, LEASE_S)
        if row is None:
            return None
        medium = await self._db.fetchrow("SELECT * FROM media.media WHERE id = $1", row["media_id"])
        return Job(medium_of(medium), lease, row["attempts"]) if medium is not None else None

    async def next_due_s(self) -> float | None:
        """Return in how many seconds a job will be due; None when there is none."""
        due: float | None = await self._db.fetchval(
            "SELECT extract(epoch FROM min(greatest(run_at, lease_until)) - now())::float8 FROM media.jobs"
        )
        return due

    async def renew(self, job: Job) -> bool:
        """Keep a job for another `LEASE_S`; False when it is somebody else's, or gone."""
        tag = await self._db.execute(
            "UPDATE media.jobs SET lease_until = now() + make_interval(secs => $3)"
            " WHERE media_id = $1 AND lease = $2",
            job.medium.id, job.lease, LEASE_S,
        )  # fmt: skip
        return tag.endswith(" 1")

    async def retry(self, job: Job, after_s: float, error: str, *, counts: bool) -> None:
        """Give a job back, to be tried again later; `counts`: as a failed attempt."""
        await self._db.execute(
            "UPDATE media.jobs SET lease = NULL, lease_until = NULL, run_at = now() + make_interval(secs => $3),"
            " last_error = $4, attempts = attempts - $5 WHERE media_id = $1 AND lease = $2",
            job.medium.id, job.lease, after_s, error[:500], 0 if counts else 1,
        )  # fmt: skip

    async def succeed(self, job: Job, found: Result, variants: Sequence[Stored]) -> bool:
        """Make a medium ready; False when the job is ours no more, and nothing has changed."""
        medium, original = job.medium, variants[0]
        async with self._db.transaction() as tx:
            if not await _ended(tx, job):
                return False
            await tx.execute(
                _READY, medium.id, found.content_type, found.kind, found.width, found.height, found.duration_s,
                bytes(found.waveform) or None, _json(variants).decode(), bytes.fromhex(original.sha256),
                original.bytes,
            )  # fmt: skip
            spent = ["parts", *(str(n) for n in range(1, job.attempt))]
            await _discard(tx, [f"{medium.id}/{folder}" for folder in spent])
            await tx.execute("DELETE FROM media.parts WHERE media_id = $1", medium.id)
            data = {
                "media_id": medium.id, "owner_id": medium.owner_id, "kind": found.kind,
                "content_type": found.content_type, "file_size": original.bytes,
            }  # fmt: skip
            await _tell(tx, medium, "media_ready", data)
        return True

    async def fail(self, job: Job, reason: str, message: str) -> bool:
        """Give a medium up; False when the job is ours no more."""
        medium = job.medium
        async with self._db.transaction() as tx:
            if not await _ended(tx, job):
                return False
            await tx.execute(_FAILED, medium.id, reason, message)
            await _discard(tx, [medium.id])
            await tx.execute("DELETE FROM media.parts WHERE media_id = $1", medium.id)
            data = {
                "media_id": medium.id, "owner_id": medium.owner_id, "reason": reason, "message": message,
            }  # fmt: skip
            await _tell(tx, medium, "media_failed", data)
        return True


async def _ended(tx: Transaction, job: Job) -> bool:
    """Lock the medium and remove its job, if that is still ours."""
    await tx.execute("SELECT FROM media.media WHERE id = $1 FOR NO KEY UPDATE", job.medium.id)
    tag = await tx.execute(
        "DELETE FROM media.jobs WHERE media_id = $1 AND lease = $2", job.medium.id, job.lease
    )
    return tag.endswith(" 1")


async def _discard(tx: Transaction, folders: Sequence[str]) -> None:
    """Have folders of the object store emptied."""
    await tx.execute("INSERT INTO media.garbage (folder) SELECT unnest($1::text[])", folders)


async def _tell(tx: Transaction, medium: Medium, what: str, data: dict[str, Any]) -> None:
    await emit(tx, f"user.events.{what}", about=medium.id, actor=medium.owner_id, data=data)
