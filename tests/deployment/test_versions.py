"""Upgrade and rollback by backups: a newer Whispr takes an older one's, an older one refuses a newer one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import database_url
from tests.events.kit import delete_streams
from tests.integration.test_upgrade import GROUP, empty_database, later, owners_with
from whispr.adapters.bus import Bus
from whispr.adapters.migrations import migrate
from whispr.adapters.postgres import Postgres
from whispr.app import MIGRATIONS
from whispr.backup import making, restoring
from whispr.bridge import Bridge
from whispr.config import Settings, load
from whispr.embed import Backends
from whispr.errors import WhisprError

STREAM, RECORDING = (f"0190b0a0-0000-7000-8000-00000000000{n}" for n in (1, 2))


@pytest.mark.slow
async def test_recordings_and_their_keys_are_held(
    bridge: Bridge, backends: Backends, bus: Bus, tmp_path: Path
) -> None:
    """A recording in a folder, that of media even, is there after a restore; and the keys of the URLs to it."""
    await delete_streams(bus)

    async def settings(db: Postgres, folder: str) -> Settings:
        name = await db.fetchval("SELECT current_database()")
        await db._close()  # its connection would count as somebody's
        environ = {
            "WHISPR_POSTGRES_URL": database_url(backends, name),
            "WHISPR_NATS_URL": str(backends.nats_url),
            "WHISPR_DATA_DIR": str(tmp_path / folder),
            "WHISPR_MEDIA_STORE_URL": f"file://{tmp_path / folder / 'store'}",
            "WHISPR_STREAM_STORE_URL": f"file://{tmp_path / folder / 'store'}",
            "WHISPR_STREAM_KEY_DIR": str(tmp_path / folder / "stream-keys"),
        }
        return load(environ).settings

    async with empty_database(bridge, backends) as source, empty_database(bridge, backends) as target:
        await migrate(source, MIGRATIONS)
        key = f"recordings/{STREAM}/{RECORDING}.ogg"
        await source.execute(
            "INSERT INTO streams.streams (id, title, category, visibility, streamer_id, key_sha256)"
            " VALUES ($1, 'live', 'MUSIC', 'UNLISTED', $1, '')",
            STREAM,
        )
        await source.execute(
            "INSERT INTO streams.recordings (id, stream_id, streamer_id, title, status, quality, codec, object_key)"
            " VALUES ($1, $2, $2, 'live', 'COMPLETED', 'high', 'opus', $3)",
            RECORDING, STREAM, key,
        )  # fmt: skip
        for name in (f"store/{key}", "stream-keys/0001.key"):
            (tmp_path / "source" / name).parent.mkdir(parents=True)
            (tmp_path / "source" / name).write_bytes(name.encode())
        backup = tmp_path / "backup.tar"
        said = await making.back_up(await settings(source, "source"), backup)
        assert any("1 recordings, 1 keys" in line for line in said)
        await restoring.restore(await settings(target, "target"), backup)
        for name in (f"store/{key}", "stream-keys/0001.key"):
            assert (tmp_path / "target" / name).read_bytes() == name.encode()
        with pytest.raises(WhisprError, match="recordings in"):
            await restoring.restore(await settings(target, "target"), backup)


async def test_a_newer_whispr_takes_an_older_ones_backup(
    bridge: Bridge, backends: Backends, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the older one knew is there, and the migrations since are applied; the other way round it is refused."""
    assert backends.nats_url is not None
    await delete_streams(bus)
    (tmp_path / "older").mkdir()
    older = owners_with(later()[:-1], tmp_path / "older")
    newest = str(later()[-1])

    async with empty_database(bridge, backends) as source, empty_database(bridge, backends) as target:

        async def settings(folder: str) -> Settings:
            db = source if folder == "source" else target
            environ = {
                "WHISPR_POSTGRES_URL": database_url(backends, await db.fetchval("SELECT current_database()")),
                "WHISPR_NATS_URL": str(backends.nats_url),
                "WHISPR_DATA_DIR": str(tmp_path / folder),
            }
            return load(environ).settings

        await migrate(source, older)
        await source.execute(
            "INSERT INTO conversations.conversations (id, kind, name, created_by, last_seq, member_count)"
            " VALUES ($1, 'group', 'old friends', $1, 0, 0)",
            GROUP,
        )
        backup = tmp_path / "backup.tar"
        monkeypatch.setattr(making, "MIGRATIONS", older)
        await making.back_up(await settings("source"), backup)
        with pytest.raises(WhisprError, match="in use by"):
            await restoring.restore(await settings("source"), backup, over=True)
        await target._close()  # the connection that made the settings would count as somebody's
        where = await settings("target")
        await target._close()
        said = await restoring.restore(where, backup)
        assert f"  applied {newest}" in said
        assert await target.fetchval("SELECT name FROM conversations.conversations") == "old friends"

        monkeypatch.setattr(making, "MIGRATIONS", MIGRATIONS)
        await making.back_up(where, backup, over=True)
        monkeypatch.setattr(restoring, "MIGRATIONS", older)
        await target._close()
        with pytest.raises(WhisprError, match="made by a newer Whispr"):
            await restoring.restore(where, backup, over=True)
        assert await target.fetchval("SELECT name FROM conversations.conversations") == "old friends"
