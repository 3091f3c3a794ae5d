"""`whispr doctor` says what would keep the product from running."""

from __future__ import annotations

from pathlib import Path

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


async def test_both_stores_are_tried(tmp_path: Path) -> None:
    """A folder that objects can be in is fine, and left empty; another is named by the setting that leads there."""
    good, bad = f"file://{tmp_path}/store", "ftp://x"
    for name, setting in (
        ("media store", "WHISPR_MEDIA_STORE_URL"),
        ("recordings", "WHISPR_STREAM_STORE_URL"),
    ):
        found = await doctor._store(name, good, setting, Settings())
        assert (found.ok, found.detail) == (True, good)
        assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
        found = await doctor._store(name, bad, setting, Settings())
        assert not found.ok
        assert found.detail.startswith(setting)
        assert found.remedy.startswith(f"check {setting}")
