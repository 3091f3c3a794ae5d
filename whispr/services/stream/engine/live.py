"""A stream that is live in this process: its renditions as they come, whoever makes them.

A *feeder* makes the packets: the engine here (`production`), or a relay of a stream whose source is on another node.
It asks `wanted` which renditions somebody hears, and hands what it makes to `publish`. Everybody downstream sees only
the stream's own clock and its packets: without holes, never back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
import trio

from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.audio.wallclock import WallClock
from whispr.services.stream.engine.track import Track

OnPackets = Callable[[Sequence[Packet]], None]
"""Is given each batch in the event loop; it must neither wait nor raise."""

LINGER_S: Final = 10.0
"""How long a rendition is made after the last who heard it: who comes back finds it there."""
FITS: Final = 0.8
"""A rendition of this share of the source's bitrate or more has nothing better above it."""
SWITCH_HELD_MAX: Final = 2 * CLOCK_HZ
"""Ticks of a new rendition that wait for the old one; past that, the old one has stopped and the new one goes on."""

log = structlog.get_logger("whispr.stream")


@dataclass(frozen=True, slots=True)
class Levels:
    """Loudness of what listeners hear, measured over the last 100 ms (EBU R 128, ITU-R BS.1770)."""

    momentary_lufs: float = -120.0
    short_lufs: float = -120.0
    integrated_lufs: float = -70.0
    peak_dbfs: float = -120.0
    pts: int = 0
    """Where on the stream's clock."""


@dataclass(slots=True)
class Source:
    """What sends the stream its sound."""

    kind: str = ""
    """`whip`, `icecast`, `websocket`, …"""
    connected: bool = False
    codec: str = ""
    """As FFmpeg names it: opus, mp3, aac, flac, vorbis, pcm_s16le, …"""
    bitrate_bps: int = 0
    """Measured over the last seconds; 0 before that."""
    lossless: bool = False
    loss: float = 0.0
    """Share of packets lost in the last seconds, 0 to 1."""
    lost: int = 0
    """20 ms pieces lost since the stream began."""
    silent_since: datetime | None = None
    """Since when there is nothing to hear, while it is connected."""
    away_since: datetime | None = None
    """Since when it is gone, and listeners hear silence in its place."""
    connections: int = 0
    """How often a source has connected."""


@dataclass(frozen=True, slots=True)
class Sound:
    """What the streamer does to the sound."""

    volume: int = 100
    """Percent; more than 100 amplifies, and a limiter keeps peaks in bounds."""
    normalise: bool = False
    """Whether loudness is brought to one level, whatever the source's is."""

    def __post_init__(self) -> None:
        assert 0 <= self.volume <= 200, "checked where it is set"


class Subscription:
    """One who hears a rendition. `close` it when they leave."""

    def __init__(self, live: Live, rendition: Rendition, on_packets: OnPackets, *, prompt: bool) -> None:
        self._live = live
        self._on_packets = on_packets
        self._prompt = prompt
        self.rendition = rendition
        """What is heard now, or will be in a moment."""
        self._next_pts = -1
        self._next: Rendition | None = None
        self._held: list[Packet] = []
        live.track(rendition).attach(self._take, prompt=prompt)

    def switch(self, rendition: Rendition) -> None:
        """Change to another rendition: the old one is heard up to where the new one goes on."""
        if rendition == (self._next or self.rendition):
            return
        self._drop_next()
        if rendition == self.rendition:
            return
        self._next = rendition
        self._live.track(rendition).attach(self._take_next, prompt=self._prompt)

    def close(self) -> None:
        """Hear no more."""
        self._drop_next()
        self._live.track(self.rendition).detach(self._take)

    def _drop_next(self) -> None:
        if self._next is not None:
            self._live.track(self._next).detach(self._take_next)
        self._next = None
        self._held.clear()

    def _take(self, packets: Sequence[Packet]) -> None:
        self._give(packets)
        if self._held:
            self._change_over()

    def _take_next(self, packets: Sequence[Packet]) -> None:
        self._held += packets
        self._change_over()

    def _change_over(self) -> None:
        """Go over to the new rendition, if it begins no later than the old one has got to."""
        held = self._held
        stopped = held[-1].pts - held[0].pts > SWITCH_HELD_MAX
        if self._next_pts >= 0 and held[0].pts > self._next_pts and not stopped:
            return
        assert self._next is not None, "only then something is held"
        self._live.track(self.rendition).detach(self._take)
        track = self._live.track(self._next)
        track.detach(self._take_next)
        track.attach(self._take, prompt=self._prompt)
        self.rendition, self._next, self._held = self._next, None, []
        self._give(held)

    def _give(self, packets: Sequence[Packet]) -> None:
        if packets and packets[0].pts < self._next_pts:
            # The rendition that was left had got farther than the one that is heard now.
            packets = [packet for packet in packets if packet.pts >= self._next_pts]
        if packets:
            self._next_pts = packets[-1].pts + packets[-1].duration
            self._on_packets(packets)


