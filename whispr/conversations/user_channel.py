"""The channel `user:<id>`: what concerns one person, for them alone.

In: update_status, get_conversations, mark_all_read, sync. Out: new_message (a preview, for conversations that the
socket has not joined), conversation_invitation, conversation_updated (of the conversation, or of what the person
keeps for themselves: read_seq and unread_count, draft, archived, muted_until), message_deleted (by the person for
themselves), delivery_status, scheduled_failed, notification (of the notification service), resync (events may have
been missed: call sync with its `cursor` as `since`), presence_state and presence_diff of the person's own devices and
of their contacts, as far as these show themselves.
"""

from __future__ import annotations

from datetime import UTC, datetime

from whispr.conversations import wire
from whispr.conversations.domain import clamp_page
from whispr.conversations.operations import Operations
from whispr.conversations.statuses import STATUSES, Statuses
from whispr.conversations.sync_json import sync_json
from whispr.conversations.visibility import Visibility
from whispr.errors import denied, invalid
from whispr.ids import parse_id
from whispr.realtime.channel import Channel, LeaveReason
from whispr.realtime.link import Link


class UserChannel(Channel):
    """What concerns one user, on one of their sockets."""

    shown = True
    """To their own devices, everybody is."""

    def __init__(
        self, link: Link, operations: Operations, statuses: Statuses, visibility: Visibility
    ) -> None:
        super().__init__(link)
        self.online_at = datetime.now(UTC)
        self._operations = operations
        self._statuses = statuses
        self._visibility = visibility
        self._user_id = link.session.user_id

    async def join(self, payload: object) -> object:
        """Admit the user themselves."""
        if self.link.subtopic != self._user_id:
            raise denied("this topic belongs to somebody else")
        self._statuses.show(self)
        followed = False
        try:
            await self._visibility.follow(self.link)
            followed = True
        finally:
            if not followed:
                self._statuses.hide(self)  # what has not joined does not leave
        return {}

    def missed_presence(self) -> None:
        """Tell a client that was slow who of the user's contacts is there now."""
        self._visibility.show(self.link)

    async def handle(self, event: str, payload: object) -> object:
        """Handle a push."""
        match event:
            case "update_status":
                status = wire.parse(payload, wire.UpdateStatus).status
                if status not in STATUSES:
                    raise invalid({"status": f"must be one of {', '.join(STATUSES)}"})
                self._statuses.choose(self._user_id, status)
                return {"status": status}
            case "get_conversations":
                wanted = wire.parse(payload, wire.GetConversations)
                clamp_page(wanted.page_size, self._operations.limits)
                conversations, next_token = await self._operations.store.conversations(
                    self._user_id, wanted.page_size, wanted.page_token, archived=wanted.archived
                )
                return {
                    "conversations": [wire.conversation_json(each) for each in conversations],
                    "next_page_token": next_token,
                }
            case "mark_all_read":
                named = wire.parse(payload, wire.MarkAllRead).conversation_ids
                ids = [parse_id(each, "conversation_ids") for each in named]
                return {"marked_count": await self._operations.mark_all_read(self._user_id, ids)}
            case "sync":
                since = wire.parse(payload, wire.Sync)
                synced = await self._operations.sync.since(self._user_id, since.since, since.page_size)
                return sync_json(synced)
            case _:
                return await super().handle(event, payload)

    async def leave(self, reason: LeaveReason) -> None:
        """Stop showing a status here."""
        del reason
        self._visibility.unfollow(self.link)
        self._statuses.hide(self)
