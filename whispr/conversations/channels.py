"""The channels `conversation:<id>`, `room:<id>` and `user:<id>`: pushes in, replies and events out.

Events of a conversation or a room, in: send_message, edit_message, delete_message, add_reaction, remove_reaction,
pin_message, unpin_message, mark_read, mark_delivered, typing_start, typing_stop, get_history, save_draft. Out:
new_message, typing_indicator, read_receipt, delivery_status, presence_state, presence_diff; and, with their
number as `change`: message_edited, message_deleted, reaction_added, reaction_removed, message_pinned,
message_unpinned, media_linked, media_unlinked, member_added, member_removed, settings_changed. Before the
server closes the channel: user_kicked.

Events of `user:<id>`, only for the user themselves, in: update_status, get_conversations, mark_all_read, sync. Out:
new_message (a preview, for conversations that the socket has not joined), conversation_invitation,
conversation_updated, message_deleted (by the user for themselves), scheduled_failed, notification (of the
notification service), presence_state and presence_diff of the user's own devices and of their contacts, as
far as these show themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import trio

from whispr.conversations import wire
from whispr.conversations.domain import Draft, clamp_page, not_a_member
from whispr.conversations.ids import is_id, parse_id
from whispr.conversations.operations import Operations
from whispr.conversations.sync_json import sync_json
from whispr.conversations.tickets import Ticket
from whispr.conversations.visibility import Visibility
from whispr.errors import denied, invalid, not_found
from whispr.realtime.channel import Channel, Deferred, Joined, LeaveReason
from whispr.realtime.link import Link

_MESSAGE_EVENTS = frozenset(
    {"edit_message", "delete_message", "add_reaction", "remove_reaction", "pin_message", "unpin_message"}
)
STATUSES = ("online", "away", "busy", "offline")
"""What a person may show; whoever shows offline is not in any presence."""


class Statuses:
    """The status that each connected user of this node has chosen, and the channels that show it."""

    def __init__(self, on_status: Callable[[str, str], None]) -> None:
        self._on_status = on_status
        self._chosen: dict[str, str] = {}
        self._showing: dict[str, set[ConversationChannel | UserChannel]] = {}

    def show(self, channel: ConversationChannel | UserChannel) -> None:
        """Make the channel's user present on its topic, unless they chose to be offline."""
        user_id = channel.link.session.user_id
        self._showing.setdefault(user_id, set()).add(channel)
        self._apply(channel, self._chosen.get(user_id, "online"))

    def conversations_of(self, user_id: str) -> list[ConversationChannel]:
        """Return the conversation channels of a user that show them, or would if they might."""
        showing = self._showing.get(user_id, ())
        return [channel for channel in showing if isinstance(channel, ConversationChannel)]

    def again(self, channel: ConversationChannel) -> None:
        """Show a channel's user as they are to be shown now."""
        user_id = channel.link.session.user_id
        if channel in self._showing.get(user_id, ()):
            self._apply(channel, self._chosen.get(user_id, "online"))

    def hide(self, channel: ConversationChannel | UserChannel) -> None:
        """Forget a channel that ends; with a user's last one, their status."""
        user_id = channel.link.session.user_id
        showing = self._showing.get(user_id, set())
        showing.discard(channel)
        if not showing:
            self._showing.pop(user_id, None)
            self._chosen.pop(user_id, None)

    def choose(self, user_id: str, status: str) -> None:
        """Show another status on every channel of the user."""
        self._chosen[user_id] = status
        self._on_status(user_id, status)
        for channel in self._showing.get(user_id, ()):
            self._apply(channel, status)

    def _apply(self, channel: ConversationChannel | UserChannel, status: str) -> None:
        if status == "offline" or not channel.shown:
            channel.link.untrack()
        else:
            channel.link.track({"status": status, "online_at": channel.online_at})


