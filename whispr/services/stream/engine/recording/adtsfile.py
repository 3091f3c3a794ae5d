"""A recording as AAC in ADTS, good up to its last whole frame: each says how long it is, and nothing else is there.

Taken up again it is walked through from its beginning, which takes a tenth of a second for an hour.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from whispr.audio.adts import SAMPLES, adts, whole_frames
from whispr.audio.packets import CLOCK_HZ, Packet
from whispr.services.stream.engine.recording.appended import AppendedFile

_CHUNK_BYTES: Final = 1 << 20


class AdtsFile(AppendedFile):
    """One recording's file, open for appending. Close it. Nothing in it says that it has ended."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Begin a file, or take one up again. Raises as `AppendedFile`."""
        self._frames = 0
        super().__init__(path, create=create)

    @property
    def duration_s(self) -> float:
        """Of what is written."""
        return self._frames * SAMPLES / CLOCK_HZ

    def _take_up(self) -> None:
        at = 0
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, at):
            ends = [end for _, end in whole_frames(chunk)]
            if not ends:
                break
            at += ends[-1]
            self._frames += len(ends)
        self._cut(at)

    def _piece(self, packets: Sequence[Packet], *, last: bool) -> bytes:
        del last
        return adts(packets)

    def _written(self, packets: Sequence[Packet]) -> None:
        self._frames += len(packets)
