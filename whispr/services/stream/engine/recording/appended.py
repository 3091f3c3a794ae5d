"""A recording's file on disk, which is only ever appended to, in pieces that are there as a whole or not at all.

Killing the process loses no more than what had not come to a piece; every `SYNC_S` it is made to outlast the machine,
too. A file that was left is taken up again after its last whole piece. One process writes it at a time. Everything
here blocks, and runs in a worker thread.
"""

from __future__ import annotations

import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from whispr.audio.packets import CLOCK_HZ, Packet

PIECE_TICKS: Final = CLOCK_HZ // 2
SYNC_S: Final = 5.0


class InUseError(Exception):
    """Another process writes it."""


class AppendedFile(ABC):
    """One recording's file, open for appending. Close it."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Raises InUseError, OSError, and FileNotFoundError for one that is not there and is not to be made."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._descriptor = os.open(path, flags, 0o600)
        self._synced_at = time.monotonic()
        self._gathered: list[Packet] = []
        self.ended = False
        """Whether it is all there, as far as that is known."""
        try:
            self._lock()
            self._take_up()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self._descriptor).st_size

    @property
    @abstractmethod
    def duration_s(self) -> float:
        """Of what is written."""

    @abstractmethod
    def _take_up(self) -> None:
        """Begin the file, or go on after what is whole of it."""

    @abstractmethod
    def _piece(self, packets: Sequence[Packet], *, last: bool) -> bytes:
        """Return packets as they are written."""

    @abstractmethod
    def _written(self, packets: Sequence[Packet]) -> None:
        """Note that packets have been written."""

    def append(self, packets: Sequence[Packet]) -> None:
        """Add packets. Raises OSError, after which the file is as good as before."""
        for packet in packets:
            self._gathered.append(packet)
            if sum(each.duration for each in self._gathered) >= PIECE_TICKS:
                self._write_piece(last=False)
        if time.monotonic() - self._synced_at >= SYNC_S:
            os.fdatasync(self._descriptor)
            self._synced_at = time.monotonic()

    def end(self) -> None:
        """Have all of it on the disk, and nothing after it. Raises OSError."""
        if not self.ended:
            self._write_piece(last=True)
            self.ended = True
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what has gathered, and let go of it. Raises OSError."""
        try:
            if self._gathered and not self.ended:
                self._write_piece(last=False)
        finally:
            os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError from None

    def _cut(self, size: int) -> None:
        """Forget what is after `size` bytes, and go on there."""
        os.ftruncate(self._descriptor, size)
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def _write_piece(self, *, last: bool) -> None:
        self._write(self._piece(self._gathered, last=last))
        self._written(self._gathered)
        self._gathered.clear()

    def _write(self, data: bytes) -> None:
        """Write all of it, or, where that fails, leave the file as it was."""
        before = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise
