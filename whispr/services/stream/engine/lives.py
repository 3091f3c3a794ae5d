"""The streams that are live in this process, and how a source becomes one.

    async with lives.source(stream_id, SourceOptions(kind="whip")) as feed:
        feed.opus(payload, timestamp, lost=0)             # packets, as RTP brings them
        await feed.container(chunks, "webm")              # bytes of a container, as HTTP or a WebSocket brings them

The block is cancelled when the stream ends, or when another source takes over; `feed.reason` then says why, and the
block simply ends. A stream whose source has gone goes on in silence for the grace period, then ends.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import structlog
import trio

from whispr.audio.packets import Quality
from whispr.errors import conflict, exhausted
from whispr.services.stream.engine import metrics
from whispr.services.stream.engine.containers import Reader
from whispr.services.stream.engine.ladder import Made
from whispr.services.stream.engine.live import Live, Sound
from whispr.services.stream.engine.pace import pace_s
from whispr.services.stream.engine.production import Production

STREAMS_PER_CORE: Final = 12
"""Full ladders that a core encodes, measured, with room to spare."""
BUSY_MAX: Final = 0.85
"""Share of the cores that encoding may take before a new stream is refused."""
BUSY_OVER_S: Final = 10.0
AHEAD_S: Final = 2.0
"""How far a source that comes over TCP may be before what is heard."""
RETRY_S: Final = 30.0
DESCRIBED_MAX: Final = 8
DESCRIBED_S: Final = 8.0
"""So many songs may begin in so many seconds; what is said of more is left out, for each is told to everybody."""
NEWS_MAX: Final = 64
"""Things to be told about one stream; beyond, the oldest are left out. `ended` is always told, and last."""

log = structlog.get_logger("whispr.stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a node is set."""

    streams: int = 0
    """At most so many at once; 0 for `STREAMS_PER_CORE` times the cores."""
    cores: int = 0
    """Threads that encode at a time; 0 for as many as this process may use."""
    takeover: bool = False
    """Whether a second source of a stream takes the first one's place, rather than being refused."""
    grace_s: float = 15.0
    """How long a stream goes on in silence without a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """One source, and what its stream allows."""

    kind: str
    """`whip`, `icecast`, `websocket`, …"""
    takeover: bool | None = None
    """Whether it takes the place of a source that is connected (else it is refused); None: as the node is set."""
    grace_s: float | None = None
    """How long the stream goes on without it; None: as the node is set."""
    top: Quality | None = None
    """The stream's highest rendition."""
    sound: Sound | None = None
    """What the stream begins with."""


class Elsewhere(Protocol):
    """The same stream on other nodes."""

    async def find(self, stream_id: str) -> Live | None:
        """Return a stream that another node makes, as it is relayed here; None when none does."""

    def take_over(self, live: Live) -> None:
        """Have the other node let go of it, and relay it no more: it is made here from now on."""


class Hooks(Protocol):
    """What others do when something happens to a stream. Called in order, one at a time for each stream."""

    async def started(self, live: Live) -> None:
        """The first source has connected."""

    async def source_changed(self, live: Live) -> None:
        """A source has connected or gone: `live.source` says which."""

    async def described(self, live: Live, facts: Mapping[str, str]) -> None:
        """The source says what it plays: title, artist, album, genre, as far as it does."""

    async def released(self, live: Live) -> None:
        """Another node makes it now; here it is relayed from there."""

    async def ended(self, live: Live) -> None:
        """It is live no more: `live.reason` says why (stopped, source_gone, failed, shutdown)."""


class NoHooks:
    """Nobody does anything."""

    async def started(self, live: Live) -> None:
        """Do nothing."""

    async def source_changed(self, live: Live) -> None:
        """Do nothing."""

    async def described(self, live: Live, facts: Mapping[str, str]) -> None:
        """Do nothing."""

    async def released(self, live: Live) -> None:
        """Do nothing."""

    async def ended(self, live: Live) -> None:
        """Do nothing."""


