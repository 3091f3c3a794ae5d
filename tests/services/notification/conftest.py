"""Fixtures: the notification service and a push service, both running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.services.notification.kit import World, world
from tests.services.notification.servers import PushServer, http1_server
from whispr.adapters.postgres import Postgres


@pytest.fixture
async def notifications(db: Postgres, tmp_path: Path) -> AsyncIterator[World]:
    async with world(db, tmp_path) as running:
        yield running


@pytest.fixture
async def push() -> AsyncIterator[PushServer]:
    async with http1_server() as server:
        yield server
