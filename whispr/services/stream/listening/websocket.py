"""Sound over a `stream:<id>` channel: pushed as it comes, in one of two forms.

    fmp4       event "audio_init" once, then "audio": fragments for a browser's MediaSource (`whispr.audio.fmp4`)
    packets    event "audio": packets for WebCodecs or a native decoder (`whispr.audio.messages`)

Each message holds about 100 ms, begins where the one before ended, and is the same bytes for everybody who hears that
rendition in that form. Another rendition goes on in the middle of it: codec and clock stay, so nothing is announced.

Who does not keep up misses what comes meanwhile and goes on at the live edge; the kernel holds no more than about a
second for them. Who is behind for `CUT_S` at a time is sent no more sound, and told so. AUTO leads them down the
ladder before that, and up again once all has been well for a while.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final
from weakref import WeakKeyDictionary

import trio

from whispr.audio.fmp4 import fragments, init_segment, mime_type
from whispr.audio.messages import encode_message
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.errors import conflict, invalid
from whispr.realtime.link import Link
from whispr.realtime.serializers import Serializer
from whispr.services.stream.engine.live import Live, Subscription
from whispr.services.stream.listener import Listener, Wish
from whispr.services.stream.listening import metrics
from whispr.services.stream.webrtc.adaptation import Adaptation

CUT_S: Final = 10.0
"""How long one may be behind."""
UNSENT_S: Final = 1.0
"""How much sound the kernel holds for one connection."""
UNSENT_BYTES_MIN: Final = 16 * 1024
_JUDGED_S: Final = 1.0
_FRAMES_KEPT_MAX: Final = 32


class Form(enum.StrEnum):
    """How packets are put together for a client."""

    FMP4 = "fmp4"
    PACKETS = "packets"


BURST: Final = {Form.FMP4: CLOCK_HZ * 4 // 10, Form.PACKETS: CLOCK_HZ * 2 // 10}
"""How much of what has just been is sent at once, in samples, so that a player can begin."""


class SharedFrames:
    """The last frame of every rendition in every form, for those who are sent it after the first."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[Live, dict[tuple[object, ...], tuple[Sequence[Packet], bytes]]]
        self._made = WeakKeyDictionary()

    def frame(
        self,
        live: Live,
        topic: str,
        serializer: Serializer,
        form: Form,
        codec: Codec,
        packets: Sequence[Packet],
    ) -> bytes:
        """Return the frame of a batch; the same batch, of the same rendition, is encoded once."""
        made = self._made.setdefault(live, {})
        key = (topic, serializer.plain, form, id(packets))
        known = made.get(key)
        if known is not None and known[0] is packets:
            return known[1]
        if len(made) > _FRAMES_KEPT_MAX:
            made.clear()
        payload = _payload(form, codec, packets)
        frame = serializer.plain.broadcast(topic, "audio", payload)
        made[key] = packets, frame
        return frame


