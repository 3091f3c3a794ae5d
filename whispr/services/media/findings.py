"""What is found in a file, and the bounds within which it is looked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

SIDE_PX_MAX = 30_000
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the child may take."""

    memory_bytes: int = 2 * 1024**3
    """Address space. A large picture takes four bytes a pixel, several times over."""
    cpu_s: int = 30
    file_bytes: int = 512 * 1024 * 1024
    pixels: int = 50_000_000


@dataclass(slots=True)
class Variant:
    """A file to be given out."""

    name: str
    file: str
    type: str
    bytes: int
    sha256: str
    width: int = 0
    height: int = 0


@dataclass(slots=True)
class Result:
    """What was found."""

    content_type: str
    kind: str
    width: int = 0
    height: int = 0
    duration_s: float = 0.0
    waveform: list[int] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)

    def give(self, name: str, path: Path, kind: str, width: int = 0, height: int = 0) -> None:
        """Enter a file among the variants."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for block in blocks(file):
                digest.update(block)
        size = path.stat().st_size
        self.variants.append(Variant(name, path.name, kind, size, digest.hexdigest(), width, height))


class Refused(Exception):  # noqa: N818  # said of a file, not of us
    """The file will not be given out; `reason` says why to programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_size(what: str, width: int, height: int, bounds: Bounds) -> None:
    """Raises Refused for more pixels than may be decoded."""
    if width * height > bounds.pixels or max(width, height) > SIDE_PX_MAX:
        raise Refused(
            "too_large",
            f"the {what} has {width} x {height} pixels; at most {bounds.pixels} in all, {SIDE_PX_MAX} a side",
        )


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield an open file in pieces."""
    while block := file.read(_BLOCK_BYTES):
        yield block
