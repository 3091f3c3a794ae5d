"""Bytes that are sent to many, as they are or compressed, each made once."""

from __future__ import annotations

import gzip
from functools import cached_property
from typing import Final

_LEVEL: Final = 6


class Compressed:
    """One text, and the same under `Content-Encoding: gzip`."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain

    @cached_property
    def gzip(self) -> bytes:
        """Return it compressed."""
        return gzip.compress(self.plain, _LEVEL, mtime=0)
