"""`whispr restore`: a backup becomes the state of this deployment, which must be empty, or is replaced when told.

The archive is read and checked to its end before anything changes. Then: the mark, keys and media, the streams are
deleted, and last the database, in one transaction: what breaks off before its commit left the old one as it was.
Whatever breaks off leaves the mark, and the same command again does all of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.migrations import load, migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.app import MIGRATIONS
from whispr.backup.archive import KEY_KINDS, PIECE_BYTES, Manifest, elsewhere, members, unpacked, verified
from whispr.backup.database import RECORDS, SCHEMAS, WIPE, run_sql
from whispr.backup.places import key_files, key_place, media_folder, recordings_folder
from whispr.backup.unfinished import FILE, mark, unmark
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import run_children
from whispr.errors import conflict, unavailable
from whispr.events.envelope import STREAMS
from whispr.ids import is_id
from whispr.nurseries import own_nursery, ungrouped

REACH_S = 60.0
"""How long the backends may take to answer at first."""
PAGE_LEN = 500

_OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'whispr'"
    " AND pid <> pg_backend_pid()"
)
_TABLES = (
    f"SELECT to_regclass('{RECORDS}') IS NOT NULL"  # noqa: S608  # a constant
    " OR EXISTS (SELECT FROM pg_tables WHERE schemaname = ANY ($1))"
)


async def restore(settings: Settings, path: Path, *, over: bool = False) -> Sequence[str]:
    """Restore a backup; return what to say.

    Raises FAILED_PRECONDITION: `backup_unusable`, `not_empty` (unless `over`), `in_use`; UNAVAILABLE when a backend
    is away.
    """
    manifest = await trio.to_thread.run_sync(verified, path)
    _check_known(path, manifest)
    async with _reached(settings) as (url, db, jetstream):
        if count := await db.fetchval(_OTHERS):
            raise conflict(
                f"the database is in use by {count} connections of Whispr: stop it first", "in_use"
            )
        if not over and not (settings.data_dir / FILE).exists():
            await _check_empty(settings, manifest, db, jetstream)
        mark(settings.data_dir, path)
        folders = _folders(settings, manifest)
        await trio.to_thread.run_sync(_put_files, settings, path, folders)
        for stream in STREAMS.values():
            await jetstream.delete_stream(stream)
        await run_sql(url, _script(path))
        applied = await migrate(db, MIGRATIONS)
        if (store := folders.get("media")) is not None:
            await _drop_strangers(db, store)
        unmark(settings.data_dir)
    lines = [f"restored as of {manifest.made_at} (Whispr {manifest.whispr})"]
    lines += [f"  applied {name}" for name in applied]
    return lines + elsewhere(manifest)


def _folders(settings: Settings, manifest: Manifest) -> Mapping[str, Path]:
    """Where the objects belong that the backup holds and this deployment keeps in folders: kind → folder.

    Recordings that the restored database does not have are tidied away by the product itself.
    """
    held = {"media": manifest.media, "recordings": manifest.recordings}
    folders = {"media": media_folder(settings), "recordings": recordings_folder(settings)}
    return {kind: f for kind, f in folders.items() if f is not None and held[kind] == "files"}


def _check_known(path: Path, manifest: Manifest) -> None:
    known = {owner.name: len(load(owner)) for owner in MIGRATIONS}
    newer = [name for name, version in manifest.migrations.items() if version > known.get(name, 0)]
    if newer:
        raise conflict(
            f"{path} was made by a newer Whispr ({manifest.whispr}), which knows more of {', '.join(newer)}",
            "backup_unusable",
        )


@asynccontextmanager
async def _reached(settings: Settings) -> AsyncIterator[tuple[str, Postgres, JetStream]]:
    """Lock the data folder, so that nobody serves from it, and connect; without URLs the backends are started."""
    given = {"postgres": settings.postgres.url, "nats": settings.nats.url}
    async with AsyncExitStack() as stack:
        stack.enter_context(ungrouped())
        nursery = await stack.enter_async_context(own_nursery("restored"))
        own = await nursery.start(
            run_children, settings.data_dir, [name for name in given if not given[name]]
        )
        url = settings.postgres.url or own.postgres_url
        bridge = await stack.enter_async_context(open_bridge())
        db = await stack.enter_async_context(open_postgres(bridge, url, pool_size=1))
        bus = await stack.enter_async_context(open_bus(bridge, settings.nats.url or own.nats_url))
        with trio.move_on_after(REACH_S) as patience:
            await bus.wait_connected()
            await db.ping()
        if patience.cancelled_caught:
            raise unavailable(f"PostgreSQL and NATS did not answer within {REACH_S:g} s")
        yield url, db, JetStream(bus)


async def _check_empty(settings: Settings, manifest: Manifest, db: Postgres, jetstream: JetStream) -> None:
    """Raise FAILED_PRECONDITION naming what would be overwritten."""
    found = []
    if await db.fetchval(_TABLES, list(SCHEMAS)):
        found.append("the database")
    states = [await jetstream.state(stream) for stream in STREAMS.values()]
    if any(state is not None and state.last_seq for state in states):
        found.append("streams of NATS")
    if next(key_files(settings), None) is not None:
        found.append("keys")
    for kind, folder in _folders(settings, manifest).items():
        if folder.is_dir() and any(folder.iterdir()):
            found.append(f"{kind} in {folder}")
    if found:
        raise conflict(
            f"there is something already: {', '.join(found)}; --replace overwrites it with the backup",
            "not_empty",
        )


async def _script(path: Path) -> AsyncIterator[bytes]:
    """Yield the SQL of the one transaction in which the database is restored."""
    yield f"BEGIN;\nSET LOCAL client_min_messages = warning;\n{WIPE}".encode()
    for folder in ("database", "events"):
        pieces = unpacked(path, folder)
        while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
            yield piece
    yield b"\nCOMMIT;\n"


def _put_files(settings: Settings, path: Path, folders: Mapping[str, Path]) -> None:
    """Put media, recordings and keys where they belong. Raises FAILED_PRECONDITION (file_unusable)."""
    for kind, folder in folders.items():
        for name, content in members(path, kind):
            _write(folder / name.removeprefix(f"{kind}/"), content)
    for kind in KEY_KINDS:
        kept = set()
        for name, content in members(path, kind):
            kept.add(place := key_place(settings, name))
            _write(place, content)
        for name, old in list(key_files(settings)):
            if kept and name.startswith(f"{kind}/") and old not in kept:
                old.unlink()


def _write(path: Path, content: IO[bytes]) -> None:
    """Write a file that is complete or absent, readable by us alone."""
    draft = path.with_name(f".{path.name}.restored")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            while data := content.read(PIECE_BYTES):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise conflict(
            f"cannot write {path}: {error.strerror}; the same command again goes on", "file_unusable"
        ) from error


async def _drop_strangers(db: Postgres, store: Path) -> None:
    """Delete the objects of media that the restored database does not have."""
    names = await trio.to_thread.run_sync(_names, store)
    for at in range(0, len(names), PAGE_LEN):
        page = names[at : at + PAGE_LEN]
        rows = await db.fetch("SELECT id::text FROM media.media WHERE id::text = ANY ($1)", page)
        for stranger in set(page) - {row["id"] for row in rows}:
            await trio.to_thread.run_sync(_remove, store / stranger)


def _names(folder: Path) -> list[str]:
    """What media may be: the same folder may hold recordings, too."""
    return [name for name in os.listdir(folder) if is_id(name)] if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
