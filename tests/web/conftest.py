"""A product, and browsers on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.product import UNLIMITED, Product, running
from tests.web.browser import Browser, chromium

PASSWORD = "correct horse"


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`whispr serve --workers 2`, on free ports, its first account an administrator's."""
    with running(tmp_path_factory.mktemp("web") / "data", UNLIMITED, "--workers", "2") as product:
        product.sign_up("root", PASSWORD)
        subprocess.run(
            [sys.executable, "-m", "whispr.cli", "account", "promote", "root"],
            env={"WHISPR_DATA_DIR": str(product.data_dir), "PATH": ""},
            check=True,
            capture_output=True,
        )
        yield product


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """Chromium."""
    async with chromium(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go, to be looked at: pytest's own folder, which keeps the last three runs."""
    folder = tmp_path_factory.mktemp("screenshots")
    print(f"screenshots are in {folder}")
    return folder
