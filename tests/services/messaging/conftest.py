"""Fixtures with both services running."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.services.kit import World, world
from whispr.adapters.postgres import Postgres


@pytest.fixture
async def services(db: Postgres) -> AsyncIterator[World]:
    async with world(db) as running:
        yield running
