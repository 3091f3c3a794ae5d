"""One listener of a stream, as the transport that serves it sees them."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from whispr.audio.packets import Quality
from whispr.services.stream.domain import Stream


class Transport(enum.StrEnum):
    """How somebody listens."""

    WHEP = "whep"
    HLS = "hls"
    WEBSOCKET = "websocket"
    PROGRESSIVE = "progressive"


class Figures(msgspec.Struct):
    """What a listener has reported, and what was counted about them."""

    buffer_ms: float = 0.0
    bandwidth_bps: float = 0.0
    latency_ms: float = 0.0
    loss: float = 0.0
    """Share of packets lost, 0 to 1."""
    dropped_frames: int = 0
    rebuffers: int = 0
    bytes_sent: int = 0


class Wish(msgspec.Struct, frozen=True):
    """What a listener wants to hear."""

    quality: Quality | None = None
    """None for AUTO."""
    volume: int = 100
    """Percent."""


COUNT_MAX: Final = 2**31 - 1
"""The most that is counted of what listeners report, who may report as much as they like: a column's."""

OnWish = Callable[[Wish], None]
OnQuality = Callable[["Listener"], None]


class Listener:
    """Admitted; alive until the block of `Audience.listening` ends, or an HLS session falls silent."""

    def __init__(
        self,
        listener_id: str,
        stream: Stream,
        *,
        user_id: str,
        session_id: str,
        transport: Transport,
        address: str,
        user_agent: str,
        wish: Wish,
        joined_at: float,
    ) -> None:
        """`user_id` and `session_id` are empty for somebody without an account. `joined_at` is Unix time."""
        self.id = listener_id
        self.stream = stream
        self.user_id = user_id
        self.session_id = session_id
        self.transport = transport
        self.address = address
        self.user_agent = user_agent
        self.joined_at = joined_at
        self.figures = Figures()
        self.wish = wish
        self.rendition: Quality | None = None
        """What is sent now, None before anything is."""
        self.held = 0
        """Requests of an HLS session that wait for what is not there yet."""
        self._heard_s: dict[str, float] = {}
        self._heard_since = time.monotonic()
        self.ended = trio.Event()
        """Set when they have left or were put out; `reason` says why."""
        self.reason = ""
        self._on_wish: OnWish | None = None
        self.on_quality: OnQuality | None = None
        """Is told when they prefer another quality; must not block or raise."""
        self.listening_id = listener_id
        """Of what is noted of this listening: another one when an HLS session goes on after silence."""

    @property
    def quality(self) -> Quality | None:
        """The quality they prefer; None for AUTO."""
        return self.wish.quality

    @property
    def volume(self) -> int:
        """Percent, for transports where the server does it."""
        return self.wish.volume

    def on_wish(self, callback: OnWish) -> None:
        """Call `callback(wish)` when ChangeQuality or SetVolume changes it; it must not block or raise."""
        self._on_wish = callback

    def wants(self, wish: Wish) -> None:
        """Take another wish."""
        if wish == self.wish:
            return
        before, self.wish = self.wish, wish
        if self._on_wish is not None:
            self._on_wish(wish)
        if self.on_quality is not None and before.quality is not wish.quality:
            self.on_quality(self)

    def report(
        self,
        *,
        buffer_ms: float | None = None,
        bandwidth_bps: float | None = None,
        latency_ms: float | None = None,
        loss: float | None = None,
        dropped_frames: int = 0,
        rebuffers: int = 0,
        bytes_sent: int = 0,
        rendition: Quality | None = None,
    ) -> None:
        """Take measurements: levels replace the last ones, counts are added. Cheap; may be called per batch."""
        figures = self.figures
        if buffer_ms is not None:
            figures.buffer_ms = buffer_ms
        if bandwidth_bps is not None:
            figures.bandwidth_bps = bandwidth_bps
        if latency_ms is not None:
            figures.latency_ms = latency_ms
        if loss is not None:
            figures.loss = loss
        figures.dropped_frames = min(figures.dropped_frames + dropped_frames, COUNT_MAX)
        figures.rebuffers = min(figures.rebuffers + rebuffers, COUNT_MAX)
        figures.bytes_sent += bytes_sent
        if rendition is not None and rendition is not self.rendition:
            self._note()
            self.rendition = rendition

    def take_heard(self) -> dict[str, float]:
        """Return the seconds heard since this was last asked, by quality; `unknown` before one is reported."""
        self._note()
        heard, self._heard_s = self._heard_s, {}
        return heard

    def _note(self) -> None:
        now, name = time.monotonic(), self.rendition.value if self.rendition else "unknown"
        self._heard_s[name] = self._heard_s.get(name, 0.0) + now - self._heard_since
        self._heard_since = now

    def end(self, reason: str) -> None:
        """Let what serves them stop: `reason` is left, stream_ended, session_revoked, removed or another."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()