def _payload(form: Form, codec: Codec, packets: Sequence[Packet]) -> bytes:
    if form is Form.PACKETS:
        return encode_message(codec, packets)
    return fragments(packets[0].pts // packets[0].duration, packets)


class SocketSound:
    """What one channel hears of its stream."""

    def __init__(self, link: Link, live: Live, listener: Listener, shared: SharedFrames) -> None:
        self._link = link
        self._live = live
        self._listener = listener
        self._shared = shared
        self._form = Form.FMP4
        self._codec = Codec.OPUS
        self._subscription: Subscription | None = None
        self._begun = False
        self._next_pts = 0
        self._adaptation: Adaptation | None = None
        self._behind_since: float | None = None
        self._judged_at = 0.0
        self._batches = self._missed = self._rebuffers = 0

    @property
    def on(self) -> bool:
        """Whether sound is sent."""
        return self._subscription is not None

    def begin(self, payload: object) -> Mapping[str, object]:
        """Send sound as a client asks: `{format: fmp4|packets, codec: opus|aac}`. Returns what it needs to know.

        Raises INVALID_ARGUMENT, FAILED_PRECONDITION (no_sound_here) on a connection that cannot carry it.
        """
        form, codec = _asked(payload)
        transport = self._link.socket.transport
        if transport is None:
            raise conflict("long polls carry no sound: listen by HLS", "no_sound_here")
        self.end()
        self._form, self._codec, self._begun = form, codec, False
        rendition = self._choose()
        transport.limit_unsent(max(UNSENT_BYTES_MIN, round(rendition.bitrate_bps / 8 * UNSENT_S)))
        self._listener.on_wish(self._wished)
        self._listener.report(rendition=rendition.quality)
        self._rebuffers = self._listener.figures.rebuffers
        self._judged_at = trio.current_time()
        self._subscription = self._live.subscribe(rendition, self._take)
        return {
            "format": form,
            "mime": mime_type(codec),
            "codec": codec,
            "quality": rendition.quality,
            "sample_rate": CLOCK_HZ,
            "channels": 2,
            "started_at": self._live.started_at,
        }

    def end(self) -> None:
        """Send no more."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    # Choosing

    def _choose(self) -> Rendition:
        """Return what to begin with, or what the listener has pinned since."""
        now, wished = trio.current_time(), self._listener.quality
        if wished is None:
            ladder = [each.quality for each in self._live.renditions(self._codec)]
            self._adaptation = Adaptation(
                ladder, self._live.best_for(Quality.MEDIUM, self._codec).quality, now
            )
            return Rendition(self._codec, self._adaptation.quality)
        self._adaptation = None
        return self._live.best_for(wished, self._codec)

    def _wished(self, wish: Wish) -> None:
        """Follow ChangeQuality. AUTO goes on from where the listener is."""
        subscription = self._subscription
        if subscription is None:
            return
        if wish.quality is not None:
            self._adaptation = None
            self._change(subscription, wish.quality)
        elif self._adaptation is None:
            ladder = [each.quality for each in self._live.renditions(self._codec)]
            self._adaptation = Adaptation(ladder, subscription.rendition.quality, trio.current_time())

    def _change(self, subscription: Subscription, quality: Quality) -> None:
        rendition = self._live.best_for(quality, self._codec)
        subscription.switch(rendition)
        self._listener.report(rendition=rendition.quality)

    def _judge(self, now: float) -> None:
        """Every second, let the ladder know how it went: what was missed, and where the player ran dry."""
        if now - self._judged_at < _JUDGED_S:
            return
        dry = self._listener.figures.rebuffers > self._rebuffers
        share = 1.0 if dry else self._missed / max(1, self._batches)
        self._rebuffers = self._listener.figures.rebuffers
        self._judged_at, self._batches, self._missed = now, 0, 0
        if self._adaptation is not None and self._subscription is not None:
            quality = self._adaptation.report(share, None, now)
            if quality is not self._subscription.rendition.quality:
                self._change(self._subscription, quality)

    # Sending

    def _take(self, packets: Sequence[Packet]) -> None:
        """Send a batch, or leave it out for who is behind."""
        transport = self._link.socket.transport
        now = trio.current_time()
        self._batches += 1
        if transport is None or transport.blocked:
            self._leave_out(packets, now)
        else:
            if self._behind_since is not None:
                self._behind_since = None
                metrics.SKIPPED.labels("websocket").inc()
            self._send(packets)
        self._judge(now)

    def _leave_out(self, packets: Sequence[Packet], now: float) -> None:
        self._missed += 1
        self._listener.report(dropped_frames=len(packets))
        if self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since > CUT_S:
            metrics.CUT.labels("websocket").inc()
            self.end()
            self._listener.end("too_slow")

    def _send(self, packets: Sequence[Packet]) -> None:
        assert self._subscription is not None, "it is what calls"
        if not self._begun:
            packets = self._beginning(packets)
        elif packets[0].pts < self._next_pts:
            packets = [packet for packet in packets if packet.pts >= self._next_pts]
            if not packets:
                return
        self._next_pts = packets[-1].pts + packets[-1].duration
        topic, serializer = self._link.topic, self._link.socket.serializer
        frame = self._shared.frame(self._live, topic, serializer, self._form, self._codec, packets)
        self._link.deliver(frame)
        self._listener.report(bytes_sent=len(frame))
        metrics.SENT_BYTES.labels("websocket").inc(len(frame))

    def _beginning(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """Return what a player begins with: the last moments, which lead up to this batch and hold it."""
        self._begun = True
        if self._form is Form.FMP4:
            self._link.push("audio_init", init_segment(Rendition(self._codec, Quality.MEDIUM)))
        end = packets[-1].pts + packets[-1].duration
        assert self._subscription is not None, "it is what calls"
        recent = self._live.recent(self._subscription.rendition)
        return [packet for packet in recent if packet.pts >= end - BURST[self._form]] or packets


def _asked(payload: object) -> tuple[Form, Codec]:
    """Read what a client asks for. Raises INVALID_ARGUMENT."""
    asked = payload if isinstance(payload, Mapping) else {}
    form, codec = asked.get("format", Form.FMP4), asked.get("codec", Codec.OPUS)
    wrong = {}
    if form not in list(Form):
        wrong["format"] = "fmp4 or packets"
    if codec not in list(Codec):
        wrong["codec"] = "opus or aac"
    if wrong:
        raise invalid(wrong)
    return Form(form), Codec(codec)