class Feed:
    """One source's way in."""

    def __init__(
        self, production: Production, tell: Callable[[dict[str, str]], None], reader: Reader
    ) -> None:
        self.reason = ""
        """Why its block was cancelled; empty while it was not."""
        self.scope = trio.CancelScope()
        self._production = production
        self._tell = tell
        self._reader = reader

    @property
    def live(self) -> Live:
        """The stream it feeds."""
        return self._production.live

    def opus(self, data: bytes, timestamp: int | None = None, *, lost: int = 0) -> None:
        """Take an Opus packet, in order. `timestamp` in 1/48000 s, without wraps; `lost`: packets before it.

        Without a timestamp it goes on where the one before ended. What is no Opus packet counts as lost.
        """
        if self.reason:
            return
        self.live.source.codec = "opus"
        self._production.count(len(data))
        self._production.opus(data, timestamp, lost)

    async def keep_pace(self) -> None:
        """Wait while the packets that have come are farther ahead than is allowed of what is heard."""
        await trio.sleep(self._production.line.ahead_s(trio.current_time(), AHEAD_S))

    async def container(self, chunks: AsyncIterator[bytes], form: str) -> None:
        """Take a container's bytes to their end; waits where they come faster than they are heard.

        `form` as `containers.FORMS` names it.
        Raises INVALID_ARGUMENT (unsupported_media, malformed_media), and whatever `chunks` raises.
        """
        await self._reader.read(chunks, form, self._production, self.describe, AHEAD_S)

    def describe(self, facts: dict[str, str]) -> None:
        """Say what is played: `containers.TAGS`, as far as known."""
        if facts and not self.reason:
            self._tell(facts)

    def end(self, reason: str) -> None:
        """Cancel its block."""
        if not self.reason:
            self.reason = reason
            self.scope.cancel(reason=reason)


class _Held:
    """A live stream, the source it has, and what is to be told about it."""

    def __init__(self, production: Production) -> None:
        self.production = production
        self.feed: Feed | None = None
        self.news: deque[Callable[[], Awaitable[None]]] = deque(maxlen=NEWS_MAX)
        self.described_at: deque[float] = deque(maxlen=DESCRIBED_MAX)
        self.rung = trio.Event()
        self.last = False
        """Whether nothing more will be told."""

    def tell(self, news: Callable[[], Awaitable[None]]) -> None:
        self.news.append(news)
        self.rung.set()


