"""Fixtures with the services running."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.services.chat.kit import World, open_world
from whispr.adapters.postgres import Postgres


@pytest.fixture
async def world(db: Postgres) -> AsyncIterator[World]:
    async with open_world(db) as running:
        yield running
