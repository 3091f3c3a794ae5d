"""Deletes what nobody needs any more: uploads that were never finished, media that no message shows, objects.

All of it is written down before it is done, in the database, so that no kill at any moment leaves anything
behind; and it may run in several processes at once.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from whispr.adapters.objects import Objects
from whispr.adapters.postgres import Postgres
from whispr.errors import WhisprError
from whispr.services.media import metrics
from whispr.services.media.store import deleted

CLEAN_EVERY_S: Final = 30.0
GRACE_S: Final = 60.0
"""How long after its end an upload is let be: its last part may be on its way."""
AT_ONCE: Final = 100
AGAIN_S: Final = 3600.0
FAILED_S: Final = 60.0
GONE_S: Final = 2 * 24 * 3600.0

_UNFINISHED = """
    SELECT id FROM media.media WHERE status = 'pending' AND upload_expires_at < now() - make_interval(secs => $1)
    ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_UNLINKED = """
    SELECT m.id FROM media.media m
    WHERE m.unlinked_at < now() - make_interval(secs => $1) AND m.status <> 'pending'
        AND NOT EXISTS (SELECT FROM users.avatars a WHERE a.media_id = m.id)
    ORDER BY m.id LIMIT $2 FOR UPDATE SKIP LOCKED
"""
# Whoever takes folders has a while to empty them, then another does.
_TAKE_GARBAGE = """
    UPDATE media.garbage SET due_at = now() + make_interval(secs => $1)
    WHERE id IN (SELECT id FROM media.garbage WHERE due_at <= now() ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING id, folder, again
"""
_EMPTIED = """
    WITH once_more AS (
        UPDATE media.garbage SET again = false, due_at = now() + make_interval(secs => $2) WHERE id = $1 AND again
        RETURNING id
    )
    DELETE FROM media.garbage WHERE id = $1 AND NOT EXISTS (SELECT FROM once_more)
"""

log = structlog.get_logger("whispr.media")


class Janitor:
    """Cleans up for one process, every now and then."""

    def __init__(self, db: Postgres, objects: Objects, unlinked_s: float) -> None:
        self._db = db
        self._objects = objects
        self._unlinked_s = unlinked_s

    async def run(self) -> None:
        """Clean up until cancelled."""
        while True:
            try:
                await self.clean()
            except WhisprError as error:
                log.warning("media_not_cleaned", error=str(error))
            await trio.sleep(CLEAN_EVERY_S)

    async def clean(self) -> None:
        """Do all that is due."""
        await self._delete(_UNFINISHED, GRACE_S, "upload_expired")
        await self._delete(_UNLINKED, self._unlinked_s, "unlinked")
        await self._empty_folders()
        await self._db.execute(
            "DELETE FROM media.gone_messages WHERE gone_at < now() - make_interval(secs => $1)", GONE_S
        )

    async def _delete(self, which: str, older_s: float, reason: str) -> None:
        while True:
            async with self._db.transaction() as tx:
                rows = await tx.fetch(which, older_s, AT_ONCE)
                for row in rows:
                    await deleted(tx, str(row["id"]), None, reason)
            if rows:
                metrics.CLEANED.labels(reason).inc(len(rows))
                log.info("media_cleaned", reason=reason, count=len(rows))
            if len(rows) < AT_ONCE:
                return

    async def _empty_folders(self) -> None:
        while True:
            rows = await self._db.fetch(_TAKE_GARBAGE, FAILED_S, AT_ONCE)
            for row in rows:
                await self._objects.delete_under(row["folder"])
                await self._db.execute(_EMPTIED, row["id"], AGAIN_S)
            if len(rows) < AT_ONCE:
                return
