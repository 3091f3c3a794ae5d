from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from whispr.webrtc.reception import HOLD_S, MISSING_MAX, Arrived, Reception
from whispr.webrtc.rtcp import SenderReport, nack
from whispr.webrtc.rtp import RtpPacket
from whispr.webrtc.srtp import PACKET_BYTES_MAX

PACKET_S = 0.02


def packet(number: int, ssrc: int = 5) -> RtpPacket:
    return RtpPacket(
        111, number & 0xFFFF, number * 960 & 0xFFFFFFFF, ssrc, False, number.to_bytes(4, "big", signed=True)
    )


def numbers(arrived: Sequence[Arrived]) -> list[int]:
    return [int.from_bytes(each.payload, "big", signed=True) for each in arrived]


@given(st.integers(0, 1 << 20), st.permutations(range(8)))
def test_packets_of_any_order_come_out_in_order(first: int, order: list[int]) -> None:
    """Also over wraps of sequence and timestamp: in order, none lost, on a clock that begins at 0."""
    reception = Reception()
    came: list[Arrived] = list(reception.receive(packet(first), 0.0))
    for step, number in enumerate(order):
        came += reception.receive(packet(first + 1 + number), 0.001 * step)
    assert numbers(came) == list(range(first, first + 9))
    assert [each.timestamp for each in came] == [960 * n for n in range(9)]
    assert not any(each.lost for each in came)


def test_a_lost_packet_holds_up_for_a_while_and_is_counted() -> None:
    """Those after it wait 60 ms; then they come, and the first says how many are missing."""
    reception = Reception()
    reception.receive(packet(1), 0.0)
    assert not reception.receive(packet(4), 0.02)
    assert reception.poll(0.02 + HOLD_S - 0.001) == []
    (late,) = reception.poll(0.02 + HOLD_S)
    assert (numbers([late]), late.lost, late.timestamp) == ([4], 2, 3 * 960)
    assert reception.receive(packet(2), 0.1) == [], "too late"
    assert numbers(reception.receive(packet(5), 0.1)) == [5]


def test_what_is_missing_is_asked_for_a_few_times() -> None:
    """At once, again after a while, three times in all, and not once it has come."""
    reception = Reception(hold_s=1.0)
    reception.receive(packet(1), 0.0)
    reception.receive(packet(4), 0.0)
    assert reception.asks(0.0) == [2, 3]
    assert reception.asks(0.01) == []
    reception.receive(packet(2), 0.02)
    assert reception.asks(0.03) == [3]
    assert reception.asks(0.06) == [3]
    assert reception.asks(0.1) == []


def test_an_outage_is_not_asked_for() -> None:
    """What is waited for is bounded, whatever numbers come: a long hole is lost at once, and a request is short."""
    reception = Reception()
    reception.receive(packet(0), 0.0)
    (after,) = reception.receive(packet(MISSING_MAX + 2), 0.0)
    assert after.lost == MISSING_MAX + 1
    assert reception.asks(0.0) == []
    number = MISSING_MAX + 2
    for step in range(40):
        number += 2 + 37 * (step % 3)
        reception.receive(packet(number), 0.0)
        assert len(reception._missing) <= MISSING_MAX
    assert len(nack(1, 5, reception.asks(0.0))) < PACKET_BYTES_MAX / 2


def test_a_duplicate_is_heard_once() -> None:
    """Of the same number only the first counts."""
    reception = Reception()
    assert numbers(reception.receive(packet(1), 0.0)) == [1]
    assert reception.receive(packet(1), 0.0) == []
    reception.receive(packet(3), 0.0)
    assert reception.receive(packet(3), 0.0) == []


def test_a_source_that_begins_anew_goes_on_with_the_clock() -> None:
    """Another SSRC, or a jump: the clock goes on by the time that has passed, never back."""
    reception = Reception()
    reception.receive(packet(10), 1.0)
    reception.receive(packet(11), 1.02)
    (other,) = reception.receive(packet(5, ssrc=6), 2.02)
    assert other.timestamp == 960 + 48_000
    (jumped,) = reception.receive(packet(50_000, ssrc=6), 3.02)
    assert jumped.timestamp == 960 + 96_000
    assert jumped.lost == 0


def test_a_hole_that_is_too_long_is_given_up_at_once() -> None:
    """No more packets wait than there is room for."""
    reception = Reception(hold_s=60.0)
    reception.receive(packet(0), 0.0)
    came: list[Arrived] = []
    for number in range(2, 70):
        came += reception.receive(packet(number), 0.0)
    assert numbers(came) == list(range(2, 70))
    assert came[0].lost == 1


def test_reports_say_what_was_lost_since_the_last() -> None:
    """Fraction since the report before, sum since the beginning, highest number with its cycles (RFC 3550)."""
    reception = Reception()
    assert reception.report(0.0) is None
    for number in (65534, 65535, 65536, 65538):
        reception.receive(packet(number), number * PACKET_S)
    first = reception.report(2000.0)
    assert first is not None
    assert (first.fraction_lost, first.lost, first.highest_sequence) == (0.2, 1, 65538)
    reception.receive(packet(65539), 65539 * PACKET_S)
    second = reception.report(2001.0)
    assert second is not None
    assert (second.fraction_lost, second.lost) == (0.0, 1)


def test_jitter_is_how_unevenly_packets_come() -> None:
    """None while they come as they were sent; with 10 ms to and fro it goes to that."""
    even, uneven = Reception(), Reception()
    for number in range(400):
        even.receive(packet(number), 100 + number * PACKET_S)
        uneven.receive(packet(number), 100 + number * PACKET_S + 0.01 * (number % 2))
    smooth, rough = even.report(200.0), uneven.report(200.0)
    assert smooth is not None
    assert rough is not None
    assert smooth.jitter < 24
    assert 0.009 * 48_000 < rough.jitter < 0.011 * 48_000


def test_a_report_answers_the_senders_clock() -> None:
    """The middle of its NTP time, and how long ago it came, so that it can tell the round trip."""
    reception = Reception()
    reception.receive(packet(1), 0.0)
    reception.sender_report(SenderReport(5, 0x0000123456780000, 0, 0, 0), 1.0)
    reception.sender_report(SenderReport(99, 0xFFFFFFFFFFFF0000, 0, 0, 0), 1.1)
    report = reception.report(1.5)
    assert report is not None
    assert (report.last_sr, report.delay_since_sr) == (0x12345678, 32768)


@given(
    st.lists(
        st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(1, 2), st.floats(0, 0.5)),
        max_size=60,
    )
)
def test_any_packets_keep_the_clock_going(packets: list[tuple[int, int, int, float]]) -> None:
    """Whatever numbers a source invents, the clock never goes back, and what waits is bounded."""
    reception = Reception()
    now = clock = 0.0
    for sequence, timestamp, ssrc, passed in packets:
        now += passed
        made = RtpPacket(111, sequence, timestamp, ssrc, False, b"")
        for each in [*reception.receive(made, now), *reception.poll(now)]:
            assert each.timestamp >= clock
            assert each.lost >= 0
            clock = each.timestamp
        reception.asks(now)
        reception.report(now)
