"""What the nodes of one deployment tell each other over the bus: broadcasts, presences, and changed blocks.

Everything here is at most once. What a node misses while the bus is away costs nothing for good: clients find
gaps by seq, copies of presences show what they lack, and remembered permissions are forgotten whenever the bus
comes back.
"""

from __future__ import annotations

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.conversations.core import Conversations
from whispr.realtime.hub import Broadcast, Hub

BROADCASTS = "whispr.realtime.broadcasts"
BLOCKS = "whispr.users.blocks"
PRESENCE = "whispr.realtime.presence"

log = structlog.get_logger("whispr.peers")


class Peers:
    """The other nodes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def relay(self, broadcast: Broadcast) -> None:
        """Pass on a broadcast of this node."""
        self._bus.publish(BROADCASTS, broadcast.pack())

    def relay_presence(self, data: bytes) -> None:
        """Pass on what this node has to say of who is present."""
        self._bus.publish(PRESENCE, data)

    def blocks_changed(self, user_id: str, target_id: str) -> None:
        """Say that something between these two has changed: a block, a contact; or, twice the same, settings."""
        self._bus.publish(BLOCKS, msgspec.json.encode((user_id, target_id)))

    async def listen(
        self,
        hub: Hub,
        conversations: Conversations,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Act on what the others say, until cancelled. Started once it hears them."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hear_broadcasts, hub, conversations)
            await nursery.start(self._hear_presence, hub)
            await nursery.start(self._hear_blocks, conversations)
            task_status.started()

    async def _hear_broadcasts(
        self, hub: Hub, conversations: Conversations, *, task_status: trio.TaskStatus[None]
    ) -> None:
        async with self._bus.subscribe(BROADCASTS) as messages:
            task_status.started()
            async for message in messages:
                try:
                    broadcast = Broadcast.unpack(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("broadcast_unreadable", error=str(error))
                    continue
                hub.deliver(broadcast)
                conversations.heard(broadcast)

    async def _hear_presence(self, hub: Hub, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(PRESENCE) as messages:
            task_status.started()
            async for message in messages:
                try:
                    hub.hear_presence(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("presence_unreadable", error=str(error))

    async def _hear_blocks(self, conversations: Conversations, *, task_status: trio.TaskStatus[None]) -> None:
        forget = self._bus.on_up(conversations.missed_changes)
        try:
            async with self._bus.subscribe(BLOCKS) as messages:
                task_status.started()
                async for message in messages:
                    try:
                        people = msgspec.json.decode(message.payload, type=tuple[str, str])
                    except msgspec.MsgspecError as error:
                        log.warning("block_unreadable", error=str(error))
                        continue
                    conversations.people_changed(*people)
        finally:
            forget()
