"""Fixtures on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conversations.kit import Written, running_log
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Limits
from whispr.conversations.membership import Membership
from whispr.conversations.store import Store


@pytest.fixture
def store(db: Postgres) -> Store:
    return Store(db, Limits())


@pytest.fixture
def membership(db: Postgres) -> Membership:
    return Membership(db, Limits())


@pytest.fixture
async def written(db: Postgres) -> AsyncIterator[Written]:
    async with running_log(db) as running:
        yield running
