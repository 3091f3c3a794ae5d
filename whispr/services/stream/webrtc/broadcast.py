"""A stream's fan-out to the WebRTC listeners of this process: its renditions, begun and ended as they are needed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import trio

from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.services.stream.engine.live import Live, Subscription
from whispr.services.stream.webrtc.sessions import Session
from whispr.webrtc.endpoint import Endpoint
from whispr.webrtc.fanout import REPORT_SLICES, Fanout
from whispr.webrtc.peer import Peer
from whispr.webrtc.receivers import Receiver


class Broadcast:
    """One stream's WebRTC listeners."""

    def __init__(self, endpoint: Endpoint, live: Live) -> None:
        self.live = live
        self.fanout = Fanout(endpoint.socket_for, "whispr")
        self._subscriptions: dict[Quality, Subscription] = {}
        self._scope = trio.CancelScope()
        self.sessions: set[Session] = set()
        """Those that need it, from their answer on."""

    async def run(self) -> None:
        """Send, until stopped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.fanout.run)
                    nursery.start_soon(self._report)
                    await self.live.ended.wait()
                    for session in list(self.sessions):
                        session.end("the stream ended")
        finally:
            for subscription in self._subscriptions.values():
                subscription.close()
            self._subscriptions.clear()

    def stop(self) -> None:
        """Have `run` return."""
        self._scope.cancel(reason="the last WebRTC listener left")

    def add(self, peer: Peer, payload_type: int, quality: Quality) -> Receiver:
        """Send a connected peer a rendition."""
        self._need(quality)
        return self.fanout.add(peer, payload_type, quality)

    def move(self, receiver: Receiver, quality: Quality) -> None:
        """Change a peer to another rendition."""
        self._need(quality)
        self.fanout.move(receiver, quality)

    def _need(self, quality: Quality) -> None:
        if quality not in self._subscriptions:
            rendition = Rendition(Codec.OPUS, quality)
            self._subscriptions[quality] = self.live.subscribe(
                rendition, partial(self._offer, quality), prompt=True
            )

    def _offer(self, quality: Quality, packets: Sequence[Packet]) -> None:
        self.fanout.offer(quality, packets)

    async def _report(self) -> None:
        """Tell every peer the time once a second, a few at a time, and end renditions that nobody hears."""
        number = 0
        while True:
            await trio.sleep(1 / REPORT_SLICES)
            number += 1
            self.fanout.report(number, time.time())
            if number % REPORT_SLICES == 0:
                self._tidy()

    def _tidy(self) -> None:
        for quality in list(self._subscriptions):
            if self.fanout.idle(quality):
                self._subscriptions.pop(quality).close()
                self.fanout.forget(quality)
