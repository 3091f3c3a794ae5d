"""`whispr doctor`: what would keep Whispr from running here, found by trying it.

Every check does the thing itself, on a small scale: it binds the ports, locks the data folder, starts the
embedded servers in a temporary folder, connects to the backends that have URLs.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import trio

from whispr import ports
from whispr.adapters.bus import open_bus
from whispr.adapters.cache import open_cache
from whispr.adapters.objects import S3Options, objects_at
from whispr.adapters.postgres import open_postgres
from whispr.app import check_room
from whispr.bridge import Bridge, open_bridge
from whispr.config import SERVICES, Settings, without_password
from whispr.embed import check_owner, open_folder, run_children
from whispr.errors import WhisprError, unavailable
from whispr.node import Node

FILES_MIN = 4096
"""Open files a busy node wants: one per socket, and some."""
DISK_FREE_MIN_BYTES = 1 << 30
CONNECT_S = 5.0
"""How long a backend may take to answer."""
START_S = 20.0
"""How long an embedded server may take to start in an empty folder."""
POSTGRES_MIN = 14


Connect = Callable[[Bridge, str], Awaitable[str]]
"""Connects to a URL and says what is there. Raises WhisprError."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: what was looked at, how it is, and what helps."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Run every check."""
    findings = [*_machine(settings), _data_folder(settings), _listeners(settings)]
    for name, connect in _CONNECT.items():
        url = getattr(settings, name).url
        findings.append(await (_given(name, url, connect) if url else _embedded(name)))
    if settings.workers > 1 and settings.postgres.url:
        findings.append(await _workers(settings))
    findings.append(await _store("media store", settings.media.store_url, "WHISPR_MEDIA_STORE_URL", settings))
    findings.append(
        await _store("recordings", settings.stream.store_url, "WHISPR_STREAM_STORE_URL", settings)
    )
    return findings


def _machine(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), version, "use Python 3.11 or later")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= FILES_MIN
    shown = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding("open files", enough, f"{shown} at most", "raise the hard limit: ulimit -Hn, LimitNOFILE=")
    place = settings.data_dir.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Finding(
        "disk",
        free >= DISK_FREE_MIN_BYTES,
        f"{free / 2**30:.1f} GiB free",
        "free some, or move WHISPR_DATA_DIR",
    )


def _data_folder(settings: Settings) -> Finding:
    try:
        if not all(getattr(settings, name).url for name in _CONNECT):
            check_owner(settings.data_dir)
        with open_folder(settings.data_dir):
            return Finding("data folder", True, str(settings.data_dir.resolve()))
    except WhisprError as error:
        return Finding("data folder", False, error.message, "choose another with WHISPR_DATA_DIR")


def _listeners(settings: Settings) -> Finding:
    sections = Node.sections(SERVICES)
    try:
        ports.check_free(settings, sections)
    except WhisprError as error:
        return Finding("ports", False, error.message, "stop what listens there, or move ours")
    return Finding("ports", True, ", ".join(f"{name} {getattr(settings, name).port}" for name in sections))


async def _embedded(name: str) -> Finding:
    """Start an engine of our own in an empty folder."""

    async def start() -> str:
        began = trio.current_time()
        with tempfile.TemporaryDirectory(prefix="whispr-doctor-") as folder:
            async with trio.open_nursery() as nursery:
                await nursery.start(run_children, Path(folder), [name])
                took_s = trio.current_time() - began
                nursery.cancel_scope.cancel(reason="it started")
        return f"our own starts in {took_s:.1f} s"

    return await _tried(name, start, START_S, f"set WHISPR_{name.upper()}_URL to one that runs already")


async def _given(name: str, url: str, connect: Connect) -> Finding:
    """Connect to a backend that has a URL."""

    async def reach() -> str:
        async with open_bridge() as bridge:
            return f"{without_password(url)}: {await connect(bridge, url)}"

    return await _tried(name, reach, CONNECT_S, f"check WHISPR_{name.upper()}_URL, and that it is reachable")


async def _workers(settings: Settings) -> Finding:
    """Ask PostgreSQL whether it has room for the pools of all workers."""

    async def ask() -> str:
        async with open_bridge() as bridge, open_postgres(bridge, settings.postgres.url, pool_size=1) as db:
            await check_room(db, settings)
        return f"PostgreSQL has room for {settings.workers} times {settings.postgres.pool_size} connections"

    return await _tried("workers", ask, CONNECT_S, "each worker has a pool of its own")


async def _store(name: str, url: str, setting: str, settings: Settings) -> Finding:
    """Write an object, read it, and delete it; in a folder of the moment, if objects go into the data folder."""
    key = f"doctor-{os.urandom(8).hex()}"

    async def use() -> str:
        async with open_bridge() as bridge:
            with tempfile.TemporaryDirectory(prefix="whispr-doctor-") as folder:
                s3 = S3Options(settings.media.s3_endpoint, settings.media.s3_region)
                objects = objects_at(bridge, url, Path(folder), s3, setting=setting)
                await objects.put(key, b"whispr")
                async with aclosing(objects.read(key)) as pieces:
                    kept = b"".join([piece async for piece in pieces])
                await objects.delete([key])
        if kept != b"whispr":
            raise unavailable("what was written is not what is read")
        return without_password(url) or "a folder in the data folder"

    return await _tried(name, use, CONNECT_S, f"check {setting}, and the AWS_… variables")


async def _tried(name: str, attempt: Callable[[], Awaitable[str]], within_s: float, remedy: str) -> Finding:
    """Make an attempt within a bound; its outcome as a finding."""
    why = f"no answer within {within_s:g} s"
    try:
        with trio.move_on_after(within_s):
            return Finding(name, True, await attempt())
    except* WhisprError as group:
        why = _first(group)
    return Finding(name, False, why, remedy)


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.message if isinstance(error, WhisprError) else str(error)


async def _postgres(bridge: Bridge, url: str) -> str:
    async with open_postgres(bridge, url, pool_size=1) as db:
        version = int(await db.fetchval("SHOW server_version_num")) // 10_000
    if version < POSTGRES_MIN:
        raise unavailable(f"PostgreSQL {version} is too old: {POSTGRES_MIN} or later is needed")
    return f"PostgreSQL {version}"


async def _redis(bridge: Bridge, url: str) -> str:
    async with open_cache(bridge, url) as cache:
        await cache.ping()
    return "answers"


async def _nats(bridge: Bridge, url: str) -> str:
    async with open_bus(bridge, url) as bus:
        await bus.wait_connected()
    return "connected"


_CONNECT: Mapping[str, Connect] = {"postgres": _postgres, "redis": _redis, "nats": _nats}
