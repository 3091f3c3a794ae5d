"""AAC frames as a stream that any player takes up anywhere: a header before each (ISO/IEC 13818-7, 6.2). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from whispr.audio.packets import Packet

CONTENT_TYPE: Final = "audio/aac"
HEADER_BYTES: Final = 7
SAMPLES: Final = 1024
"""Of a frame of AAC-LC, at 48 kHz."""

_PROFILE_LC = 1
_FREQUENCY_48K = 3
_CHANNELS = 2
_FULLNESS_VARIABLE = 0x7FF


class AdtsError(ValueError):
    """What is no ADTS."""


def adts(packets: Sequence[Packet]) -> bytes:
    """Return AAC-LC frames, 48 kHz stereo, each with its header."""
    return b"".join([part for packet in packets for part in (_header(len(packet.data)), packet.data)])


def whole_frames(data: bytes, *, strict: bool = False) -> Iterator[tuple[int, int]]:
    """Yield where frames begin and end, as far as they are whole and one after another.

    Raises AdtsError, if it is to be `strict`, where no frame begins.
    """
    at = 0
    while at + HEADER_BYTES <= len(data):
        size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
        if data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0 or size < HEADER_BYTES:
            if strict:
                raise AdtsError(f"no frame begins at {at}")
            return
        if at + size > len(data):
            return
        yield at, at + size
        at += size


def _header(size: int) -> bytes:
    length = HEADER_BYTES + size
    assert length < 1 << 13, "an AAC frame of two channels has at most 1536 bytes (14496-3, 4.5.3)"
    bits = 0xFFF << 44 | 1 << 40  # MPEG-4, layer 0, no checksum
    bits |= _PROFILE_LC << 38 | _FREQUENCY_48K << 34 | _CHANNELS << 30
    bits |= length << 13 | _FULLNESS_VARIABLE << 2
    return bits.to_bytes(HEADER_BYTES, "big")
