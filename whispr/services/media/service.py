"""The media service: its parts, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from whispr.adapters.objects import Objects
from whispr.adapters.postgres import Postgres
from whispr.adapters.signing import ensure_keys
from whispr.events import Consumer, Event
from whispr.resilience.target import Target
from whispr.services.media.domain import PART_BYTES, MediaLimits
from whispr.services.media.findings import Bounds
from whispr.services.media.http import PATH, MediaEndpoints
from whispr.services.media.janitor import Janitor
from whispr.services.media.jobs import Jobs
from whispr.services.media.protobuf import Shown
from whispr.services.media.scanner import Scan, guarded, make_scan
from whispr.services.media.servicer import Limiter, MediaServicer
from whispr.services.media.store import MediaStore, message_gone, unlinked
from whispr.services.media.uploads import Uploads
from whispr.services.media.urls import SignedUrls
from whispr.services.media.worker import Worker

__all__ = ["MIGRATIONS", "PATH", "MediaOptions", "MediaService"]

MIGRATIONS = Path(__file__).parent / "migrations"
"""The SQL files of the schema `media`; they run after those of conversations and users."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """What an operator may choose."""

    key_folder: Path
    """Keys that sign URLs; shared by all processes that serve the same media."""
    work_folder: Path
    """Where files lie while they are looked into."""
    limits: MediaLimits = field(default_factory=MediaLimits)
    bounds: Bounds = field(default_factory=Bounds)
    workers: int = 2
    """Files that this process looks into at a time."""
    scan_command: str = ""
    scan_clamd: str = ""
    part_bytes: int = PART_BYTES


class MediaService:
    """MediaService of one process, and its byte endpoints."""

    channels: Mapping[str, Any] = {}
    """No WebSocket topics."""

    def __init__(
        self,
        db: Postgres,
        objects: Objects,
        *,
        limiter: Limiter,
        base_url: Callable[[], str],
        options: MediaOptions,
        clock: Callable[[], float] = time.time,
        scanner: Target | None = None,
    ) -> None:
        """`base_url` returns where clients reach this process's endpoints. `scanner` is what scans go through.

        Raises FAILED_PRECONDITION (keys_unusable, bad_setting).
        """
        limits = options.limits
        self._db = db
        self._store = MediaStore(db)
        scan: Scan | None = make_scan(options.scan_command, options.scan_clamd)
        if scan is not None and scanner is not None:
            scan = guarded(scan, scanner)
        urls = SignedUrls(ensure_keys(options.key_folder), base_url, clock)
        uploads = Uploads(self._store, objects, limits, part_bytes=options.part_bytes)
        self.worker = Worker(
            Jobs(db), self._store, objects, options.work_folder,
            scan=scan, bounds=options.bounds, at_once=options.workers,
        )  # fmt: skip
        self.janitor = Janitor(db, objects, limits.unlinked_s)
        self.servicer = MediaServicer(self._store, urls, Shown(urls, limits, clock), limiter, limits)
        self.endpoints = MediaEndpoints(self._store, objects, uploads, urls, limits, self.worker.ring)
        """Serves the paths that match `PATH` (ASGI 3)."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """What is done about events of others."""
        gone = ("messaging.events.message_deleted", "chat.events.message_deleted")
        return (
            Consumer("media-messages", gone, self._message_deleted),
            Consumer("media-links", ("messaging.events.media_unlinked",), self._link_refused),
            Consumer(
                "media-accounts", ("user.events.account_deleted",), self._account_deleted, deadline_s=300
            ),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Process uploads and clean up, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.worker.run)
            nursery.start_soon(self.janitor.run)
            task_status.started()

    async def _message_deleted(self, event: Event) -> None:
        """Unlink what a message showed that is no more. Doing it again changes nothing."""
        if not event.data.get("media_ids"):
            await trio.lowlevel.checkpoint()
            return
        async with self._db.transaction() as tx:
            await message_gone(tx, str(event.data["message_id"]))

    async def _link_refused(self, event: Event) -> None:
        """Take back a link when there is no such message. Doing it again changes nothing."""
        if event.data.get("reason") != "no_message":
            await trio.lowlevel.checkpoint()
            return
        async with self._db.transaction() as tx:
            await unlinked(tx, str(event.data["media_id"]), str(event.data["message_id"]))

    async def _account_deleted(self, event: Event) -> None:
        """Erase what somebody has uploaded. Doing it again changes nothing."""
        await self._store.delete_of_owner(event.subject)
