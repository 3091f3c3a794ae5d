"""The file that a server's output goes to: written by the server itself, kept bounded by us.

The server holds the descriptor, so its output is never blocked by us and survives our death. When the file
has grown past its bound it is copied to `<name>.log.1` and emptied; the descriptor appends, so the server
goes on at the new end.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

LEN_MAX = 4 * 1024 * 1024
"""Bytes a log may have before it is put aside; with the one put aside, at most about twice that is kept."""

TAIL_LEN_MAX = 2000
"""Bytes of a log quoted in an error."""


class LogFile:
    """An open, append-only log. A context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._mark = 0

    def __enter__(self) -> LogFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def mark(self) -> None:
        """Remember the present end: `tail` quotes only what is written after it."""
        self._mark = os.fstat(self.descriptor).st_size

    def tail(self) -> str:
        """Return the end of what was written since the mark."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(min(self._mark, size), size - TAIL_LEN_MAX))
            return file.read().decode(errors="replace").strip()

    def bound(self) -> None:
        """Put the log aside and empty it if it has outgrown `LEN_MAX`."""
        if os.fstat(self.descriptor).st_size <= LEN_MAX:
            return
        shutil.copyfile(self.path, self.path.with_name(self.path.name + ".1"))
        os.ftruncate(self.descriptor, 0)
