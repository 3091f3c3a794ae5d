"""Runs PostgreSQL, Valkey and NATS as children of the nursery: start, restart, stop.

Each server has a task: clear what an earlier run left, prepare, start, wait until it answers, and wait for
its end. A server that dies is started again on the same address, first at once and then with a growing
delay, so that connection pools only have to reconnect. Cancelling the task stops its server in order.

A server that cannot be started the first time is an error with the last lines of its log; later failures
are logged and tried again for ever, for the rest of the process is alive and waiting.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from whispr.embed.engines import Engine, Nats, Valkey
from whispr.embed.folder import DataFolder, check_owner, open_folder, write_private
from whispr.embed.logfile import LogFile
from whispr.embed.postgres import Postgres
from whispr.embed.process import Blind, Process, evict, spawn
from whispr.errors import WhisprError, conflict
from whispr.resilience.retry import Backoff

ALL = ("postgres", "redis", "nats")

START_S = 60.0
"""How long a server may take to answer; a crashed PostgreSQL replays its log in this time."""

PROBE_S = 0.01
"""Pause between two looks at a starting server."""

EVICT_S = 3.0
"""How long a server left by an earlier run has to end before SIGKILL."""

BACKOFF = Backoff(0.1, 5.0, low=0.5)
"""Delay before the n-th restart in a row."""

STEADY_S = 10.0
"""A server that ran this long starts over with an immediate restart when it dies."""

DISK_CHECK_S = 0.5
"""Pause between two looks at the disk of a server that does not get over a full one."""

DISK_FULL_BYTES, DISK_ROOM_BYTES = 1024 * 1024, 4 * 1024 * 1024
"""With less than the first free a disk has been full; with the second it has room again."""

LOG_CHECK_S = 10.0
"""Pause between two looks at the size of the logs."""

log = structlog.get_logger("whispr.embed")


@dataclass(slots=True)
class Status:
    """What is to be seen of one server."""

    pid: int | None = None
    """Of the running server, once it answers; None while there is none."""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Backends:
    """Where the servers are; None for those that were not wanted. URLs hold secrets: never log them."""

    postgres_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    nats_url: str | None = field(repr=False)
    status: Mapping[str, Status]


OnReady = Callable[[str, float], None]
"""Called with a server's title and the seconds it took, each time one has become ready."""


def _ignore(title: str, took_s: float) -> None:
    pass


