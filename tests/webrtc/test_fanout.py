from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from whispr.audio.packets import Packet
from whispr.webrtc import rtcp, rtp
from whispr.webrtc.fanout import RESENT_PER_S, STEP_S, WRAP_GUARD, Fanout
from whispr.webrtc.ice import Credentials
from whispr.webrtc.peer import Peer
from whispr.webrtc.receivers import RING, Receiver
from whispr.webrtc.rtcp import Nack, SenderReport
from whispr.webrtc.rtp import RtpPacket

HERE = ("192.0.2.1", 5)


class Wire:
    """A socket that keeps what it is given, and a cipher that leaves it as it is."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.full = False

    def sendto(self, data: bytes, address: object) -> int:
        if self.full:
            raise BlockingIOError
        self.sent.append(data)
        return len(data)

    protect = protect_rtcp = staticmethod(lambda data: data)

    def packets(self) -> list[RtpPacket]:
        return [rtp.parse(each) for each in self.sent if not 192 <= each[1] <= 223]


def fanout_with(count: int = 1) -> tuple[Fanout, list[Wire], list[Receiver]]:
    """A fan-out, and peers on rendition "a"."""
    wires = [Wire() for _ in range(count)]
    nowhere: Any = None
    fanout = Fanout(lambda _: nowhere, "whispr")
    receivers = [joined(fanout, wire) for wire in wires]
    return fanout, wires, receivers


def joined(fanout: Fanout, wire: Wire, track: str = "a", payload_type: int = 111) -> Receiver:
    anything: Any = wire
    peer = Peer(anything, Credentials("r", "r" * 22), {}, 0.0)
    peer.protection = anything
    peer.ice.address = HERE
    fanout._socket_for = lambda _: anything
    return fanout.add(peer, payload_type, track)


def feed(fanout: Fanout, track: str, *numbers: int) -> None:
    for number in numbers:
        fanout.push(track, Packet(number * 960, 960, f"{track}{number}".encode()))


def heard(wire: Wire) -> list[str]:
    return [each.payload.decode() for each in wire.packets()]


def test_a_new_peer_hears_from_the_next_packet_on() -> None:
    """Numbers and timestamps follow from the stream's clock, so all peers get the same packets."""
    fanout, (one, other), _ = fanout_with(2)
    feed(fanout, "a", 5, 6)
    late = Wire()
    joined(fanout, late, payload_type=96)
    feed(fanout, "a", 7, 8)
    assert heard(one) == heard(other) == ["a6", "a7", "a8"]
    assert one.sent == other.sent
    assert heard(late) == ["a8"]
    first, second = one.packets()[:2]
    assert second.sequence - first.sequence & 0xFFFF == 1
    assert second.timestamp - first.timestamp & 0xFFFFFFFF == 960
    assert {each.payload_type for each in late.packets()} == {96}


@pytest.mark.parametrize("lead", [-7, -1, 0, 1, 7])
def test_a_change_of_rendition_loses_and_repeats_nothing(lead: int) -> None:
    """Whether the new rendition is ahead or behind: every number once, the old up to somewhere, then the new."""
    fanout, (wire,), (receiver,) = fanout_with()
    for number in range(60):
        if number == 20:
            fanout.move(receiver, "b")
        feed(fanout, "a", number)
        if number + lead >= 0:
            feed(fanout, "b", number + lead)
    numbers = [int(each[1:]) for each in heard(wire)]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert numbers[0] == 1
    assert numbers[-1] >= 52
    kinds = "".join(each[0] for each in heard(wire))
    assert kinds == "a" * kinds.count("a") + "b" * kinds.count("b")
    assert fanout.on(receiver) == "b"
    assert fanout.idle("a")


@given(st.data())
def test_renditions_that_come_anyhow_leave_no_hole_and_no_number_twice(data: st.DataObject) -> None:
    """Whatever the order of batches and changes, a peer never gets one number with two contents, nor a hole."""
    fanout, (wire,), (receiver,) = fanout_with()
    at = {"a": 0, "b": 0, "c": 0}
    feed(fanout, "a", 0)
    at["a"] = 1
    for _ in range(data.draw(st.integers(5, 40))):
        if data.draw(st.booleans()):
            fanout.move(receiver, data.draw(st.sampled_from("abc")))
        track = data.draw(st.sampled_from("abc"))
        count = data.draw(st.integers(1, 6))
        ahead = min(at[track] + count, max(at.values()) + 6)
        feed(fanout, track, *range(at[track], ahead))
        at[track] = max(at[track], ahead)
    numbers = [int(each[1:]) for each in heard(wire)]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_number_is_never_given_out_twice() -> None:
    """A feeder that repeats itself is not believed: the same number with other bytes would give the key away."""
    fanout, (wire,), _ = fanout_with()
    feed(fanout, "a", 0, 1, 2, 2, 1, 3)
    assert heard(wire) == ["a1", "a2", "a3"]