class Live:
    """A stream's sound, as it comes."""

    def __init__(self, stream_id: str, started_at: datetime, *, top: Quality | None = None) -> None:
        """`top`: the highest rendition that is offered, None for all."""
        self.stream_id = stream_id
        self.started_at = started_at
        """When its clock was 0."""
        self.top = top or Quality.ULTRA
        self.now_pts = 0
        """How far the sound has come, in 1/48000 s."""
        self.clock = WallClock()
        """How far that is from the time of day since `started_at`."""
        self.levels = Levels()
        self.source = Source()
        self.sound = Sound()
        """Set it; it acts within 100 ms."""
        self.paused = False
        """Set it: while it is true, listeners hear silence."""
        self.ended = trio.Event()
        self.reason = ""
        """Why it ended."""
        self.on_demand: Callable[[], None] | None = None
        """Is called when somebody begins to hear a rendition that nobody heard."""
        self._tracks: dict[Rendition, Track] = {}

    # Downstream

    def subscribe(self, rendition: Rendition, on_packets: OnPackets, *, prompt: bool = False) -> Subscription:
        """Hear a rendition from now on, in batches of about 100 ms; its encoder starts for the first who does.

        `prompt`: each packet at once where it need not be encoded here, for those who count milliseconds.
        """
        subscription = Subscription(self, rendition, on_packets, prompt=prompt)
        if self.on_demand is not None:
            self.on_demand()
        return subscription

    def recent(self, rendition: Rendition) -> Sequence[Packet]:
        """Return the last seconds of a rendition (12 when it has been there so long), in order, without holes."""
        track = self._tracks.get(rendition)
        return track.recent if track is not None else ()

    def best_for(self, quality: Quality | None, codec: Codec) -> Rendition:
        """Return what comes closest to a quality (None: the best there is) without being more than the source has."""
        offered = self.renditions(codec)
        if quality is None:
            return offered[-1]
        fitting = [each for each in offered if each.bitrate_bps <= quality.bitrate_bps]
        return fitting[-1] if fitting else offered[0]

    def renditions(self, codec: Codec) -> Sequence[Rendition]:
        """Return the renditions that are worth having, from the lowest: none above the source's own bitrate."""
        bitrate_bps = 0 if self.source.lossless else self.source.bitrate_bps
        offered = []
        for quality in Quality:
            offered.append(Rendition(codec, quality))
            if quality is self.top or 0 < bitrate_bps * FITS <= quality.bitrate_bps:
                break
        return offered

    # Upstream

    def wanted(self) -> list[Rendition]:
        """Return the renditions to be made now; those that nobody hears any more are at rest from then on."""
        now, wanted = trio.current_time(), []
        for rendition, track in self._tracks.items():
            if track.wanted(now, LINGER_S):
                wanted.append(rendition)
            elif track.next_pts is not None:
                track.rest()
        return wanted

    def begun(self) -> list[Rendition]:
        """Return the renditions that are being made, which must go on where they are."""
        return [each for each, track in self._tracks.items() if track.next_pts is not None]

    def publish(self, rendition: Rendition, packets: Sequence[Packet]) -> None:
        """Hand out packets that go on where the ones before ended."""
        self.track(rendition).publish(packets)

    def next_pts(self, rendition: Rendition) -> int | None:
        """Return where a rendition goes on, None when it has not begun."""
        track = self._tracks.get(rendition)
        return track.next_pts if track is not None else None

    def end(self, reason: str) -> None:
        """Say that no packet comes any more."""
        if not self.ended.is_set():
            self.reason = reason
            self.source.connected = False
            for track in self._tracks.values():
                track.flush()
            self.ended.set()

    def track(self, rendition: Rendition) -> Track:
        """Return a rendition's packets and hearers."""
        track = self._tracks.get(rendition)
        if track is None:
            track = self._tracks[rendition] = Track(rendition)
        return track
