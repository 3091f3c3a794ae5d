"""The end with the source: sends other nodes the renditions that their listeners hear.

A node's want holds for `WANT_S` and is repeated more often; a stream that nobody wants elsewhere costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.audio.packets import Packet, Rendition
from whispr.services.stream.engine.live import Live, Subscription
from whispr.services.stream.engine.relay import messages

WANT_S: Final = 6.0
STATE_EVERY_S: Final = 0.5
LOOK_EVERY_S: Final = 0.1

log = structlog.get_logger("whispr.stream.relay")


class Export:
    """One stream that is wanted elsewhere."""

    def __init__(self, live: Live, bus: Bus) -> None:
        self.live = live
        self.wanted_until = 0.0
        self._bus = bus
        self._subscriptions: dict[Rendition, Subscription] = {}
        self._until: dict[Rendition, float] = {}
        self._told_at = 0.0
        self._told = self._standing()

    def want(self, want: messages.Want) -> None:
        """Send these for a while, and the state at once."""
        now = trio.current_time()
        self.wanted_until = now + WANT_S
        for rendition in _known(want.renditions):
            self._until[rendition] = now + WANT_S
            if rendition not in self._subscriptions:
                send = partial(self._send, rendition)
                self._subscriptions[rendition] = self.live.subscribe(rendition, send)
        for rendition in _known(want.anew):
            self._send(rendition, tuple(self.live.recent(rendition)))
        self.tell()

    def has_news(self, now: float) -> bool:
        """Tell whether it is time to say how the stream is."""
        return now - self._told_at >= STATE_EVERY_S or self._standing() != self._told

    def tell(self) -> None:
        """Say how the stream is."""
        self._told_at, self._told = trio.current_time(), self._standing()
        state = messages.encode(messages.state_of(self.live))
        self._bus.publish(messages.state_subject(self.live.stream_id), state)

    def tidy(self) -> None:
        """End renditions that nobody wants any more."""
        now = trio.current_time()
        for rendition, until in list(self._until.items()):
            if until < now:
                del self._until[rendition]
                self._subscriptions.pop(rendition).close()

    def close(self) -> None:
        """Send nothing more."""
        for subscription in self._subscriptions.values():
            subscription.close()
        self._subscriptions.clear()
        self._until.clear()

    def _standing(self) -> tuple[bool, bool, bool]:
        """What other nodes act upon, and hear at once."""
        return self.live.source.connected, self.live.paused, self.live.ended.is_set()

    def _send(self, rendition: Rendition, packets: Sequence[Packet]) -> None:
        subject = messages.sound_subject(self.live.stream_id, rendition)
        for parcel in messages.parcels(packets):
            self._bus.publish(subject, messages.encode(parcel))


class Exports:
    """Those of one process."""

    def __init__(self, bus: Bus, find: Callable[[str], Live | None]) -> None:
        """`find`: a stream whose source is here."""
        self._bus = bus
        self._find = find
        self._exports: dict[str, Export] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer other nodes' wants until cancelled."""
        try:
            async with self._bus.subscribe(messages.WANTS) as wants, trio.open_nursery() as nursery:
                nursery.start_soon(self._tell)
                task_status.started()
                async for message in wants:
                    self._hear(message.payload)
        finally:
            for export in self._exports.values():
                export.close()

    def _hear(self, payload: bytes) -> None:
        try:
            want = messages.decode_want(payload)
        except msgspec.DecodeError as error:
            log.warning("malformed_want", error=str(error))
            return
        live = self._find(want.stream_id)
        if live is None:
            return  # another node's, or nobody's
        export = self._exports.get(want.stream_id)
        if export is None or export.live is not live:
            if export is not None:
                export.close()
            export = self._exports[want.stream_id] = Export(live, self._bus)
        export.want(want)

    async def _tell(self) -> None:
        """Say how the wanted streams are: now and then, and when that changes; their end, too."""
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now = trio.current_time()
            for stream_id, export in list(self._exports.items()):
                ended, here = export.live.ended.is_set(), self._find(stream_id) is export.live
                if (ended or here) and export.has_news(now):
                    export.tell()
                export.tidy()
                if ended or not here or export.wanted_until < now:
                    export.close()
                    del self._exports[stream_id]


def _known(names: Iterable[str]) -> list[Rendition]:
    """Return the renditions of these names; a node of another version may know more."""
    return [messages.RENDITIONS[name] for name in names if name in messages.RENDITIONS]
