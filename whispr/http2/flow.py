"""Receive windows (RFC 9113 section 6.9): how much a peer may send, and when to let it send more.

A window opens again as what it held is consumed, announced once half of it has been, so that updates are
few. Each announcement doubles the window up to its limit: only a peer that has filled half a window and a
reader that has emptied it get there, so bulk transfers soon run at the limit, while a reader that does not
read never holds more than the window it was given.

Send windows are plain integers, kept in `sender`.
"""

from __future__ import annotations


class ReceiveWindow:
    """How many bytes one stream, or the connection, may still send us."""

    __slots__ = ("_size", "_size_max", "_unannounced", "available")

    def __init__(self, size: int, size_max: int) -> None:
        assert size <= size_max
        self._size = size
        self._size_max = size_max
        self.available = size
        """Bytes the peer may send now; negative when it has sent too much."""
        self._unannounced = 0

    def consume(self, count: int) -> int:
        """Give back `count` bytes; returns the increment to announce now, or 0."""
        unannounced = self._unannounced + count
        if unannounced * 2 < self._size:
            self._unannounced = unannounced
            return 0
        growth = min(self._size, self._size_max - self._size)
        self._size += growth
        self._unannounced = 0
        increment = unannounced + growth
        self.available += increment
        return increment


class ConnectionWindow:
    """The connection's receive window, with the unread bytes of all its streams.

    It opens again as bytes arrive, not as they are read, so that a stream nobody reads cannot stop the
    others; that stream's own window stops it. Only past `unread_max` bytes in all does it wait for readers.
    """

    __slots__ = ("_unread", "_unread_max", "_window", "_withheld")

    def __init__(self, size: int, size_max: int, unread_max: int) -> None:
        self._window = ReceiveWindow(size, size_max)
        self._unread_max = unread_max
        self._unread = 0
        self._withheld = 0

    @property
    def available(self) -> int:
        """Bytes the peer may send now."""
        return self._window.available

    def arrive(self, count: int) -> bool:
        """Take `count` bytes off the window; False when the peer has exceeded it."""
        self._window.available -= count
        return self._window.available >= 0

    def hold(self, count: int) -> int:
        """Bytes that arrived now wait to be read; returns the increment to announce, or 0."""
        self._unread += count
        if self._unread <= self._unread_max:
            return self._window.consume(count)
        self._withheld += count
        return 0

    def release(self, count: int) -> int:
        """Held bytes have been read or dropped; returns the increment to announce, or 0."""
        self._unread -= count
        if self._withheld == 0 or self._unread > self._unread_max:
            return 0
        withheld, self._withheld = self._withheld, 0
        return self._window.consume(withheld)
