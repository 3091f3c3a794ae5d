"""Opus packets: what a packet says of itself, and packets cut or put together without decoding (RFC 6716). Pure.

A packet is a table-of-contents byte and one or more frames of the same length. Frames of 20 ms and shorter can be
packed anew as packets of 20 ms, which is how sources that send 10 or 60 ms pass through without being encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from whispr.audio.packets import CLOCK_HZ

PACKET: Final = CLOCK_HZ // 50
"""Ticks of the packets that streams are made of: 20 ms."""
PACKET_TICKS_MAX: Final = CLOCK_HZ * 120 // 1000
FRAME_BYTES_MAX: Final = 1275
SILENCE: Final = b"\xfc\xff\xfe"
"""20 ms of nothing, stereo, full band: what the reference encoder makes of zeros."""

_SILK = (480, 960, 1920, 2880)
_HYBRID = (480, 960)
_CELT = (120, 240, 480, 960)
_LONG_FROM: Final = 252
"""Lengths of frames from here on take two bytes (section 3.2.1)."""


class OpusError(ValueError):
    """What came is no Opus packet."""


@dataclass(frozen=True, slots=True)
class Toc:
    """What the first byte says (section 3.1)."""

    config: int
    """0 to 31: mode, bandwidth and length of frames."""
    stereo: bool

    @property
    def frame(self) -> int:
        """Ticks of one frame."""
        if self.config < 12:
            return _SILK[self.config % 4]
        if self.config < 16:
            return _HYBRID[self.config % 2]
        return _CELT[self.config % 4]

    @property
    def of_20_ms(self) -> Toc:
        """The same mode and bandwidth with frames of 20 ms."""
        if self.config < 12:
            return Toc(self.config // 4 * 4 + 1, self.stereo)
        if self.config < 16:
            return Toc(self.config // 2 * 2 + 1, self.stereo)
        return Toc(self.config // 4 * 4 + 3, self.stereo)

    def byte(self, code: int) -> int:
        """Return the byte; `code`: how the frames are packed."""
        return self.config << 3 | self.stereo << 2 | code


def toc_of(packet: bytes) -> Toc:
    """Read the first byte. Raises OpusError when there is none."""
    if not packet:
        raise OpusError("a packet has at least one byte")
    return Toc(packet[0] >> 3, bool(packet[0] & 4))


def duration(packet: bytes) -> int:
    """Return a packet's length in ticks. Raises OpusError."""
    toc, code = toc_of(packet), packet[0] & 3
    count = 1 if code == 0 else 2
    if code == 3:
        if len(packet) < 2:
            raise OpusError("the count of frames is missing")
        count = packet[1] & 0x3F
    ticks = count * toc.frame
    if not 0 < ticks <= PACKET_TICKS_MAX:
        raise OpusError("a packet has between one frame and 120 ms of them")
    return ticks


def frames(packet: bytes) -> Sequence[bytes]:
    """Return a packet's frames, which may be empty, for lost or silent ones (section 3.2). Raises OpusError."""
    duration(packet)
    code, rest = packet[0] & 3, packet[1:]
    if code == 0:
        found = [rest]
    elif code == 1:
        found = _equal(rest, 2)
    elif code == 2:
        size, rest = _length(rest)
        found = [_cut(rest, size), rest[size:]]
    else:
        found = _any_number(rest)
    if max(len(frame) for frame in found) > FRAME_BYTES_MAX:
        raise OpusError(f"a frame has at most {FRAME_BYTES_MAX} bytes")
    return found


def packets_of_20_ms(packet: bytes) -> Sequence[bytes] | None:
    """Pack a packet's frames anew, 20 ms each; None where that takes decoding. Raises OpusError."""
    toc = toc_of(packet)
    ticks = duration(packet)
    if ticks == PACKET:
        frames(packet)
        return [packet]
    if ticks % PACKET or toc.frame > PACKET:
        return None
    each, whole = PACKET // toc.frame, frames(packet)
    return [pack(toc, whole[at : at + each]) for at in range(0, len(whole), each)]


def pack(toc: Toc, whole: Sequence[bytes]) -> bytes:
    """Make a packet of frames (section 3.2)."""
    if len(whole) == 1:
        return bytes([toc.byte(0)]) + whole[0]
    sizes = b"".join(_written_length(len(frame)) for frame in whole[:-1])
    return bytes([toc.byte(3), 0x80 | len(whole)]) + sizes + b"".join(whole)


def concealment(last: bytes) -> bytes:
    """Return 20 ms that a decoder fills in from what it heard before, as after `last`."""
    return bytes([toc_of(last).of_20_ms.byte(0)])


def _equal(rest: bytes, count: int) -> list[bytes]:
    size, odd = divmod(len(rest), count)
    if odd:
        raise OpusError("frames of one size do not fill the packet")
    return [rest[at * size : (at + 1) * size] for at in range(count)]


def _any_number(rest: bytes) -> list[bytes]:
    """Read a packet of code 3 from its second byte on (section 3.2.5)."""
    head, rest = rest[0], rest[1:]
    count = head & 0x3F
    if head & 0x40:
        padding, rest = _padding(rest)
        if padding > len(rest):
            raise OpusError("there is less than the padding says")
        rest = rest[: len(rest) - padding]
    if not head & 0x80:
        return _equal(rest, count)
    sizes = []
    for _ in range(count - 1):
        size, rest = _length(rest)
        sizes.append(size)
    found = []
    for size in sizes:
        found.append(_cut(rest, size))
        rest = rest[size:]
    return [*found, rest]


def _padding(rest: bytes) -> tuple[int, bytes]:
    total = 0
    while rest:
        byte, rest = rest[0], rest[1:]
        if byte < 255:
            return total + byte, rest
        total += 254
    raise OpusError("the length of the padding is missing")


def _length(rest: bytes) -> tuple[int, bytes]:
    if not rest:
        raise OpusError("the length of a frame is missing")
    if rest[0] < _LONG_FROM:
        return rest[0], rest[1:]
    if len(rest) < 2:
        raise OpusError("the length of a frame is cut off")
    return rest[1] * 4 + rest[0], rest[2:]


def _written_length(size: int) -> bytes:
    if size < _LONG_FROM:
        return bytes([size])
    first = _LONG_FROM + (size & 3)
    return bytes([first, (size - first) // 4])


def _cut(rest: bytes, size: int) -> bytes:
    if size > len(rest):
        raise OpusError("a frame is cut off")
    return rest[:size]
