"""One connected WebRTC listener: what it is sent, and what it says of how that arrives."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

import trio

from whispr.audio.packets import Codec, Quality
from whispr.services.stream.listener import Listener, Wish
from whispr.services.stream.webrtc import metrics
from whispr.services.stream.webrtc.adaptation import Adaptation
from whispr.services.stream.webrtc.broadcast import Broadcast
from whispr.services.stream.webrtc.sessions import Session
from whispr.webrtc import rtcp
from whispr.webrtc.rtcp import Item, Nack, Report

START: Final = Quality.MEDIUM
"""What AUTO begins with."""
REPORT_EVERY_S: Final = 0.2
"""Receivers report every 1 to 5 s (RFC 3550, section 6.2); what one says more often is not looked at."""


class Heard:
    """Sends a stream to a listener for as long as both are there."""

    def __init__(self, session: Session, broadcast: Broadcast, listener: Listener) -> None:
        self._session = session
        self._broadcast = broadcast
        self._listener = listener
        self._ladder = [each.quality for each in broadcast.live.renditions(Codec.OPUS)]
        start = START if START in self._ladder else self._ladder[-1]
        self._auto = Adaptation(self._ladder, start, trio.current_time())
        self._receiver = broadcast.add(session.peer, session.offer.payload_type, self._chosen(listener.wish))
        self._lost = 0
        self._sent = 0
        self._reported_at = -math.inf

    async def serve(self) -> None:
        """Send until the listener or the stream is gone."""
        peer = self._session.peer
        peer.on_rtcp = self._said
        self._listener.on_wish(self._follow)
        self._receiver.on_report = self._figure
        metrics.LISTENERS.inc()
        try:
            await self._session.closed.wait()
        finally:
            metrics.LISTENERS.dec()
            self._figure()
            self._broadcast.fanout.remove(self._receiver)

    def _chosen(self, wish: Wish) -> Quality:
        """Return what a wish comes to: the best there is up to it, or what adaptation says."""
        wanted = self._auto.quality if wish.quality is None else wish.quality
        return self._broadcast.live.best_for(wanted, Codec.OPUS).quality

    def _follow(self, wish: Wish) -> None:
        self._change(self._chosen(wish))

    def _change(self, quality: Quality) -> None:
        """Move to another rendition, unless that is the one already."""
        before = self._receiver.wanted
        if quality is before:
            return
        assert isinstance(before, Quality), "tracks are named by quality"
        metrics.CHANGES.labels("up" if quality.bitrate_bps > before.bitrate_bps else "down").inc()
        self._broadcast.move(self._receiver, quality)

    def _said(self, items: Sequence[Item], now: float) -> None:
        """Hear what the receiver says: reports on our packets, and packets it lacks."""
        fanout = self._broadcast.fanout
        for item in items:
            if isinstance(item, Nack):
                fanout.resend(self._receiver, item)
            elif isinstance(item, Report) and item.ssrc == fanout.ssrc:
                self._reported(item, now)

    def _reported(self, report: Report, now: float) -> None:
        if now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at = now
        round_trip_s = rtcp.round_trip_s(report, time.time())
        metrics.LOSS.observe(report.fraction_lost)
        metrics.JITTER.observe(report.jitter / 48_000)
        if round_trip_s is not None:
            metrics.ROUND_TRIP.observe(round_trip_s)
        self._listener.report(
            loss=report.fraction_lost,
            latency_ms=None if round_trip_s is None else round_trip_s * 500,
            buffer_ms=report.jitter / 48,
            dropped_frames=max(0, report.lost - self._lost),
        )
        self._lost = max(self._lost, report.lost)
        chosen = self._auto.report(report.fraction_lost, round_trip_s, now)
        if self._listener.wish.quality is None:
            self._change(chosen)

    def _figure(self) -> None:
        """Say what was sent."""
        sent = self._receiver.counts()[1]
        on = self._broadcast.fanout.on(self._receiver)
        self._listener.report(bytes_sent=sent - self._sent, rendition=on if isinstance(on, Quality) else None)
        self._sent = sent
