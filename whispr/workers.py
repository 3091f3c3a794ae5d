"""`whispr serve --workers N`: processes that serve the same ports, and the parent that looks after them.

Theory of operation. Each worker is a whole node of the chosen services, as on a machine of its own: they are joined
by NATS, Redis and PostgreSQL alone, and jobs of which there is one at a time have a lock or a lease there. All listen
on the same ports with SO_REUSEPORT, so the kernel spreads connections over them; calls between services stay inside a
worker, over Unix sockets of its own.

The parent serves nothing. It owns what there is one of: the data folder's lock, the embedded backends, migrations,
the ports (bound, so that they stay ours while no worker listens), `ports.json` and the word that all is ready. It
starts the workers and starts one again that has ended, at once the first time and then with growing pauses; a worker
that ends `BACKOFF_S` times in a row, each time within `STEADY_S`, ends everything with an error that says so. To
stop, all workers are told by SIGTERM to drain, and who has not ended in time is killed. When the parent is killed,
the kernel kills the workers (prctl(2), PR_SET_PDEATHSIG).

A worker that gets a SIGTERM from somebody else drains and is replaced, so the processes can be renewed one by one.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio
from prometheus_client import Counter, Gauge

from whispr.config import Settings
from whispr.embed import DataFolder, Process, spawn, write_private
from whispr.errors import conflict, unavailable
from whispr.worker import READY, Assignment
from whispr.worker_metrics import SUPERVISOR, serve_metrics, socket_name

START_S = 60.0
"""How long a worker may take until it serves."""
BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Pause before the n-th start in a row; one more ends everything."""
STEADY_S = 10.0
"""A worker that served this long starts over with an immediate restart."""
GRACE_S = 5.0
"""What a draining worker has beyond the patience of its drain, to close what it has open."""
LONGEST_SOCKET = "64-notification.sock"

WORKERS = Gauge("whispr_workers", "Workers that serve")
RESTARTS = Counter("whispr_worker_restarts_total", "Workers started again", ["worker"])

log = structlog.get_logger("whispr.workers")


class Workers:
    """The workers of one machine. `run` it, set `stop`, and wait for `ended`."""

    def __init__(self, settings: Settings, services: Sequence[str]) -> None:
        """`settings` have the chosen ports and the URLs of all backends."""
        self._settings = settings
        self._services = services
        self._data = DataFolder(settings.data_dir.resolve())
        self._folder = self._data.socket_dir("workers", LONGEST_SOCKET)
        self.stop = trio.Event()
        """Set to have all workers drain and end."""
        self.ended = trio.Event()
        """Set once they have."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep all workers running until `stop`. Started once all serve.

        Raises FAILED_PRECONDITION (worker_failed) when one cannot be started, UNAVAILABLE (workers_crash) when one
        keeps ending.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_metrics, self._folder / socket_name(SUPERVISOR))
            async with trio.open_nursery() as keeping:
                async with trio.open_nursery() as starting:
                    for number in range(1, self._settings.workers + 1):
                        starting.start_soon(keeping.start, self._keep, number)
                task_status.started()
            self.ended.set()
            nursery.cancel_scope.cancel(reason="all workers have ended")

    async def _keep(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep a worker running."""
        has_served, in_a_row = False, 0
        while True:
            began = trio.current_time()
            worker = _Worker(self._assignment(number), self._data.sub("run") / f"worker-{number}.pid")
            try:
                if await worker.serves():
                    WORKERS.inc()
                    if not has_served:
                        has_served = True
                        task_status.started()
                    code = await worker.ended(self.stop)
                    WORKERS.dec()
                elif self.stop.is_set():
                    return
                else:
                    code = await worker.ended(self.stop)
            finally:
                await worker.end(self._settings.drain_s + self._settings.drain_notice_s + GRACE_S)
            if self.stop.is_set():
                return
            log.error("worker_ended", worker=number, code=code)
            if not has_served:
                raise conflict(
                    f"worker {number} could not be started: it ended with {_how(code)}", "worker_failed"
                )
            in_a_row = 0 if code == 0 or trio.current_time() - began >= STEADY_S else in_a_row + 1
            if in_a_row >= len(BACKOFF_S):
                told = f"worker {number} ended {in_a_row} times in a row, at last with {_how(code)}; its log says why"
                raise unavailable(told, reason="workers_crash")
            RESTARTS.labels(str(number)).inc()
            with trio.move_on_after(BACKOFF_S[in_a_row]):
                await self.stop.wait()
                return

    def _assignment(self, number: int) -> Assignment:
        return Assignment(self._settings, self._services, number, self._folder)


class _Worker:
    """One run of one worker."""

    def __init__(self, assignment: Assignment, pid_file: Path) -> None:
        self._said, theirs = os.pipe()
        try:
            self._process: Process = spawn(
                [sys.executable, "-m", "whispr.worker"],
                cwd=Path.cwd(),
                output=sys.stderr.fileno(),
                stdout=theirs,
                death_signal=signal.SIGKILL,
                stdin=pickle.dumps(assignment),
                env=os.environ,
            )
        except BaseException:
            os.close(self._said)
            raise
        finally:
            os.close(theirs)
        self._pid_file = pid_file
        write_private(pid_file, f"{self._process.pid}\n")

    async def serves(self) -> bool:
        """Wait until it serves; False when it has ended before, or takes too long."""
        with trio.move_on_after(START_S):
            await trio.lowlevel.wait_readable(self._said)
            return os.read(self._said, len(READY)) == READY
        log.error("worker_start_slow", pid=self._process.pid, after_s=START_S)
        self._process.kill_all()
        return False

    async def ended(self, stop: trio.Event) -> int:
        """Return its exit code once it has ended; 0 when it is to stop before."""
        code = 0

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal code
            code = await self._process.wait()
            scope.cancel(reason="the worker has ended")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await stop.wait()
            nursery.cancel_scope.cancel(reason="told to stop")
        return code

    async def end(self, within_s: float) -> None:
        """Have it drain, if it runs; kill it when that takes too long, or at once when we are cancelled."""
        try:
            if self._process.running:
                self._process.send(signal.SIGTERM)
                with trio.move_on_after(within_s) as patience:
                    await self._process.wait()
                if patience.cancelled_caught:
                    log.error("worker_killed", pid=self._process.pid, after_s=within_s)
        finally:
            if self._process.running:
                self._process.kill_all()
                await self._process.stop([])
            self._process.close()
            os.close(self._said)
            self._pid_file.unlink(missing_ok=True)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
