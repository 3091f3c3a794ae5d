"""What is told to whom: the broadcasts that follow from changes, here and, through the hub's relay, elsewhere.

A conversation's events go to its topic, `room:<id>` for a room and `conversation:<id>` for any other; those of
the log of changes carry `change`, their number in it. Members who are connected without having joined the topic
get a new message's JSON as a preview on `user:<id>`; that needs the list of members, so it happens beside the
path of the message (`previews`).

Whoever ceases to be a member hears why as the last event of their channels, before anybody else does and before
anything that comes after: on this node when it is announced, on the others as soon as they hear of it, or read it
because they had missed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from whispr.conversations.changes import Change
from whispr.conversations.domain import Conversation, Kind, Member, Message
from whispr.conversations.permissions import Permissions
from whispr.conversations.previews import Previews
from whispr.conversations.previews import Relay as PreviewRelay
from whispr.conversations.store import Store, Watermark
from whispr.conversations.tails import ARRIVING, HIDDEN, LEAVING
from whispr.conversations.topics import is_conversation, topic_of, user_topic
from whispr.conversations.wire import conversation_json, encoded
from whispr.realtime.hub import Broadcast, Hub


class _Concerning(msgspec.Struct):
    """Of an event: whose membership it changes, and who removed them."""

    user_id: str = ""
    removed_by: str | None = None
    reason: str = "removed"


class Reads(Protocol):
    """Answers that people got, remembered."""

    def forget(self, *ids: str) -> None:
        """Forget those to or about these people and conversations."""

    def forget_all(self) -> None:
        """Forget them all."""


class Announcer:
    """Turns changes into broadcasts, and forgets what they made stale."""

    reads: Reads | None = None
    """What must not tell any more what has changed."""

    def __init__(
        self,
        hub: Hub,
        store: Store,
        permissions: Permissions,
        on_membership: Callable[[str, Collection[str]], None] = lambda _conversation_id, _user_ids: None,
    ) -> None:
        self._hub = hub
        self._permissions = permissions
        self._on_membership = on_membership
        """Told a conversation and whose membership of it changed; nobody's, if it is not to be told as it was."""
        self._previews = Previews(hub, store)

    async def run(self) -> None:
        """Send previews for ever."""
        await self._previews.run()

    # Messages

    def committed(self, messages: Sequence[Message]) -> None:
        """Broadcast new messages, given in seq order per conversation."""
        for message in messages:
            topic = topic_of(message.kind, message.conversation_id)
            body = encoded(message)
            self._hub.broadcast(topic, "new_message", body, seq=message.seq)
            self._previews.add(topic, message.conversation_id, bytes(body))

    def relay_previews(self, relay: PreviewRelay) -> None:
        """Have previews of this node's messages passed on to other nodes."""
        self._previews.relay = relay

    def preview(self, topic: str, conversation_id: str, bodies: Iterable[bytes]) -> None:
        """Preview messages of another node to the members here."""
        for body in bodies:
            self._previews.add(topic, conversation_id, body, foreign=True)

    def heard(self, broadcast: Broadcast) -> None:
        """Take note of what another node broadcast; where somebody has joined, the hub has delivered it already."""
        if not concerns_every_node(broadcast):
            return
        payload = msgspec.json.decode(broadcast.payload)
        self._note(broadcast.topic, broadcast.event, payload)

    def changed(self, change: Change, **more: object) -> None:
        """Broadcast a change to those who have joined, with `more` that is not in the log."""
        topic, payload = topic_of(change.conversation_kind, change.conversation_id), change.payload(**more)
        if change.kind in _NOTED:
            self._note(topic, change.kind, payload)
        self._hub.broadcast(topic, change.kind, payload, change=change.change, about=change.seq or 0)

    def _note(self, topic: str, event: str, payload: Mapping[str, object]) -> None:
        """Forget what a change made stale, and end the channels that it ends."""
        if event in _ENDING:
            self._forget_reads(topic.partition(":")[2])
            self._on_membership(topic.partition(":")[2], ())
        if event == "room_closed":
            self._hub.close(topic, event, payload)
        if event in _ENDING:
            return
        concerns = msgspec.convert(payload, _Concerning, strict=False)
        self.membership_changed(topic.partition(":")[2], [concerns.user_id])
        if event not in LEAVING_EVENTS:
            return
        if event == "member_removed" and concerns.removed_by != concerns.user_id:
            event, payload = "user_kicked", {"user_id": concerns.user_id, "reason": concerns.reason}
        self._hub.kick(topic, concerns.user_id, event, payload)

    def hid(self, kind: Kind, conversation_id: str, user_id: str, seq: int) -> None:
        """Have every node leave a message out of what it tells a person who has deleted it for themselves."""
        topic = topic_of(kind, conversation_id)
        self._forget_reads(user_id)
        self._on_membership(conversation_id, ())
        # Whoever has the topic open is skipped: it is for those who keep tails of the conversation.
        self._hub.broadcast(topic, HIDDEN, {"user_id": user_id, "seq": seq}, unless_joined=topic)

    def read(self, conversation_id: str, user_id: str, mark: Watermark) -> None:
        """Tell the others how far a member has read, and the member's own devices what is left."""
        topic = topic_of(mark.kind, conversation_id)
        event = {"user_id": user_id, "seq": mark.seq, "read_at": mark.at}
        self._hub.broadcast(topic, "read_receipt", event)
        own = {"conversation_id": conversation_id, "read_seq": mark.seq, "unread_count": mark.unread_count}
        self._hub.broadcast(user_topic(user_id), "conversation_updated", own)

    def delivered(
        self, conversation_id: str, user_id: str, mark: Watermark, members: Iterable[str] = ()
    ) -> None:
        """Tell the others how far a member's devices have received; `members` also where they have not joined."""
        topic = topic_of(mark.kind, conversation_id)
        event = {"user_id": user_id, "seq": mark.seq}
        self._hub.broadcast(topic, "delivery_status", event)
        apart = {"conversation_id": conversation_id, **event}
        for member_id in members:
            if member_id != user_id:
                self._hub.broadcast(user_topic(member_id), "delivery_status", apart, unless_joined=topic)

    # Conversations and members

    def invited(self, conversation: Conversation, user_ids: Iterable[str], by: str) -> None:
        """Tell people that they are in a conversation now."""
        # The viewer's own fields are not those of the invited.
        neutral = msgspec.structs.replace(conversation, unread_count=0, members=())
        event = {"conversation": conversation_json(neutral), "invited_by": by}
        for user_id in user_ids:
            self._hub.broadcast(user_topic(user_id), "conversation_invitation", event)

    def added(
        self, conversation: Conversation, members: Sequence[Member], changes: Iterable[Change], by: str
    ) -> None:
        """Tell members who joined them."""
        for change in changes:
            self.changed(change)
        self.invited(conversation, [member.user_id for member in members], by)

    def removed(self, changes: Iterable[Change], reason: str = "removed") -> None:
        """Tell members who is gone, and who owns it now; close the channels of whoever is gone."""
        for change in changes:
            if change.kind != "member_removed":
                self.changed(change)
                continue
            self.changed(change, reason=reason)
            self.tell(str(change.data["user_id"]), "conversation_updated", change.payload())

    def updated(self, change: Change, member_ids: Iterable[str]) -> None:
        """Tell members of a new name or new settings, on the conversation's topic and on their own."""
        self.changed(change)
        event = change.payload()
        for user_id in member_ids:
            self.tell(user_id, "conversation_updated", event)

    def tell(self, user_id: str, event: str, payload: object) -> None:
        """Tell one person, on all their sockets."""
        self._hub.broadcast(user_topic(user_id), event, payload)

    def typing(self, conversation_id: str, user_id: str, action: str) -> dict[str, object]:
        """Build a `typing_indicator`; the channel sends it to the others."""
        return {
            "conversation_id": conversation_id,
            "user_id": user_id,
            "action": action,
            "timestamp": datetime.now(UTC),
        }

    def kick(self, kind: Kind, conversation_id: str, user_id: str, event: str, payload: object) -> None:
        """Close a person's channels of a conversation on this node after a last event."""
        self._hub.kick(topic_of(kind, conversation_id), user_id, event, payload)

    def membership_changed(self, conversation_id: str, user_ids: Collection[str]) -> None:
        """Forget what was remembered about these people here."""
        self._previews.forget(conversation_id)
        self._permissions.forget(*user_ids)
        self._forget_reads(*user_ids)
        self._on_membership(conversation_id, user_ids)

    def people_changed(self, one: str, other: str) -> None:
        """Forget what was remembered about these people, between whom something has changed."""
        self._permissions.forget(one, other)
        self._forget_reads(one, other)

    def missed_changes(self) -> None:
        """Forget everything, as after a time in which nothing was heard of changes."""
        self._permissions.forget_all()
        if self.reads is not None:
            self.reads.forget_all()

    def _forget_reads(self, *ids: str) -> None:
        if self.reads is not None:
            self.reads.forget(*ids)


LEAVING_EVENTS = LEAVING
MEMBERSHIP_EVENTS = ARRIVING | LEAVING
"""Broadcasts that change who is a member; their payloads name them by `user_id`."""
_ENDING = frozenset({"room_closed", "message_deleted"})
"""Broadcasts after which what was said before must not be told again."""
_NOTED = MEMBERSHIP_EVENTS | _ENDING


def concerns_every_node(broadcast: Broadcast) -> bool:
    """Tell whether every node is to take note of a broadcast, for what it remembers of the conversation."""
    return broadcast.event in _NOTED and is_conversation(broadcast.topic)
