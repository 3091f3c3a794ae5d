"""One stream of Opus to many peers: per peer and packet one encryption and one `sendto`, and nothing else.

Theory of operation. All peers of a stream get the same synchronisation source, sequence numbers and timestamps, which
follow from the stream's own clock: a packet of 20 ms that begins at `pts` is number `pts / 960`, whichever rendition
it is of. So there is one packet for all who have a rendition and a payload type, made once, and a peer that changes
to another rendition gets the next number from there: nothing is negotiated, nothing is heard of it.

A peer changes at a packet that both renditions have. While the new one has none yet, it stays; if the new one is
behind, it waits for it, and if that is ahead, it gets what it lacks from the ring of recent packets that every
rendition keeps. Never do two different packets with one number go to a peer: its cipher would repeat itself (RFC
3711, section 9.1).

Packets that a peer asks for again (RFC 4585) come from that ring, too. Encoders work in batches; `run` lets batches
go a packet at a time, as a microphone would, so that receivers need no more delay than the network makes.
"""

from __future__ import annotations

import math
import secrets
import socket
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import trio

from whispr.audio.packets import CLOCK_HZ, Packet
from whispr.webrtc import metrics, rtcp, rtp
from whispr.webrtc.ice import Address
from whispr.webrtc.peer import Peer
from whispr.webrtc.receivers import RING, Receiver, Track
from whispr.webrtc.rtcp import Nack
from whispr.webrtc.srtp import SrtpError

PACKET_TICKS: Final = CLOCK_HZ // 50
QUEUE_MAX: Final = 64
"""Packets of a rendition that wait for their moment. Of more the oldest go at once."""
STEP_S: Final = 0.019
"""Between packets of a batch: a little less than they last, so that a batch is out before the next comes."""
CATCH_UP_S: Final = 0.01
"""Between packets that come one at a time, when some wait: what had a delay and has none any more catches up."""
HURRY_FROM: Final = 8
"""Packets waiting, from which two go at a time."""
RESENT_PER_S: Final = 50
"""For one peer: as many as are sent anyway, so asking again at most doubles what it gets."""
REPORT_SLICES: Final = 10
"""Sender reports go to one peer in so many at a time, and in a second to all."""
WRAP_GUARD: Final = 50
"""Numbers before a wrap in which no peer starts: one that lost all of them would never know of the wrap."""


