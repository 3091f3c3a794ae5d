"""One source's RTP packets put in order, what is missing asked for again, and how they came reported. Pure.

A packet that is missing holds those after it up for `HOLD_S`, in which it is asked for as often as that makes sense;
then it counts as lost. Statistics are those of RFC 3550 (sections 6.4.1, A.1, A.3 and A.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from whispr.webrtc.rtcp import Report, SenderReport, middle
from whispr.webrtc.rtp import OPUS_CLOCK_HZ, RtpPacket, extend

HOLD_S: Final = 0.06
"""More would be heard as delay by everybody; a round trip in one country fits twice."""
ASK_EVERY_S: Final = 0.025
ASKED_MAX: Final = 3
WAITING_MAX: Final = 64
"""Packets held up; beyond, the hole is given up at once."""
MISSING_MAX: Final = 64
"""Packets waited for; a hole that would make them more is given up at once, for it is no loss but an outage."""
JUMP_MAX: Final = 3000
"""Sequence numbers; a source that jumps farther has begun anew (MAX_DROPOUT of RFC 3550, section A.1)."""
STEP_MAX_S: Final = 10.0
"""Of timestamps from one packet to the next; more is a source that has begun anew."""
PACKET_TICKS: Final = 960


@dataclass(frozen=True, slots=True)
class Arrived:
    """The next packet in order."""

    payload: bytes
    timestamp: int
    """In 1/48000 s, without wraps, and going on where a source begins anew."""
    lost: int
    """Packets before it that never came."""


@dataclass(slots=True)
class _Asked:
    since: float
    last: float = float("-inf")
    times: int = 0


class Reception:
    """Packets of one sender, time passed in."""

    def __init__(self, hold_s: float = HOLD_S) -> None:
        self._hold_s = hold_s
        self.ssrc: int | None = None
        self._timestamp = 0
        self._offset = 0
        self._released_at: float | None = None
        self._next = self._base = self._highest = 0
        self._waiting: dict[int, RtpPacket] = {}
        self._missing: dict[int, _Asked] = {}
        self._received = self._reported_received = self._reported_expected = 0
        self._jitter = 0.0
        self._transit: int | None = None
        self._last_sr = (0, 0.0)

    def receive(self, packet: RtpPacket, now: float) -> Sequence[Arrived]:
        """Take a packet in; returns those that are due, in order."""
        if packet.ssrc != self.ssrc:
            self._begin(packet)
        sequence = extend(packet.sequence, self._highest, 16)
        if abs(sequence - self._highest) > JUMP_MAX:
            self._begin(packet)
            sequence = packet.sequence
        self._measure(packet, now)
        if sequence < self._next or sequence in self._waiting:
            return []  # late, or a second time
        holes = range(max(self._highest + 1, self._next), sequence)
        if len(self._missing) + len(holes) <= MISSING_MAX:
            self._missing.update((hole, _Asked(now)) for hole in holes)
        self._missing.pop(sequence, None)
        self._highest = max(self._highest, sequence)
        self._waiting[sequence] = packet
        return list(self._due(now))

    def poll(self, now: float) -> Sequence[Arrived]:
        """Give up what is missing too long; returns what is due then."""
        return list(self._due(now))

    def asks(self, now: float) -> list[int]:
        """Return the sequence numbers to ask for again now (RFC 4585)."""
        due = []
        for sequence, asked in self._missing.items():
            if asked.times < ASKED_MAX and now - asked.last >= ASK_EVERY_S:
                asked.last, asked.times = now, asked.times + 1
                due.append(sequence & 0xFFFF)
        return due

    def sender_report(self, report: SenderReport, now: float) -> None:
        """Remember when the sender last said the time."""
        if report.ssrc == self.ssrc:
            self._last_sr = (middle(report.ntp), now)

    def report(self, now: float) -> Report | None:
        """Report on the time since the report before; None before the first packet."""
        if self.ssrc is None:
            return None
        expected = self._highest - self._base + 1
        expected_since = expected - self._reported_expected
        lost_since = expected_since - (self._received - self._reported_received)
        self._reported_expected, self._reported_received = expected, self._received
        fraction = max(0.0, lost_since / expected_since) if expected_since > 0 else 0.0
        last_sr, at = self._last_sr
        delay = int((now - at) * 65536) if last_sr else 0
        return Report(
            self.ssrc, fraction, expected - self._received, self._highest, int(self._jitter), last_sr, delay
        )

    def _begin(self, packet: RtpPacket) -> None:
        """Start over with a source."""
        self.ssrc = packet.ssrc
        self._next = self._base = packet.sequence
        self._highest = packet.sequence - 1
        self._waiting.clear()
        self._missing.clear()
        self._received = self._reported_received = self._reported_expected = 0
        self._jitter, self._transit = 0.0, None
        self._last_sr = (0, 0.0)

    def _measure(self, packet: RtpPacket, now: float) -> None:
        """Count it, and how unevenly it came (RFC 3550, section A.8)."""
        self._received += 1
        transit = int(now * OPUS_CLOCK_HZ) - packet.timestamp
        if self._transit is not None:
            change = abs(extend(transit & 0xFFFFFFFF, self._transit, 32) - self._transit)
            if change < STEP_MAX_S * OPUS_CLOCK_HZ:
                self._jitter += (change - self._jitter) / 16
        self._transit = transit

    def _due(self, now: float) -> Iterator[Arrived]:
        while self._waiting:
            packet = self._waiting.pop(self._next, None)
            lost = 0
            if packet is None:
                first = min(self._waiting)
                asked = self._missing.get(self._next)
                patient = asked is not None and now - asked.since < self._hold_s
                if patient and len(self._waiting) < WAITING_MAX:
                    return
                lost = first - self._next
                for hole in range(self._next, first):
                    self._missing.pop(hole, None)
                self._next = first
                packet = self._waiting.pop(first)
            self._next += 1
            yield Arrived(packet.payload, self._clock(packet.timestamp, now), lost)

    def _clock(self, timestamp: int, now: float) -> int:
        """Undo the wraps of a timestamp; a source that begins anew goes on after the time that has passed."""
        if self._released_at is None:
            self._offset = -timestamp
        unwrapped = extend(timestamp, self._timestamp - self._offset, 32) + self._offset
        if not 0 <= unwrapped - self._timestamp <= STEP_MAX_S * OPUS_CLOCK_HZ:
            passed_s = now - (self._released_at or now)
            going_on = self._timestamp + max(PACKET_TICKS, int(passed_s * OPUS_CLOCK_HZ))
            self._offset += going_on - unwrapped
            unwrapped = going_on
        self._timestamp, self._released_at = unwrapped, now
        return unwrapped