class ConversationChannel(Channel):
    """One conversation, live on one socket."""

    def __init__(
        self, link: Link, operations: Operations, statuses: Statuses, visibility: Visibility
    ) -> None:
        super().__init__(link)
        self.online_at = datetime.now(UTC)
        self.shown = False
        """Whether the others here may see the user."""
        self._operations = operations
        self._statuses = statuses
        self._visibility = visibility
        self._conversation_id = link.subtopic
        self._user_id = link.session.user_id
        self._typing: trio.CancelScope | None = None
        """While the user types: the scope whose deadline ends it."""

    async def join(self, payload: object) -> object:
        """Admit a member; replay what they missed since `since_seq`, then go live."""
        if not is_id(self._conversation_id):
            raise not_found("conversation", self._conversation_id)
        wanted = wire.parse(payload, wire.Join)
        since_seq = None if wanted.since_seq is None else wire.seq_of(wanted.since_seq, "since_seq")
        missed = await self._operations.resume(self._conversation_id, self._user_id, since_seq)
        members = await self._operations.store.members(self._conversation_id)
        if all(member.user_id != self._user_id for member in members):
            raise not_a_member()
        self.shown = await self._visibility.is_shown(self._user_id, self._conversation_id)
        self._statuses.show(self)
        self.link.push_presence_state()
        response = {
            "seq": missed.seq,
            "change": missed.change,
            "messages": [wire.message_json(message) for message in missed.messages],
            "has_more": missed.has_more,
            "members": members,
            "role": missed.role,
        }
        return Joined(response, seq=missed.seq)

    def show(self, shown: bool) -> None:
        """Show the user to the others here, or no longer."""
        self.shown = shown
        self._statuses.again(self)

    def handle_now(self, event: str, payload: object) -> object:
        """Send a message or tell of typing without a task, when nothing has to be waited for."""
        if event == "send_message":
            ticket = self._operations.send_now(self._draft(payload))
            return NotImplemented if ticket is None else self._sent(ticket)
        if event == "typing_start":
            self._start_typing()
            return None
        if event == "typing_stop":
            self._stop_typing()
            return None
        return NotImplemented

    async def handle(self, event: str, payload: object) -> object:
        """Handle what has to wait."""
        match event:
            case "send_message":
                return self._sent(await self._operations.send(self._draft(payload)))
            case "mark_read":
                seq = wire.seq_of(wire.parse(payload, wire.Mark).seq, "seq")
                mark = await self._operations.mark_read(self._conversation_id, self._user_id, seq)
                return {"seq": mark.seq, "unread_count": mark.unread_count}
            case "mark_delivered":
                seq = wire.seq_of(wire.parse(payload, wire.Mark).seq, "seq")
                mark = await self._operations.mark_delivered(self._conversation_id, self._user_id, seq)
                return {"seq": mark.seq}
            case "get_history":
                return await self._history(wire.parse(payload, wire.GetHistory))
            case "save_draft":
                return await self._save_draft(wire.parse(payload, wire.SaveDraft))
            case _ if event in _MESSAGE_EVENTS:
                return await self._change_message(event, payload)
            case _:
                return await super().handle(event, payload)

    async def leave(self, reason: LeaveReason) -> None:
        """Stop typing, and showing a status here."""
        del reason
        self._stop_typing()
        self._statuses.hide(self)

    def _draft(self, payload: object) -> Draft:
        return wire.draft_of(wire.parse(payload, wire.SendMessage), self._conversation_id, self._user_id)

    def _sent(self, ticket: Ticket) -> Deferred:
        """Answer the push when the message is on disk."""
        self._stop_typing()
        reply = Deferred()

        def settled(ticket: Ticket) -> None:
            if ticket.error is not None:
                reply.fail(ticket.error)
            else:
                message = ticket.result()
                reply.resolve(wire.Sent(message.id, message.seq, message.sent_at))

        ticket.on_settled(settled)
        return reply

    async def _change_message(self, event: str, payload: object) -> object:
        """Handle what is done to messages that are there."""
        do, here, me = self._operations, self._conversation_id, self._user_id
        match event:
            case "edit_message":
                edit = wire.parse(payload, wire.EditMessage)
                edited = await do.edit(
                    here, parse_id(edit.message_id, "message_id"), me, wire.new_content(edit)
                )
                return {"message_id": edited.id, "seq": edited.seq, "edited_at": edited.edited_at}
            case "delete_message":
                gone = wire.parse(payload, wire.DeleteMessage)
                message_id = parse_id(gone.message_id, "message_id")
                await do.editing.delete(here, message_id, me, for_everyone=gone.for_everyone)
            case "add_reaction" | "remove_reaction":
                react = wire.parse(payload, wire.React)
                act = do.react if event == "add_reaction" else do.reactions.remove
                await act(here, parse_id(react.message_id, "message_id"), me, react.emoji)
            case _:
                pin = wire.parse(payload, wire.PinMessage)
                act_on = do.reactions.pin if event == "pin_message" else do.reactions.unpin
                await act_on(here, parse_id(pin.message_id, "message_id"), me)
        return None

    async def _save_draft(self, wanted: wire.SaveDraft) -> object:
        nothing = wanted.text is None and wanted.content is None
        body = b"" if nothing else wire.body_of(wanted.text, wanted.content)
        reply_to = parse_id(wanted.reply_to_id, "reply_to_id") if wanted.reply_to_id else ""
        personal = self._operations.personal
        draft = await personal.save_draft(self._conversation_id, self._user_id, body, reply_to)
        return {"updated_at": draft.updated_at if draft is not None else None}

    async def _history(self, wanted: wire.GetHistory) -> object:
        if wanted.after_seq is not None:
            wire.seq_of(wanted.after_seq, "after_seq")
        page = await self._operations.store.messages(
            self._conversation_id,
            self._user_id,
            before_seq=wire.seq_of(wanted.before_seq, "before_seq"),
            after_seq=wanted.after_seq,
            size=wanted.limit,
        )
        messages = [wire.message_json(message) for message in page.messages]
        return {"messages": messages, "has_more": page.has_more}

    # Typing

    def _start_typing(self) -> None:
        deadline = trio.current_time() + self._operations.limits.typing_expires_s
        if self._typing is None:
            self._typing = trio.CancelScope(deadline=deadline)
            self.link.start_soon(self._expire_typing, self._typing)
        else:
            self._typing.deadline = deadline
        self._indicate("start")

    def _stop_typing(self) -> None:
        if self._typing is not None:
            typing, self._typing = self._typing, None
            typing.cancel(reason="typing stopped")
            self._indicate("stop")

    async def _expire_typing(self, typing: trio.CancelScope) -> None:
        """Stop for a client that does not say so."""
        with typing:
            await trio.sleep_forever()
        if self._typing is typing:
            self._stop_typing()

    def _indicate(self, action: str) -> None:
        event = self._operations.announcer.typing(self._conversation_id, self._user_id, action)
        self.link.broadcast_from("typing_indicator", event)


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
        await self._visibility.follow(self.link)
        return {}

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
