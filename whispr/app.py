"""The composition root: opens everything in order, and closes it in the opposite one.

    data folder, embedded backends → bridge → pool, cache, bus → migrations → identity
      → services, each behind its rpc server → WebSocket listener → gateway → ready

Each stage is a context manager or a task of the nursery opened for it, so whatever fails, and whenever a
signal comes, what was opened is closed in order. With several workers the parent opens all down to migrations, and
each worker the rest (`whispr.workers`). A first SIGTERM or Ctrl-C drains: readiness ends, listeners
close, what is in flight is finished within `drain_s`; a second one, or one before it is ready, cancels.
"""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog
import trio

from whispr import conversations, events, ports
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache, open_cache
from whispr.adapters.migrations import Owner, migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.backup.unfinished import check_finished
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import ALL as EMBEDDED
from whispr.embed import run_children
from whispr.errors import conflict, unavailable
from whispr.node import Node
from whispr.progress import Progress
from whispr.services import notification, user
from whispr.services.auth.service import MIGRATIONS as AUTH_MIGRATIONS
from whispr.services.media.service import MIGRATIONS as MEDIA_MIGRATIONS
from whispr.services.stream.service import MIGRATIONS as STREAM_MIGRATIONS
from whispr.workers import Workers

MIGRATIONS = (
    Owner("events", events.MIGRATIONS),
    Owner("auth", AUTH_MIGRATIONS),
    Owner("conversations", conversations.MIGRATIONS),
    Owner("users", user.MIGRATIONS),
    Owner("media", MEDIA_MIGRATIONS),
    Owner("notifications", notification.MIGRATIONS),
    Owner("streams", STREAM_MIGRATIONS),
)
"""Who owns which schema, in the order in which their migrations run."""

_ROOM = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
"""

MIGRATE_S = 60.0
"""How long PostgreSQL may take to be there and be migrated."""

log = structlog.get_logger("whispr.app")


@dataclass(frozen=True, slots=True)
class Backends:
    """The engines behind everything, connected."""

    db: Postgres
    cache: Cache
    bus: Bus


class Orders:
    """What a process is told by signals."""

    def __init__(self) -> None:
        self.stop = trio.Event()
        """Set when it is to drain and end."""
        self._is_ready = False

    def ready(self) -> None:
        """Say that there is something to drain: before, a signal cancels."""
        self._is_ready = True

    @property
    def drains(self) -> bool:
        """Whether a first signal is obeyed by draining."""
        return self._is_ready


@asynccontextmanager
async def obedient(
    *numbers: signal.Signals, on_stop: Callable[[], None] = lambda: None
) -> AsyncIterator[Orders]:
    """Obey these signals in the block: the first one stops in order, a second one cancels."""
    orders = Orders()
    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                await anext(signals)
                if orders.drains:
                    on_stop()
                    orders.stop.set()
                    await anext(signals)
                nursery.cancel_scope.cancel(reason="told to stop at once")

            nursery.start_soon(obey)
            yield orders
            nursery.cancel_scope.cancel(reason="everything has stopped")


async def serve(settings: Settings, services: Sequence[str], progress: Progress) -> None:
    """Run `services` until told to stop by SIGTERM or SIGINT, in this process or in `settings.workers` of them.

    Raises WhisprError when it cannot start: ports in use, a data folder in use or newer, a backend away.
    """
    async with obedient(signal.SIGTERM, signal.SIGINT, on_stop=progress.stopping) as orders:
        progress.begin(settings)
        ports.check_free(settings, Node.sections(services))
        async with engines(settings, progress) as found:
            ports.withdraw(found.data_dir)  # of a run that was killed
            await (_serve_here if found.workers == 1 else _serve_in_workers)(
                found, services, progress, orders
            )


async def _serve_here(
    settings: Settings, services: Sequence[str], progress: Progress, orders: Orders
) -> None:
    """Serve in this process."""
    async with connected(settings) as backends:
        await _prepare(backends.db, progress)
        node = Node(settings, services, backends.db, backends.cache, backends.bus)
        async with run_node(node):
            with published(settings, {name: node.ports[name] for name in Node.sections(services)}, progress):
                orders.ready()
                await orders.stop.wait()
                await node.drain(settings.drain_s)


async def _serve_in_workers(
    settings: Settings, services: Sequence[str], progress: Progress, orders: Orders
) -> None:
    """Look after processes that serve."""
    async with connected(settings) as backends:
        await _prepare(backends.db, progress)
        await check_room(backends.db, settings)
    async with ports.reserved(settings, Node.sections(services)) as chosen, trio.open_nursery() as nursery:
        workers = Workers(chosen, services)
        await nursery.start(workers.run)
        shown = {name: getattr(chosen, name).port for name in Node.sections(services)}
        with published(settings, shown, progress):
            orders.ready()
            await orders.stop.wait()
            workers.stop.set()
            await workers.ended.wait()


GC_THRESHOLDS = (5_000, 20, 20)
"""Objects that last, a connection and its tasks, come by the thousand. With CPython's defaults a quarter of what
2,000 new sockets a second cost was the collector, walking through those it had found alive before."""


@asynccontextmanager
async def run_node(node: Node) -> AsyncIterator[None]:
    """Run a node for the length of the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        # What exists now lives as long as the process: later collections need not walk through it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        yield
        nursery.cancel_scope.cancel(reason="drained")


