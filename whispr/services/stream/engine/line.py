"""What a source sends, laid on the stream's clock in pieces of 20 ms. Pure: time is passed in.

The line never goes back and has no holes. Its head follows the source's own clock, and a source that stalls, loses
packets, sends faster than is heard or goes away does this to it:

    packets missing      pieces that a decoder conceals; packets that come after all, too late, are dropped
    a stall              the same, once nothing came for `stall_s`, at the pace of our clock
    what a stall held up comes in a burst; as much of it as was filled in is dropped, or listeners would lag for ever
    no source, a pause   silence, at the pace of our clock
    a container          comes in bursts, of a second each from FFmpeg's Ogg: it waits, and is let out at the pace of
                         our clock, which is held while there is nothing, so that there is enough from then on;
                         what is too much, once that can be told, is let out a little faster
    faster than heard    `ahead_s` says so, and whoever reads the source waits

`wall` is where our own clock says that the head should be. It follows the source's clock, whose quartz is not ours,
by at most `SLEW` of the time that passes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from whispr.audio.opus import PACKET, OpusError, Toc, duration, frames, pack, packets_of_20_ms, toc_of
from whispr.audio.packets import CLOCK_HZ

PCM_BYTES: Final = PACKET * 4
"""Of a piece: 16 bits, stereo, interleaved, in this machine's order."""
SLEW: Final = 0.0005
BUFFER_S: Final = 0.3
"""How much of a container waits at first, and is never called too much."""
EXCESS_OVER_S: Final = 10.0
SETTLE_S: Final = 3.0
"""After which it is known how unevenly a container comes: longer than the pages of FFmpeg's Ogg, which are of 1 s."""
MARGIN_S: Final = 0.15
"""What is left waiting then, when least is: the rest of a source's head start, and of `BUFFER_S`, is let out."""
HASTE: Final = 0.2
"""By how much faster than it is heard."""
GRACE_LAG_S: Final = 0.1
"""How far the silence in an absent source's place stays behind our clock."""
JUMP_MAX: Final = 10 * CLOCK_HZ
"""A source whose timestamps jump farther has begun anew."""
LATE_MAX: Final = 50
"""Packets in a row that come too late; then the source's way has become longer, and its time is shifted."""
HISTORY: Final = 100
"""Pieces that are remembered: renditions that stop being encoded take up the source's packets from there."""
PENDING_MAX: Final = 150
"""Pieces that wait to be encoded; beyond, this machine is too slow, and the oldest are left out."""


class Kind(Enum):
    """What is in a piece."""

    OPUS = auto()
    """One packet of 20 ms."""
    LONG_OPUS = auto()
    """One packet of more, that cannot be cut without decoding."""
    PCM = auto()
    LOST = auto()
    """To be concealed."""
    SILENCE = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """20 ms, or a multiple for LONG_OPUS."""

    pts: int
    ticks: int
    kind: Kind
    data: bytes = b""