async def run_children(
    data_dir: Path,
    wanted: Collection[str] = ALL,
    on_ready: OnReady = _ignore,
    *,
    task_status: trio.TaskStatus[Backends] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the wanted servers until cancelled; started with their addresses once all of them answer.

    Raises FAILED_PRECONDITION when the data folder is in use, unusable or newer, when a wheel is missing,
    when a server cannot be started, or on a system other than Linux.
    """
    unknown = set(wanted) - set(ALL)
    assert not unknown, f"no such servers: {unknown}"
    if wanted and platform.system() != "Linux":
        urls = ", ".join(f"WHISPR_{name.upper()}_URL" for name in wanted)
        raise conflict(f"the embedded servers need Linux; elsewhere set {urls}", "embedded_linux_only")
    if wanted and not (data_dir / "lock").exists():
        check_owner(data_dir)
    with open_folder(data_dir) as data:
        if wanted:
            check_owner(data.root)
        children = [_Child(MAKERS[name](data), data, on_ready) for name in ALL if name in wanted]
        async with trio.open_nursery() as nursery:
            failure = await _start_all(nursery, children)
            if failure is None:
                nursery.start_soon(_keep_logs_bounded, children)
                task_status.started(_backends(children))
            else:
                nursery.cancel_scope.cancel(reason="a server could not be started")
        if failure is not None:
            raise failure


MAKERS: Mapping[str, Callable[[DataFolder], Engine]] = {"postgres": Postgres, "redis": Valkey, "nats": Nats}
"""Server → what makes its engine."""


def _backends(children: Sequence[_Child]) -> Backends:
    urls = {child.engine.name: child.engine.url for child in children}
    status = {child.engine.name: child.status for child in children}
    return Backends(urls.get("postgres"), urls.get("redis"), urls.get("nats"), status)


async def _start_all(nursery: trio.Nursery, children: Sequence[_Child]) -> WhisprError | None:
    """Start the servers side by side, each supervised in `nursery` from then on; return the first failure."""
    failures: list[WhisprError] = []

    async def start(child: _Child) -> None:
        try:
            await nursery.start(child.supervise)
        except WhisprError as failure:
            failures.append(failure)
            starting.cancel_scope.cancel(reason="another server could not be started")

    async with trio.open_nursery() as starting:
        for child in children:
            starting.start_soon(start, child)
    return failures[0] if failures else None


async def _keep_logs_bounded(children: Sequence[_Child]) -> None:
    while True:
        await trio.sleep(LOG_CHECK_S)
        for child in children:
            child.log_file.bound()


class _Child:
    """One server under supervision."""

    def __init__(self, engine: Engine, data: DataFolder, on_ready: OnReady) -> None:
        self.engine = engine
        self.status = Status()
        self.log_file = LogFile(data.sub("logs") / f"{engine.name}.log")
        self._on_ready = on_ready
        self._pid_file = data.sub("run") / f"{engine.name}.pid"

    async def supervise(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the server running. Started when it first answers; raises if it cannot be started."""
        has_been_up = False

        def up() -> None:
            nonlocal has_been_up
            if not has_been_up:
                has_been_up = True
                task_status.started()

        in_a_row = 0
        with self.log_file:
            while True:
                began = trio.current_time()
                try:
                    await self._run_once(up)
                except (WhisprError, OSError, Blind) as error:
                    if not has_been_up:
                        raise _as_whispr_error(self.engine.title, error) from error
                    log.error("child_restart_failed", child=self.engine.title, error=str(error))
                if trio.current_time() - began >= STEADY_S:
                    in_a_row = 0
                await trio.sleep(BACKOFF.pause_s(in_a_row) if in_a_row else 0.0)
                in_a_row += 1
                self.status.restarts += 1

    async def _run_once(self, up: Callable[[], None]) -> None:
        """Start the server, say when it is up, and return when it has died."""
        engine = self.engine
        began = trio.current_time()
        self.log_file.bound()
        await self._end_leftover()
        await engine.prepare(self.log_file.descriptor)
        self.log_file.mark()
        process = spawn(
            engine.argv(),
            cwd=engine.folder,
            output=self.log_file.descriptor,
            death_signal=engine.death_signal,
            identity=engine.identity,
        )
        try:
            write_private(self._pid_file, f"{process.pid}\n")
            await self._until_ready(process)
            self.status.pid = process.pid
            self._on_ready(engine.title, trio.current_time() - began)
            up()
            how = _how_it_ended(await self._ended(process))
            log.error("child_died", child=engine.title, pid=process.pid, how=how)
        finally:
            self.status.pid = None
            if process.running:
                await process.stop(engine.stop_signals)
            process.close()
            self._pid_file.unlink(missing_ok=True)

    async def _ended(self, process: Process) -> int:
        """Wait until it has ended, by itself or because it is to be started anew; return how."""
        async with trio.open_nursery() as nursery:
            if self.engine.stalls_on_full_disk:
                nursery.start_soon(self._end_after_full_disk, process)
            code = await process.wait()
            nursery.cancel_scope.cancel(reason="it has ended")
        return code

    async def _end_after_full_disk(self, process: Process) -> None:
        """Stop it once a disk that was full has room again."""
        was_full = False
        while True:
            await trio.sleep(DISK_CHECK_S)
            free = free_bytes(self.engine.folder)
            was_full = was_full or free < DISK_FULL_BYTES
            if was_full and free >= DISK_ROOM_BYTES:
                log.warning(
                    "child_renewed", child=self.engine.title, why="its disk was full, and has room again"
                )
                process.send(self.engine.stop_signals[0][0])
                return

    async def _end_leftover(self) -> None:
        """End a server of this folder that outlived an earlier run, or parts of one that just died."""
        engine = self.engine
        if not engine.folder.exists():
            return
        try:
            ended = await evict(engine.folder, engine.program, engine.death_signal, EVICT_S)
        except Blind as hidden:
            log.warning("child_leftover_unknown", child=engine.title, why=str(hidden))
            return
        if ended:
            log.warning("child_leftover_ended", child=engine.title, processes=ended)

    async def _until_ready(self, process: Process) -> None:
        """Look at the starting server until it answers; an end, or START_S seconds, is an error."""
        title = self.engine.title
        with trio.move_on_after(START_S):
            while process.running:
                if await self.engine.probe(process.pid):
                    return
                await trio.sleep(PROBE_S)
            how = _how_it_ended(await process.wait())
            raise conflict(
                f"{title} ended with {how} while starting:\n{self.log_file.tail()}", "embedded_failed"
            )
        raise conflict(
            f"{title} did not answer within {START_S:g} s; see {self.log_file.path}", "embedded_failed"
        )


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _as_whispr_error(title: str, error: Exception) -> WhisprError:
    if isinstance(error, WhisprError):
        return error
    return conflict(f"{title} cannot be started: {error}", "embedded_failed")


def _how_it_ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
