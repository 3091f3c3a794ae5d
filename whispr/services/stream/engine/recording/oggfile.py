"""A recording on disk: Ogg Opus that is good up to its last whole page, whenever and however the process ends.

A page is written every half second, in one go, so that killing the process loses no more than what had not come to a
page; every `SYNC_S` it is made to outlast the machine, too. A file that was left is taken up again after its last
whole page, for which only its end is read. Everything here blocks, and runs in a worker thread.
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from whispr.audio.ogg import PAGE_BYTES_MAX, PRE_SKIP, Page, Writer, whole_pages
from whispr.audio.packets import CLOCK_HZ, Packet

PAGE_TICKS: Final = CLOCK_HZ // 2
SYNC_S: Final = 5.0


class InUseError(Exception):
    """Another process writes it."""


class OggFile:
    """One recording's file, open for appending. Close it."""

    def __init__(self, path: Path, comments: Mapping[str, str] | None = None) -> None:
        """Begin a file, or take one up again.

        Raises InUseError, OSError, and FileNotFoundError for one that is not there when `comments` are None.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if comments is None else os.O_CREAT)
        self._descriptor = os.open(path, flags, 0o600)
        try:
            self._lock()
            self._synced_at = time.monotonic()
            self._gathered: list[Packet] = []
            self._granule = 0
            self.ended = False
            """Whether it says of itself that it is all there."""
            self._writer = Writer(random.getrandbits(32))
            last = self._last_page()
            if last is None:
                self._begin(comments or {})
            else:
                self._take_up(last)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self._descriptor).st_size

    @property
    def duration_s(self) -> float:
        """Of what is written."""
        return max(0, self._granule - PRE_SKIP) / CLOCK_HZ

    def append(self, packets: Sequence[Packet]) -> None:
        """Add packets. Raises OSError, after which the file is as good as before."""
        for packet in packets:
            self._gathered.append(packet)
            if sum(each.duration for each in self._gathered) >= PAGE_TICKS:
                self._write_page(last=False)
        if time.monotonic() - self._synced_at >= SYNC_S:
            os.fdatasync(self._descriptor)
            self._synced_at = time.monotonic()

    def end(self) -> None:
        """Say that it is all there, and have it on the disk. Raises OSError."""
        if not self.ended:
            self._write_page(last=True)
            self.ended = True
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what has gathered, and let go of it. Raises OSError."""
        try:
            if self._gathered and not self.ended:
                self._write_page(last=False)
        finally:
            os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError from None

    def _begin(self, comments: Mapping[str, str]) -> None:
        os.ftruncate(self._descriptor, 0)
        self._write(self._writer.opus_headers(comments))

    def _take_up(self, last: Page) -> None:
        os.ftruncate(self._descriptor, last.end)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        self._writer = Writer(last.serial, sequence=last.sequence + 1)
        self._granule = max(0, last.granule)
        self.ended = last.last

    def _last_page(self) -> Page | None:
        """Find the last whole page, with places in the file."""
        size, length = self.size, 4 * PAGE_BYTES_MAX
        while size:
            start = max(0, size - length)
            pages = list(whole_pages(os.pread(self._descriptor, length, start)))
            if pages:
                page = pages[-1]
                return Page(
                    page.serial, page.sequence, page.granule, page.continued, page.first, page.last,
                    page.lacing, page.body, start + page.start, start + page.end,
                )  # fmt: skip
            if start == 0:
                break
            length *= 4
        return None

    def _write_page(self, *, last: bool) -> None:
        granule = self._granule + sum(packet.duration for packet in self._gathered)
        page = self._writer.page([packet.data for packet in self._gathered], granule, last=last)
        self._write(page)
        self._granule = granule
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