class Lives:
    """The live streams of a process. `run` must be running."""

    def __init__(self, options: EngineOptions | None = None, hooks: Hooks | None = None) -> None:
        self.options = options or EngineOptions()
        self.hooks: Hooks = hooks or NoHooks()
        """May be set until the first source connects."""
        self.elsewhere: Elsewhere | None = None
        """None: no other node makes streams."""
        self._cores = self.options.cores or len(os.sched_getaffinity(0))
        self._limiter = trio.CapacityLimiter(self._cores)
        self._most = self.options.streams or STREAMS_PER_CORE * self._cores
        self._reader = Reader(self._most)
        self._held: dict[str, _Held] = {}
        self._relayed: dict[str, Live] = {}
        self._nursery: trio.Nursery | None = None
        self._busy = 0.0
        self._busy_at = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make streams until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def get(self, stream_id: str) -> Live | None:
        """Find a stream that is live here, made here or relayed."""
        held = self._held.get(stream_id)
        return held.production.live if held is not None else self._relayed.get(stream_id)

    def made_here(self, stream_id: str) -> bool:
        """Whether a stream's source is connected to this process, or was a moment ago."""
        return stream_id in self._held

    def __iter__(self) -> Iterator[Live]:
        yield from [held.production.live for held in self._held.values()]
        yield from list(self._relayed.values())

    def __len__(self) -> int:
        return len(self._held)

    def add(self, live: Live) -> None:
        """Let a stream be found that another node makes and something here relays."""
        assert live.stream_id not in self._held, "it is made here"
        self._relayed[live.stream_id] = live

    def remove(self, live: Live) -> None:
        """Take back what `add` did."""
        if self._relayed.get(live.stream_id) is live:
            del self._relayed[live.stream_id]

    def end(self, stream_id: str, reason: str) -> None:
        """End a stream, if it is made here, and with it its source's connection."""
        held = self._held.get(stream_id)
        if held is not None:
            held.production.stop(reason)

    def release(self, stream_id: str) -> Live | None:
        """Make a stream no more, for another node does now. Returns it: it is to be relayed from there."""
        held = self._held.pop(stream_id, None)
        if held is None:
            return None
        if held.feed is not None:
            held.feed.end("another source took over")
        held.production.release()
        self._relayed[stream_id] = held.production.live
        return held.production.live

    @asynccontextmanager
    async def source(self, stream_id: str, options: SourceOptions) -> AsyncIterator[Feed]:
        """Connect a source for the length of the block.

        Raises FAILED_PRECONDITION (source_connected), RESOURCE_EXHAUSTED (too_many_streams).
        """
        held = await self._admit(stream_id, options)
        production = held.production
        feed = held.feed = Feed(production, partial(self._describe, held), self._reader)
        metrics.SOURCES.labels(options.kind).inc()
        production.grace_s = self.options.grace_s if options.grace_s is None else options.grace_s
        production.connect(options.kind)
        held.tell(lambda: self.hooks.source_changed(production.live))
        try:
            with feed.scope:
                yield feed
        finally:
            feed.reason = feed.reason or "left"
            if held.feed is feed:
                held.feed = None
                production.disconnect()
                if not production.live.ended.is_set():
                    held.tell(lambda: self.hooks.source_changed(production.live))

    async def _admit(self, stream_id: str, options: SourceOptions) -> _Held:
        """Find or begin the stream, with nobody else as its source."""
        await trio.lowlevel.checkpoint()
        other = None
        if stream_id not in self._held and self.elsewhere is not None:
            other = await self.elsewhere.find(stream_id)
        held = self._held.get(stream_id)
        if held is None:
            if other is not None and other.source.connected:
                self._check_takeover(options)
            return self._begin(stream_id, options, other)
        if held.feed is not None:
            self._check_takeover(options)
            held.feed.end("another source took over")
            held.feed = None
        return held

    def _check_takeover(self, options: SourceOptions) -> None:
        """Refuse a second source, unless it may take the first one's place."""
        if not (self.options.takeover if options.takeover is None else options.takeover):
            metrics.REFUSED.labels("source_connected").inc()
            raise conflict("the stream has a source that is connected", "source_connected")

    def _begin(self, stream_id: str, options: SourceOptions, other: Live | None) -> _Held:
        """Make a stream from now on: a new one, or the one that was made elsewhere."""
        self._check_room()
        assert self._nursery is not None, "it runs"
        if other is not None and self.elsewhere is not None:
            self.elsewhere.take_over(other)
        grace_s, top = self.options.grace_s, options.top
        production = Production(stream_id, self, grace_s=grace_s, top=top, live=other)
        production.live.sound = options.sound or Sound()
        held = self._held[stream_id] = _Held(production)
        self._relayed.pop(stream_id, None)
        held.tell(lambda: self.hooks.started(production.live))
        self._nursery.start_soon(self._hold, held)
        return held

    def _check_room(self) -> None:
        """Refuse what this machine has no room for."""
        if len(self._held) >= self._most:
            why = f"this node makes {len(self._held)} streams, which is its limit"
        elif self.busy > BUSY_MAX:
            why = f"this node's encoders are busy {self.busy:.0%} of the time"
        else:
            return
        metrics.REFUSED.labels("too_many_streams").inc()
        raise exhausted(why, RETRY_S, reason="too_many_streams")

    async def _hold(self, held: _Held) -> None:
        """Be a stream's task: make it, tell of it, and say that it has ended."""
        production, hooks = held.production, self.hooks
        metrics.LIVE.inc()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_all, held)
                await production.run()
                self._let_go(held)
                if held.feed is not None:
                    held.feed.end(f"the stream ended: {production.live.reason}")
                held.last = True
                held.tell(
                    lambda: (
                        hooks.released(production.live)
                        if production.released
                        else hooks.ended(production.live)
                    )
                )
        finally:
            self._let_go(held)
            metrics.LIVE.dec()

    def _let_go(self, held: _Held) -> None:
        if self._held.get(held.production.live.stream_id) is held:
            del self._held[held.production.live.stream_id]

    async def _tell_all(self, held: _Held) -> None:
        """Tell one thing after another, until the stream's end is told."""
        while not (held.last and not held.news):
            await held.rung.wait()
            held.rung = trio.Event()
            while held.news:
                news = held.news.popleft()
                try:
                    await news()
                except Exception:
                    log.exception("stream_hook_failed", stream_id=held.production.live.stream_id)

    def _describe(self, held: _Held, facts: dict[str, str]) -> None:
        now, before = trio.current_time(), held.described_at
        if len(before) == DESCRIBED_MAX and now - before[0] < DESCRIBED_S:
            return
        before.append(now)
        held.tell(lambda: self.hooks.described(held.production.live, facts))

    # Workers

    async def climb(self, work: Callable[[], Made]) -> Made:
        """Run a stream's work in a thread; as many at a time as there are cores."""
        made = await trio.to_thread.run_sync(work, limiter=self._limiter)
        self._note_busy(made.cpu_s)
        return made

    def pace_s(self, before_s: float) -> float:
        """Return how much sound a hurried stream takes to its encoders at a time, who took that much before."""
        return pace_s(len(self._held), self._cores, self.busy, before_s)

    @property
    def busy(self) -> float:
        """Return the share of the cores that encoding took in the last seconds, 0 to 1."""
        self._note_busy(0.0)
        return self._busy / BUSY_OVER_S / self._cores

    def _note_busy(self, cpu_s: float) -> None:
        """Keep a sum that forgets: what is `BUSY_OVER_S` ago counts a third."""
        now = trio.current_time()
        self._busy *= 0.5 ** ((now - self._busy_at) / BUSY_OVER_S * 1.4427)
        self._busy += cpu_s
        self._busy_at = now
