"""Where a request's body ends. Pure: bytes in, bytes out.

A decoder takes what has been received and returns the part of it that is body, and what is left over: the
beginning of something it needs more of, or of the next request. It never keeps bytes of its own, so the
reader's buffer is all the memory that a request has.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Protocol

from whispr.asgi.refusals import Refusal, bad_request

_CHUNK_LINE_BYTES_MAX = 1024
_EXTENSION_BYTES_MAX = 16 * 1024
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_EXTENSION = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BodyDecoder(Protocol):
    """Finds the body in what is received."""

    done: bool
    """Whether all of the body has been taken."""

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Return the body in `received`, and the rest. Raises Refusal."""


class LengthBody:
    """A body of the length that Content-Length says (RFC 9112, section 6.2)."""

    __slots__ = ("_remaining", "done")

    def __init__(self, length: int) -> None:
        self._remaining = length
        self.done = length == 0

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Return the body in `received`, and the rest."""
        remaining = self._remaining
        if len(received) <= remaining:
            body, rest = received, b""
        else:
            body, rest = received[:remaining], received[remaining:]
        self._remaining = remaining - len(body)
        self.done = not self._remaining
        return body, rest


class EndlessBody:
    """What comes until the client closes its side: a source of live sound, of HTTP as Icecast speaks it."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Return all of it."""
        return received, b""


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()


class ChunkedBody:
    """A chunked body (RFC 9112, section 7.1), read to the letter.

    Chunk extensions are skipped and trailers dropped, both within bounds: a client could otherwise have us
    read any amount for one byte of body.
    """

    __slots__ = ("_at", "_chunk", "_extension_bytes", "_trailer_bytes", "_trailer_bytes_max", "done")

    def __init__(self, trailer_bytes_max: int) -> None:
        """`trailer_bytes_max`: 0 for any."""
        self._at = _At.SIZE
        self._chunk = 0
        """What is still to come of the chunk."""
        self._extension_bytes = 0
        self._trailer_bytes = 0
        self._trailer_bytes_max = trailer_bytes_max
        self.done = False

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Return the body in `received`, and the rest. Raises Refusal 400 or 431."""
        pieces: list[bytes] = []
        position = 0
        while not self.done:
            if self._at is _At.DATA:
                piece = received[position : position + self._chunk]
                pieces.append(piece)
                position += len(piece)
                self._chunk -= len(piece)
                if self._chunk:
                    break
                self._at = _At.DATA_END
            else:
                after = self._line(received, position)
                if after is None:
                    break
                position = after
        return b"".join(pieces), received[position:]

    def _line(self, received: bytes, start: int) -> int | None:
        """Take the line at `start`; return where the next one begins, None if it has not all come."""
        if self._at is _At.DATA_END:
            if received[start : start + 2] not in (b"\r\n", b"\r", b""):
                raise bad_request("bad_chunk", "a chunk is longer than its size says")
            if len(received) < start + 2:
                return None
            self._at = _At.SIZE
            return start + 2
        end = received.find(b"\r\n", start)
        if end < 0:
            self._check_unfinished(len(received) - start)
            return None
        if self._at is _At.SIZE:
            self._size_line(received[start:end])
        else:
            self._trailer_line(received[start:end])
        return end + 2

    def _check_unfinished(self, size: int) -> None:
        """Refuse a line that is already too long, so that nobody collects it."""
        if self._at is _At.SIZE and size > _CHUNK_LINE_BYTES_MAX:
            raise bad_request("bad_chunk", "the line of a chunk's size is too long")
        if self._at is _At.TRAILERS:
            self._check_trailers(self._trailer_bytes + size)

    def _size_line(self, line: bytes) -> None:
        size, separator, extension = line.partition(b";")
        if not _SIZE.fullmatch(size) or not _EXTENSION.fullmatch(extension):
            raise bad_request("bad_chunk", "the size of a chunk is malformed")
        self._extension_bytes += len(extension) + len(separator)
        if len(line) > _CHUNK_LINE_BYTES_MAX or self._extension_bytes > _EXTENSION_BYTES_MAX:
            raise bad_request("bad_chunk", "there is too much beside the chunks' sizes")
        self._chunk = int(size, 16)
        self._at = _At.DATA if self._chunk else _At.TRAILERS

    def _trailer_line(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line) + 2
        self._check_trailers(self._trailer_bytes)
        if not _FIELD.fullmatch(line):
            raise bad_request("bad_trailer", "a trailer is malformed")

    def _check_trailers(self, size: int) -> None:
        if self._trailer_bytes_max and size > self._trailer_bytes_max:
            raise Refusal(431, "head_too_large", f"the trailers are over {self._trailer_bytes_max} bytes")
