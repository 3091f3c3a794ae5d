"""What is told to whom: the broadcasts that follow from changes, here and, through the hub's relay, elsewhere.

A new message goes to `conversation:<id>`. Members who are connected without having joined it get the same JSON
as a preview on `user:<id>`; that needs the list of members, so it happens beside the path of the message, in
one task, and a burst of one conversation is previewed by its last messages alone. Previews are not relayed:
each node makes them for its own sockets, from the messages it hears.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
import structlog
import trio

from whispr.conversations.domain import Conversation, Member, Message
from whispr.conversations.permissions import Permissions
from whispr.conversations.store import Store, Watermark
from whispr.errors import WhisprError
from whispr.realtime.hub import Broadcast, Hub
from whispr.services.messaging.wire import conversation_json, encoded

PREVIEWS_PER_CONVERSATION = 32
"""Previews that wait at once for one conversation; older ones are left out."""
ROSTERS_MAX = 10_000
"""Conversations whose members are remembered for previews."""

_log = structlog.get_logger("whispr.messaging")


class _UserRef(msgspec.Struct):
    user_id: str


def conversation_topic(conversation_id: str) -> str:
    """Name the topic of a conversation's events."""
    return f"conversation:{conversation_id}"


def user_topic(user_id: str) -> str:
    """Name the topic of what concerns one user."""
    return f"user:{user_id}"


class Announcer:
    """Turns changes into broadcasts, and forgets what they made stale."""

    def __init__(self, hub: Hub, store: Store, permissions: Permissions) -> None:
        self._hub = hub
        self._store = store
        self._permissions = permissions
        self._previews: dict[str, deque[msgspec.Raw]] = {}
        self._waiting = trio.Event()
        self._rosters: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._roster_changes = 0

    # Messages

    def committed(self, messages: Sequence[Message]) -> None:
        """Broadcast new messages, given in seq order per conversation."""
        for message in messages:
            topic = conversation_topic(message.conversation_id)
            body = encoded(message)
            self._hub.broadcast(topic, "new_message", body, seq=message.seq)
            self._preview(message.conversation_id, body)

    def heard(self, broadcast: Broadcast) -> None:
        """Take note of what another node broadcast; the hub here has delivered it already."""
        kind, _, conversation_id = broadcast.topic.partition(":")
        if kind != "conversation":
            return
        if broadcast.event == "new_message":
            self._preview(conversation_id, msgspec.Raw(broadcast.payload))
        elif broadcast.event in ("member_added", "member_removed"):
            user_id = msgspec.json.decode(broadcast.payload, type=_UserRef).user_id
            self._membership_changed(conversation_id, [user_id])
            if broadcast.event == "member_removed":
                self._hub.kick(broadcast.topic, user_id)

    def read(self, conversation_id: str, user_id: str, mark: Watermark) -> None:
        """Tell the others how far a member has read."""
        event = {"user_id": user_id, "seq": mark.seq, "read_at": mark.at}
        self._hub.broadcast(conversation_topic(conversation_id), "read_receipt", event)

    def delivered(self, conversation_id: str, user_id: str, mark: Watermark) -> None:
        """Tell the others how far a member's devices have received."""
        event = {"user_id": user_id, "seq": mark.seq}
        self._hub.broadcast(conversation_topic(conversation_id), "delivery_status", event)

    # Conversations and members

    def invited(self, conversation: Conversation, user_ids: Iterable[str], by: str) -> None:
        """Tell people that they are in a conversation now."""
        # The viewer's own fields are not those of the invited.
        neutral = msgspec.structs.replace(conversation, unread_count=0, members=())
        event = {"conversation": conversation_json(neutral), "invited_by": by}
        for user_id in user_ids:
            self._hub.broadcast(user_topic(user_id), "conversation_invitation", event)

    def added(self, conversation: Conversation, members: Sequence[Member], by: str) -> None:
        """Tell members who joined them."""
        self._membership_changed(conversation.id, [member.user_id for member in members])
        for member in members:
            event = {
                "conversation_id": conversation.id,
                "user_id": member.user_id,
                "member": member,
                "added_by": by,
            }
            self._hub.broadcast(conversation_topic(conversation.id), "member_added", event)
        self.invited(conversation, [member.user_id for member in members], by)

    def removed(self, conversation_id: str, user_id: str, by: str) -> None:
        """Tell members who is gone, and close the channels of whoever it is."""
        self._membership_changed(conversation_id, [user_id])
        topic = conversation_topic(conversation_id)
        event = {"conversation_id": conversation_id, "user_id": user_id, "removed_by": by}
        self._hub.broadcast(topic, "member_removed", event)
        if by == user_id:
            self._hub.kick(topic, user_id)
        else:
            self._hub.kick(topic, user_id, "user_kicked", {"user_id": user_id, "reason": "removed"})
        self._hub.broadcast(user_topic(user_id), "conversation_updated", event)

    def role_changed(self, conversation_id: str, member: Member, by: str | None) -> None:
        """Tell members of somebody's new role; `by` None when it fell to them."""
        event = {"conversation_id": conversation_id, "member": member, "changed_by": by}
        self._hub.broadcast(conversation_topic(conversation_id), "settings_changed", event)

    def updated(self, conversation: Conversation, by: str) -> None:
        """Tell members of a new name or new settings, on the conversation's topic and on their own."""
        event = {
            "conversation_id": conversation.id,
            "name": conversation.name,
            "settings": conversation.settings,
            "changed_by": by,
        }
        self._hub.broadcast(conversation_topic(conversation.id), "settings_changed", event)
        for member in conversation.members:
            self._hub.broadcast(user_topic(member.user_id), "conversation_updated", event)

    def typing(self, conversation_id: str, user_id: str, action: str) -> dict[str, object]:
        """Build a `typing_indicator`; the channel sends it to the others."""
        return {
            "conversation_id": conversation_id,
            "user_id": user_id,
            "action": action,
            "timestamp": datetime.now(UTC),
        }

    # Previews

    async def run(self) -> None:
        """Send previews for ever."""
        while True:
            await self._waiting.wait()
            self._waiting = trio.Event()
            previews, self._previews = self._previews, {}
            for conversation_id, bodies in previews.items():
                try:
                    members = await self._roster(conversation_id)
                except WhisprError as error:
                    # A preview is a hint; the message itself is in the history.
                    _log.warning("previews_left_out", conversation_id=conversation_id, error=str(error))
                else:
                    self._send_previews(conversation_id, bodies, members)

    def _preview(self, conversation_id: str, body: msgspec.Raw) -> None:
        waiting = self._previews.get(conversation_id)
        if waiting is None:
            waiting = self._previews[conversation_id] = deque(maxlen=PREVIEWS_PER_CONVERSATION)
            self._waiting.set()
        waiting.append(body)

    def _send_previews(
        self, conversation_id: str, bodies: Iterable[msgspec.Raw], members: Iterable[str]
    ) -> None:
        joined = conversation_topic(conversation_id)
        for user_id in members:
            own = user_topic(user_id)
            wanted = (
                own in socket.links and joined not in socket.links for socket in self._hub.sockets_of(user_id)
            )
            if not any(wanted):
                continue
            for body in bodies:
                self._hub.deliver(Broadcast(own, "new_message", bytes(body), unless_joined=joined))

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

    def _membership_changed(self, conversation_id: str, user_ids: Iterable[str]) -> None:
        self._roster_changes += 1
        self._rosters.pop(conversation_id, None)
        self._permissions.forget(*user_ids)
