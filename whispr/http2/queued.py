"""DATA of one stream that waits for its turn: short pieces together, long ones as they came.

A long message is not copied while it waits, nor on its way to the socket. It stays in memory until the last of
it has gone, so that is how long it counts.
"""

from __future__ import annotations

PIECE_BYTES = 16 * 1024
"""From here on a copy costs more than a piece by itself."""

Data = bytes | tuple[bytes, ...]
"""DATA in one piece, or in several that need not be joined."""

Octets = bytes | bytearray | memoryview


def size_of(data: Data) -> int:
    """How many bytes."""
    return len(data) if isinstance(data, bytes) else sum(map(len, data))


class DataQueue:
    """First in, first out; its length is in bytes."""

    __slots__ = ("_at", "_pieces", "_size", "held", "taken")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._at = 0
        """How much has been taken of the first piece, if that is a long one."""
        self._size = 0
        self.held = 0
        """Bytes in memory."""
        self.taken = 0
        """Bytes that have been taken, ever."""

    def __len__(self) -> int:
        return self._size

    def add(self, data: Data) -> None:
        """Add at the end."""
        for piece in (data,) if isinstance(data, bytes) else data:
            self._add(piece)

    def _add(self, piece: bytes) -> None:
        size = len(piece)
        pieces = self._pieces
        self._size += size
        self.held += size
        if size >= PIECE_BYTES:
            pieces.append(piece)
        elif pieces and isinstance(last := pieces[-1], bytearray):
            last += piece
        elif piece:
            pieces.append(bytearray(piece))

    def take(self, count: int) -> list[Octets]:
        """Remove so many bytes, of those that there are, from the front."""
        taken: list[Octets] = []
        self._size -= count
        self.taken += count
        while count:
            first = self._pieces[0]
            if isinstance(first, bytearray):
                taken.append(first[:count])
                del first[:count]
                self.held -= len(taken[-1])
                left = len(first)
            else:
                taken.append(memoryview(first)[self._at : self._at + count])
                self._at += len(taken[-1])
                left = len(first) - self._at
                if not left:
                    self.held -= len(first)
                    self._at = 0
            if not left:
                del self._pieces[0]
            count -= len(taken[-1])
        return taken
