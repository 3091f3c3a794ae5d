"""Fixtures on real backends: the servers once per session, a fresh database per test.

`backends` runs `python -m whispr.embed` as a process of its own for the whole session, because a Trio run
lives only as long as one test. `db` is a migrated database cloned from a template: about 20 ms.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest
import structlog
import trio

from tests.phoenix_js import installed_node
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache, open_cache
from whispr.adapters.migrations import Owner, migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import Bridge, open_bridge
from whispr.embed import Backends

_ROOT = Path(__file__).parent.parent
_TEMPLATE = "whispr_template"
_numbers = count(1)


def _scratch() -> str | None:
    """Pick memory for the servers' data where there is some: then fsync, which stays on, costs nothing."""
    shm = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
    roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2**30
    return str(shm) if roomy else None


def _owners() -> Sequence[Owner]:
    """Take the canonical list from the composition root; while there is none, what is in the tree."""
    if find_spec("whispr.app") is not None and hasattr(app := import_module("whispr.app"), "MIGRATIONS"):
        owners: Sequence[Owner] = app.MIGRATIONS
        return owners
    folders = {"auth": "services/auth", "conversations": "conversations", "users": "services/user"}
    found = [Owner(name, _ROOT / "whispr" / path / "migrations") for name, path in folders.items()]
    return [owner for owner in found if owner.folder.is_dir()]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let what tests start be interrupted: a shell has its background jobs, and their children, ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Log plainly: structlog's own default draws each traceback with its locals, which can take a second."""
    chain: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(),
    ]
    structlog.configure(processors=chain)


@pytest.fixture(scope="session")
def node() -> str:
    """Node that can run phoenix.js; the test is skipped where there is none."""
    return installed_node()


@pytest.fixture(scope="session")
def backends() -> Iterator[Backends]:
    """Run PostgreSQL, Valkey and NATS in a private temporary folder until the session ends."""
    folder = tempfile.mkdtemp(prefix="whispr-test-", dir=_scratch())
    command = [sys.executable, "-m", "whispr.embed", folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        try:
            yield Backends(**json.loads(servers.stdout.readline()), status={})
        finally:
            servers.stdin.close()
            servers.wait(15)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(backends: Backends) -> str:
    """Make the migrated database that every test's database is cloned from; return its name."""

    async def make() -> None:
        async with open_bridge() as bridge:
            async with open_postgres(bridge, database_url(backends), pool_size=1) as admin:
                await admin.execute(f"CREATE DATABASE {_TEMPLATE}")
            async with open_postgres(bridge, database_url(backends, _TEMPLATE), pool_size=1) as db:
                await migrate(db, _owners())

    trio.run(make)
    return _TEMPLATE


def database_url(backends: Backends, name: str = "whispr") -> str:
    """Return the URL of a database on the test server."""
    assert backends.postgres_url is not None
    return backends.postgres_url.replace("/whispr?", f"/{name}?")


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    """Run an asyncio guest loop for the length of the test."""
    async with open_bridge() as bridge:
        yield bridge


@pytest.fixture
async def postgres_url(bridge: Bridge, backends: Backends, template: str) -> AsyncIterator[str]:
    """Make a fresh, migrated database and drop it after the test."""
    name = f"test_{next(_numbers)}"
    async with open_postgres(bridge, database_url(backends), pool_size=1) as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        yield database_url(backends, name)
        with trio.CancelScope(shield=True):
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(bridge: Bridge, postgres_url: str) -> AsyncIterator[Postgres]:
    """Open a pool on a fresh, migrated database."""
    async with open_postgres(bridge, postgres_url) as db:
        yield db


@pytest.fixture
async def cache(bridge: Bridge, backends: Backends) -> AsyncIterator[Cache]:
    """Open the cache, emptied."""
    assert backends.redis_url is not None
    async with open_cache(bridge, backends.redis_url) as cache:
        await cache.command("FLUSHDB")
        yield cache


@pytest.fixture
async def bus(bridge: Bridge, backends: Backends) -> AsyncIterator[Bus]:
    """Open a connection to the bus, and wait until it is up."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as bus:
        await bus.wait_connected()
        yield bus
