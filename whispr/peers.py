"""What the nodes of one deployment tell each other over the bus: broadcasts, presences, and changed blocks.

A topic's broadcasts go by a subject of its own, and a node hears the subjects of topics with somebody here, no
others. A topic is whatever a client wrote, so its subject is a hash of it. Previews of messages go by the subjects of
the members' own topics, `user:<id>`; those of conversations with more than `ADDRESSED_MAX` members go to all nodes
once, for hardly any node has none of so many. What all nodes hear beside that is little: who became or ceased to be a
member, since each remembers such things, and blocks.

Presences go to all nodes too. Each of them answers who is there of any topic at any time: a contact's presence is
shown where nobody has joined the contact's topic, notifications ask for it, and a joiner gets the whole at once. A
replica of everything does that with one version and one beat per node, where one of each topic would need a
snapshot and a beat for every topic.

All this is at most once. Where something is missed, whether the bus was away, a reader lagged on one topic, or the
server was slow to confirm a subscription, the hub is told to look (`Hub.suspect`); copies of presences show by
themselves what they lack; and whenever the bus comes back remembered permissions are forgotten, and conversations
make good what has no numbers (`whispr.conversations.regaining`). What a node could not send, for it was cut off or
had more than its queue holds, the others cannot miss by themselves: so it tells them since when.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import NoReturn

import msgspec
import structlog
import trio

from whispr import peers_metrics as metrics
from whispr.adapters.bus import Bus, Missed
from whispr.adapters.bus_feed import Feed, Message
from whispr.conversations.announcer import concerns_every_node
from whispr.conversations.core import Conversations
from whispr.realtime.hub import Broadcast, Hub

TOPICS = "whispr.realtime.topics."
EVERYBODY = "whispr.realtime.everybody"
BLOCKS = "whispr.users.blocks"
PRESENCE = "whispr.realtime.presence"
GAPS = "whispr.realtime.gaps"

ADDRESSED_MAX = 64
"""Members of a conversation up to which each is sent previews on their own topic."""

LOOK_S = 1.0
"""How often it is looked whether the bus is there, and whether what is sent fits into its queue."""
NOTICED_S = 15.0
"""How late it may be noticed that the bus is away, or that something was lost."""

TOGETHER = 50
"""Messages delivered between two turns of other tasks."""

log = structlog.get_logger("whispr.peers")


class Previews(msgspec.Struct, array_like=True, frozen=True):
    """Messages of a conversation, for members who have not joined its topic. Each is encoded JSON."""

    topic: str
    conversation_id: str
    messages: list[bytes]


_BROADCAST, _PREVIEWS = b"b", b"p"
_decode_previews = msgspec.msgpack.Decoder(Previews).decode


def subject_of(topic: str) -> str:
    """Return the subject that a topic's broadcasts go by."""
    return TOPICS + blake2b(topic.encode(), digest_size=16).hexdigest()


class Gap(msgspec.Struct, array_like=True, frozen=True):
    """Broadcasts of a node may have been lost since then."""

    since: datetime


