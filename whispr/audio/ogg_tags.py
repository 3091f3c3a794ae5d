"""What the songs of a chained Ogg stream are called: each link begins with comments of its own. Pure.

Comments are found by how they begin (RFC 7845, section 5.2; Vorbis I, section 4.2.1), and read as far as they come
within the first `TAGS_BYTES_MAX`: pictures, which come last and may be long, are not waited for.
"""

from __future__ import annotations

from typing import Final

TAGS_BYTES_MAX: Final = 8192
ENTRIES_MAX: Final = 64
_MARKS: Final = (b"OpusTags", b"\x03vorbis")
_MARK_BYTES: Final = max(map(len, _MARKS))


class TagWatch:
    """Watches bytes go by."""

    def __init__(self) -> None:
        self._buffer = b""
        self._at = -1
        """Where comments begin in the buffer; negative while none do."""

    def feed(self, data: bytes) -> list[dict[str, str]]:
        """Take the next bytes; return the comments, by lower-case name, of the links whose ones were in them."""
        self._buffer += data
        found: list[dict[str, str]] = []
        while self._find():
            tags, whole = read_tags(self._buffer[self._at : self._at + TAGS_BYTES_MAX])
            if not whole and len(self._buffer) < self._at + TAGS_BYTES_MAX:
                return found
            found.append(tags)
            self._buffer, self._at = self._buffer[self._at :], -1
        self._buffer = self._buffer[-_MARK_BYTES + 1 :]
        return found

    def _find(self) -> bool:
        if self._at < 0:
            places = [(place, len(mark)) for mark in _MARKS if (place := self._buffer.find(mark)) >= 0]
            self._at = sum(min(places)) if places else -1
        return self._at >= 0


def read_tags(data: bytes) -> tuple[dict[str, str], bool]:
    """Read comments, as far as they are there; return them and whether that is all of them."""
    tags: dict[str, str] = {}
    at = 4 + int.from_bytes(data[:4], "little")
    count = int.from_bytes(data[at : at + 4], "little")
    whole = at + 4 <= len(data)
    at += 4
    for _ in range(min(count, ENTRIES_MAX) if whole else 0):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            return tags, False
        name, _, value = data[at + 4 : end].decode("utf-8", "replace").partition("=")
        tags.setdefault(name.lower(), value)
        at = end
    return tags, whole
