"""`whispr doctor` says what would keep several workers from running."""

from __future__ import annotations

import pytest

from whispr import doctor
from whispr.config import Settings
from whispr.embed import Backends


@pytest.mark.parametrize(("workers", "ok"), [(2, True), (64, False)])
async def test_workers_need_room_in_postgresql(backends: Backends, workers: int, ok: bool) -> None:
    """The pools of all workers together must fit its connections; else it says which settings to change."""
    postgres = {"url": backends.postgres_url, "pool_size": 8}
    found = await doctor._workers(Settings(workers=workers, postgres=postgres))  # type: ignore[arg-type]  # validated
    assert found.ok is ok
    assert ok or "WHISPR_POSTGRES_POOL_SIZE" in found.detail
