"""The mark of a restore that has begun and not ended, in the data folder: nothing is served from there meanwhile."""

from __future__ import annotations

from pathlib import Path

from whispr.errors import conflict

FILE = "RESTORING"


def check_finished(data_dir: Path) -> None:
    """Raise FAILED_PRECONDITION when a restore into the folder was cut short."""
    if (data_dir / FILE).exists():
        raise conflict(
            f"a restore into {data_dir} did not end: run `whispr restore` again", "restore_unfinished"
        )


def mark(data_dir: Path, source: Path) -> None:
    """Say that a restore has begun."""
    (data_dir / FILE).write_text(f"{source.resolve()}\n")


def unmark(data_dir: Path) -> None:
    """Say that it has ended."""
    (data_dir / FILE).unlink()
