"""`whispr backup`: while the product runs, the state of one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from whispr import __version__
from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.migrations import pending
from whispr.adapters.postgres import Postgres, Transaction, open_postgres
from whispr.app import MIGRATIONS
from whispr.backup import events
from whispr.backup.archive import FORMAT, KEY_KINDS, Manifest, Pieces, Writer, elsewhere, new_archive
from whispr.backup.database import dumped
from whispr.backup.places import key_files, media_folder, objects_of, recordings_folder
from whispr.backup.unfinished import check_finished
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.errors import conflict, unavailable
from whispr.events_console import servers
from whispr.nurseries import ungrouped

REACH_S = 20.0
"""How long the backends may take to answer at first."""
MOMENT_S = 20.0
"""How long it may take to have all relays pause."""
PAGE_LEN = 500

_ABOUT = """
SELECT now()::text AS made_at, current_setting('server_version') AS postgres,
    -- Statements of ours rest while PostgreSQL's own program reads.
    set_config('idle_in_transaction_session_timeout', '0', true),
    pg_export_snapshot() AS snapshot
"""
_APPLIED = "SELECT owner, max(version) AS version FROM public.whispr_migrations GROUP BY owner"
# Those in the works first: their parts go when they are done.
_MEDIA = (
    "SELECT DISTINCT media_id::text AS id FROM media.parts WHERE media_id > $1 ORDER BY id LIMIT $2",
    "SELECT id::text FROM media.media m WHERE id > $1"
    " AND NOT EXISTS (SELECT FROM media.parts p WHERE p.media_id = m.id) ORDER BY id LIMIT $2",
)
_KEYS = """
SELECT key FROM media.parts WHERE media_id = ANY ($1::text[]::uuid[])
UNION SELECT v->>'key' FROM media.media m, jsonb_array_elements(m.variants) v
    WHERE m.id = ANY ($1::text[]::uuid[]) AND m.status = 'ready'
"""
_RECORDINGS = """
SELECT id::text, object_key AS key FROM streams.recordings
    WHERE id > $1 AND status = 'COMPLETED' AND object_key <> '' ORDER BY id LIMIT $2
