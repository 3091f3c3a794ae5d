"""Who hears a stream, and its renditions: what `fanout` moves about."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from whispr.audio.packets import Packet
from whispr.webrtc.ice import Address
from whispr.webrtc.peer import Peer

RING: Final = 128
"""Packets that a rendition keeps: 2.5 s. Who asks later does not play them any more."""


class Track:
    """One rendition's packets and who gets them."""

    def __init__(self) -> None:
        self.first = self.next = 0
        """Numbers: the first there was, and the one to come."""
        self.ring: list[tuple[int, int, bytes]] = [(-1, 0, b"")] * RING
        self.members: dict[int, dict[Receiver, None]] = {}
        """By payload type."""
        self.joining: dict[Receiver, None] = {}
        self.queue: deque[Packet] = deque()
        """Packets that wait for their moment."""
        self.due = 0.0
        """When the next of them may go."""
        self.late = False
        """Whether some waited already when the last one went."""
        self.step_s = 0.0
        self.packets = self.octets = 0

    @property
    def oldest(self) -> int:
        """The number of the oldest packet in the ring."""
        return max(self.first, self.next - RING)

    def since(self, number: int) -> Iterator[tuple[int, int, bytes]]:
        """Return the ring's packets from a number on."""
        for each in range(max(number, self.oldest), self.next):
            if self.ring[each % RING][0] == each:
                yield self.ring[each % RING]

    @property
    def idle(self) -> bool:
        """Whether nobody needs it."""
        return not self.joining and not any(self.members.values())


def _nobody() -> None:
    """Nobody wants to know."""


class Receiver:
    """One peer that hears the stream."""

    __slots__ = (
        "_octets", "_packets", "address", "left", "number", "on_report", "payload_type", "peer", "protect", "resent",
        "resume", "sendto", "since", "target", "track", "wanted",
    )  # fmt: skip

    def __init__(
        self, peer: Peer, payload_type: int, number: int, sendto: Callable[[bytes, Address], int]
    ) -> None:
        assert peer.protection is not None, "not connected"
        assert peer.address is not None, "not reached"
        self.peer = peer
        self.payload_type = payload_type
        self.number = number
        self.protect = peer.protection.protect
        self.sendto = sendto
        self.address: Address = peer.address
        self.wanted: Hashable = None
        """The rendition it has or is to have."""
        self.track: Track | None = None
        self.target: Track | None = None
        self.left: Track | None = None
        self.resume: int | None = None
        """The number it is owed next while it has `left` one rendition and not yet begun the other."""
        self.since = 0
        """The first number of the present rendition."""
        self.resent = 0
        self.on_report: Callable[[], None] = _nobody
        """Called about once a second, when it is told the time."""
        self._packets = self._octets = 0

    def counts(self) -> tuple[int, int]:
        """Return how many packets and octets of payload it was sent."""
        track = self.track
        return (
            (self._packets, self._octets)
            if track is None
            else (self._packets + track.packets, self._octets + track.octets)
        )

    def enter(self, track: Track, number: int, packets: int, octets: int) -> None:
        """Belong to a rendition from a number on; so many packets and octets of it were sent already."""
        self.track, self.target, self.resume, self.since = track, None, None, number
        self._packets += packets - track.packets
        self._octets += octets - track.octets
        track.members.setdefault(self.payload_type, {})[self] = None

    def leave(self) -> None:
        """Belong to no rendition."""
        if self.track is not None:
            self._packets, self._octets = self.counts()
            del self.track.members[self.payload_type][self]
            self.track = None
