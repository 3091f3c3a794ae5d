"""AAC frames as a stream that any player takes up anywhere: a header before each (ISO/IEC 13818-7, 6.2). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from whispr.audio.packets import Packet

CONTENT_TYPE: Final = "audio/aac"
HEADER_BYTES: Final = 7

_PROFILE_LC = 1
_FREQUENCY_48K = 3
_CHANNELS = 2
_FULLNESS_VARIABLE = 0x7FF


def adts(packets: Sequence[Packet]) -> bytes:
    """Return AAC-LC frames, 48 kHz stereo, each with its header."""
    return b"".join([part for packet in packets for part in (_header(len(packet.data)), packet.data)])


def _header(size: int) -> bytes:
    length = HEADER_BYTES + size
    assert length < 1 << 13, "an AAC frame of two channels has at most 1536 bytes (14496-3, 4.5.3)"
    bits = 0xFFF << 44 | 1 << 40  # MPEG-4, layer 0, no checksum
    bits |= _PROFILE_LC << 38 | _FREQUENCY_48K << 34 | _CHANNELS << 30
    bits |= length << 13 | _FULLNESS_VARIABLE << 2
    return bits.to_bytes(HEADER_BYTES, "big")
