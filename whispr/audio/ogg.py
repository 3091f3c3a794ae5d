"""Ogg: pages with a checksum, of which a file that was cut off anywhere is good up to the last whole one. Pure.

RFC 3533 is the container, RFC 7845 Opus in it. Granule positions of Opus are in 1/48000 s, and count the pre-skip.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PAGE_BYTES_MAX: Final = 27 + 255 + 255 * 255
PRE_SKIP: Final = 312
"""Samples that the encoder's look-ahead puts before the sound: what libopus says of itself."""

_HEAD = struct.Struct("<4sBBqIIIB")
_CAPTURE = b"OggS"
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_NO_CHECKSUM = bytes(4)


class OggError(ValueError):
    """What came is no Ogg page."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is whole, and where it was."""

    serial: int
    sequence: int
    granule: int
    """-1 where no packet ends."""
    continued: bool
    first: bool
    last: bool
    lacing: bytes
    body: bytes
    start: int
    end: int

    @property
    def packets(self) -> Sequence[bytes]:
        """Packets that begin and end here, and such parts of others as are here."""
        found, size, at = [], 0, 0
        for lace in self.lacing:
            size += lace
            if lace < 255:
                found.append(self.body[at : at + size])
                at, size = at + size, 0
        if size:
            found.append(self.body[at:])
        return found


def checksum(data: bytes) -> int:
    """Return Ogg's CRC-32: polynomial 0x04c11db7, not reflected, from zero (RFC 3533, section 6).

    zlib knows the reflected one; with the bits of every byte turned around it is the same sum.
    """
    turned = zlib.crc32(data.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(turned.to_bytes(4, "little").translate(_REVERSED), "big")


class Writer:
    """Pages of one logical stream."""

    def __init__(self, serial: int, *, sequence: int = 0) -> None:
        """`sequence`: of the next page, for going on with a file."""
        self.serial = serial
        self.sequence = sequence

    def page(
        self, packets: Sequence[bytes], granule: int, *, first: bool = False, last: bool = False
    ) -> bytes:
        """Return a page of whole packets; they must fit one."""
        lacing = b"".join(b"\xff" * (len(each) // 255) + bytes([len(each) % 255]) for each in packets)
        assert len(lacing) <= 255, "a page has at most 255 segments"
        flags = _FIRST * first | _LAST * last
        head = _HEAD.pack(_CAPTURE, 0, flags, granule, self.serial, self.sequence, 0, len(lacing))
        self.sequence += 1
        data = b"".join([head, lacing, *packets])
        return data[:22] + checksum(data).to_bytes(4, "little") + data[26:]

    def pages(self, packets: Sequence[tuple[bytes, int]]) -> bytes:
        """Return packets with the granule positions they end at, on as few pages as they fit."""
        made, gathered, segments, granule = [], list[bytes](), 0, 0
        for data, end in packets:
            more = len(data) // 255 + 1
            if gathered and segments + more > 255:
                made.append(self.page(gathered, granule))
                gathered, segments = [], 0
            gathered.append(data)
            segments, granule = segments + more, end
        if gathered:
            made.append(self.page(gathered, granule))
        return b"".join(made)

    def opus_headers(
        self, comments: Mapping[str, str], *, channels: int = 2, pre_skip: int = PRE_SKIP
    ) -> bytes:
        """Return the two pages that every Ogg Opus stream begins with (RFC 7845, section 5)."""
        head = self.page([opus_head(channels, pre_skip)], 0, first=True)
        return head + self.page([opus_tags(comments)], 0)


def opus_head(channels: int = 2, pre_skip: int = PRE_SKIP) -> bytes:
    """Return the identification header (RFC 7845, section 5.1)."""
    return b"OpusHead" + struct.pack("<BBHIhB", 1, channels, pre_skip, 48_000, 0, 0)


def opus_tags(comments: Mapping[str, str], *, bytes_max: int = 32_000) -> bytes:
    """Return the comment header (section 5.2); comments past `bytes_max` are left out, so that it fits one page."""
    vendor = b"whispr"
    written, size = [], 0
    for name, value in comments.items():
        each = f"{name.upper()}={value}".encode()
        size += 4 + len(each)
        if size > bytes_max:
            break
        written.append(len(each).to_bytes(4, "little") + each)
    count = len(written).to_bytes(4, "little")
    return b"".join([b"OpusTags", len(vendor).to_bytes(4, "little"), vendor, count, *written])


def page_at(data: bytes, at: int = 0) -> Page | None:
    """Read the page at a place; None when it is not all there yet. Raises OggError."""
    if not _CAPTURE.startswith(data[at : at + 4]):
        raise OggError("no page begins here")
    if len(data) - at < _HEAD.size:
        return None
    _, version, flags, granule, serial, sequence, said, segments = _HEAD.unpack_from(data, at)
    if version:
        raise OggError("there is only version 0")
    body_at = at + _HEAD.size + segments
    lacing = data[at + _HEAD.size : body_at]
    end = body_at + sum(lacing)
    if len(lacing) < segments or len(data) < end:
        return None
    if checksum(data[at : at + 22] + _NO_CHECKSUM + data[at + 26 : end]) != said:
        raise OggError("the checksum is wrong")
    return Page(
        serial, sequence, granule, bool(flags & _CONTINUED), bool(flags & _FIRST), bool(flags & _LAST),
        lacing, data[body_at:end], at, end,
    )  # fmt: skip


def whole_pages(data: bytes) -> Iterator[Page]:
    """Yield the pages that are whole, past what is damaged."""
    at = 0
    while (at := data.find(_CAPTURE, at)) >= 0:
        try:
            page = page_at(data, at)
        except OggError:
            page = None
        if page is None:
            at += 1
        else:
            yield page
            at = page.end
