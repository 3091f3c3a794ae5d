"""The parts and segments of live streams, kept for whoever asks for them: the state of an HLS origin.

A *stage* is one live stream, a *shelf* one rendition on it. The first request for a rendition puts a shelf up for
every rendition of its codec, since a player that changes to another expects it to have been there all along; a stage
that nobody has asked for a while is taken down, and its encoders stop. The end of a stream closes its playlists, and
they are served a little longer, so that players hear of it.

Whoever waits for a part that is not there yet is woken by it. Bytes are made once, and the same for every listener.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from whispr.audio import playlist
from whispr.audio.fmp4 import init_segment
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.audio.playlist import Report
from whispr.audio.segments import Segmenter
from whispr.errors import unavailable
from whispr.services.stream.domain import Stream
from whispr.services.stream.engine.live import Live, Subscription
from whispr.services.stream.listening.compressed import Compressed

Find = Callable[[str], Awaitable[Live | None]]
"""Finds a stream that is live, here or on another node."""

RENDITIONS: Final[Mapping[str, Rendition]] = {
    rendition.name: rendition
    for rendition in (Rendition(codec, quality) for codec in (Codec.AAC, Codec.OPUS) for quality in Quality)
}
"""What is offered, by name; AAC first, which everything plays."""

WAIT_S: Final = 3.0 * playlist.TARGET_S
"""How long a request waits for what is not there yet: past that, the source has gone (RFC 8216bis, 6.2.5.2)."""


@dataclass(frozen=True, slots=True)
class ShelfLimits:
    """What is kept, and how long."""

    window: int = 16
    """Whole segments of each rendition, 1.92 s each."""
    unasked_s: float = 30.0
    """Time without a request after which a stage is taken down."""
    ended_s: float = 30.0
    """Time after its end for which a stream's playlists are served."""

    def __post_init__(self) -> None:
        assert self.window * 1.92 > playlist.SKIP_UNTIL_S, "or no delta update could leave anything out"


class Shelf:
    """One rendition of one live stream."""

    def __init__(self, stage: Stage, rendition: Rendition, window: int) -> None:
        self.rendition = rendition
        self.segmenter = Segmenter(window)
        self.init = init_segment(rendition)
        self._stage = stage
        self._waiting = trio.lowlevel.ParkingLot()
        self._rendered: dict[tuple[str, bool], tuple[int, Compressed]] = {}
        self._subscription = self._open(stage.live)

    def _open(self, live: Live) -> Subscription:
        self._take(live.recent(self.rendition))
        return live.subscribe(self.rendition, self._take)

    def playlist(self, prefix: str, *, skip: bool) -> Compressed:
        """Return the playlist as it is now; there must be a whole segment. See `playlist.live`."""
        stage, key = self._stage, (prefix, skip)
        known = self._rendered.get(key)
        if known is not None and known[0] == stage.version:
            return known[1]
        made = playlist.live(
            self.segmenter,
            stage.live.started_at,
            prefix=prefix,
            reports=stage.reports(self),
            skip=skip,
            clock=stage.live.clock,
        )
        compressed = Compressed(made)
        self._rendered[key] = stage.version, compressed
        return compressed

    async def until(self, there: Callable[[], bool]) -> None:
        """Wait until something is there that comes with a part, or the stream has ended. Raises UNAVAILABLE."""
        with trio.move_on_after(WAIT_S) as patience:
            while not there() and not self.segmenter.ended:
                await self._waiting.park()
        if patience.cancelled_caught:
            raise unavailable("nothing has come from the stream's source for a while", playlist.TARGET_S)

    def finish(self) -> None:
        """Close the playlist: the stream has ended."""
        self._subscription.close()
        self.segmenter.finish()
        self._changed()

    def _take(self, packets: Sequence[Packet]) -> None:
        if self.segmenter.add(packets):
            self._changed()

    def _changed(self) -> None:
        self._stage.version += 1
        self._waiting.unpark_all()


class Stage:
    """One live stream, as far as somebody asks for it by HLS."""

    def __init__(self, live: Live, limits: ShelfLimits) -> None:
        self.live = live
        self.version = 0
        """Grows with each part of any rendition."""
        self.asked_at = trio.current_time()
        self.ended_at: float | None = None
        self.shelves: dict[Rendition, Shelf] = {}
        self.stream: Stream | None = None
        """What it was when that was last read, at `described_at`; None before."""
        self.described_at = 0.0
        self._limits = limits

    def shelf(self, rendition: Rendition) -> Shelf | None:
        """Return the shelf of a rendition, put up with all of its codec if need be.

        None for one that is not offered, and once the stream has ended.
        """
        found = self.shelves.get(rendition)
        if found is not None or self.ended_at is not None:
            return found
        if rendition.bitrate_bps > self.live.top.bitrate_bps:
            return None
        for each in {*self.live.renditions(rendition.codec), rendition}:
            if each not in self.shelves:
                self.shelves[each] = Shelf(self, each, self._limits.window)
        return self.shelves[rendition]

    def reports(self, mine: Shelf) -> list[Report]:
        """Say how far the other renditions of the same codec are."""
        return [
            Report(other.name, shelf.segmenter.last)
            for other, shelf in self.shelves.items()
            if shelf is not mine and other.codec is mine.rendition.codec and shelf.segmenter.last is not None
        ]

    def finish(self) -> None:
        """Close every playlist."""
        self.ended_at = trio.current_time()
        for shelf in self.shelves.values():
            shelf.finish()


class Shelves:
    """The stages of one process. `run` must be running."""

    def __init__(self, find: Find, limits: ShelfLimits | None = None) -> None:
        self._find = find
        self._limits = limits or ShelfLimits()
        self._stages: dict[str, Stage] = {}
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._stages)

    async def stage(self, stream_id: str) -> Stage | None:
        """Return the stage of a stream that is live, or was a moment ago."""
        stage = self._stages.get(stream_id)
        if stage is None or stage.live.ended.is_set():
            live = await self._find(stream_id)
            stage = self._stages.get(stream_id)  # another request may have put it up meanwhile
            if live is not None and not live.ended.is_set() and (stage is None or live is not stage.live):
                stage = self._put_up(live)
        if stage is not None:
            stage.asked_at = trio.current_time()
        return stage

    def _put_up(self, live: Live) -> Stage:
        stage = self._stages[live.stream_id] = Stage(live, self._limits)
        assert self._nursery is not None, "it runs"
        self._nursery.start_soon(self._until_unasked, stage)
        return stage

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the stages until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for stage in self._stages.values():
                stage.finish()
            self._stages.clear()

    async def _until_unasked(self, stage: Stage) -> None:
        """Close a stage's playlists when its stream ends, and take it down when nobody asks for it any more."""
        while not stage.live.ended.is_set():
            left_s = stage.asked_at + self._limits.unasked_s - trio.current_time()
            if left_s <= 0:
                break
            with trio.move_on_after(left_s):
                await stage.live.ended.wait()
        stage.finish()
        if stage.live.ended.is_set():
            await trio.sleep(self._limits.ended_s)
        if self._stages.get(stage.live.stream_id) is stage:
            del self._stages[stage.live.stream_id]
