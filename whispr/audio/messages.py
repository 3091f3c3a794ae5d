"""Packets in one binary message, for a WebSocket: to be decoded by WebCodecs, and to publish by. Pure.

    0   u8      1, the version
    1   u8      codec: 0 Opus, 1 AAC
    2   u16     how many packets
    4   u64     time of the first, in 1/48000 s on the stream's clock
    12  u16 …   the size of each packet
        …       the packets, one after the other

All numbers are big-endian. Packets follow each other in time without a hole: each of Opus says in its first byte how
long it is (RFC 6716, 3.1), each of AAC has 1024 samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, error, pack, unpack_from
from typing import Final

from whispr.audio.packets import Codec, Packet
from whispr.errors import invalid

VERSION: Final = 1
PACKET_BYTES_MAX: Final = 0xFFFF

_HEAD = Struct(">BBHQ")
_CODECS: Final = (Codec.OPUS, Codec.AAC)


def encode_message(codec: Codec, packets: Sequence[Packet]) -> bytes:
    """Return the message of packets that follow each other without a hole."""
    sizes = [len(packet.data) for packet in packets]
    head = _HEAD.pack(VERSION, _CODECS.index(codec), len(packets), packets[0].pts)
    return b"".join([head, pack(f">{len(sizes)}H", *sizes), *[packet.data for packet in packets]])


def decode_message(data: bytes) -> tuple[Codec, int, list[bytes]]:
    """Return codec, time of the first packet, and the packets. Raises INVALID_ARGUMENT."""
    try:
        version, codec, count, pts = _HEAD.unpack_from(data)
        sizes = unpack_from(f">{count}H", data, _HEAD.size)
    except error:
        raise invalid({"audio": "the message is shorter than its head"}) from None
    if version != VERSION or codec >= len(_CODECS):
        raise invalid({"audio": f"version {version}, codec {codec}: there is 1, and codec 0 or 1"})
    at = _HEAD.size + 2 * count
    if len(data) != at + sum(sizes):
        raise invalid({"audio": "the message is not as long as its packets"})
    packets = []
    for size in sizes:
        packets.append(data[at : at + size])
        at += size
    return _CODECS[codec], pts, packets
