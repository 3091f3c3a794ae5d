"""Processes what was uploaded: assembles it, has it scanned and looked into, and stores what is given out.

Any number of processes do so together; each takes jobs from the same queue in the database, a few at a time. All
of a job can be done again from its start, and is, when whoever did it dies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog
import trio

from whispr.adapters.objects import MissingObjectError, Objects
from whispr.errors import WhisprError, unavailable
from whispr.resilience.retry import Backoff
from whispr.services.media import metrics
from whispr.services.media.domain import Stored
from whispr.services.media.findings import Bounds, Refused, Result
from whispr.services.media.jobs import LEASE_S, Job, Jobs
from whispr.services.media.probe import INPUT, nonsense, probe, shown
from whispr.services.media.scanner import Scan
from whispr.services.media.store import MediaStore

ATTEMPTS_MAX: Final = 8
"""After so many failures of ours a medium is given up."""
RETRY: Final = Backoff(2.0, 600.0, multiplier=5, low=0.5)
SCAN_RETRY: Final = Backoff(4.0, 60.0, multiplier=5, low=0.5)
"""Pauses while the scanner is away; the last one repeats, for as long as it takes."""
POLL_S: Final = 5.0
"""How often jobs of other processes, which may have died, are looked for."""
STALE_S: Final = 24 * 3600.0
_WORK = "work-"

log = structlog.get_logger("whispr.media")


class ScannerAwayError(Exception):
    """Nobody can tell whether the file is infected."""


class Worker:
    """Processes media for one process. `ring` it when there may be something to do."""

    def __init__(
        self,
        jobs: Jobs,
        store: MediaStore,
        objects: Objects,
        folder: Path,
        *,
        scan: Scan | None,
        bounds: Bounds,
        at_once: int,
    ) -> None:
        """`folder`: where files lie while they are worked on."""
        self._jobs = jobs
        self._store = store
        self._objects = objects
        self._folder = folder
        self._scan = scan
        self._bounds = bounds
        self._at_once = trio.CapacityLimiter(at_once)
        self._rung = trio.Event()
        self._scan_failures = 0

    def ring(self) -> None:
        """Look for jobs now."""
        self._rung.set()

    async def run(self) -> None:
        """Process jobs until cancelled."""
        await trio.to_thread.run_sync(_sweep, self._folder)
        async with trio.open_nursery() as nursery:
            while True:
                self._rung = trio.Event()
                job = None
                async with self._at_once:
                    try:
                        job = await self._jobs.take()
                    except WhisprError as error:
                        log.warning("media_jobs_unreachable", error=str(error))
                if job is None:
                    with trio.move_on_after(await self._pause_s()):
                        await self._rung.wait()
                    continue
                await nursery.start(self._work, job)

    async def _pause_s(self) -> float:
        try:
            due_s = await self._jobs.next_due_s()
        except WhisprError:
            return POLL_S
        return POLL_S if due_s is None else min(POLL_S, max(0.02, due_s))

    async def _work(self, job: Job, *, task_status: trio.TaskStatus[None]) -> None:
        """Do a job in a slot, which is taken before this reports."""
        async with self._at_once:
            task_status.started()
            with trio.CancelScope() as working:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep, job, working)
                    await self._attempt(job)
                    nursery.cancel_scope.cancel(reason="the job is done")
        self.ring()  # It may have been put off by less than the queue was to be left alone for.

    async def _keep(self, job: Job, working: trio.CancelScope) -> None:
        """Renew the lease while the job is worked on; stop the work when the lease is lost."""
        renewed = trio.current_time()
        while True:
            await trio.sleep(LEASE_S / 4)
            try:
                if not await self._jobs.renew(job):
                    working.cancel(reason="the job is somebody else's by now")
                    return
                renewed = trio.current_time()
            except WhisprError as error:
                log.warning("media_lease_not_renewed", media_id=job.medium.id, error=str(error))
                if trio.current_time() - renewed > LEASE_S:
                    working.cancel(reason="the lease could not be renewed")
                    return

    async def _attempt(self, job: Job) -> None:
        """Process a medium, and write down what came of it, whatever that is."""
        began = time.perf_counter()
        try:
            try:
                await self._process(job)
            except Refused as refused:
                await self._give_up(job, refused.reason, refused.message)
            except ScannerAwayError as error:
                await self._later(job, str(error))
            except (WhisprError, OSError) as error:
                await self._again(job, error)
            except Exception as error:
                # What strangers send leads to the strangest places: that costs one medium, not the process.
                log.exception("media_processing_broke", media_id=job.medium.id)
                await self._again(job, error)
        except WhisprError as error:
            # The database is away: the lease runs out, and the job is taken again.
            log.warning("media_outcome_not_written", media_id=job.medium.id, error=str(error))
        metrics.PROCESSING.labels(job.medium.kind).observe(time.perf_counter() - began)

    async def _process(self, job: Job) -> None:
        async with _own_folder(self._folder) as folder:
            await self._assemble(job, folder / INPUT)
            await self._check_infection(folder / INPUT)
            found = await probe(folder, job.medium.content_type, self._bounds)
            variants = await self._keep_files(job, folder, found)
            if await self._jobs.succeed(job, found, variants):
                metrics.PROCESSED.labels("ready").inc()
                log.info("media_ready", media_id=job.medium.id, kind=found.kind, bytes=variants[0].bytes)

    async def _assemble(self, job: Job, path: Path) -> None:
        """Put the parts together. Raises Refused when one is lost, which is the store's fault and final."""
        size = 0
        try:
            with path.open("xb") as file:
                for part in await self._store.parts(job.medium.id):
                    size += await self._objects.copy_into(part.key, part.bytes, file.fileno())
        except MissingObjectError as error:
            log.error("media_part_lost", media_id=job.medium.id, key=error.key)
            raise Refused("lost", "a part of it is not in the store any more; send it again") from None
        if size != job.medium.declared_bytes:
            raise unavailable(f"{size} bytes were found of {job.medium.declared_bytes}")

    async def _check_infection(self, path: Path) -> None:
        if self._scan is None:
            return
        try:
            infection = await self._scan(path)
        except WhisprError as error:
            raise ScannerAwayError(error.message) from error
        self._scan_failures = 0
        if infection:
            raise Refused("infected", f"it is infected: {shown(infection, 200)}")

    async def _keep_files(self, job: Job, folder: Path, found: Result) -> list[Stored]:
        """Store the files that are given out, under a folder of this attempt's own."""
        kept = []
        for variant in found.variants:
            key = f"{job.medium.id}/{job.attempt}/{variant.name}"
            await trio.to_thread.run_sync(_check_digest, folder / variant.file, variant.sha256)
            await self._objects.put_file(key, folder / variant.file)
            kept.append(
                Stored(
                    variant.name,
                    key,
                    variant.type,
                    variant.bytes,
                    variant.sha256,
                    variant.width,
                    variant.height,
                )
            )
        return kept

    async def _give_up(self, job: Job, reason: str, message: str) -> None:
        if await self._jobs.fail(job, reason, message):
            metrics.PROCESSED.labels(reason).inc()
            log.info("media_refused", media_id=job.medium.id, reason=reason, message=message)

    async def _later(self, job: Job, why: str) -> None:
        """The scanner is away: that is no fault of the medium's, which waits for as long as it takes."""
        self._scan_failures += 1
        after_s = SCAN_RETRY.pause_s(self._scan_failures)
        metrics.RETRIED.labels("scanner").inc()
        log.warning("media_scanner_away", media_id=job.medium.id, error=why, again_s=after_s)
        await self._jobs.retry(job, after_s, why, counts=False)

    async def _again(self, job: Job, error: Exception) -> None:
        """Something of ours failed: try again, but not for ever."""
        if job.attempt >= ATTEMPTS_MAX:
            await self._give_up(job, "processing_failed", "it could not be processed; send it again")
            return
        after_s = RETRY.pause_s(job.attempt)
        metrics.RETRIED.labels("failure").inc()
        log.warning("media_processing_failed", media_id=job.medium.id, error=str(error), again_s=after_s)
        await self._jobs.retry(job, after_s, str(error), counts=True)


@asynccontextmanager
async def _own_folder(parent: Path) -> AsyncIterator[Path]:
    """Make a folder to work in, and delete it with all that is in it."""
    made = await trio.to_thread.run_sync(lambda: Path(tempfile.mkdtemp(prefix=_WORK, dir=parent)))
    try:
        yield made
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(made, ignore_errors=True))


def _check_digest(path: Path, sha256: str) -> None:
    """See to it that what is stored is a file of its own, the one looked into: the child is not trusted."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise nonsense()
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise nonsense()


def _sweep(folder: Path) -> None:
    """Make the folder for work, and delete what processes that were killed have left there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.glob(f"{_WORK}*"):
        if time.time() - os.stat(left).st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