"""
_UNSTORED = "SELECT count(*) FROM streams.recordings WHERE status = 'COMPLETED' AND object_key = ''"
_FIRST = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Backends:
    """What a backup reads."""

    url: str
    db: Postgres
    jetstream: JetStream


@asynccontextmanager
async def reached(settings: Settings) -> AsyncIterator[Backends]:
    """Connect to the backends: as set, those of the running product, or our own meanwhile."""
    async with AsyncExitStack() as stack:
        stack.enter_context(ungrouped())
        urls = await stack.enter_async_context(servers(settings, nats=True))
        bridge = await stack.enter_async_context(open_bridge())
        db = await stack.enter_async_context(open_postgres(bridge, urls["postgres"], pool_size=3))
        bus = await stack.enter_async_context(open_bus(bridge, urls["nats"]))
        with trio.move_on_after(REACH_S) as patience:
            await bus.wait_connected()
            await db.ping()
        if patience.cancelled_caught:
            raise unavailable(f"PostgreSQL and NATS did not answer within {REACH_S:g} s")
        yield Backends(urls["postgres"], db, JetStream(bus))


async def back_up(settings: Settings, path: Path, *, over: bool = False) -> Sequence[str]:
    """Write a backup; return what to say of it.

    Raises FAILED_PRECONDITION when the file is there, or the database is not up to date; UNAVAILABLE without
    PostgreSQL or NATS. Then no file is left.
    """
    check_finished(settings.data_dir)
    with new_archive(path, over=over) as draft:
        async with reached(settings) as backends:
            if missing := await pending(backends.db, MIGRATIONS):
                raise conflict(
                    f"the database lacks {', '.join(missing)}: run `whispr migrate`", "not_migrated"
                )
            async with backends.db.transaction("REPEATABLE READ") as tx:
                about, until = await _moment(tx, backends)
                manifest = await _manifest(tx, about, settings)
                writer = Writer(draft, manifest)
                gone = await _add_media(writer, tx, media_folder(settings))
                gone += await _add_recordings(writer, tx, recordings_folder(settings))
                unstored = await tx.fetchval(_UNSTORED)
                await _add_stream(writer, "events", events.under_way(tx, backends.jetstream, until))
                await _add_stream(writer, "database", dumped(backends.url, about["snapshot"]))
        for name, key in key_files(settings):
            writer.add_file(name, key)
        writer.finish()
    return _summary(path, writer, manifest, gone, unstored)


async def _moment(tx: Transaction, backends: Backends) -> tuple[Any, events.Ends]:
    """Fix the moment: the snapshot, and where the streams end at it. Raises UNAVAILABLE."""
    with trio.move_on_after(MOMENT_S):
        async with events.quiet(backends.db):
            return await tx.fetchrow(_ABOUT), await events.ends(backends.jetstream)
    raise unavailable(f"a relay did not pause within {MOMENT_S:g} s")


async def _manifest(tx: Transaction, about: Any, settings: Settings) -> Manifest:
    return Manifest(
        format=FORMAT,
        whispr=__version__,
        made_at=about["made_at"],
        postgres=about["postgres"],
        migrations={row["owner"]: row["version"] for row in await tx.fetch(_APPLIED)},
        media="files" if media_folder(settings) is not None else settings.media.store_url,
        recordings="files" if recordings_folder(settings) is not None else settings.stream.store_url,
    )


async def _add_stream(writer: Writer, folder: str, script: AsyncIterator[bytes]) -> None:
    pieces = Pieces(writer, folder)
    async for chunk in script:
        await trio.to_thread.run_sync(pieces.write, chunk)
    await trio.to_thread.run_sync(pieces.finish)


async def _add_media(writer: Writer, tx: Transaction, store: Path | None) -> int:
    """Write the objects of every medium of the snapshot; return how many have been deleted since."""
    gone = 0
    if store is None:
        return gone
    for query in _MEDIA:
        last = _FIRST
        while page := [row["id"] for row in await tx.fetch(query, last, PAGE_LEN)]:
            wanted = {row["key"] for row in await tx.fetch(_KEYS, page)}
            for medium in page:
                wanted -= await trio.to_thread.run_sync(_add_objects, writer, store, medium)
            gone += sum(not (store / key).exists() for key in wanted)
            last = page[-1]
    return gone


async def _add_recordings(writer: Writer, tx: Transaction, store: Path | None) -> int:
    """Write the file of every recording of the snapshot; return how many have been deleted since."""
    gone, last = 0, _FIRST
    if store is None:
        return gone
    while page := await tx.fetch(_RECORDINGS, last, PAGE_LEN):
        for row in page:
            try:
                await trio.to_thread.run_sync(writer.add_file, f"recordings/{row['key']}", store / row["key"])
            except FileNotFoundError:
                gone += 1
        last = page[-1]["id"]
    return gone


def _add_objects(writer: Writer, store: Path, medium: str) -> set[str]:
    """Write one medium's objects; return the keys written."""
    added = set()
    for key, path in objects_of(store, medium):
        try:
            writer.add_file(f"media/{key}", path)
        except FileNotFoundError:
            continue  # deleted since it was listed
        added.add(key)
    return added


def _summary(path: Path, writer: Writer, manifest: Manifest, gone: int, unstored: int) -> Sequence[str]:
    count = writer.counts
    keys = sum(count.get(kind, 0) for kind in KEY_KINDS)
    files = f"{count.get('media', 0)} media files, {count.get('recordings', 0)} recordings"
    lines = [
        f"{path}: {path.stat().st_size / 2**20:.1f} MiB, as of {manifest.made_at}",
        f"  the database, events under way, {files}, {keys} keys: keep it secret",
    ]
    lines += elsewhere(manifest)
    if unstored:
        lines.append(f"  not {unstored} recordings that were not to be stored: they are with their nodes")
    if gone:
        lines.append(f"  {gone} files were deleted while it was made")
    return lines