def test_what_is_asked_for_again_comes_again_as_it_was() -> None:
    """From the ring, of the present rendition alone, and not without end."""
    fanout, (wire,), (receiver,) = fanout_with()
    feed(fanout, "a", *range(10))
    sequences = [each.sequence for each in wire.packets()]
    before = list(wire.sent)
    assert fanout.resend(receiver, Nack(fanout.ssrc, sequences[2:4])) == 2
    assert wire.sent == before + before[2:4]
    assert fanout.resend(receiver, Nack(fanout.ssrc + 1, sequences)) == 0
    assert (
        fanout.resend(receiver, Nack(fanout.ssrc, [sequences[0] - 1 & 0xFFFF, sequences[-1] + 1 & 0xFFFF]))
        == 0
    )
    for _ in range(20):
        fanout.resend(receiver, Nack(fanout.ssrc, sequences))
    assert len(wire.sent) == len(before) + RESENT_PER_S
    fanout.report(receiver.number, 1.0)
    assert fanout.resend(receiver, Nack(fanout.ssrc, sequences[:1])) == 1, "a second later"
    fanout.move(receiver, "b")
    feed(fanout, "b", *range(5, 12))
    assert fanout.resend(receiver, Nack(fanout.ssrc, sequences[:1])) == 0, "of another rendition"
    feed(fanout, "b", *range(12, 12 + RING))
    assert fanout.resend(receiver, Nack(fanout.ssrc, [sequences[-1]])) == 0, "too long ago"


def test_reports_count_over_renditions() -> None:
    """Packets and octets of a peer, whatever renditions they were of."""
    fanout, (wire,), (receiver,) = fanout_with()
    feed(fanout, "a", *range(5))
    fanout.move(receiver, "b")
    feed(fanout, "b", *range(3, 9))
    fanout.report(receiver.number + 1, 0.0)
    fanout.report(receiver.number, 1_700_000_000.0)
    (report,) = [item for each in wire.sent[-1:] for item in rtcp.parse(each)]
    assert isinstance(report, SenderReport)
    media = wire.packets()
    assert (report.packets, report.octets) == (len(media), sum(len(each.payload) for each in media))
    assert report.timestamp == media[-1].timestamp


def test_nobody_starts_right_before_a_wrap() -> None:
    """A peer that lost all packets before it would never know of it (RFC 3711, section 3.3.1)."""
    fanout, (wire,), _ = fanout_with()
    first = 0x10000 - WRAP_GUARD - 1 - fanout._sequence
    feed(fanout, "a", *range(first, first + WRAP_GUARD + 5))
    assert min(each.sequence for each in wire.packets()) == 0


def test_a_full_socket_loses_packets_and_nothing_else() -> None:
    """What the kernel does not take is lost for that peer; it goes on with the next."""
    fanout, (one, other), _ = fanout_with(2)
    feed(fanout, "a", 0)
    one.full = True
    feed(fanout, "a", 1)
    one.full = False
    feed(fanout, "a", 2)
    assert (heard(one), heard(other)) == (["a2"], ["a1", "a2"])


def test_who_leaves_gets_nothing_more() -> None:
    """Neither as a member, nor while on the way from one rendition to another."""
    fanout, (one, other), (first, second) = fanout_with(2)
    feed(fanout, "a", 0)
    fanout.move(second, "b")
    fanout.remove(first)
    fanout.remove(second)
    feed(fanout, "a", 1)
    feed(fanout, "b", 0, 1)
    assert not one.sent
    assert not other.sent
    assert len(fanout) == 0
    fanout.forget("a")
    fanout.forget("b")


class Timed(Wire):
    """Knows when it was given what."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def sendto(self, data: bytes, address: object) -> int:
        self.times.append(trio.current_time())
        return super().sendto(data, address)


async def test_a_batch_goes_out_a_packet_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """Five packets of an encoder's batch take as long as they last, and the next batch finds none of them left."""
    fanout, _, _ = fanout_with(0)
    wire = Timed()
    joined(fanout, wire)
    began = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.run)
        fanout.offer("a", [Packet(0, 960, b"first")])
        await trio.sleep(1)
        for batch in range(3):
            began.append(trio.current_time())
            fanout.offer("a", [Packet((1 + 5 * batch + n) * 960, 960, b"x") for n in range(5)])
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel(reason="tested")
    due = [start + n * STEP_S for start in began for n in range(5)]
    assert wire.times == pytest.approx(due, abs=1e-6)