class Peers:
    """The other nodes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._whole_at = time.time()
        """When the bus was there last, in Unix seconds."""
        self._said_at = 0.0
        """When something was broadcast last."""
        self._dropped = 0
        self._feed: Feed | None = None
        self._topics: dict[str, str] = {}
        """Subject → topic, of those with somebody here."""

    # Saying

    def relay(self, broadcast: Broadcast) -> None:
        """Pass on a broadcast of this node."""
        packed = _BROADCAST + broadcast.pack()
        self._said_at = time.time()
        self._bus.publish(subject_of(broadcast.topic), packed)
        if concerns_every_node(broadcast):
            self._bus.publish(EVERYBODY, packed)

    def relay_previews(
        self, topic: str, conversation_id: str, messages: Sequence[bytes], members: Sequence[str]
    ) -> None:
        """Pass on messages of this node to members elsewhere who have not joined the topic."""
        packed = _PREVIEWS + msgspec.msgpack.encode(Previews(topic, conversation_id, list(messages)))
        if len(members) > ADDRESSED_MAX:
            self._bus.publish(EVERYBODY, packed)
            return
        for user_id in members:
            self._bus.publish(subject_of(f"user:{user_id}"), packed)

    def relay_presence(self, data: bytes) -> None:
        """Pass on what this node has to say of who is present."""
        self._bus.publish(PRESENCE, data)

    def blocks_changed(self, user_id: str, target_id: str) -> None:
        """Say that something between these two has changed: a block, a contact; or, twice the same, settings."""
        self._bus.publish(BLOCKS, msgspec.json.encode((user_id, target_id)))

    # Which topics to hear (`whispr.realtime.hub.Reach`)

    def want(self, topic: str) -> None:
        """Hear a topic: somebody here has joined it."""
        subject = subject_of(topic)
        self._topics[subject] = topic
        if self._feed is not None:
            self._feed.add(subject)
        metrics.TOPICS.set(len(self._topics))

    def unwant(self, topic: str) -> None:
        """Hear it no more, soon."""
        subject = subject_of(topic)
        del self._topics[subject]
        if self._feed is not None:
            self._feed.remove(subject)
        metrics.TOPICS.set(len(self._topics))

    async def in_force(self, topic: str) -> None:
        """Wait until what the others broadcast on a wanted topic arrives, if the bus is there."""
        if self._feed is not None:
            await self._feed.in_force(subject_of(topic))

    # Hearing

    async def listen(
        self,
        hub: Hub,
        conversations: Conversations,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Act on what the others say, until cancelled. Started once it hears them."""
        conversations.announcer.relay_previews(self.relay_previews)
        conversations.resuming.hears = lambda: self._bus.connected
        async with trio.open_nursery() as nursery:
            await nursery.start(self._hear_topics, hub, conversations)
            await nursery.start(self._hear_presence, hub)
            await nursery.start(self._hear_blocks, conversations)
            await nursery.start(self._hear_gaps, conversations)
            nursery.start_soon(self._look)
            task_status.started()

    async def _hear_topics(
        self, hub: Hub, conversations: Conversations, *, task_status: trio.TaskStatus[None]
    ) -> None:
        forget = self._bus.on_up(lambda: self._is_back(hub, conversations))
        try:
            async with self._bus.feed() as feed:
                self._feed = feed
                for subject in (EVERYBODY, *self._topics):
                    feed.add(subject)
                await feed.in_force(EVERYBODY)
                task_status.started()
                while True:
                    for number, item in enumerate(await feed.take(), 1):
                        self._heard(item, hub, conversations)
                        if number % TOGETHER == 0:
                            await trio.lowlevel.checkpoint()
        finally:
            self._feed = None
            forget()

    def _heard(self, item: Message | Missed, hub: Hub, conversations: Conversations) -> None:
        topic = self._topics.get(item.subject)
        if isinstance(item, Missed):
            metrics.MISSED.inc()
            log.warning("broadcasts_missed", topic=topic)
            if topic is not None:
                hub.suspect(topic)
                conversations.missed(topic, _lately())
            elif item.subject == EVERYBODY:
                conversations.missed_changes(_lately())
            return
        metrics.HEARD.labels(
            "all" if item.subject == EVERYBODY else "topic" if topic is not None else "unwanted"
        ).inc()
        try:
            if item.payload[:1] == _BROADCAST:
                broadcast = Broadcast.unpack(memoryview(item.payload)[1:])
                conversations.heard(broadcast)  # first, for it ends the channels of whoever is put out
                if topic is not None:
                    hub.deliver(broadcast)
            else:
                _show(_decode_previews(memoryview(item.payload)[1:]), topic, hub, conversations)
        except msgspec.MsgspecError as error:
            log.warning("broadcast_unreadable", error=str(error))

    async def _hear_presence(self, hub: Hub, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(PRESENCE) as messages:
            task_status.started()
            async for message in messages:
                try:
                    hub.hear_presence(message.payload)
                except msgspec.MsgspecError as error:
                    log.warning("presence_unreadable", error=str(error))

    async def _hear_blocks(self, conversations: Conversations, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(BLOCKS) as messages:
            task_status.started()
            async for message in messages:
                try:
                    people = msgspec.json.decode(message.payload, type=tuple[str, str])
                except msgspec.MsgspecError as error:
                    log.warning("block_unreadable", error=str(error))
                    continue
                conversations.people_changed(*people)

    # Gaps

    def _is_back(self, hub: Hub, conversations: Conversations) -> None:
        """Have everything looked at again: what was said while the bus was away was not heard, here or elsewhere."""
        since = self._whole_at - NOTICED_S
        hub.suspect()
        conversations.missed_changes(datetime.fromtimestamp(since, UTC))
        if self._said_at >= since:
            self._tell_gap(since)

    def _tell_gap(self, since: float) -> None:
        metrics.GAPS.inc()
        self._bus.publish(GAPS, msgspec.msgpack.encode(Gap(datetime.fromtimestamp(since, UTC))))

    async def _look(self) -> NoReturn:
        """Note when the bus was there last; tell the others when its queue has been too short."""
        while True:
            if self._bus.dropped != self._dropped and self._bus.connected:
                self._dropped = self._bus.dropped
                self._tell_gap(min(self._whole_at, time.time() - NOTICED_S))
            if self._bus.connected:
                self._whole_at = time.time()
            await trio.sleep(LOOK_S)

    async def _hear_gaps(self, conversations: Conversations, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._bus.subscribe(GAPS) as messages:
            task_status.started()
            async for message in messages:
                try:
                    gap = msgspec.msgpack.decode(message.payload, type=Gap)
                except msgspec.MsgspecError as error:
                    log.warning("gap_unreadable", error=str(error))
                    continue
                conversations.missed_changes(gap.since)


def _lately() -> datetime:
    """Return when what is noticed now may have happened."""
    return datetime.fromtimestamp(time.time() - NOTICED_S, UTC)


def _show(previews: Previews, topic: str | None, hub: Hub, conversations: Conversations) -> None:
    """Show previews on somebody's own topic, or, of those for everybody, to all members here."""
    if topic is None:
        conversations.announcer.preview(previews.topic, previews.conversation_id, previews.messages)
        return
    for message in previews.messages:
        hub.deliver(Broadcast(topic, "new_message", message, unless_joined=previews.topic))
