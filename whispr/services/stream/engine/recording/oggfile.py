"""A recording as Ogg Opus, good up to its last whole page: a page for each piece; only the last is looked for."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from whispr.audio.ogg import PAGE_BYTES_MAX, PRE_SKIP, Page, Writer, whole_pages
from whispr.audio.packets import CLOCK_HZ, Packet
from whispr.services.stream.engine.recording.appended import AppendedFile


class OggFile(AppendedFile):
    """One recording's file, open for appending. Close it. `ended`: it says so of itself."""

    def __init__(self, path: Path, comments: Mapping[str, str] | None = None) -> None:
        """Begin a file, or take one up again.

        Raises InUseError, OSError, and FileNotFoundError for one that is not there when `comments` are None.
        """
        self._comments = comments or {}
        self._granule = 0
        self._writer = Writer(random.getrandbits(32))
        super().__init__(path, create=comments is not None)

    @property
    def duration_s(self) -> float:
        """Of what is written."""
        return max(0, self._granule - PRE_SKIP) / CLOCK_HZ

    def _take_up(self) -> None:
        last = self._last_page()
        if last is None:
            self._cut(0)
            self._write(self._writer.opus_headers(self._comments))
            return
        self._cut(last.end)
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

    def _piece(self, packets: Sequence[Packet], *, last: bool) -> bytes:
        granule = self._granule + sum(packet.duration for packet in packets)
        return self._writer.page([packet.data for packet in packets], granule, last=last)

    def _written(self, packets: Sequence[Packet]) -> None:
        self._granule += sum(packet.duration for packet in packets)
