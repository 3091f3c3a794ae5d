"""`whispr backup` and `whispr restore`: what was there is there again, once, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import database_url
from tests.events.kit import Noting, delete_streams, empty_outbox, fetched, process, tell
from tests.integration.test_media import announce, ask, downloaded, settled
from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, StartError, running, start
from tests.services.media.samples import photo
from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.backup import events
from whispr.backup.archive import END, FORMAT, Manifest, Pieces, Writer, new_archive, unpacked, verified
from whispr.backup.database import WIPE, dumped, run_sql
from whispr.backup.unfinished import FILE
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import WhisprError
from whispr.events import Event
from whispr.events.outbox import once

MANIFEST = Manifest(
    format=FORMAT, whispr="0.1.0", made_at="then", postgres="18", migrations={"auth": 1}, media="files"
)


def archive(path: Path, manifest: Manifest = MANIFEST, **members: bytes) -> Path:
    """Write a backup with a stream and some keys."""
    with new_archive(path, over=True) as draft:
        writer = Writer(draft, manifest)
        pieces = Pieces(writer, "database")
        for number in range(2000):
            pieces.write(b"SELECT %d;\n" % number)
        pieces.finish()
        for name, content in members.items():
            writer.add(f"keys/{name}", content)
        writer.finish()
    return path


def test_an_archive_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Its manifest, its streams and its files; only its owner may read it, and no draft is left."""
    path = archive(tmp_path / "a.tar", one=b"secret")
    assert verified(path) == MANIFEST
    assert b"".join(unpacked(path, "database")) == b"".join(b"SELECT %d;\n" % n for n in range(2000))
    assert path.stat().st_mode & 0o077 == 0
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar"]


def test_what_failed_leaves_no_file(tmp_path: Path) -> None:
    """A backup that breaks off is not there, and the one before it stays; neither is written over unasked."""
    path = archive(tmp_path / "a.tar")
    before = path.read_bytes()
    with pytest.raises(KeyError), new_archive(path, over=True) as draft:
        Writer(draft, MANIFEST)
        raise KeyError
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.tar"]
    with pytest.raises(WhisprError, match="there already"), new_archive(path, over=False):
        pass
    with pytest.raises(WhisprError, match="is a folder"), new_archive(tmp_path, over=True):
        pass


