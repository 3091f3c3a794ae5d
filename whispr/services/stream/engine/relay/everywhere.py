"""The live streams that this process can serve, whichever node their source is on."""

from __future__ import annotations

from typing import Final

import trio

from whispr.adapters.bus import Bus
from whispr.adapters.bus_feed import Feed
from whispr.errors import exhausted
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.engine.relay.exports import Exports
from whispr.services.stream.engine.relay.imports import Import, deliver

IMPORTS_MAX: Final = 1000
"""Streams of other nodes at a time: about 100 Mbit/s of one rendition each."""


class Everywhere:
    """Finds streams here and on other nodes. `run` must be running."""

    def __init__(self, lives: Lives, bus: Bus) -> None:
        """`lives`: those made here; the relayed ones are added to them."""
        self._lives = lives
        self._bus = bus
        self._exports = Exports(bus, self._made_here)
        self._imports: dict[str, Import] = {}
        self._feed: Feed | None = None
        self._nursery: trio.Nursery | None = None

    async def find(self, stream_id: str) -> Live | None:
        """Return a stream that is live anywhere, None when no node has its source within a second.

        Raises RESOURCE_EXHAUSTED (too_many_relays).
        """
        if (live := self._lives.get(stream_id)) is not None:
            await trio.lowlevel.checkpoint()
            return live
        found = self._imports.get(stream_id) or self._begin(stream_id)
        if found is not None:
            await found.answered.wait()
        return self._lives.get(stream_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled."""
        async with self._bus.feed() as self._feed, trio.open_nursery() as self._nursery:
            try:
                await self._nursery.start(self._exports.run)
                task_status.started()
                while True:
                    for item in await self._feed.take():
                        deliver(self._imports, item)
            finally:
                self._nursery = self._feed = None

    def _begin(self, stream_id: str) -> Import | None:
        if self._nursery is None or self._feed is None:
            return None
        if len(self._imports) >= IMPORTS_MAX:
            raise exhausted(f"this node relays {IMPORTS_MAX} streams already", reason="too_many_relays")
        begun = self._imports[stream_id] = Import(stream_id, self._feed, self._bus.publish, self._add)
        self._nursery.start_soon(self._keep, begun)
        return begun

    def _made_here(self, stream_id: str) -> Live | None:
        return self._lives.get(stream_id) if self._lives.made_here(stream_id) else None

    def _add(self, live: Live) -> None:
        if not self._lives.made_here(live.stream_id):
            self._lives.add(live)

    async def _keep(self, begun: Import) -> None:
        try:
            await begun.run()
        finally:
            if begun.live is not None:
                self._lives.remove(begun.live)
            if self._imports.get(begun.stream_id) is begun:
                del self._imports[begun.stream_id]