class Line:
    """One stream's pieces."""

    def __init__(self, now: float, head: int = 0) -> None:
        """`head`: where the stream's clock is now, in ticks, a multiple of PACKET."""
        self.head = head
        """Where the next piece begins."""
        self.pending: deque[Piece] = deque()
        """Those that are yet to be heard by encoders and meters."""
        self.history: deque[Piece] = deque(maxlen=HISTORY)
        self.paused = False
        self.lost = self.came = 0
        """Pieces of all sources, counted."""
        self.left_out = 0
        """Pieces that were not encoded because this machine was too slow."""
        self._zero_at = now - head / CLOCK_HZ
        self._ticked_at = now
        self.stall_s: float | None = None
        """How long a source may say nothing before its place is filled; None without a source."""
        self._arrived_at = now
        self._anchor: tuple[int, int] | None = None
        """A timestamp of the source, and the head at that time."""
        self._late = 0
        self._debt = 0
        """Ticks filled in while the source stalled."""
        self._speaks = False
        """Whether the source has sent anything."""
        self._paced = False
        self._waiting: deque[tuple[Kind, bytes, int]] = deque()
        self._waiting_ticks = 0
        self._least = (now, 0)
        """Since when, and the least that has been waiting since then."""
        self._settled = False
        """Whether it is known what a source began with too much of."""
        self._excess_s = 0.0
        """What of that is yet to be let out."""
        self._pcm = bytearray()
        self._short: list[tuple[Toc, bytes]] = []
        """Frames of packets shorter than 20 ms."""

    # The source

    def connect(self, now: float, stall_s: float) -> None:
        """A source begins, whose stalls count from `stall_s` on."""
        self.stall_s = stall_s
        self._arrived_at = now
        self._anchor = None
        self._late = self._debt = self._waiting_ticks = 0
        self._paced = self._speaks = False
        self._waiting.clear()
        self._pcm.clear()
        self._short.clear()

    def pace(self, now: float, stall_s: float) -> None:
        """What the source sends comes in a container: let it out at the pace of our clock."""
        self._paced, self.stall_s, self._debt = True, stall_s, 0
        self._least = (now + BUFFER_S, 0)
        self._settled, self._excess_s = False, 0.0
        self._zero_at = now + BUFFER_S - self.head / CLOCK_HZ

    def disconnect(self) -> None:
        """Its source is gone."""
        self.stall_s = None

    def opus(self, data: bytes, now: float, timestamp: int | None = None, lost: int = 0) -> None:
        """Take a packet; one that is none counts as lost. `timestamp` as `Feed.opus` says, None for the next."""
        self._arrived_at, self._speaks = now, True
        try:
            ticks = duration(data)
            packets = packets_of_20_ms(data) if ticks >= PACKET else self._gather(data)
        except OpusError:
            self._count_lost(1)
            self._offer(Kind.LOST)
            return
        if packets == [] or not self._is_due(timestamp, lost, now):
            return
        if packets is None:
            self._offer(Kind.LONG_OPUS, data, -(-ticks // PACKET) * PACKET)
            return
        for packet in packets:
            self._offer(Kind.OPUS, packet)

    def pcm(self, data: bytes, now: float) -> None:
        """Take samples: 16 bits, stereo, 48 kHz."""
        self._arrived_at, self._speaks = now, True
        self._pcm += data
        whole = len(self._pcm) - len(self._pcm) % PCM_BYTES
        taken = bytes(self._pcm[:whole])
        del self._pcm[:whole]
        for at in range(0, whole, PCM_BYTES):
            if self._is_due(None, 0, now):
                self._offer(Kind.PCM, taken[at : at + PCM_BYTES])

    @property
    def paced(self) -> bool:
        """Whether what comes waits for our clock."""
        return self._paced

    @property
    def received(self) -> int:
        """Where the next piece that comes will begin."""
        return self.head + self._waiting_ticks

    # Our own clock

    def lead(self, now: float) -> int:
        """Return by how many ticks the head is before where our clock says that it should be."""
        return self.head - int((now - self._zero_at) * CLOCK_HZ)

    def behind_s(self, now: float, elapsed_s: float) -> float:
        """Return how far the stream's clock is behind another, on which so much has passed since it was 0.

        By where our clock says that the head should be: the head itself comes in bursts.
        """
        return elapsed_s - (now - self._zero_at)

    def ahead_s(self, now: float, allowed_s: float) -> float:
        """Return for how long a source that sends faster than is heard should wait."""
        return max(0.0, (self.lead(now) + self._waiting_ticks) / CLOCK_HZ - allowed_s)

    def tick(self, now: float) -> None:
        """Fill in what the source owes. To be called every 100 ms or more often."""
        passed, self._ticked_at = now - self._ticked_at, now
        self._let_out(now)
        if self.stall_s is None or not self._speaks:
            if not self._waiting:
                self._fill(now, GRACE_LAG_S, Kind.SILENCE)
        elif now - self._arrived_at >= self.stall_s and not self._waiting:
            filled = self._fill(now, 0.0 if self._paced else self.stall_s, Kind.LOST)
            self._count_lost(filled)
            self._debt += filled * PACKET
            self._least = (now, 0)
        else:
            self._follow(now, SLEW * passed)

    def _let_out(self, now: float) -> None:
        """Put in what waits, up to where our clock is."""
        while self._waiting and self.lead(now) < 0:
            kind, data, ticks = self._waiting.popleft()
            self._waiting_ticks -= ticks
            self._add(kind, data, ticks)

    def _follow(self, now: float, most: float) -> None:
        """Have our clock follow the source's."""
        if not self._paced:
            self._zero_at -= max(-most, min(most, self.lead(now) / CLOCK_HZ))
        elif not self._waiting:
            self._zero_at -= min(0, self.lead(now)) / CLOCK_HZ
            self._least = (now, 0)
            self._excess_s = 0.0
        else:
            step = min(self._excess_s, most / SLEW * HASTE)
            self._excess_s -= step
            self._zero_at -= step
            since, least = self._least
            if now > since:
                self._least = (since, min(least, self._waiting_ticks) if least else self._waiting_ticks)
            if not self._settled and now - since >= SETTLE_S:
                # Once for each source: one that is always ahead, as a file is, would run away with the clock.
                self._settled = True
                self._excess_s = max(0.0, self._least[1] / CLOCK_HZ - MARGIN_S)
                self._least = (now, 0)
            elif now - since >= EXCESS_OVER_S and self._least[1] > BUFFER_S * CLOCK_HZ:
                # All this time more was waiting than is needed: the source's clock is the faster one.
                self._zero_at -= most

    def take(self) -> list[Piece]:
        """Return what is pending, which then is so no more."""
        if len(self.pending) > PENDING_MAX:
            self.left_out += len(self.pending) - PENDING_MAX // 3
            while len(self.pending) > PENDING_MAX // 3:
                self.pending.popleft()
        taken = list(self.pending)
        self.pending.clear()
        return taken

    def _is_due(self, timestamp: int | None, lost: int, now: float) -> bool:
        """Whether what has come is heard; pieces that are missing before it are put in."""
        self.came += 1
        if timestamp is None:
            enough = self._waiting_ticks > BUFFER_S * CLOCK_HZ if self._paced else self.lead(now) > 0
            if self._debt > 0 and enough:
                self._debt -= PACKET
                return False
            return True
        if self._anchor is None:
            self._anchor = (timestamp, self.head)
        missing = round((self._anchor[1] + timestamp - self._anchor[0] - self.head) / PACKET)
        if missing < 0 and self._late < LATE_MAX:
            self._late += 1
            return False
        # One that jumps again and again is not filled in for each: it would run away from our clock.
        if missing < 0 or missing * PACKET + max(0, self.lead(now)) > JUMP_MAX:
            self._anchor, missing = (timestamp, self.head), 0
        self._late = 0
        self._count_lost(min(lost, missing))
        for _ in range(missing):
            self._add(Kind.LOST)
        return True

    def _gather(self, data: bytes) -> list[bytes]:
        """Put packets shorter than 20 ms together; returns one when it is whole. Raises OpusError."""
        toc = toc_of(data)
        if self._short and self._short[0][0] != toc:
            self._short.clear()
        self._short += [(toc, frame) for frame in frames(data)]
        each = PACKET // toc.frame
        if len(self._short) < each:
            return []
        whole = [frame for _, frame in self._short[:each]]
        del self._short[:each]
        return [pack(toc, whole)]

    def _fill(self, now: float, lag_s: float, kind: Kind) -> int:
        """Put in pieces up to `lag_s` behind our clock; returns how many."""
        pieces = max(0, -self.lead(now) - int(lag_s * CLOCK_HZ)) // PACKET
        for _ in range(pieces):
            self._add(kind)
        return pieces

    def _count_lost(self, pieces: int) -> None:
        self.lost += pieces
        self.came += pieces

    def _offer(self, kind: Kind, data: bytes = b"", ticks: int = PACKET) -> None:
        """Put in what the source has sent, or have it wait."""
        if self._paced:
            self._waiting.append((kind, data, ticks))
            self._waiting_ticks += ticks
        else:
            self._add(kind, data, ticks)

    def _add(self, kind: Kind, data: bytes = b"", ticks: int = PACKET) -> None:
        if self.paused and kind is not Kind.SILENCE:
            for _ in range(ticks // PACKET):
                self._add(Kind.SILENCE)
            return
        piece = Piece(self.head, ticks, kind, data)
        self.head += ticks
        self.pending.append(piece)
        self.history.append(piece)
