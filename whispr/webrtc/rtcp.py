"""RTCP (RFC 3550, section 6; RFC 4585): bytes in, values out. What is not of use here is skipped."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

SENDER_REPORT, RECEIVER_REPORT, DESCRIPTION, FEEDBACK = 200, 201, 202, 205
NACK_FORMAT: Final = 1
NTP_EPOCH_S: Final = 2_208_988_800
"""From 1900, where NTP begins, to 1970."""
PACKETS_MAX: Final = 32
"""In one compound."""
NACKS_MAX: Final = 256
"""Sequence numbers taken from one compound."""
_BLOCK = struct.Struct(">IB3sIIII")


class RtcpError(ValueError):
    """Bytes that are not RTCP; the message says in what."""


@dataclass(frozen=True, slots=True)
class Report:
    """How one source's packets arrived at who reports (RFC 3550, section 6.4.1)."""

    ssrc: int
    fraction_lost: float
    """Since the report before, 0 to 1."""
    lost: int
    """In all; negative with duplicates."""
    highest_sequence: int
    """With its cycles."""
    jitter: int
    """In units of the timestamps."""
    last_sr: int
    """The middle 32 bits of the NTP time in the last sender report, 0 without one."""
    delay_since_sr: int
    """Since it came, in 1/65536 s."""


@dataclass(frozen=True, slots=True)
class SenderReport:
    """What a sender says of its clock and its sending."""

    ssrc: int
    ntp: int
    """64 bits."""
    timestamp: int
    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class Nack:
    """Packets of a source that are asked for again (RFC 4585, section 6.2.1)."""

    ssrc: int
    sequences: Sequence[int]


Item = Report | SenderReport | Nack


def parse(data: bytes) -> list[Item]:
    """Read a compound. Raises RtcpError."""
    items: list[Item] = []
    at = count = 0
    while at < len(data):
        if at + 4 > len(data) or data[at] >> 6 != 2:
            raise RtcpError("not RTCP")
        kind, end = data[at + 1], at + 4 + 4 * int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data):
            raise RtcpError(f"a packet of type {kind} is cut short")
        count += 1
        if count > PACKETS_MAX:
            raise RtcpError("too many packets")
        items += _read(kind, data[at] & 0x1F, data[at + 4 : end])
        at = end
    return items


def _read(kind: int, count: int, body: bytes) -> Iterable[Item]:
    if kind == SENDER_REPORT:
        if len(body) < 24:
            raise RtcpError("a sender report is cut short")
        ssrc, ntp, timestamp, packets, octets = struct.unpack_from(">IQIII", body)
        return [SenderReport(ssrc, ntp, timestamp, packets, octets), *_blocks(count, body[24:])]
    if kind == RECEIVER_REPORT:
        return _blocks(count, body[4:])
    if kind == FEEDBACK and count == NACK_FORMAT:
        return _nack(body)
    return ()


def _blocks(count: int, body: bytes) -> list[Report]:
    if len(body) < 24 * count:
        raise RtcpError("a report is cut short")
    return [_report(body, 24 * number) for number in range(count)]


def _report(body: bytes, at: int) -> Report:
    ssrc, fraction, lost, highest, jitter, last_sr, delay = _BLOCK.unpack_from(body, at)
    return Report(
        ssrc, fraction / 256, int.from_bytes(lost, "big", signed=True), highest, jitter, last_sr, delay
    )


def _nack(body: bytes) -> list[Nack]:
    if len(body) < 8 or len(body) % 4:
        raise RtcpError("a NACK is cut short")
    sequences: list[int] = []
    for at in range(8, len(body), 4):
        first, following = struct.unpack_from(">HH", body, at)
        sequences.append(first)
        sequences += [(first + 1 + bit) & 0xFFFF for bit in range(16) if following >> bit & 1]
        if len(sequences) > NACKS_MAX:
            raise RtcpError("asks for too many packets")
    return [Nack(int.from_bytes(body[4:8], "big"), sequences)]


def ntp_of(unix_s: float) -> int:
    """Return a time as 64 bits of NTP."""
    return int((unix_s + NTP_EPOCH_S) * 2**32) & 0xFFFFFFFFFFFFFFFF


def middle(ntp: int) -> int:
    """Return the middle 32 bits, in 1/65536 s."""
    return ntp >> 16 & 0xFFFFFFFF


def round_trip_s(report: Report, unix_s: float) -> float | None:
    """Return the round trip that a report of our packets shows (RFC 3550, figure 2); None when it shows none."""
    if not report.last_sr:
        return None
    passed = (middle(ntp_of(unix_s)) - report.last_sr - report.delay_since_sr) & 0xFFFFFFFF
    # A clock that is a little off makes it negative: nearly 2^32.
    return passed / 65536 if passed < 1 << 31 else 0.0


def sender_report(ssrc: int, ntp: int, timestamp: int, packets: int, octets: int, cname: bytes) -> bytes:
    """Write a sender report and, as every compound must, a description (RFC 3550, section 6.1)."""
    said = struct.pack(">IQIII", ssrc, ntp, timestamp & 0xFFFFFFFF, packets & 0xFFFFFFFF, octets & 0xFFFFFFFF)
    return _packet(SENDER_REPORT, 0, said) + description(ssrc, cname)


def receiver_report(ssrc: int, reports: Sequence[Report], cname: bytes) -> bytes:
    """Write a receiver report and a description."""
    blocks = b"".join(
        _BLOCK.pack(
            each.ssrc,
            min(255, int(each.fraction_lost * 256)),
            max(-(1 << 23), min((1 << 23) - 1, each.lost)).to_bytes(3, "big", signed=True),
            each.highest_sequence & 0xFFFFFFFF,
            each.jitter & 0xFFFFFFFF,
            each.last_sr,
            each.delay_since_sr & 0xFFFFFFFF,
        )
        for each in reports
    )
    return _packet(RECEIVER_REPORT, len(reports), struct.pack(">I", ssrc) + blocks) + description(ssrc, cname)


def description(ssrc: int, cname: bytes) -> bytes:
    """Write an SDES packet with a CNAME (RFC 3550, section 6.5)."""
    chunk = struct.pack(">IBB", ssrc, 1, len(cname)) + cname
    return _packet(DESCRIPTION, 1, chunk + bytes(4 - len(chunk) % 4))


def nack(ssrc: int, source: int, sequences: Sequence[int]) -> bytes:
    """Ask for packets again: a PID and a bitmask of the 16 that follow it for each run of them."""
    pairs: list[tuple[int, int]] = []
    for sequence in sequences:
        ahead = (sequence - pairs[-1][0]) & 0xFFFF if pairs else 17
        if 1 <= ahead <= 16:
            pairs[-1] = (pairs[-1][0], pairs[-1][1] | 1 << (ahead - 1))
        elif ahead:
            pairs.append((sequence & 0xFFFF, 0))
    body = struct.pack(">II", ssrc, source) + b"".join(struct.pack(">HH", *pair) for pair in pairs)
    return _packet(FEEDBACK, NACK_FORMAT, body)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0x80 | count, kind, len(body) // 4) + body
