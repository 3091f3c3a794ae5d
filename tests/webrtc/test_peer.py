from __future__ import annotations

import pytest

from tests.webrtc.call import Call
from tests.webrtc.client import CERTIFICATE, Client
from whispr.webrtc import rtcp, rtp
from whispr.webrtc.dtls import DATAGRAM_BYTES_MAX, datagrams
from whispr.webrtc.flood import Failures
from whispr.webrtc.peer import CONNECT_S, State
from whispr.webrtc.rtcp import Nack
from whispr.webrtc.srtp import PROFILES, SOURCES_MAX


@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_peer_goes_through_its_states(profile: bytes) -> None:
    """Reached, shaking hands, connected, closed; media both ways with either cipher."""
    call = Call(Client(profiles=profile))
    call.connect()
    protection = call.peer.protection
    assert protection is not None
    call.client.receive(protection.protect(rtp.build(111, 1, 960, 7, b"down")))
    assert call.client.received[0].payload == b"down"
    call.peer.receive_rtp(call.client.packet(1, b"up"), 1.0)
    assert rtp.parse(call.rtp[0]).payload == b"up"
    call.peer.receive_rtp(call.client.said(rtcp.receiver_report(1, [], b"c") + rtcp.nack(1, 7, [5])), 1.0)
    assert call.rtcp == [Nack(7, [5])]
    for farewell in call.peer.close("over"):
        call.client.receive(farewell)
    assert call.client.closed
    assert call.states == [State.REACHED, State.HANDSHAKING, State.CONNECTED, State.CLOSED]
    assert call.peer.close("again") == ()


def test_under_pressure_a_handshake_begins_with_a_cookie() -> None:
    """One flight more, from the client that really is there; nothing costly is done before."""
    plain, pressed = Call(), Call()
    plain.reach()
    pressed.reach()
    assert pressed.shake(cookie=True) == plain.shake() + 1
    assert pressed.peer.state is State.CONNECTED


def test_another_certificate_than_announced_is_refused() -> None:
    """The fingerprint in the offer is what the handshake is believed by (RFC 8122)."""
    call = Call(Client(announced=":".join(["AA"] * 32)))
    call.reach()
    call.shake()
    assert call.peer.state is State.CLOSED
    assert "certificate" in call.peer.reason


def test_a_certificate_is_looked_at_by_its_fingerprint_alone() -> None:
    """One that OpenSSL takes and others call invalid, here by its version, ends nothing and nobody."""
    version = b"\xa0\x03\x02\x01"
    strange = CERTIFICATE.replace(version + b"\x02", version + b"\x05", 1)
    assert strange != CERTIFICATE
    call = Call(Client(certificate=strange))
    call.connect()


def test_nothing_is_taken_of_an_address_that_was_not_checked() -> None:
    """DTLS before a check is not looked at, nor is media before the handshake."""
    call = Call()
    assert call.peer.receive_dtls(call.client.hello()[0], 0.0) == ()
    call.peer.receive_rtp(b"\x80\x6f" + bytes(40), 0.0)
    assert call.peer.state is State.NEW


def test_forged_replayed_and_malformed_packets_are_counted_and_dropped() -> None:
    """None of them reaches those who listen to the peer."""
    call = Call()
    call.connect()
    good = call.client.packet(1)
    for data in (good, good, good[:-1] + b"x", b"\x80", b"", b"\x80\xc8" + bytes(30)):
        call.peer.receive_rtp(data, 1.0)
    call.peer.receive_rtp(call.client.said(b"\x80\xc9\x00\x01\x00\x00\x00\x01" + b"\x80\xc9\xff\xff"), 1.0)
    assert len(call.rtp) == 1
    assert call.peer.bad_packets == 4


def test_the_sources_of_a_peer_are_bounded() -> None:
    """Each is kept for good by the cipher: past a number new ones are dropped, and those there were go on."""
    call = Call()
    call.connect()
    protection = call.client.protection
    assert protection is not None
    for _ in range(2):  # forged ones count for nothing
        for ssrc in range(SOURCES_MAX):
            call.peer.receive_rtp(rtp.build(111, 1, 0, 1000 + ssrc, b"forged") + bytes(16), 1.0)
    for ssrc in range(2 * SOURCES_MAX):
        call.peer.receive_rtp(protection.protect(rtp.build(111, 1, 0, ssrc, b"new")), 1.0)
        call.peer.receive_rtp(
            call.client.said(rtcp.receiver_report(ssrc, [], b"c") + rtcp.nack(ssrc, 7, [5])), 1.0
        )
    assert (len(call.rtp), len(call.rtcp)) == (SOURCES_MAX, SOURCES_MAX)
    call.peer.receive_rtp(protection.protect(rtp.build(111, 2, 0, 0, b"again")), 2.0)
    assert len(call.rtp) == SOURCES_MAX + 1


def test_who_does_not_connect_in_time_is_closed() -> None:
    """Also one whose checks go on."""
    call = Call()
    for second in range(int(CONNECT_S) + 2):
        call.now = float(second)
        call.reach()
        call.peer.tick(call.now)
    assert (call.peer.state, call.peer.reason) == (State.CLOSED, "not connected in time")


def test_who_withdraws_consent_is_closed() -> None:
    """30 s after the last check (RFC 7675)."""
    call = Call()
    call.connect()
    call.peer.tick(29.0)
    assert call.peer.state is State.CONNECTED
    call.peer.tick(31.0)
    assert (call.peer.state, call.peer.reason) == (State.CLOSED, "the peer is gone")


def test_garbage_in_a_handshake_ends_it_or_does_nothing() -> None:
    """No bytes raise; a handshake that cannot go on is closed with the reason."""
    call = Call()
    call.reach()
    for data in (b"\x16", b"\x16\xfe\xfd" + bytes(60), b"\x17" * 200, bytes([63]) * 40):
        call.peer.receive_dtls(data, 0.0)
    assert call.peer.state in (State.HANDSHAKING, State.CLOSED)


def test_records_are_packed_into_datagrams_whole() -> None:
    """As few as they fit, none longer than passes everywhere."""
    records = [
        b"\x16\xfe\xfd" + bytes(8) + size.to_bytes(2, "big") + bytes(size) for size in (500, 500, 500, 60)
    ]
    packed = datagrams(b"".join(records))
    assert packed == [records[0] + records[1], records[2] + records[3]]
    assert max(map(len, packed)) <= DATAGRAM_BYTES_MAX


def test_a_host_that_fails_too_often_is_over_its_budget_for_a_while() -> None:
    """Others are not, of IPv6 a whole /64 is one, and what is remembered is bounded."""
    failures = Failures(per_s=10, burst=5, hosts_max=3)
    for _ in range(5):
        assert not failures.over("192.0.2.1", 0.0)
        failures.note("192.0.2.1", 0.0)
    assert failures.over("192.0.2.1", 0.0)
    assert not failures.over("192.0.2.2", 0.0)
    assert not failures.over("192.0.2.1", 0.2)
    for _ in range(1000):  # of an address that is a peer's, failures are noted without end
        failures.note("192.0.2.1", 0.3)
    assert failures.over("192.0.2.1", 0.3)
    assert not failures.over("192.0.2.1", 0.6)
    for number in range(9):
        failures.note(f"2001:db8:0:1::{number}", 1.0)
    assert failures.over("2001:db8:0:1::ffff", 1.0)
    assert not failures.over("2001:db8:0:2::1", 1.0)
    for number in range(9):
        failures.note(f"198.51.100.{number}", 1.0)
    assert len(failures._levels) == 3
