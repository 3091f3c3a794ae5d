"""Finds the servers that another process runs in a data folder, for commands beside it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from whispr.embed.folder import DataFolder
from whispr.embed.supervisor import ALL, MAKERS
from whispr.errors import unavailable


async def find_running(data_dir: Path, wanted: Collection[str]) -> dict[str, str]:
    """Return name → URL of servers that run in the folder now; URLs hold secrets: never log them.

    Raises UNAVAILABLE for one that does not answer, as while its process is starting or stopping.
    """
    data = _folder(data_dir)
    urls = {}
    for name in ALL:
        if name not in wanted:
            continue
        engine = MAKERS[name](data)
        try:
            pid = int((data.sub("run") / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            pid = 0
        if not pid or not await engine.probe(pid):
            raise unavailable(f"the process that uses {data.root} has no {engine.title} that answers now")
        urls[name] = engine.url
    return urls


def _folder(data_dir: Path) -> DataFolder:
    """The folder as its owner sees it, without its lock."""
    return DataFolder(data_dir.resolve())
