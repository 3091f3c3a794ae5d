"""Previews: new messages told on `user:<id>` to members who are connected without having joined the topic.

They need the list of members, so they are made beside the path of the message, in one task, and a burst of one
conversation is previewed by its last messages alone. Other nodes do not hear the messages of topics that nobody has
joined there, so the node of the message sends them to the members' own topics, by `relay`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence

import structlog
import trio

from whispr.conversations.store import Store
from whispr.conversations.topics import user_topic
from whispr.errors import WhisprError
from whispr.realtime.hub import Broadcast, Hub

PREVIEWS_PER_CONVERSATION = 32
"""Previews that wait at once for one conversation; older ones are left out."""
ROSTERS_MAX = 10_000
"""Conversations whose members are remembered for previews."""

Relay = Callable[[str, str, Sequence[bytes], Sequence[str]], None]
"""Is given a conversation's topic, its id, previews, and its members: those of them elsewhere get the previews."""

_log = structlog.get_logger("whispr.conversations")


class Previews:
    """Sends previews; `run` is its task."""

    def __init__(self, hub: Hub, store: Store) -> None:
        self._hub = hub
        self._store = store
        self.relay: Relay | None = None
        self._waiting: dict[tuple[str, bool], tuple[str, deque[bytes]]] = {}
        """Conversation, and whether its messages are of another node → topic and messages."""
        self._some = trio.Event()
        self._rosters: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._roster_changes = 0

    def add(self, topic: str, conversation_id: str, body: bytes, *, foreign: bool = False) -> None:
        """Preview a message of the conversation that has this topic, soon; here alone when it is `foreign`."""
        waiting = self._waiting.get((conversation_id, foreign))
        if waiting is None:
            waiting = (topic, deque(maxlen=PREVIEWS_PER_CONVERSATION))
            self._waiting[conversation_id, foreign] = waiting
            self._some.set()
        waiting[1].append(body)

    def forget(self, conversation_id: str) -> None:
        """Forget who is a member: somebody came or went."""
        self._roster_changes += 1
        self._rosters.pop(conversation_id, None)

    async def run(self) -> None:
        """Send previews for ever."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            waiting, self._waiting = self._waiting, {}
            for (conversation_id, foreign), (topic, bodies) in waiting.items():
                try:
                    members = await self._roster(conversation_id)
                except WhisprError as error:
                    # A preview is a hint; the message itself is in the history.
                    _log.warning("previews_left_out", conversation_id=conversation_id, error=str(error))
                else:
                    self._send(topic, bodies, members)
                    if self.relay is not None and not foreign:
                        self.relay(topic, conversation_id, list(bodies), members)

    def _send(self, joined: str, bodies: Collection[bytes], members: Sequence[str]) -> None:
        for user_id in members:
            own = user_topic(user_id)
            wanted = (
                own in socket.links and joined not in socket.links for socket in self._hub.sockets_of(user_id)
            )
            if not any(wanted):
                continue
            for body in bodies:
                self._hub.deliver(Broadcast(own, "new_message", body, unless_joined=joined))

    async def _roster(self, conversation_id: str) -> tuple[str, ...]:
        """Return the ids of the members, remembered until membership changes."""
        known = self._rosters.get(conversation_id)
        if known is not None:
            self._rosters.move_to_end(conversation_id)
            return known
        changes = self._roster_changes
        members = await self._store.member_ids(conversation_id)
        if changes == self._roster_changes:
            self._rosters[conversation_id] = members
            if len(self._rosters) > ROSTERS_MAX:
                self._rosters.popitem(last=False)
        return members
