from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import trio

from whispr.adapters.migrations import Owner, load, migrate, pending
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import Code, WhisprError


@pytest.fixture
async def blank(bridge: Bridge, backends: Backends) -> AsyncIterator[Postgres]:
    """Open an empty database, without any migration."""
    assert backends.postgres_url is not None
    async with open_postgres(bridge, backends.postgres_url, pool_size=1) as admin:
        await admin.execute("CREATE DATABASE blank STRATEGY FILE_COPY")
        url = backends.postgres_url.replace("/whispr?", "/blank?")
        async with open_postgres(bridge, url, pool_size=4) as db:
            yield db
        with trio.CancelScope(shield=True):
            await admin.execute("DROP DATABASE blank WITH (FORCE)")


def owner(folder: Path, **files: str) -> Owner:
    folder.mkdir(exist_ok=True)
    for name, sql in files.items():
        (folder / f"{name.removeprefix('v')}.sql").write_text(sql)
    return Owner(folder.name, folder)


async def test_files_run_in_order_of_owner_and_version(blank: Postgres, tmp_path: Path) -> None:
    """Each file runs once, after those it may depend on; a second run has nothing to do."""
    first = owner(
        tmp_path / "first",
        v0002_b="INSERT INTO log VALUES ('b')",
        v0001_a="CREATE TABLE log (what text); INSERT INTO log VALUES ('a');",
    )
    second = owner(tmp_path / "second", v0001_c="INSERT INTO log VALUES ('c')")
    assert await pending(blank, [first, second]) == ["first/0001_a", "first/0002_b", "second/0001_c"]
    assert await migrate(blank, [first, second]) == ["first/0001_a", "first/0002_b", "second/0001_c"]
    assert await migrate(blank, [first, second]) == []
    assert await pending(blank, [first, second]) == []
    assert [row["what"] for row in await blank.fetch("SELECT what FROM log")] == ["a", "b", "c"]
    row = await blank.fetchrow("SELECT * FROM public.whispr_migrations WHERE owner = 'second'")
    assert row is not None
    assert (row["version"], row["name"]) == (1, "c")
    assert row["sha256"] == load(second)[0].sha256


async def test_a_new_file_is_applied_to_an_old_database(blank: Postgres, tmp_path: Path) -> None:
    """An upgrade runs only what is new."""
    it = owner(tmp_path / "it", v0001_a="CREATE TABLE t (n int)")
    await migrate(blank, [it])
    owner(tmp_path / "it", v0002_b="ALTER TABLE t ADD m int")
    assert await migrate(blank, [it]) == ["it/0002_b"]


async def test_a_failed_migration_leaves_nothing_and_can_be_run_again(
    blank: Postgres, tmp_path: Path
) -> None:
    """A file that fails half way is undone, named in the error, and runs once it is mended."""
    it = owner(
        tmp_path / "it", v0001_a="CREATE TABLE t (n int)", v0002_b="CREATE TABLE u (n int); SELECT 1/0;"
    )
    with pytest.raises(asyncpg.DivisionByZeroError) as caught:
        await migrate(blank, [it])
    assert caught.value.__notes__ == ["in migration it/0002_b"]
    assert await blank.fetchval("SELECT to_regclass('u')") is None
    owner(tmp_path / "it", v0002_b="CREATE TABLE u (n int)")
    assert await migrate(blank, [it]) == ["it/0002_b"]


async def test_processes_that_start_together_migrate_once(blank: Postgres, tmp_path: Path) -> None:
    """Concurrent runs share the work without a clash: each file is applied by exactly one of them."""
    files = {f"v{n:04d}_t": f"CREATE TABLE t{n} (n int)" for n in range(1, 9)}
    it = owner(tmp_path / "it", **files)
    done: list[str] = []

    async def one() -> None:
        done.extend(await migrate(blank, [it]))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert sorted(done) == [f"it/{n:04d}_t" for n in range(1, 9)]


SLEEPING = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
    AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid())
"""


async def test_a_cancelled_migration_is_resumed(blank: Postgres, tmp_path: Path) -> None:
    """Stopped in the middle of a file, the next run takes up where the last commit was."""
    it = owner(tmp_path / "it", v0001_a="CREATE TABLE t (n int)", v0002_b="SELECT pg_sleep(60)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(migrate, blank, [it])
        with trio.fail_after(10):
            while not await blank.fetchval(SLEEPING):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(reason="stopped in the middle")
    owner(tmp_path / "it", v0002_b="CREATE TABLE u (n int)")
    assert await migrate(blank, [it]) == ["it/0002_b"]


async def test_a_changed_file_is_refused(blank: Postgres, tmp_path: Path) -> None:
    """History is not rewritten: the error names the file, and nothing is applied."""
    it = owner(tmp_path / "it", v0001_a="CREATE TABLE t (n int)")
    await migrate(blank, [it])
    owner(tmp_path / "it", v0001_a="CREATE TABLE t (n bigint)", v0002_b="CREATE TABLE u (n int)")
    with pytest.raises(WhisprError, match="it/0001_a was changed") as caught:
        await migrate(blank, [it])
    assert caught.value.reason == "migration_changed"
    assert await blank.fetchval("SELECT to_regclass('u')") is None


async def test_a_newer_database_is_refused(blank: Postgres, tmp_path: Path) -> None:
    """A database that a later release migrated is left alone; the error names both versions."""
    it = owner(tmp_path / "it", v0001_a="SELECT 1", v0002_b="SELECT 2", v0003_c="SELECT 3")
    await migrate(blank, [it])
    for name in ("0002_b", "0003_c"):
        (tmp_path / "it" / f"{name}.sql").unlink()
    with pytest.raises(WhisprError, match="at version 2 of it; this Whispr knows up to 1") as caught:
        await migrate(blank, [it])
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.reason == "database_newer"


async def test_other_owners_are_left_alone(blank: Postgres, tmp_path: Path) -> None:
    """A process that runs only some services does not mind what the others have applied."""
    one, two = owner(tmp_path / "one", v0001_a="SELECT 1"), owner(tmp_path / "two", v0001_a="SELECT 1")
    await migrate(blank, [one, two])
    assert await migrate(blank, [one]) == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["0001_a", "0003_c"], "without gaps"),
        (["0002_b"], "without gaps"),
        (["0001_a", "0001_b"], "without gaps"),
        (["1_a"], "not named NNNN_name.sql"),
        (["0001-a"], "not named NNNN_name.sql"),
    ],
)
def test_badly_named_files_are_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    """Gaps, duplicates and other names are an error that says what is expected."""
    it = owner(tmp_path / "it", **dict.fromkeys(names, "SELECT 1"))
    with pytest.raises(WhisprError, match=complaint):
        load(it)
