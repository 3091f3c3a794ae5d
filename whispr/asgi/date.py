"""The Date header, made once a second (RFC 9110, section 6.6.1). Pure: the clock is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate


class DateLine:
    """Returns the header's line."""

    __slots__ = ("_clock", "_line", "_second")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._second = -1
        self._line = b""

    def __call__(self) -> bytes:
        """Return `date: …`, with its line break."""
        second = int(self._clock())
        if second != self._second:
            self._second = second
            self._line = f"date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line
