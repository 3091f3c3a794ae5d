"""RTP packets (RFC 3550, section 5): bytes in, values out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 12
OPUS_CLOCK_HZ: Final = 48_000
"""Of the timestamps, whatever the sampling rate is (RFC 7587, section 4.1)."""
_HEADER = struct.Struct(">BBHII")


class RtpError(ValueError):
    """Bytes that are not an RTP packet; the message says in what."""


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """One packet, without its extension and padding."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool
    payload: bytes


def parse(data: bytes) -> RtpPacket:
    """Read a packet. Raises RtpError."""
    if len(data) < HEADER_BYTES:
        raise RtpError(f"{len(data)} bytes are not a packet")
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    if first >> 6 != 2:
        raise RtpError(f"version {first >> 6}")
    start, end = HEADER_BYTES + 4 * (first & 0x0F), len(data)
    if first & 0x10:
        if start + 4 > end:
            raise RtpError("the extension is cut short")
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    if first & 0x20 and end > start:
        if not 0 < data[-1] <= end - start:
            raise RtpError("more padding than packet")
        end -= data[-1]
    if start > end:
        raise RtpError("the header is cut short")
    return RtpPacket(second & 0x7F, sequence, timestamp, ssrc, bool(second & 0x80), data[start:end])


def build(payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes) -> bytes:
    """Write a packet; sequence and timestamp wrap by themselves."""
    return _HEADER.pack(0x80, payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc) + payload


def extend(value: int, near: int, bits: int) -> int:
    """Return the number whose last `bits` are `value` that is nearest to `near`: undoes a wrap."""
    half = 1 << (bits - 1)
    return near + ((value - near + half) & ((1 << bits) - 1)) - half
