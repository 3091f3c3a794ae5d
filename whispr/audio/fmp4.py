"""Fragmented MP4 (CMAF) of one audio track: the initialisation segment, and fragments that follow it. Pure.

    init_segment(rendition)             ftyp + moov, once
    fragment(number, packets)           moof + mdat, for any run of packets without a hole in it

A fragment says when it begins on the stream's own clock (`tfdt`), so one decodes without any other, and a player that
joins late, or swaps a rendition for another of the same codec, sees one timeline. Every sample is a sync sample.

Sources: ISO/IEC 14496-12 (boxes), 14496-14 (`esds`), 23000-19 (CMAF), and "Encapsulation of Opus in ISO Base Media
File Format" 0.6.8 (`dOps`, pre-roll).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import Final

from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Rendition

CODECS: Final = {Codec.AAC: "mp4a.40.2", Codec.OPUS: "opus"}
"""How each codec is named to browsers and in playlists (RFC 6381)."""

TRACK: Final = 1
CHANNELS: Final = 2

_MATRIX = pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_UNDETERMINED = 0x55C4  # the language "und", five bits a letter
_AAC_LC_48K_STEREO = bytes.fromhex("1190")  # AudioSpecificConfig, ISO/IEC 14496-3, 1.6.2.1

_MOOF_NUMBER: Final = 1 << 32
_SYNC_SAMPLE: Final = 0x02000000  # sample_depends_on = 2: on no other


def mime_type(codec: Codec) -> str:
    """Return what a browser's MediaSource is asked for."""
    return f'audio/mp4; codecs="{CODECS[codec]}"'


def init_segment(rendition: Rendition) -> bytes:
    """Return the boxes that come before every fragment of a rendition."""
    brands = b"iso6" + pack(">I", 0) + b"iso6mp41cmfc"
    header = _full(
        b"mvhd", 0, 0, pack(">IIII", 0, 0, CLOCK_HZ, 0), pack(">IH", 0x10000, 0x100), bytes(10),
        _MATRIX, bytes(24), pack(">I", TRACK + 1),
    )  # fmt: skip
    defaults = _full(b"trex", 0, 0, pack(">IIIII", TRACK, 1, 0, 0, 0))
    return _box(b"ftyp", brands) + _box(b"moov", header, _track(rendition), _box(b"mvex", defaults))


def fragment(number: int, packets: Sequence[Packet]) -> bytes:
    """Return one fragment of packets that follow each other without a hole.

    `number` counts the fragments of a rendition upwards; only its lowest 32 bits are written.
    """
    first = packets[0]
    duration, count = first.duration, len(packets)
    uniform = all(packet.duration == duration for packet in packets)
    # Fields of tfhd: default-base-is-moof, default duration, default flags.
    header = _full(b"tfhd", 0, 0x020000 | 0x08 | 0x20, pack(">III", TRACK, duration, _SYNC_SAMPLE))
    begins = _full(b"tfdt", 1, 0, pack(">Q", first.pts))
    if uniform:
        flags, table = 0x201, pack(f">{count}I", *[len(packet.data) for packet in packets])
    else:
        pairs = [value for packet in packets for value in (packet.duration, len(packet.data))]
        flags, table = 0x301, pack(f">{2 * count}I", *pairs)
    size = 8 + 16 + 8 + len(header) + len(begins) + 20 + len(table)
    run = _full(b"trun", 0, flags, pack(">II", count, size + 8), table)
    moof = _box(
        b"moof", _full(b"mfhd", 0, 0, pack(">I", number % _MOOF_NUMBER)), _box(b"traf", header, begins, run)
    )
    data = b"".join([packet.data for packet in packets])
    return moof + pack(">I4s", 8 + len(data), b"mdat") + data


def fragments(number: int, packets: Sequence[Packet]) -> bytes:
    """Return packets as fragments, one for each run without a hole, numbered alike."""
    runs: list[list[Packet]] = []
    for packet in packets:
        if runs and runs[-1][-1].pts + runs[-1][-1].duration == packet.pts:
            runs[-1].append(packet)
        else:
            runs.append([packet])
    return b"".join([fragment(number, run) for run in runs])


def _track(rendition: Rendition) -> bytes:
    header = _full(
        b"tkhd", 0, 7, pack(">IIIII", 0, 0, TRACK, 0, 0), bytes(8), pack(">HHHH", 0, 1, 0x100, 0),
        _MATRIX, bytes(8),
    )  # fmt: skip
    times = _full(b"mdhd", 0, 0, pack(">IIIIHH", 0, 0, CLOCK_HZ, 0, _UNDETERMINED, 0))
    handler = _full(b"hdlr", 0, 0, pack(">I4s", 0, b"soun"), bytes(12), b"SoundHandler\0")
    here = _box(b"dinf", _full(b"dref", 0, 0, pack(">I", 1), _full(b"url ", 0, 1)))
    media = _box(b"minf", _full(b"smhd", 0, 0, bytes(4)), here, _sample_table(rendition))
    return _box(b"trak", header, _box(b"mdia", times, handler, media))


def _sample_table(rendition: Rendition) -> bytes:
    """The table of no samples, but of how samples are described: they are all in fragments."""
    opus = rendition.codec is Codec.OPUS
    entry = _opus_entry() if opus else _aac_entry(rendition.bitrate_bps)
    # Where one begins to decode, what is heard is right so many samples later (14496-12, 10.1): 80 ms of Opus
    # (RFC 7845, 4.6), one frame of AAC.
    roll = _full(b"sgpd", 2, 0, b"roll", pack(">III", 2, 1, 1), pack(">h", -4 if opus else -1))
    return _box(
        b"stbl",
        _full(b"stsd", 0, 0, pack(">I", 1), entry),
        _full(b"stts", 0, 0, bytes(4)),
        _full(b"stsc", 0, 0, bytes(4)),
        _full(b"stsz", 0, 0, bytes(8)),
        _full(b"stco", 0, 0, bytes(4)),
        roll,
    )


def _sound(kind: bytes, config: bytes) -> bytes:
    fields = pack(">HHHHI", CHANNELS, 16, 0, 0, CLOCK_HZ << 16)
    return _box(kind, bytes(6) + pack(">H", 1) + bytes(8) + fields, config)


def _opus_entry() -> bytes:
    # No pre-skip: whoever listens joins in the middle, and packets are at the times at which they sound.
    config = pack(">BBHIhB", 0, CHANNELS, 0, CLOCK_HZ, 0, 0)
    return _sound(b"Opus", _box(b"dOps", config))


def _aac_entry(bitrate_bps: int) -> bytes:
    decoder = pack(">BB", 0x40, 0x15) + bytes(3) + pack(">II", bitrate_bps, bitrate_bps)
    config = _descriptor(4, decoder + _descriptor(5, _AAC_LC_48K_STEREO))
    return _sound(
        b"mp4a",
        _full(b"esds", 0, 0, _descriptor(3, pack(">HB", TRACK, 0) + config + _descriptor(6, b"\x02"))),
    )


def _descriptor(tag: int, body: bytes) -> bytes:
    assert len(body) < 128, "a size of one byte (14496-1, 8.3.3)"
    return bytes([tag, 0x80, 0x80, 0x80, len(body)]) + body


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return pack(">I4s", 8 + len(body), kind) + body


def _full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, pack(">I", version << 24 | flags), *parts)
