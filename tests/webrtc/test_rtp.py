from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.webrtc import rtcp, rtp
from whispr.webrtc.rtcp import Nack, Report, RtcpError, SenderReport
from whispr.webrtc.rtp import RtpError, RtpPacket

PACKET = rtp.build(111, 7, 960, 5, b"opus")


def test_a_packet_is_written_and_read() -> None:
    """What is built comes back; numbers wrap by themselves."""
    assert rtp.parse(PACKET) == RtpPacket(111, 7, 960, 5, False, b"opus")
    wrapped = rtp.parse(rtp.build(111, 0x10007, (1 << 32) + 5, 5, b""))
    assert (wrapped.sequence, wrapped.timestamp) == (7, 5)


def test_contributors_extension_and_padding_are_no_payload() -> None:
    """RFC 3550, section 5.1 and 5.3.1."""
    head = bytes([0x80 | 0x20 | 0x10 | 2, 0x80 | 111]) + PACKET[2:12]
    packet = head + bytes(8) + b"\xbe\xde\x00\x01" + bytes(4) + b"opus" + b"\x00\x00\x03"
    read = rtp.parse(packet)
    assert (read.payload, read.marker) == (b"opus", True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PACKET[:11],
        b"\x40" + PACKET[1:],
        b"\x8f" + PACKET[1:],
        b"\x90" + PACKET[1:12] + b"\xbe\xde",
        b"\x90" + PACKET[1:12] + b"\xbe\xde\xff\xff",
        b"\xa0" + PACKET[1:12] + b"a\x09",
        b"\xa0" + PACKET[1:12] + b"a\x00",
    ],
)
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    """Cut short, of another version, or with more header or padding than there is."""
    with pytest.raises(RtpError):
        rtp.parse(data)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_refused(data: bytes) -> None:
    """No bytes do anything else, and no payload is longer than what came."""
    try:
        assert len(rtp.parse(data).payload) <= len(data) - rtp.HEADER_BYTES
    except RtpError:
        return


@given(st.integers(0, 1 << 40), st.integers(-(1 << 15) + 1, (1 << 15) - 1))
def test_a_wrapped_number_is_found_again(near: int, off: int) -> None:
    """The nearest number with those last bits, on either side."""
    assert rtp.extend((near + off) & 0xFFFF, near, 16) == near + off


REPORT = Report(5, 0.25, -3, 70000, 480, 123, 456)


def test_reports_are_written_and_read() -> None:
    """Sender and receiver reports with their blocks; what is a description is passed over."""
    sender = rtcp.sender_report(5, 0x0123456789ABCDEF, 960, 10, 3200, b"whispr")
    assert rtcp.parse(sender) == [SenderReport(5, 0x0123456789ABCDEF, 960, 10, 3200)]
    assert rtcp.parse(rtcp.receiver_report(1, [REPORT], b"whispr")) == [REPORT]
    assert rtcp.parse(b"\x81\xcb\x00\x01\x00\x00\x00\x09") == [], "a BYE says nothing that matters here"
    assert len(sender) % 4 == 0


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=40, unique=True))
def test_what_is_asked_for_again_is_all_that_is(sequences: list[int]) -> None:
    """Runs are packed into a first number and a mask (RFC 4585, section 6.2.1), and unpacked to the same."""
    (read,) = rtcp.parse(rtcp.nack(1, 5, sequences))
    assert isinstance(read, Nack)
    assert read.ssrc == 5
    assert set(read.sequences) == set(sequences)


def test_a_run_over_the_wrap_is_one_pair() -> None:
    """65535, 0 and 1 follow each other."""
    packet = rtcp.nack(1, 5, [65535, 0, 1])
    assert len(packet) == 16
    assert rtcp.parse(packet) == [Nack(5, [65535, 0, 1])]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"\x00\xc8\x00\x00",
        b"\x80\xc8\x00\x05" + bytes(4),
        b"\x80\xc8\x00\x01" + bytes(4),
        b"\x81\xc9\x00\x01" + bytes(4),
        b"\x81\xcd\x00\x01" + bytes(4),
        b"\x81\xcd\x00\x50" + bytes(8) + b"\xff" * 312,
        b"\x80\xc9\x00\x00" * 40,
    ],
)
def test_what_is_no_rtcp_is_refused(data: bytes) -> None:
    """Cut short anywhere, of another version, or more than anybody sends."""
    with pytest.raises(RtcpError):
        rtcp.parse(data)


@given(st.binary(max_size=120))
def test_any_bytes_are_rtcp_or_refused(data: bytes) -> None:
    """No bytes do anything else."""
    for each in (data, b"\x81\xc9\x00\x07" + data, b"\x81\xcd" + len(data[:-4]).to_bytes(2, "big") + data):
        try:
            rtcp.parse(each)
        except RtcpError:
            continue


def test_the_round_trip_is_what_the_peer_did_not_wait() -> None:
    """RFC 3550, figure 2: now, less when our report left, less how long the peer kept it."""
    left = 1_700_000_000.0
    report = Report(5, 0, 0, 0, 0, rtcp.middle(rtcp.ntp_of(left)), int(0.5 * 65536))
    assert rtcp.round_trip_s(report, left + 0.6) == pytest.approx(0.1, abs=1e-3)
    assert rtcp.round_trip_s(report, left + 0.4) == 0.0, "a clock that was put back"
    assert rtcp.round_trip_s(Report(5, 0, 0, 0, 0, 0, 0), left) is None
