"""Fixtures with both services running."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from tests.conftest import database_url
from tests.services.kit import World, world
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.embed import Backends


@pytest.fixture
async def services(db: Postgres) -> AsyncIterator[World]:
    async with world(db) as running:
        yield running


@pytest.fixture(scope="module")
def model_runner(
    backends: Backends, template: str
) -> Callable[[Callable[[Postgres], Awaitable[None]]], None]:
    """Run one example of a property in a Trio run of its own, on tables emptied before.

    A property has one fixture for all its examples, and a database per example would be most of its time.
    """
    name = f"model_{uuid.uuid4().hex}"

    def run(play: Callable[[Postgres], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with open_bridge() as bridge:
                async with open_postgres(bridge, database_url(backends), pool_size=1) as admin:
                    if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
                        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
                async with open_postgres(bridge, database_url(backends, name)) as db:
                    await db.execute(
                        "TRUNCATE users.profiles, users.contacts, users.blocks, auth.accounts CASCADE"
                    )
                    await play(db)

        trio.run(whole)

    return run
