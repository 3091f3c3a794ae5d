"""Data exports: a job that collects everything held about a person, and gives it out in parts.

Requests wait in the database. Any process of auth takes the oldest, says until when it is to be believed, asks every
service (see `archive`), and stores the archive in parts beside the request, where every process can give it out until
it expires. A worker that died is believed for `BELIEVED_S` and its work then done again, `ATTEMPTS_MAX` times in all.
A service that cannot be asked ends the export as failed, and is named: an archive is whole or there is none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

import structlog
import trio

from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Conflict, Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.errors import WhisprError, conflict, not_found
from whispr.ids import new_id
from whispr.services.auth.archive import IncompleteError, collected
from whispr.services.auth.neighbours import Neighbours
from whispr.services.auth.store import tell

PART_BYTES = 512 * 1024
KEPT_S = 7 * 24 * 3600
BELIEVED_S = 1800
ATTEMPTS_MAX = 3
LOOK_EVERY_S = 10.0
DAY_S = 86_400.0

log = structlog.get_logger("whispr.auth")


@dataclass(frozen=True, slots=True)
class Export:
    """A row of auth.exports."""

    id: str
    account_id: str
    state: str
    requested_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None
    size_bytes: int
    part_count: int
    failed_services: list[str]
    error: str


class Exports:
    """Requests exports, makes them, and gives them out."""

    def __init__(self, db: Postgres, cache: Cache, neighbours: Neighbours, per_day: int) -> None:
        self._db = db
        self._limiter = RateLimiter(cache)
        self._neighbours = neighbours
        self._per_day = per_day
        self._asked = trio.Event()

    async def request(self, account_id: str, requested_by: str) -> Export:
        """Queue an export, or return the one under way. Raises NOT_FOUND, RESOURCE_EXHAUSTED."""
        if found := await self._under_way(account_id):
            return found
        if not await self._db.fetchval(_EXISTS, account_id):
            raise not_found("user", account_id)
        await self._limiter.take(f"auth:export:{account_id}", self._per_day, DAY_S)
        try:
            row = await self._db.fetchrow(_REQUEST, new_id(), account_id, requested_by)
        except Conflict:
            if found := await self._under_way(account_id):
                return found
            raise
        self._asked.set()
        return _export(row)

    async def get(self, export_id: str, account_id: str | None) -> Export:
        """Return an export, of this account if one is given. Raises NOT_FOUND."""
        row = await self._db.fetchrow(_GET, export_id, account_id)
        if row is None:
            raise not_found("export", export_id)
        return _export(row)

    async def part(self, export_id: str, part: int, account_id: str | None) -> bytes:
        """Return a part of the archive. Raises NOT_FOUND, FAILED_PRECONDITION (not_ready)."""
        export = await self.get(export_id, account_id)
        if export.state != "done":
            raise conflict(f"the export is {export.state}", "not_ready")
        content: bytes | None = await self._db.fetchval(_PART, export_id, part)
        if content is None:
            raise not_found("part", f"{export_id}/{part}")
        return content

    async def run(self) -> None:
        """Make exports, one at a time, until cancelled."""
        while True:
            self._asked = trio.Event()
            try:
                while await self._work():
                    pass
            except WhisprError as error:
                log.warning("exports_not_made", error=str(error))
            with trio.move_on_after(LOOK_EVERY_S):
                await self._asked.wait()

    async def prune(self) -> None:
        """Delete exports that have expired, with their archives."""
        await self._db.execute("DELETE FROM auth.exports WHERE expires_at < now()")

    async def _work(self) -> bool:
        """Make the oldest export that waits; False when there is none."""
        row = await self._db.fetchrow(_CLAIM, BELIEVED_S)
        if row is None:
            return False
        export_id, account_id = str(row["id"]), str(row["account_id"])
        if row["attempts"] > ATTEMPTS_MAX:
            await self._fail(export_id, "it was interrupted again and again", ())
            return True
        try:
            async with collected(self._neighbours, account_id, row["username"]) as archive:
                await self._finish(export_id, account_id, archive)
        except IncompleteError as error:
            await self._fail(export_id, str(error), error.services)
        except WhisprError as error:
            await self._fail(export_id, error.message, ())
        return True

    async def _finish(self, export_id: str, account_id: str, archive: IO[bytes]) -> None:
        """Store the archive in parts and mark the export done, both or neither."""
        size = await trio.to_thread.run_sync(archive.seek, 0, 2)
        await trio.to_thread.run_sync(archive.seek, 0)
        async with self._db.transaction() as tx:
            if not await tx.fetchval("SELECT true FROM auth.exports WHERE id = $1 FOR UPDATE", export_id):
                return  # The account has been erased meanwhile.
            await tx.execute("DELETE FROM auth.export_parts WHERE export_id = $1", export_id)
            part = 0
            while content := await trio.to_thread.run_sync(archive.read, PART_BYTES):
                await tx.execute(_STORE_PART, export_id, part, content)
                part += 1
            await tx.execute(_DONE, export_id, size, part, KEPT_S)
            facts = {"export_id": export_id, "state": "done"}
            await tell(tx, "data_export_finished", account_id, None, facts)

    async def _fail(self, export_id: str, error: str, services: tuple[str, ...]) -> None:
        async with self._db.transaction() as tx:
            account_id = await tx.fetchval(_FAILED, export_id, error, list(services), KEPT_S)
            if account_id is not None:
                facts = {"export_id": export_id, "state": "failed"}
                await tell(tx, "data_export_finished", account_id, None, facts)
        log.warning("export_failed", export=export_id, error=error, services=services)

    async def _under_way(self, account_id: str) -> Export | None:
        row = await self._db.fetchrow(_UNDER_WAY, account_id)
        return _export(row) if row is not None else None


def _export(row: Any) -> Export:
    fields = {field.name: row[field.name] for field in dataclasses.fields(Export)}
    return Export(**fields | {"id": str(row["id"]), "account_id": str(row["account_id"])})


_COLUMNS = ", ".join(field.name for field in dataclasses.fields(Export))

_EXISTS = "SELECT true FROM auth.accounts WHERE id = $1 AND deleted_at IS NULL"

_UNDER_WAY = f"""
SELECT {_COLUMNS} FROM auth.exports WHERE account_id = $1 AND state IN ('queued', 'running')
"""  # noqa: S608 our columns

_REQUEST = f"""
INSERT INTO auth.exports (id, account_id, requested_by) VALUES ($1, $2, $3) RETURNING {_COLUMNS}
"""  # noqa: S608 our columns

_GET = f"""
SELECT {_COLUMNS} FROM auth.exports
WHERE id = $1 AND ($2::uuid IS NULL OR account_id = $2) AND (expires_at IS NULL OR expires_at > now())
"""  # noqa: S608 our columns

_CLAIM = """
UPDATE auth.exports e SET state = 'running', attempts = e.attempts + 1,
    believed_until = now() + make_interval(secs => $1)
FROM auth.accounts a
WHERE a.id = e.account_id AND e.id = (
    SELECT id FROM auth.exports
    WHERE state = 'queued' OR state = 'running' AND believed_until < now()
    ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING e.id, e.account_id, e.attempts, a.username
"""

_PART = "SELECT content FROM auth.export_parts WHERE export_id = $1 AND part = $2"

_STORE_PART = """
INSERT INTO auth.export_parts (export_id, part, content) VALUES ($1, $2, $3)
"""

_DONE = """
UPDATE auth.exports SET state = 'done', finished_at = now(), size_bytes = $2, part_count = $3,
    expires_at = now() + make_interval(secs => $4), believed_until = NULL
WHERE id = $1
"""

_FAILED = """
UPDATE auth.exports SET state = 'failed', finished_at = now(), error = $2, failed_services = $3,
    expires_at = now() + make_interval(secs => $4), believed_until = NULL
WHERE id = $1 RETURNING account_id
"""
