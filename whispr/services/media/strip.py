"""Removes what a picture or film says beside itself (EXIF, XMP, IPTC, places), bit for bit otherwise. Pure.

Each format is walked as its specification lays it out, and what is known to be needed is copied: what colours
mean (ICC profiles), how animations run. Everything else goes, bytes after the end included, for that is where
phones put a second picture, or a film. Orientation is one of the things that go: whoever needs it applies it
before.
"""

from __future__ import annotations

import mmap
import re
import struct

FRAMES_MAX = 10_000
"""Pictures of one animation."""


class Malformed(Exception):  # noqa: N818  # said of a file, not of us
    """The picture is not laid out as its format demands."""


_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def strip_jpeg(data: bytes) -> bytes:
    """ITU-T T.81, annex B: segments, of which the application's (APPn) and comments go, all but a few."""
    if data[:2] != b"\xff\xd8":
        raise Malformed("no JPEG")
    kept = [b"\xff\xd8"]
    at = 2
    try:
        while True:
            if data[at] != 0xFF:
                raise Malformed("a segment does not begin with a marker")
            while data[at] == 0xFF:
                at += 1
            marker = data[at]
            at += 1
            if marker == 0xD9:
                kept.append(b"\xff\xd9")
                return b"".join(kept)
            if marker == 0x01 or 0xD0 <= marker <= 0xD7:
                kept.append(bytes((0xFF, marker)))
                continue
            size = int.from_bytes(data[at : at + 2], "big")
            segment = data[at : at + size]
            if size < 2 or len(segment) < size:
                raise Malformed("a segment is cut off")
            at += size
            if _jpeg_needs(marker, segment[2:]):
                kept += [bytes((0xFF, marker)), segment]
            if marker == 0xDA:
                # Behind the head of a scan lie its bits, up to the next marker that is not part of them.
                end = _SCAN_END.search(data, at)
                if end is None:
                    raise Malformed("the picture does not end")
                kept.append(data[at : end.start()])
                at = end.start()
    except IndexError:
        raise Malformed("the picture is cut off") from None


def _jpeg_needs(marker: int, content: bytes) -> bool:
    if marker == 0xE0:
        # JFIF says how large a pixel is, and may hold a small picture of its own.
        return content[:5] == b"JFIF\0" and content[12:14] == b"\0\0"
    if marker == 0xE2:
        return content[:12] == b"ICC_PROFILE\0"
    if marker == 0xEE:
        return content[:5] == b"Adobe"
    return not (0xE0 <= marker <= 0xEF or marker == 0xFE)


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD pHYs hIST sPLT acTL fcTL fdAT".split()
)


def strip_png(data: bytes) -> bytes:
    """W3C PNG, third edition, section 5: chunks, of which those that the picture needs stay; APNG included."""
    if data[:8] != _PNG:
        raise Malformed("no PNG")
    kept = [_PNG]
    at, frames = 8, 0
    while True:
        if len(data) < at + 12:
            raise Malformed("the picture is cut off")
        size, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + size]
        if len(chunk) < 12 + size:
            raise Malformed("a chunk is cut off")
        at += len(chunk)
        frames += name == b"fcTL"
        _check_frames(frames)
        if name in _PNG_NEEDED:
            kept.append(chunk)
        if name == b"IEND":
            return b"".join(kept)


def strip_gif(data: bytes) -> bytes:
    """GIF89a: comments and applications' blocks go, but for those that make an animation repeat."""
    if data[:6] not in (b"GIF87a", b"GIF89a") or len(data) < 13:
        raise Malformed("no GIF")
    at = 13 + _colours(data[10])
    kept = [data[:at]]
    frames = 0
    try:
        # A missing end is common, and shown by everybody.
        while at < len(data) and data[at] != 0x3B:
            start, introducer = at, data[at]
            if introducer == 0x21:
                label, at = data[at + 1], at + 2
                name = data[at + 1 : at + 12]
                needed = label in (0xF9, 0x01) or (label == 0xFF and name in (b"NETSCAPE2.0", b"ANIMEXTS1.0"))
            elif introducer == 0x2C:
                at += 10 + _colours(data[at + 9]) + 1
                needed = True
                frames += 1
                _check_frames(frames)
            else:
                raise Malformed("there is a block of no known kind")
            while data[at]:  # sub-blocks, each behind its size, up to an empty one
                at += 1 + data[at]
            at += 1
            if needed:
                kept.append(data[start:at])
    except IndexError:
        raise Malformed("the picture is cut off") from None
    if not frames:
        raise Malformed("there is no picture in it")
    return b"".join(kept) + b"\x3b"


def _colours(packed: int) -> int:
    """Bytes of the colour table that a packed field announces."""
    return 3 * 2 ** ((packed & 7) + 1) if packed & 0x80 else 0


_WEBP_NEEDED = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"})
_WEBP_EXIF_XMP = 0x08 | 0x04


def strip_webp(data: bytes) -> bytes:
    """RFC 9649, section 2: chunks, of which EXIF, XMP and unknown ones go, and the flags that announce them."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise Malformed("no WebP")
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise Malformed("the picture is cut off")
    kept = []
    at, frames = 12, 0
    while at + 8 <= end:
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        padded = 8 + size + (size & 1)
        chunk = data[at : at + padded]
        if at + 8 + size > end:
            raise Malformed("a chunk is cut off")
        frames += name == b"ANMF"
        _check_frames(frames)
        if name == b"VP8X" and size >= 10:
            chunk = chunk[:8] + bytes((chunk[8] & ~_WEBP_EXIF_XMP,)) + chunk[9:]
        if name in _WEBP_NEEDED:
            kept.append(chunk)
        at += padded
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


_BOXES_MAX = 100_000
_SAYS_BESIDE = frozenset({b"udta", b"meta", b"uuid"})
"""Boxes with what phones say beside a film: where it was made, with what, by whom."""


def blank_film(data: bytearray | mmap.mmap) -> None:
    """ISO/IEC 14496-12, section 4.2: boxes, of which those beside the film are made empty space, in place.

    So nothing moves, and what points into the file still points to the same. Raises Malformed.
    """
    _blank(data, 0, len(data), _BOXES_MAX)


def _blank(data: bytearray | mmap.mmap, at: int, end: int, left: int) -> int:
    """Blank what is between; return how many boxes may still be looked at."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= end:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or end - at
        if size < head or at + size > end or left <= 0:
            raise Malformed("the boxes of the film do not add up")
        left -= 1
        if kind in _SAYS_BESIDE:
            data[at + 4 : at + 8] = b"free"
            data[at + head : at + size] = bytes(size - head)
        elif kind in (b"moov", b"trak"):
            left = _blank(data, at + head, at + size, left)
        at += size
    return left


def _check_frames(frames: int) -> None:
    if frames > FRAMES_MAX:
        raise Malformed(f"there are over {FRAMES_MAX} pictures in it")


STRIPPERS = {"jpeg": strip_jpeg, "png": strip_png, "gif": strip_gif, "webp": strip_webp}
"""By family of content type."""