class Fanout:
    """One stream's peers. Sync but for `run`, and in one thread."""

    def __init__(self, socket_for: Callable[[Address], socket.socket], cname: str) -> None:
        self._socket_for = socket_for
        self.cname = cname
        self.ssrc = secrets.randbits(32)
        # In the lower half, as RFC 3711 advises: the first wrap is far off.
        self._sequence = secrets.randbits(15)
        self._timestamp = secrets.randbits(32)
        self._tracks: dict[Hashable, Track] = {}
        self._receivers: dict[Receiver, None] = {}
        self._count = 0
        self._latest = 0
        """The clock of the newest packet that was sent, of whatever rendition."""
        self._waiting = trio.Event()

    def __len__(self) -> int:
        return len(self._receivers)

    # Peers

    def add(self, peer: Peer, payload_type: int, track: Hashable) -> Receiver:
        """Send a connected peer a rendition from its next packet on."""
        assert peer.address is not None, "not reached"
        receiver = Receiver(peer, payload_type, self._count, self._socket_for(peer.address).sendto)
        self._count += 1
        self._receivers[receiver] = None
        peer.on_moved = lambda _: self._moved(receiver)
        self.move(receiver, track)
        return receiver

    def remove(self, receiver: Receiver) -> None:
        """Send a peer nothing more."""
        if receiver.target is not None:
            del receiver.target.joining[receiver]
            receiver.target = None
        receiver.leave()
        self._receivers.pop(receiver, None)

    def move(self, receiver: Receiver, track: Hashable) -> None:
        """Change a peer to another rendition, at the next packet that this has."""
        receiver.wanted = track
        target = self._tracks.setdefault(track, Track())
        if receiver.target is not None:
            del receiver.target.joining[receiver]
            receiver.target = None
        if receiver.resume is not None and receiver.left in self._tracks.values():
            # On its way elsewhere already: back to where it came from, for the new one may begin later.
            assert receiver.left is not None, "a track"
            self._enter(receiver, receiver.left, receiver.resume)
        if receiver.track is not target:
            receiver.target = target
            target.joining[receiver] = None

    def on(self, receiver: Receiver) -> Hashable | None:
        """Return the rendition that a peer gets, None before its first packet."""
        return next((name for name, track in self._tracks.items() if track is receiver.track), None)

    def idle(self, track: Hashable) -> bool:
        """Whether nobody gets a rendition or is about to."""
        kept = self._tracks.get(track)
        return kept is None or kept.idle

    def forget(self, track: Hashable) -> None:
        """Drop a rendition that nobody gets."""
        kept = self._tracks.pop(track, None)
        assert kept is None or kept.idle, "in use"

    def _moved(self, receiver: Receiver) -> None:
        if receiver.peer.address is not None:
            receiver.address = receiver.peer.address
            receiver.sendto = self._socket_for(receiver.address).sendto

    # Packets

    def offer(self, track: Hashable, packets: Sequence[Packet]) -> None:
        """Take a batch of a rendition: its first packet goes at once if it is time, the others by `run`."""
        kept = self._tracks.get(track)
        if kept is None or not packets:
            return
        kept.step_s = STEP_S if len(packets) > 1 else CATCH_UP_S
        kept.queue.extend(packets)
        self._step(kept, trio.current_time())
        while len(kept.queue) > QUEUE_MAX:
            self._push(kept, kept.queue.popleft())
        if kept.queue:
            self._waiting.set()

    async def run(self) -> None:
        """Let packets go when they are due, until cancelled."""
        while True:
            due = min((track.due for track in self._tracks.values() if track.queue), default=math.inf)
            with trio.move_on_at(due):
                await self._waiting.wait()
                self._waiting = trio.Event()
                continue
            now = trio.current_time()
            for track in list(self._tracks.values()):
                self._step(track, now)

    def _step(self, track: Track, now: float) -> None:
        """Send the next packet of a rendition, if it is due; two if too many wait."""
        if not track.queue or track.due > now:
            return
        # Lateness is made up for, but not the time in which there was nothing to send.
        track.due = max(track.due, now - track.step_s) + track.step_s if track.late else now + track.step_s
        for _ in range(1 if len(track.queue) < HURRY_FROM else 2):
            self._push(track, track.queue.popleft())
        track.late = bool(track.queue)

    def push(self, track: Hashable, packet: Packet) -> None:
        """Send a packet of a rendition at once."""
        if (kept := self._tracks.get(track)) is not None:
            self._push(kept, packet)

    def _push(self, track: Track, packet: Packet) -> None:
        number = packet.pts // PACKET_TICKS
        if number < track.next:
            return  # A number that was given out is never given to other bytes.
        if not track.packets:
            track.first = number
        track.ring[number % RING] = (number, packet.pts, packet.data)
        track.next = number + 1
        track.packets += 1
        track.octets += len(packet.data)
        self._latest = max(self._latest, packet.pts)
        sent = 0
        for payload_type, members in track.members.items():
            made = self._made(payload_type, number, packet.pts, packet.data)
            for receiver in members:
                try:
                    receiver.sendto(receiver.protect(made), receiver.address)
                except OSError as error:
                    metrics.lost(error)
                except SrtpError:
                    metrics.UNPROTECTED.inc()
            sent += len(members)
        metrics.SENT.inc(sent)
        if track.joining:
            for receiver in list(track.joining):
                self._settle(receiver, track)

    def _made(self, payload_type: int, number: int, pts: int, data: bytes) -> bytes:
        return rtp.build(payload_type, self._sequence + number, self._timestamp + pts, self.ssrc, data)

    def _settle(self, receiver: Receiver, target: Track) -> None:
        """Let a peer into a rendition that has just sent a packet, if it can begin there without a hole."""
        begin = receiver.resume if receiver.track is None else receiver.track.next
        if begin is None:  # a new peer
            if (self._sequence + target.next) & 0xFFFF >= 0x10000 - WRAP_GUARD:
                return
            begin = target.next
        if target.next < begin:
            if receiver.track is not None:
                receiver.left, receiver.resume = receiver.track, begin
                receiver.leave()
            return
        if target.oldest > begin and receiver.track is not None and target.next - begin < 2 * RING:
            return
        del target.joining[receiver]
        receiver.leave()
        self._enter(receiver, target, begin)

    def _enter(self, receiver: Receiver, target: Track, begin: int) -> None:
        """Have a peer belong to a rendition, and send it what it lacks of that."""
        packets = octets = 0
        for number, pts, data in target.since(begin):
            self._send(receiver, self._made(receiver.payload_type, number, pts, data))
            packets, octets = packets + 1, octets + len(data)
        receiver.enter(target, begin, packets, octets)

    def resend(self, receiver: Receiver, nack: Nack) -> int:
        """Send packets again that a peer asks for, if they are at hand. Returns how many."""
        track = receiver.track
        if track is None or nack.ssrc != self.ssrc:
            return 0
        before = receiver.resent
        for sequence in nack.sequences:
            number = rtp.extend((sequence - self._sequence) & 0xFFFF, track.next, 16)
            kept, pts, data = track.ring[number % RING]
            # What it got of another rendition is not sent again: the same number with other bytes.
            if kept != number or number < receiver.since or receiver.resent >= RESENT_PER_S:
                continue
            receiver.resent += 1
            self._send(receiver, self._made(receiver.payload_type, number, pts, data))
        metrics.AGAIN.inc(receiver.resent - before)
        return receiver.resent - before

    def _send(self, receiver: Receiver, made: bytes) -> None:
        try:
            receiver.sendto(receiver.protect(made), receiver.address)
        except OSError as error:
            metrics.lost(error)
        except SrtpError:
            metrics.UNPROTECTED.inc()

    def report(self, slice_number: int, unix_s: float) -> None:
        """Tell a tenth of the peers the time (RFC 3550, section 6.4.1): to be called ten times a second."""
        ntp = rtcp.ntp_of(unix_s)
        cname = self.cname.encode()
        for receiver in self._receivers:
            if receiver.number % REPORT_SLICES == slice_number % REPORT_SLICES:
                receiver.resent = 0
                receiver.on_report()
                packets, octets = receiver.counts()
                if packets:
                    self._report(receiver, ntp, packets, octets, cname)

    def _report(self, receiver: Receiver, ntp: int, packets: int, octets: int, cname: bytes) -> None:
        said = rtcp.sender_report(self.ssrc, ntp, self._timestamp + self._latest, packets, octets, cname)
        assert receiver.peer.protection is not None, "it was connected"
        try:
            receiver.sendto(receiver.peer.protection.protect_rtcp(said), receiver.address)
        except OSError as error:
            metrics.lost(error)
