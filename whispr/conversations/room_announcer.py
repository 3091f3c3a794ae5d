"""Telling of what happens in rooms: changes to those who have joined, the rest to the person concerned.

A person who is put out gets the event that says why on their channels, which then end: here at once, on other
nodes as soon as they hear the broadcast (`Announcer.heard`).
"""

from __future__ import annotations

from collections.abc import Iterable

from whispr.conversations.announcer import LEAVING_EVENTS, Announcer
from whispr.conversations.changes import Change
from whispr.conversations.domain import Message
from whispr.conversations.moderation import Moderated
from whispr.conversations.room_rows import Invitation
from whispr.conversations.room_rules import Room
from whispr.conversations.sanctions import Sanctioned
from whispr.conversations.wire import message_json
from whispr.realtime.hub import Hub

_OWN = frozenset({"user_joined", "user_muted", "user_unmuted", *LEAVING_EVENTS})
"""Changes that their person hears of on `user:<id>` too, whatever they have open."""


class RoomAnnouncer:
    """Turns what was done to rooms into broadcasts."""

    def __init__(self, announcer: Announcer, hub: Hub) -> None:
        self._announcer = announcer
        self._hub = hub

    def changed(self, changes: Iterable[Change]) -> None:
        """Broadcast changes, which closes the channels of whoever is gone, and tell those concerned."""
        for change in changes:
            self._announcer.changed(change)
            user_id = str(change.data.get("user_id", ""))
            if change.kind in _OWN:
                self._announcer.tell(user_id, "conversation_updated", change.payload())

    def sanctioned(self, room_id: str, user_id: str, done: Sanctioned) -> None:
        """Tell of a sanction."""
        self.changed(done.changes)
        if done.warning:
            self.warned(room_id, user_id, done.warning)
        event = {"kind": "ban_proposed", "room_id": room_id, "user_id": user_id, "reason": done.proposal}
        for moderator in done.moderators:
            self._announcer.tell(moderator, "notification", event)

    def moderated(self, done: Moderated) -> None:
        """Tell of what was done to a message: an edit with what it says now."""
        for change in done.changes:
            if change.kind == "message_edited":
                self._announcer.changed(change, message=message_json(done.message))
            else:
                self._announcer.changed(change)
        event = {
            "kind": "message_flagged",
            "room_id": done.message.conversation_id,
            "message_id": done.message.id,
        }
        for moderator in done.moderators:
            self._announcer.tell(moderator, "notification", event)
        if done.warning:
            self.warned(done.message.conversation_id, done.message.sender_id, done.warning, done.message)

    def warned(self, room_id: str, user_id: str, reason: str, message: Message | None = None) -> None:
        """Tell somebody alone that they were warned."""
        event = {"kind": "warning", "room_id": room_id, "reason": reason}
        if message is not None:
            event["message_id"] = message.id
        self._announcer.tell(user_id, "notification", event)

    def invited(self, room: Room, invitation: Invitation) -> None:
        """Tell somebody that they are let in."""
        event = {
            "room": {"id": room.id, "name": room.name, "type": room.type.value},
            "conversation_id": room.id,
            "invitation_id": invitation.id,
            "invited_by": invitation.created_by,
            "expires_at": invitation.expires_at,
        }
        self._announcer.tell(invitation.user_id, "conversation_invitation", event)
