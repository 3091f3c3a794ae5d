"""A stream that is made here: its source, its clock, and the task that makes renditions of what comes.

Every `TICK_S` the task takes what has come, has it decoded, measured and encoded in a worker thread, one hop for all
of it, and hands out the packets. A source's own Opus packets need no thread: where they serve as a rendition they are
handed out as they come. Which renditions those are is decided at each tick: those that ask for about the source's
bitrate or more, while the streamer's volume leaves the sound as it is. A stream is *hurried* while somebody who
counts milliseconds hears what is encoded here: then each packet of the source's is taken as it comes, as far as
`pace` lets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog
import trio

from whispr.audio.opus import PACKET, SILENCE, concealment
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.services.stream.engine import metrics
from whispr.services.stream.engine.bitrate import Bitrate
from whispr.services.stream.engine.encoders import silence
from whispr.services.stream.engine.ladder import Ladder, Made
from whispr.services.stream.engine.line import Kind, Line, Piece
from whispr.services.stream.engine.live import FITS, Levels, Live
from whispr.services.stream.engine.meters import Gain
from whispr.services.stream.engine.pace import TICK_S

PACKET_STALL_S: Final = 0.3
"""How long packets may fail to come before they are concealed."""
CONTAINER_STALL_S: Final = 3.0
"""The same over TCP, which delivers late but all."""
SILENT_LUFS: Final = -60.0
SILENT_S: Final = 5.0
"""So long nothing is to be heard before it is said that the source is silent."""
BOUNDARY: Final = 15_360
"""Ticks of which AAC frames and Opus packets both make a whole number: 0.32 s."""
LOSS_WEIGHT: Final = 0.004
"""Of the newest piece in the share that is lost: it is that of about 5 s."""

log = structlog.get_logger("whispr.stream")


class Workers(Protocol):
    """Where encoding is done."""

    async def climb(self, work: Callable[[], Made]) -> Made:
        """Run it in a thread, when one is free."""

    def pace_s(self, before_s: float) -> float:
        """Return how much sound a hurried stream takes at a time, who took that much before."""


class Production:
    """One stream's making. `run` it."""

    def __init__(
        self,
        stream_id: str,
        workers: Workers,
        *,
        grace_s: float,
        top: Quality | None,
        live: Live | None = None,
    ) -> None:
        """`live`: the stream as it was made elsewhere, which goes on here on the same clock."""
        now = trio.current_time()
        self.live = live or Live(stream_id, datetime.now(UTC), top=top)
        self.line = Line(now, _taken_up(live) if live is not None else 0)
        self.live.on_demand = self._stir
        self.grace_s = grace_s
        self._workers = workers
        self._ladder: Ladder | None = None
        self._passing: set[Rendition] = set()
        self._bitrate = Bitrate()
        self._last_packet = SILENCE
        self._tick_s = TICK_S
        self._enough = trio.Event()
        self._quiet_at: float | None = None
        self._away_at: float | None = now
        self._counted = (0, 0)
        """Pieces lost, and all, as last counted."""
        self._scope = trio.CancelScope()
        self.released = False

    # The source

    def connect(self, kind: str) -> None:
        """A source begins."""
        source, now = self.live.source, trio.current_time()
        source.kind, source.connected, source.away_since = kind, True, None
        source.codec, source.lossless, source.loss = "", False, 0.0
        source.bitrate_bps = 0
        source.connections += 1
        self._away_at = self._quiet_at = None
        self._bitrate = Bitrate()
        self.line.connect(now, PACKET_STALL_S)

    def read_container(self, codec: str, *, lossless: bool) -> None:
        """What the source sends comes in a container, over TCP."""
        self.live.source.codec, self.live.source.lossless = codec, lossless
        self.line.pace(trio.current_time(), CONTAINER_STALL_S)

    def disconnect(self) -> None:
        """Its source is gone; the stream goes on in silence."""
        self.live.source.connected = False
        self.live.source.away_since, self.live.source.silent_since = datetime.now(UTC), None
        self._away_at = trio.current_time()
        self.line.disconnect()

    def opus(self, data: bytes, timestamp: int | None = None, lost: int = 0) -> None:
        """Take a packet of the source's, as `Feed.opus` says. Its bytes are counted by `count`."""
        self.line.opus(data, trio.current_time(), timestamp, lost)
        self._passing = {each for each in self._passing if self._pass_on(each)}
        self._has_come()

    def pcm(self, data: bytes) -> None:
        """Take samples of the source's: 16 bits, stereo, 48 kHz."""
        self.line.pcm(data, trio.current_time())
        self._has_come()

    def count(self, size: int) -> None:
        """Note that bytes have come from the source."""
        # By the sound's own time: what comes in a burst is no higher bitrate.
        if self._bitrate.add(size, self.line.received / CLOCK_HZ):
            self.live.source.bitrate_bps = self._bitrate.bps
        metrics.RECEIVED.inc(size)

    def _has_come(self) -> None:
        self.live.now_pts = self.line.head
        if self._is_enough():
            self._enough.set()

    def _stir(self) -> None:
        """Somebody begins to hear what nobody did: whether that is hurried is not left to the next tick."""
        self._enough.set()

    def _is_enough(self) -> bool:
        """Whether a hurried stream has sound that is worth a hop."""
        if self._tick_s >= TICK_S or not self.line.pending:
            return False
        return self.line.head - self.line.pending[0].pts >= self._tick_s * CLOCK_HZ

    # The task

    async def run(self) -> None:
        """Make the stream until it ends, which is when `live.ended` is set."""
        reason = "shutdown"
        try:
            with self._scope:
                reason = await self._make()
        except Exception:
            reason = "failed"
            log.exception("stream_failed", stream_id=self.live.stream_id)
        finally:
            if not self.released:
                self.live.end(self.live.reason or reason)

    def release(self) -> None:
        """Make it no more, for it is made elsewhere now: `run` returns, and the stream does not end."""
        self.released = True
        self._scope.cancel(reason="the stream is made on another node now")

    def stop(self, reason: str) -> None:
        """End the stream."""
        self.live.reason = self.live.reason or reason
        self._scope.cancel(reason=f"the stream ends: {reason}")

    async def _make(self) -> str:
        """Return why it ends."""
        due = trio.current_time()
        while True:
            # What waits for our clock needs a tick to come out; packets say themselves that they are there.
            due += self._tick_s if self.line.paced else TICK_S
            await self._until(due)
            now = trio.current_time()
            if now < due or now - due > 1.0:
                due = now  # packets came before, or this machine was away and there is no use in ticking after it
            if self._away_at is not None and now - self._away_at >= self.grace_s:
                return "source_gone"
            self.line.paused = self.live.paused
            self.line.tick(now)
            await self._tick()

    async def _until(self, due: float) -> None:
        """Wait until then, or until a hurried stream has enough for a hop."""
        self._enough = trio.Event()
        if self._is_enough():
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(due):
            await self._enough.wait()

    async def _tick(self) -> None:
        encode = self._decide()
        hurried = any(self.live.track(each).hurried for each in encode)
        self._tick_s = self._workers.pace_s(self._tick_s) if hurried else TICK_S
        pieces = self.line.take()
        self.live.now_pts = self.line.head
        self._note_time()
        if not pieces:
            return
        sound = self.live.sound

        def work() -> Made:
            if self._ladder is None:
                self._ladder = Ladder()
            return self._ladder.climb(pieces, encode, sound)

        made = await self._workers.climb(work)
        for rendition, packets in made.packets.items():
            self._hand_out(rendition, packets)
        self._note(made)

    def _decide(self) -> dict[Rendition, int | None]:
        """Hand out what passes through; return what is to be encoded, and where each has to go on."""
        live, encode = self.live, dict[Rendition, int | None]()
        wanted = live.wanted()
        self._passing = {each for each in wanted if self._passes(each) and self._pass_on(each)}
        for rendition in wanted:
            if rendition not in self._passing:
                encode[rendition] = self._begin_of(rendition)
        return encode

    def _begin_of(self, rendition: Rendition) -> int | None:
        """Return where what is encoded goes on, or begins: not with what has waited, for who counts milliseconds."""
        begin = self.live.next_pts(rendition)
        if begin is None and rendition.codec is Codec.OPUS and self.live.track(rendition).hurried:
            return self.line.head - PACKET
        return begin

    def _passes(self, rendition: Rendition) -> bool:
        if rendition.codec is not Codec.OPUS or Gain.is_needed(self.live.sound):
            return False
        return 0 < self._bitrate.likely_bps * FITS <= rendition.bitrate_bps

    def _pass_on(self, rendition: Rendition) -> bool:
        """Hand out the source's packets up to now; False where one of them is none."""
        begin = self.live.next_pts(rendition)
        if begin is None:
            begin = self.line.head - PACKET
        fresh = []
        for piece in reversed(self.line.history):
            if piece.pts < begin:
                break
            fresh.append(piece)
        if fresh and fresh[-1].pts != begin:
            return False
        packets = [self._packet(piece) for piece in reversed(fresh)]
        good = [packet for packet in packets if packet is not None]
        if len(good) < len(packets):
            return False
        self.live.publish(rendition, good)
        return True

    def _packet(self, piece: Piece) -> Packet | None:
        """Return the packet that stands for a piece, None where it has to be encoded."""
        if piece.kind is Kind.OPUS:
            self._last_packet = piece.data
            return Packet(piece.pts, PACKET, piece.data)
        if piece.kind is Kind.LOST:
            return Packet(piece.pts, PACKET, concealment(self._last_packet))
        if piece.kind is Kind.SILENCE:
            return Packet(piece.pts, PACKET, SILENCE)
        return None

    def _hand_out(self, rendition: Rendition, packets: Sequence[Packet]) -> None:
        """Hand out what was encoded, from where the rendition goes on."""
        begin = self.live.next_pts(rendition)
        if begin is not None:
            packets = [packet for packet in packets if packet.pts >= begin]
            if packets and packets[0].pts > begin:
                packets = [*silence(rendition, begin, packets[0].pts), *packets]
        self.live.publish(rendition, packets)

    # Figures

    def _note_time(self) -> None:
        """Note what time of day it is on the stream's clock."""
        elapsed = datetime.now(UTC) - self.live.started_at
        behind_s = self.line.behind_s(trio.current_time(), elapsed.total_seconds())
        self.live.clock.note(self.line.head, behind_s)

    def _note(self, made: Made) -> None:
        """Keep the figures of a tick."""
        source, line = self.live.source, self.line
        metrics.ENCODING.inc(made.cpu_s)
        line.lost += made.failed
        lost, came = line.lost - self._counted[0], line.came - self._counted[1]
        self._counted = line.lost, line.came
        metrics.LOST.inc(lost)
        source.lost += lost
        if came:
            source.loss += (min(1.0, lost / came) - source.loss) * min(1.0, LOSS_WEIGHT * came)
        metrics.LEFT_OUT.inc(line.left_out)
        line.left_out = 0
        if made.levels is not None:
            self.live.levels = made.levels
            self._note_silence(made.levels)

    def _note_silence(self, levels: Levels) -> None:
        source, now = self.live.source, trio.current_time()
        if not source.connected or levels.momentary_lufs > SILENT_LUFS:
            self._quiet_at = source.silent_since = None
        elif self._quiet_at is None:
            self._quiet_at = now
        elif source.silent_since is None and now - self._quiet_at >= SILENT_S:
            source.silent_since = datetime.now(UTC) - timedelta(seconds=now - self._quiet_at)


def _taken_up(live: Live) -> int:
    """Return where a stream goes on that was made elsewhere, with silence up to there.

    Never before what its listeners have heard, and where the renditions of every codec have a boundary.
    """
    elapsed = datetime.now(UTC) - live.started_at
    due = max([int(elapsed.total_seconds() * CLOCK_HZ), *(live.next_pts(each) or 0 for each in live.begun())])
    head = -(-due // BOUNDARY) * BOUNDARY
    for rendition in live.begun():
        begin = live.next_pts(rendition)
        assert begin is not None, "it has begun"
        live.publish(rendition, silence(rendition, begin, head))
    return head
