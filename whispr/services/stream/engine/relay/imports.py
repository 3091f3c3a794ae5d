"""The listeners' end: a stream whose source is on another node, made live here of what comes over the bus.

Theory of operation. The first listener has the node ask who has the stream (`messages.Want`, of nothing yet); the
answer is its state, of which a `Live` is made with the same clock. From then on that `Live` is fed as the engine
would feed it: what its listeners hear is wanted from the source's node, repeated every `WANT_EVERY_S`, and what comes
is published. A rendition that begins gets what there was lately first, so that an HLS playlist is there at once.

The bus may lose messages, and a node may die. Holes up to `FILL_S` are filled with silence, in which the timeline
goes on; while no state comes for `SILENT_S` the source is shown as away and listeners hear silence by the clock;
after `ORPHAN_S` the stream has ended here. Should the source come back on whichever node meanwhile, that node's
answer to the next want is heard, and the same clock goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
import structlog
import trio

from whispr.adapters.bus_feed import Feed, Message, Missed
from whispr.audio.packets import CLOCK_HZ, Rendition
from whispr.services.stream.engine.encoders import FRAME, silence
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.relay import messages

WANT_EVERY_S: Final = 2.0
ANSWER_S: Final = 1.0
"""How long a node that asks waits for whoever has the stream."""
SILENT_S: Final = 2.0
ORPHAN_S: Final = 20.0
UNHEARD_S: Final = 30.0
"""How long a stream is kept ready that nobody here hears."""
FILL_S: Final = 20.0
"""The longest hole that is filled; after a longer one a rendition begins anew."""
LATE: Final = CLOCK_HZ
"""Ticks by which silence stays behind the clock: what is on its way may still come."""
TURN_S: Final = 0.2

log = structlog.get_logger("whispr.stream.relay")


class Import:
    """One stream, live here by relay."""

    def __init__(
        self,
        stream_id: str,
        feed: Feed,
        publish: Callable[[str, bytes], None],
        on_live: Callable[[Live], None],
        live: Live | None = None,
    ) -> None:
        """`on_live` is told of the stream when it is live here; `live`: one that was made here until now."""
        self.stream_id = stream_id
        self.live = live
        """None until the first state."""
        self.answered = trio.Event()
        """Set with the first state, or when nobody has answered."""
        self._feed = feed
        self._publish = publish
        self._on_live = on_live
        self._subjects: dict[Rendition, str] = {}
        self._anew: set[Rendition] = set()
        self._stirred = trio.Event()
        self._heard_at = self._needed_at = trio.current_time()
        self._scope = trio.CancelScope()
        self._released = False

    async def run(self) -> None:
        """Keep it live until it ends, or nobody has heard it for a while."""
        state = messages.state_subject(self.stream_id)
        self._feed.add(state)
        try:
            with self._scope:
                await self._feed.in_force(state)
                self._say()
                with trio.move_on_after(ANSWER_S):
                    await self.answered.wait()
                if self.live is not None:
                    self.live.on_demand = self._stir
                    await self._keep(self.live)
        finally:
            self.answered.set()
            for subject in (state, *self._subjects.values()):
                self._feed.remove(subject)
            if self.live is not None and not self._released:
                self.live.end("relay_ended")

    def release(self) -> None:
        """Relay it no more, for it is made here now: `run` returns, and the stream does not end."""
        self._released = True
        self._scope.cancel(reason="the stream is made here now")

    def take_state(self, payload: bytes) -> None:
        """Hear how the stream is."""
        state = messages.decode_state(payload)
        self._heard_at = trio.current_time()
        live = self.live
        if live is None:
            if state.ended:
                return
            live = self.live = Live(self.stream_id, state.started_at, top=state.top)
            self._on_live(live)
        state.into(live)
        if state.ended:
            live.end(state.reason)
        self.answered.set()

    def take_sound(self, rendition: Rendition, payload: bytes) -> None:
        """Hear packets: those not heard before, after silence for those that are missing."""
        parcel = messages.decode_packets(payload)
        live = self.live
        if live is None or not parcel.data or live.ended.is_set():
            return
        due = live.next_pts(rendition)
        packets = [packet for packet in parcel.packets() if due is None or packet.pts >= due]
        if not packets:
            return
        if due is not None and packets[0].pts > due:
            self._fill(live, rendition, due, packets[0].pts)
            if live.next_pts(rendition) != packets[0].pts:
                live.track(rendition).rest()
        live.publish(rendition, packets)
        live.now_pts = max(live.now_pts, packets[-1].pts + packets[-1].duration)

    def missed(self) -> None:
        """Something was lost: have what there was lately sent again."""
        self._anew |= self._subjects.keys()
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()

    async def _keep(self, live: Live) -> None:
        """Want what is heard; bridge silence. Returns when the stream has ended for this node."""
        said_at = trio.current_time()
        while not live.ended.is_set():
            with trio.move_on_after(TURN_S):
                await self._stirred.wait()
            self._stirred = trio.Event()
            wanted = live.wanted()
            await self._hear(live, wanted)
            now = trio.current_time()
            if self._anew or now - said_at >= WANT_EVERY_S:
                self._say()
                said_at = now
            if wanted:
                self._needed_at = now
            if now - self._needed_at > UNHEARD_S:
                return
            if now - self._heard_at > ORPHAN_S:
                live.end("source_gone")
            elif now - self._heard_at > SILENT_S:
                self._go_silent(live)

    async def _hear(self, live: Live, wanted: list[Rendition]) -> None:
        """Subscribe to what somebody hears, and to nothing else."""
        for rendition in wanted:
            if rendition not in self._subjects:
                subject = self._subjects[rendition] = messages.sound_subject(self.stream_id, rendition)
                self._feed.add(subject)
                await self._feed.in_force(subject)
                self._anew.add(rendition)
        for rendition in set(self._subjects) - set(wanted):
            self._feed.remove(self._subjects.pop(rendition))
            self._anew.discard(rendition)
            live.track(rendition).rest()

    def _say(self) -> None:
        """Tell the source's node what is wanted."""
        names = [rendition.name for rendition in self._subjects]
        want = messages.Want(self.stream_id, names, [rendition.name for rendition in self._anew])
        self._anew.clear()
        self._publish(messages.WANTS, messages.encode(want))

    def _go_silent(self, live: Live) -> None:
        """Let time go on without the source's node."""
        if live.source.connected:
            live.source.connected, live.source.away_since = False, datetime.now(UTC)
        elapsed = datetime.now(UTC) - live.started_at
        until = int(elapsed.total_seconds() * CLOCK_HZ) - LATE
        for rendition in self._subjects:
            due = live.next_pts(rendition)
            if due is not None and until > due:
                self._fill(live, rendition, due, until)
        live.now_pts = max(live.now_pts, until)

    def _fill(self, live: Live, rendition: Rendition, due: int, until: int) -> None:
        """Publish silence from `due` on: whole packets, none past `until`."""
        if until - due <= FILL_S * CLOCK_HZ:
            until -= (until - due) % FRAME[rendition.codec]
            live.publish(rendition, silence(rendition, due, until))


def deliver(imports: dict[str, Import], item: Message | Missed) -> None:
    """Hand what came over the bus to whom it concerns."""
    stream_id, _, what = item.subject.removeprefix("whispr.streams.").partition(".")
    taken = imports.get(stream_id)
    if taken is None:
        return
    if isinstance(item, Missed):
        taken.missed()
        return
    try:
        if what == "state":
            taken.take_state(item.payload)
        else:
            taken.take_sound(messages.RENDITIONS[what], item.payload)
    except msgspec.DecodeError as error:
        log.warning("malformed_relay", subject=item.subject, error=str(error))
