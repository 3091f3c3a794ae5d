"""The composition root: opens everything in order, and closes it in the opposite one.

    data folder, embedded backends → bridge → pool, cache, bus → migrations → identity
      → services, each behind its rpc server → WebSocket listener → gateway → ready

Each stage is a context manager or a task of the nursery opened for it, so whatever fails, and whenever a
signal comes, what was opened is closed in order. A first SIGTERM or Ctrl-C drains: readiness ends, listeners
close, what is in flight is finished within `drain_s`; a second one, or one before it is ready, cancels.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from whispr import conversations, events, ports
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache, open_cache
from whispr.adapters.migrations import Owner, migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import ALL as EMBEDDED
from whispr.embed import run_children
from whispr.errors import unavailable
from whispr.node import Node
from whispr.progress import Progress
from whispr.services import notification, user
from whispr.services.auth.service import MIGRATIONS as AUTH_MIGRATIONS
from whispr.services.media.service import MIGRATIONS as MEDIA_MIGRATIONS

MIGRATIONS = (
    Owner("events", events.MIGRATIONS),
    Owner("auth", AUTH_MIGRATIONS),
    Owner("conversations", conversations.MIGRATIONS),
    Owner("users", user.MIGRATIONS),
    Owner("media", MEDIA_MIGRATIONS),
    Owner("notifications", notification.MIGRATIONS),
)
"""Who owns which schema, in the order in which their migrations run."""

MIGRATE_S = 60.0
"""How long PostgreSQL may take to be there and be migrated."""

log = structlog.get_logger("whispr.app")


@dataclass(frozen=True, slots=True)
class Backends:
    """The engines behind everything, connected."""

    db: Postgres
    cache: Cache
    bus: Bus


async def serve(settings: Settings, services: Sequence[str], progress: Progress) -> None:
    """Run `services` until told to stop by SIGTERM or SIGINT.

    Raises WhisprError when it cannot start: ports in use, a data folder in use or newer, a backend away.
    """
    ready, stop = trio.Event(), trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                await anext(signals)
                if ready.is_set():
                    progress.stopping()
                    stop.set()
                    await anext(signals)
                nursery.cancel_scope.cancel(reason="told to stop at once")

            nursery.start_soon(obey)
            await _run(settings, services, progress, ready, stop)
            nursery.cancel_scope.cancel(reason="everything has stopped")


async def _run(
    settings: Settings, services: Sequence[str], progress: Progress, ready: trio.Event, stop: trio.Event
) -> None:
    """Start, say so, wait until told to stop, and drain."""
    progress.begin(settings)
    ports.check_free(settings, Node.sections(services))
    async with open_backends(settings, progress) as backends:
        ports.withdraw(settings.data_dir)  # of a run that was killed
        began = time.monotonic()
        applied = await _migrated(backends.db)
        if applied:
            progress.step("migrations", time.monotonic() - began)
        async with trio.open_nursery() as nursery:
            node = Node(settings, services, backends.db, backends.cache, backends.bus)
            await nursery.start(node.run)
            shown = {name: node.ports[name] for name in Node.sections(services)}
            ports.publish(settings.data_dir, shown)
            try:
                # What exists now lives as long as the process: later collections need not walk through it.
                gc.collect()
                gc.freeze()
                progress.ready(settings, shown)
                ready.set()
                await stop.wait()
                await node.drain(settings.drain_s)
            finally:
                ports.withdraw(settings.data_dir)
            nursery.cancel_scope.cancel(reason="drained")


@asynccontextmanager
async def open_backends(settings: Settings, progress: Progress) -> AsyncIterator[Backends]:
    """Lock the data folder, run the engines that have no URL, and connect to all of them."""
    urls = {"postgres": settings.postgres.url, "redis": settings.redis.url, "nats": settings.nats.url}
    async with trio.open_nursery() as children:
        wanted = [name for name in EMBEDDED if not urls[name]]
        running = await children.start(run_children, settings.data_dir, wanted, progress.step)
        own = {"postgres": running.postgres_url, "redis": running.redis_url, "nats": running.nats_url}
        urls |= {name: url for name, url in own.items() if url}
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, urls["postgres"], settings.postgres.pool_size) as db,
            open_cache(bridge, urls["redis"]) as cache,
            open_bus(bridge, urls["nats"]) as bus,
        ):
            yield Backends(db, cache, bus)
        children.cancel_scope.cancel(reason="nobody uses them any more")


async def _migrated(db: Postgres) -> list[str]:
    """Bring the database up to date; return what was applied. Raises UNAVAILABLE when it stays away."""
    with trio.move_on_after(MIGRATE_S):
        return await migrate(db, MIGRATIONS)
    raise unavailable(f"PostgreSQL could not be reached and migrated within {MIGRATE_S:g} s")


async def migrate_only(settings: Settings, progress: Progress) -> list[str]:
    """Bring the database up to date and stop; return what was applied."""
    async with open_backends(settings, progress) as backends:
        return await _migrated(backends.db)
