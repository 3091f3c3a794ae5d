"""The live streams that this process can serve, whichever node their source is on.

A source that comes back may come to another node, or to another worker of the same one. That one goes on with the
stream as it is relayed there, on the same clock; the node that had it hears so, makes it no more and relays it, and
listeners on either notice nothing but the silence while there was no source.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.bus_feed import Feed
from whispr.errors import WhisprError, exhausted
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.engine.relay.exports import Exports
from whispr.services.stream.engine.relay.imports import Import, deliver
from whispr.services.stream.engine.relay.messages import TAKEN

MadeSomewhere = Callable[[str], Awaitable[bool]]

IMPORTS_MAX: Final = 1000
"""Streams of other nodes at a time: about 100 Mbit/s of one rendition each."""

log = structlog.get_logger("whispr.stream.relay")


class Everywhere:
    """Finds streams here and on other nodes. `run` must be running."""

    def __init__(self, lives: Lives, bus: Bus, made_somewhere: MadeSomewhere | None = None) -> None:
        """`lives`: those made here; the relayed ones are added to them.

        `made_somewhere`: tells whether any node is known to make a stream, so that none is asked in vain.
        """
        self._lives = lives
        self._bus = bus
        self._made_somewhere = made_somewhere
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
        if self._made_somewhere is not None and not await self._made_somewhere(stream_id):
            return self._lives.get(stream_id)
        found = self._imports.get(stream_id) or self._begin(stream_id)
        if found is not None:
            await found.answered.wait()
        return self._lives.get(stream_id)

    def take_over(self, live: Live) -> None:
        """Have the node that makes a stream let go of it: it is made here from now on."""
        begun = self._imports.pop(live.stream_id, None)
        if begun is not None:
            begun.release()
        self._lives.remove(live)
        self._bus.publish(TAKEN, live.stream_id.encode())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled."""
        async with self._bus.feed() as self._feed, trio.open_nursery() as self._nursery:
            try:
                await self._nursery.start(self._exports.run)
                await self._nursery.start(self._hear_of_takers)
                task_status.started()
                while True:
                    for item in await self._feed.take():
                        deliver(self._imports, item)
            finally:
                self._nursery = self._feed = None

    async def _hear_of_takers(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Let go of streams that other nodes make now."""
        async with self._bus.subscribe(TAKEN) as takers:
            task_status.started()
            async for message in takers:
                stream_id = message.payload.decode("ascii", "replace")
                live = self._lives.release(stream_id) if self._lives.made_here(stream_id) else None
                if live is not None:
                    log.info("stream_taken_over", stream_id=stream_id)
                    self._go_on_by_relay(live)

    def _go_on_by_relay(self, live: Live) -> None:
        """Relay what was made here until now; where there is no room, its listeners here hear no more."""
        try:
            self._begin(live.stream_id, live)
        except WhisprError as error:
            log.warning("stream_not_relayed", stream_id=live.stream_id, error=str(error))
            self._lives.remove(live)
            live.end("relay_ended")

    def _begin(self, stream_id: str, live: Live | None = None) -> Import | None:
        """Relay a stream: one that is found by asking, or `live`, which was made here until now."""
        if self._nursery is None or self._feed is None:
            return None
        if len(self._imports) >= IMPORTS_MAX:
            raise exhausted(f"this node relays {IMPORTS_MAX} streams already", reason="too_many_relays")
        begun = Import(stream_id, self._feed, self._bus.publish, self._add, live)
        self._imports[stream_id] = begun
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
            if self._imports.get(begun.stream_id) is begun:
                del self._imports[begun.stream_id]
                if begun.live is not None:
                    self._lives.remove(begun.live)
