"""Where the checkers of others are, which `just test-deployment` installs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def checker(name: str) -> Path:
    """Return a checker's program; the test is skipped where it is not installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "whispr" / "config-checkers" / "bin" / name
    if not program.exists():
        pytest.skip(f"{name} is not installed: `just test-deployment` does that")
    return program