def test_a_draft_is_nobody_elses(tmp_path: Path) -> None:
    """Two backups to one place do not write into each other, nor into a file left where others could read it."""
    path = tmp_path / "a.tar"
    left = tmp_path / "a.tar.part"
    left.touch(mode=0o666)
    left.chmod(0o666)
    with new_archive(path, over=True) as one:
        one.write(b"one")
        with new_archive(path, over=True) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert path.stat().st_mode & 0o077 == 0
    assert left.read_bytes() == b""


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A key that may not be read is said to be the trouble, not the file that is written."""
    unreadable = tmp_path / "folder"
    unreadable.mkdir()
    with (
        pytest.raises(WhisprError, match=f"cannot read {unreadable}: Is a directory"),
        new_archive(tmp_path / "a.tar", over=False) as draft,
    ):
        Writer(draft, MANIFEST).add_file("keys/x", unreadable)


def test_damage_is_noticed_at_every_place(tmp_path: Path) -> None:
    """A file cut short anywhere, with any byte of its contents changed, or of a later format is refused."""
    whole = archive(tmp_path / "a.tar", one=b"secret").read_bytes()
    broken = tmp_path / "broken.tar"
    for length in (0, 100, 512, 1024, 3000, len(whole) // 2, whole.rindex(END.encode())):
        broken.write_bytes(whole[:length])
        with pytest.raises(WhisprError, match="cannot be restored"):
            verified(broken)
    for word in (b"secret", b"keys/one"):
        broken.write_bytes(whole.replace(word, word[:-1] + b"X"))
        with pytest.raises(WhisprError, match="cannot be restored"):
            verified(broken)
    later = msgspec.structs.replace(MANIFEST, format=FORMAT + 1)
    with pytest.raises(WhisprError, match=f"format {FORMAT + 1}"):
        verified(archive(broken, later))


@pytest.mark.parametrize(
    "name", ["keys/../../etc/passwd", "keys/../x", "media/./x", "/etc/passwd", "keys//../x", "other/x"]
)
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    """A name that leads out of the folders of a backup is refused before anything is written."""
    path = tmp_path / "a.tar"
    with new_archive(path, over=True) as draft:
        writer = Writer(draft, MANIFEST)
        writer.add(name, b"x")
        writer.finish()
    with pytest.raises(WhisprError, match="which no backup does"):
        verified(path)


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    """Only files are taken out of it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("keys/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(WhisprError, match="is no file"):
        verified(path)


async def one_script(*parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield f"BEGIN; SET LOCAL client_min_messages = warning;\n{WIPE}".encode()
    for part in parts:
        async for chunk in part:
            yield chunk
    yield b"COMMIT;\n"


async def test_no_effect_is_skipped_or_repeated(
    bridge: Bridge, backends: Backends, bus: Bus, db: Postgres, postgres_url: str
) -> None:
    """Onto an empty NATS: a consumer that was behind gets what it lacks, one that was done nothing, both what is new.

    Events in the outbox, in the stream, and told after the snapshot, about one thing and in their order.
    """
    await delete_streams(bus)
    jetstream = JetStream(bus)
    await db.execute("CREATE TABLE users.effects (consumer text, n integer)")

    def counting(name: str) -> Noting:
        async def first(event: Event) -> None:
            async with target.transaction() as tx:
                if await once(tx, name, event.id):
                    await tx.execute("INSERT INTO users.effects VALUES ($1, $2)", name, event.data["n"])

        return Noting(name=name, first=first)

    target = db
    ahead, behind = counting("ahead"), counting("behind")
    async with process(db, jetstream, ahead.consumer, behind.consumer):
        await tell(db, "a", 1)
        await ahead.until(1)
        await behind.until(1)
    async with process(db, jetstream, ahead.consumer):
        for n in (2, 3):
            await tell(db, "a", n)
        await ahead.until(3)
        await empty_outbox(db)
        await fetched(db, "SELECT floor FROM events.positions WHERE consumer = 'ahead'", 3)
    await tell(db, "a", 4)

    async with db.transaction("REPEATABLE READ") as tx:
        async with events.quiet(db):
            snapshot = await tx.fetchval("SELECT pg_export_snapshot()")
            until = await events.ends(jetstream)
        await tell(db, "a", 99)
        put_back = [chunk async for chunk in events.under_way(tx, jetstream, until)]
        database = [chunk async for chunk in dumped(postgres_url, snapshot)]

    async def replayed(chunks: list[bytes]) -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    await delete_streams(bus)
    await db.execute("CREATE DATABASE restored")
    try:
        url = database_url(backends, "restored")
        await run_sql(url, one_script(replayed(database), replayed(put_back)))
        async with open_postgres(bridge, url) as restored:
            target = restored
            ahead, behind = counting("ahead"), counting("behind")
            async with process(restored, jetstream, ahead.consumer, behind.consumer):
                await tell(restored, "a", 5)
                await behind.until(4)
                await fetched(restored, "SELECT count(*) FROM users.effects WHERE n = 5", 2)
            for name in ("ahead", "behind"):
                query = "SELECT n FROM users.effects WHERE consumer = $1 ORDER BY ctid"
                assert [row["n"] for row in await restored.fetch(query, name)] == [1, 2, 3, 4, 5]
    finally:
        await db.execute("DROP DATABASE restored WITH (FORCE)")


async def test_a_restore_that_breaks_off_changes_nothing(db: Postgres, postgres_url: str) -> None:
    """A script that ends before its COMMIT, or fails on the way, leaves the database as it was."""

    async def ends_early() -> AsyncIterator[bytes]:
        yield f"BEGIN;\n{WIPE}".encode()

    async def fails() -> AsyncIterator[bytes]:
        yield f"BEGIN;\n{WIPE}".encode()
        yield b"SELECT nothing FROM nowhere;\nCOMMIT;\n"

    await run_sql(postgres_url, ends_early())
    with pytest.raises(WhisprError, match="nowhere"):
        await run_sql(postgres_url, fails())
    assert await db.fetchval("SELECT count(*) FROM public.whispr_migrations") > 0
    assert await db.fetchval("SELECT to_regclass('events.outbox') IS NOT NULL")


async def test_a_backup_holds_every_table(db: Postgres) -> None:
    """A table in a schema that no backup has fails here."""
    from whispr.backup.database import RECORDS, SCHEMAS

    rows = await db.fetch(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    names = {row["name"] for row in rows}
    assert {name for name in names if name.partition(".")[0] not in SCHEMAS} == {RECORDS}


# The whole way


def talk(product: Product, token: str, path: str, texts: list[str]) -> None:
    for text in texts:
        assert product.call("POST", path, {"text": text, "client_id": text}, token)[0] == 200


def seen(product: Product, token: str, path: str, media: str) -> dict[str, Any]:
    """What somebody finds: conversations with their counts, messages, the inbox, a file."""
    listed = product.call("GET", "/v1/conversations", token=token)[1]["conversations"]
    page: list[Any] = []
    while more := product.call("GET", f"{path}?after_seq={len(page)}&page_size=100", token=token)[1][
        "messages"
    ]:
        page += more
    sessions = product.call("GET", "/v1/auth/sessions", token=token)
    return {
        "conversations": [(c["id"], c["last_seq"], c["unread_count"]) for c in listed],
        "messages": [(m["seq"], m["id"], m["text"]) for m in page],
        "sessions": sessions[0],
        "file": downloaded(product, token, media),
    }


def until_consumed(product: Product) -> None:
    """Wait until every consumer has handled all there is, and nothing waits or is dead."""
    for _ in range(60):
        lines = whispr("events", "lag", WHISPR_DATA_DIR=str(product.data_dir)).stdout.splitlines()
        rows = [line.split() for line in lines[lines.index("") :] if line.rstrip().endswith("running")]
        if rows and lines[0].startswith("outbox: 0 ") and all(row[1:3] == ["0", "0"] for row in rows):
            return
        time.sleep(0.2)
    raise AssertionError("\n".join(lines))


def until_noted(product: Product, token: str, count: int) -> None:
    """Wait until somebody's inbox counts so many messages, each of them once."""
    for _ in range(150):
        inbox = product.call("GET", "/v1/notifications?page_size=100", token=token)[1]["notifications"]
        noted = sum(each["count"] for each in inbox if each["type"] == "message")
        if noted >= count:
            break
        time.sleep(0.2)
    assert noted == count


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everything_is_there_again(tmp_path: Path) -> None:
    """Backed up under load, wiped, restored: the same people, sessions, messages, counts, files; it goes on."""
    backup = tmp_path / "backup.tar"
    with running(tmp_path / "data", UNLIMITED) as product:
        environ = {"WHISPR_DATA_DIR": str(product.data_dir)}
        _, alice = product.sign_up("alice")
        bobs = {"username": "bob", "password": "correct horse"}
        _, registered = product.call("POST", "/v1/auth/register", bobs)
        bob_id, bob = registered["user"]["id"], registered["access_token"]
        conversation = product.conversation(alice, "direct", bob_id)
        path = f"/v1/conversations/{conversation}/messages"
        created = announce(product, alice, photo(width=300), "image/jpeg")
        assert ask("PUT", created["upload_url"], photo(width=300))[0] == 204
        media = created["media_id"]
        settled(product, alice, media)
        talk(product, alice, path, [f"before {n}" for n in range(20)])
        before = seen(product, alice, path, media)
        sender = threading.Thread(
            target=talk, args=(product, alice, path, [f"meanwhile {n}" for n in range(300)])
        )
        sender.start()
        done = whispr("backup", str(backup), **environ)
        assert done.returncode == 0, done.stderr
        sender.join()
        assert whispr("restore", str(backup), **environ).returncode == 1, "it is in use"
        after = seen(product, alice, path, media)
    refused = whispr("restore", str(backup), **environ)
    assert refused.returncode == 1
    assert "--replace" in refused.stderr

    for data, more in ((tmp_path / "new", ()), (tmp_path / "data", ("--replace",))):
        done = whispr("restore", str(backup), *more, WHISPR_DATA_DIR=str(data))
        assert done.returncode == 0, done.stderr
        with running(data, UNLIMITED) as product:
            found = seen(product, alice, path, media)
            count = len(found["messages"])
            assert 20 <= count <= len(after["messages"])
            assert found["messages"] == after["messages"][:count]
            assert count == found["conversations"][0][1]
            assert found["file"] == before["file"]
            assert found["sessions"] == before["sessions"] == 200
            ((_, last_seq, _),) = found["conversations"]
            assert last_seq >= 20
            (of_bob,) = product.call("GET", "/v1/conversations", token=bob)[1]["conversations"]
            assert of_bob["unread_count"] == last_seq
            talk(product, alice, path, ["afterwards"])
            _, page = product.call("GET", f"{path}?after_seq={last_seq}", token=bob)
            assert [(m["text"], m["seq"]) for m in page["messages"]] == [("afterwards", last_seq + 1)]
            until_consumed(product)
            until_noted(product, bob, last_seq + 1)
            renewal = {"refresh_token": registered["refresh_token"]}
            status, renewed = product.call("POST", "/v1/auth/refresh", renewal)
            assert status == 200, renewed
            assert product.call("GET", path, token=renewed["access_token"])[0] == 200


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_restore_that_was_killed_is_done_again(tmp_path: Path) -> None:
    """Kill -9 anywhere in it: nothing is served; the same command again ends it, without being told to replace."""
    made, backup = tmp_path / "made", tmp_path / "backup.tar"
    with running(made) as product:
        _, token = product.sign_up("alice")
        peer, _ = product.sign_up("bob")
        path = f"/v1/conversations/{product.conversation(token, 'direct', peer)}/messages"
        talk(product, token, path, ["kept"])
        assert whispr("backup", str(backup), WHISPR_DATA_DIR=str(made)).returncode == 0
    data = tmp_path / "data"
    for later_s in (0.0, 0.05, 0.2):
        killed_while_restoring(data, backup, later_s)
    done = whispr("restore", str(backup), WHISPR_DATA_DIR=str(data))
    assert done.returncode == 0, done.stderr
    with running(data) as product:
        _, page = product.call("GET", path, token=token)
        assert [message["text"] for message in page["messages"]] == ["kept"]


def killed_while_restoring(data: Path, backup: Path, later_s: float) -> None:
    """Kill -9 a restore so long after it has made its mark, unless it has ended by then."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    argv = [sys.executable, "-m", "whispr.cli", "restore", str(backup)]
    with subprocess.Popen(argv, env=environ | {"WHISPR_DATA_DIR": str(data)}) as restoring:
        while not (data / FILE).exists():
            assert restoring.poll() is None, "it ended without having begun"
            time.sleep(0.002)
        time.sleep(later_s)
        restoring.kill()
    if restoring.returncode == 0:
        (data / FILE).write_text("")  # it was quicker: as if it had been killed at its very end
    with pytest.raises(StartError, match="did not end"):
        start(data)