@contextmanager
def published(settings: Settings, shown: Mapping[str, int], progress: Progress) -> Iterator[None]:
    """Tell everybody where to find us, for the length of the block."""
    ports.publish(settings.data_dir, shown)
    try:
        progress.ready(settings, shown)
        yield
    finally:
        ports.withdraw(settings.data_dir)


@asynccontextmanager
async def engines(settings: Settings, progress: Progress) -> AsyncIterator[Settings]:
    """Lock the data folder and run the engines that have no URL; yields settings with all URLs."""
    check_finished(settings.data_dir)
    given = {name: getattr(settings, name) for name in EMBEDDED}
    async with trio.open_nursery() as children:
        wanted = [name for name in EMBEDDED if not given[name].url]
        running = await children.start(run_children, settings.data_dir, wanted, progress.step)
        own = {"postgres": running.postgres_url, "redis": running.redis_url, "nats": running.nats_url}
        found = {name: given[name].model_copy(update={"url": own[name]}) for name in wanted}
        yield settings.model_copy(update=found)
        children.cancel_scope.cancel(reason="nobody uses them any more")


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Backends]:
    """Connect to the engines, which all have URLs."""
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, settings.postgres.url, settings.postgres.pool_size) as db,
        open_cache(bridge, settings.redis.url) as cache,
        open_bus(bridge, settings.nats.url) as bus,
    ):
        yield Backends(db, cache, bus)


async def _prepare(db: Postgres, progress: Progress) -> None:
    began = time.monotonic()
    if await _migrated(db):
        progress.step("migrations", time.monotonic() - began)


async def check_room(db: Postgres, settings: Settings) -> None:
    """Raise FAILED_PRECONDITION when PostgreSQL has no room for the pools of all workers."""
    room = await db.fetchval(_ROOM)
    each = settings.postgres.pool_size
    wanted = settings.workers * each
    if wanted > room:
        raise conflict(
            f"{settings.workers} workers with {each} connections each want {wanted}, and PostgreSQL has {room}: "
            "lower WHISPR_POSTGRES_POOL_SIZE or WHISPR_WORKERS, or raise its max_connections",
            "too_few_connections",
        )


async def _migrated(db: Postgres) -> list[str]:
    """Bring the database up to date; return what was applied. Raises UNAVAILABLE when it stays away."""
    with trio.move_on_after(MIGRATE_S):
        return await migrate(db, MIGRATIONS)
    raise unavailable(f"PostgreSQL could not be reached and migrated within {MIGRATE_S:g} s")


async def migrate_only(settings: Settings, progress: Progress) -> list[str]:
    """Bring the database up to date and stop; return what was applied."""
    async with engines(settings, progress) as found, connected(found) as backends:
        return await _migrated(backends.db)
