"""Schema migrations: plain SQL files, in order, each once, each in a transaction of its own.

An owner is a package with a schema and a folder of files named `NNNN_name.sql`. Owners run in the order
given, because a later one may read a view that an earlier one publishes. What was applied is recorded in
`public.whispr_migrations` in the same transaction as the change itself, under an advisory lock, so that a
migration can be killed anywhere and run again, and processes that start together do it once.

A file that changed after it was applied, a version that the database has and we do not, and a gap in the
numbers are errors; nothing is ever undone or skipped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import WhisprError, conflict

LOCK_KEY = 0x77686973  # "whis": any constant that no other program of this database uses

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

_TABLE = """
CREATE TABLE IF NOT EXISTS public.whispr_migrations (
    owner text NOT NULL,
    version integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, version)
)
"""

log = structlog.get_logger("whispr.migrations")


@dataclass(frozen=True, slots=True)
class Owner:
    """A package that owns a schema: its name in the records, and the folder of its SQL files."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file."""

    owner: str
    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the text, by which a later change is noticed."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.owner}/{self.version:04d}_{self.name}"


def load(owner: Owner) -> list[Migration]:
    """Read an owner's files in order. Raises `migration_files` for a bad name or a gap in the numbers."""
    found = []
    for path in sorted(owner.folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise _bad_files(f"{path} is not named NNNN_name.sql")
        found.append(Migration(owner.name, int(match[1]), match[2], path.read_text("utf-8")))
    versions = [migration.version for migration in found]
    if versions != list(range(1, len(found) + 1)):
        raise _bad_files(f"{owner.folder} must hold versions 0001 upward without gaps, not {versions}")
    return found


async def migrate(db: Postgres, owners: Sequence[Owner]) -> list[str]:
    """Bring the database up to date; return what was applied, as `owner/NNNN_name`.

    Raises FAILED_PRECONDITION, before anything is changed: `migration_changed`, `database_newer`,
    `migration_files`; and INTERNAL naming the file and the line for SQL that fails.
    """
    plan = [migration for owner in owners for migration in load(owner)]
    async with db.transaction() as tx:
        await _lock(tx)
        await tx.execute(_TABLE)
        _check(plan, await _applied(tx))
    done = []
    for migration in plan:
        if await _apply(db, migration):
            done.append(str(migration))
            log.info("migration_applied", migration=str(migration))
    return done


async def pending(db: Postgres, owners: Sequence[Owner]) -> list[str]:
    """Return what `migrate` would apply; it raises what `migrate` would raise, and changes nothing."""
    plan = [migration for owner in owners for migration in load(owner)]
    async with db.transaction() as tx:
        known = await tx.fetchval("SELECT to_regclass('public.whispr_migrations') IS NOT NULL")
        applied = await _applied(tx) if known else {}
    _check(plan, applied)
    return [str(migration) for migration in plan if _key(migration) not in applied]


async def _lock(tx: Transaction) -> None:
    """Wait until no other process migrates this database; held until the transaction ends."""
    await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)


def _key(migration: Migration) -> tuple[str, int]:
    return migration.owner, migration.version


async def _applied(tx: Transaction) -> dict[tuple[str, int], str]:
    rows = await tx.fetch("SELECT owner, version, sha256 FROM public.whispr_migrations")
    return {(row["owner"], row["version"]): row["sha256"] for row in rows}


def _check(plan: Sequence[Migration], applied: Mapping[tuple[str, int], str]) -> None:
    """Refuse a database that differs from the files. Rows of owners not in the plan are none of our business."""
    ours = {_key(migration): migration for migration in plan}
    owners = {migration.owner for migration in plan}
    for (owner, version), digest in sorted(applied.items()):
        if owner not in owners:
            continue
        migration = ours.get((owner, version))
        if migration is None:
            have = max((v for o, v in ours if o == owner), default=0)
            raise conflict(
                f"the database is at version {version} of {owner}; this Whispr knows up to {have}",
                "database_newer",
            )
        if migration.sha256 != digest:
            raise conflict(f"migration {migration} was changed after it was applied", "migration_changed")


async def _apply(db: Postgres, migration: Migration) -> bool:
    """Apply one migration unless somebody else has by now; True if it was us."""
    async with db.transaction() as tx:
        await _lock(tx)
        if _key(migration) in await _applied(tx):
            return False
        try:
            await tx.execute(migration.sql)
        except Exception as error:
            error.add_note(f"in migration {migration}")
            raise
        await tx.execute(
            "INSERT INTO public.whispr_migrations (owner, version, name, sha256) VALUES ($1, $2, $3, $4)",
            migration.owner,
            migration.version,
            migration.name,
            migration.sha256,
        )
    return True


def _bad_files(why: str) -> WhisprError:
    return conflict(f"migrations: {why}", "migration_files")
