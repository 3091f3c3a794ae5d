"""The channels `conversation:<id>` and `room:<id>`: pushes in, replies and events out.

In: send_message, edit_message, delete_message, add_reaction, remove_reaction, pin_message, unpin_message, mark_read,
mark_delivered, typing_start, typing_stop, get_history, get_members, save_draft. Out: new_message, typing_indicator,
read_receipt, delivery_status, presence_state, presence_diff; and, with their number as `change`: message_edited,
message_deleted, reaction_added, reaction_removed, message_pinned, message_unpinned, media_linked, media_unlinked,
member_added, member_removed, settings_changed, and those of rooms. Before the server closes the channel:
user_kicked, user_banned, room_closed.

**Resuming.** A join with `since_seq`, the last seq the client has, and `since_change`, the last change, is told all
that a client that stayed connected would have been told, in its final state, and goes live from there:

    {"seq", "change",           the place from which live events go on
     "messages",                after since_seq, as they are now
     "changes",                 after since_change, each as its event with its name as `event`
     "changed_messages",        up to since_seq, to which those happened, as they are now
     "receipts",                watermarks that have moved, at least those
     "hidden_seqs",             messages that the member has deleted for themselves, at least those since
     "resync", "cursor",        true when there was more: `get_history {cursor}` answers with the same fields
     "kind", "role", "members", "member_count"}    who is there: the first 100, `get_members` has the rest

A client takes the messages, then the changes in their order. Either number may be a JSON number or a string.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import trio

from whispr.conversations import wire
from whispr.conversations.domain import Draft, Kind, not_a_member
from whispr.conversations.operations import Operations
from whispr.conversations.statuses import Statuses
from whispr.conversations.store import Watermark
from whispr.conversations.tails import Missed
from whispr.conversations.tickets import Ticket
from whispr.conversations.visibility import Visibility
from whispr.errors import WhisprError, not_found
from whispr.ids import is_id, parse_id
from whispr.realtime.channel import Channel, Deferred, Joined, LeaveReason
from whispr.realtime.link import Link

_MESSAGE_EVENTS = frozenset(
    {"edit_message", "delete_message", "add_reaction", "remove_reaction", "pin_message", "unpin_message"}
)


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
        self._told = False
        """Whether anybody has said yet if the user is to be shown."""
        self._typing: trio.CancelScope | None = None
        """While the user types: the scope whose deadline ends it."""

    async def join(self, payload: object) -> object:
        """Admit a member; replay what they missed, then go live."""
        if not is_id(self._conversation_id):
            raise not_found("conversation", self._conversation_id)
        if not is_id(self._user_id):
            raise not_a_member()  # a service
        wanted = wire.parse(payload, wire.Join)
        seq = wire.since(wanted.since_seq, "since_seq")
        change = wire.since(wanted.since_change, "since_change")
        missed = await self._operations.resuming.join(self.link.topic, self._user_id, seq, change)
        self.link.start_soon(self._appear, missed.kind)
        return Joined(_reply(missed), seq=missed.seq, change=missed.change)

    async def _appear(self, kind: Kind) -> None:
        """Become visible to the others, as far as that may be, and see them."""
        self._statuses.show_conversation(self)  # first, so that it hears what changes while it is asked
        if kind is Kind.DIRECT:
            shown = await self._visibility.is_shown(self._user_id, self._conversation_id)
        else:
            shown = await self._visibility.is_shown_to_all(self._user_id)
        if not self._told:
            self.show(shown)
        self.link.push_presence_state()

    def show(self, shown: bool) -> None:
        """Show the user to the others here, or no longer."""
        self._told = True
        self.shown = shown
        self._statuses.again(self)

    def handle_now(self, event: str, payload: object) -> object:
        """Send a message or tell of typing without a task, when nothing has to be waited for."""
        if event == "send_message":
            ticket = self._operations.send_now(self._draft(payload))
            return NotImplemented if ticket is None else self._sent(ticket)
        if event == "mark_delivered":
            return self._delivered(wire.seq_of(wire.parse(payload, wire.Mark).seq, "seq"))
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
            case "get_history":
                return await self._history(wire.parse(payload, wire.GetHistory))
            case "get_members":
                return await self._members(wire.parse(payload, wire.GetMembers))
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

    def _delivered(self, seq: int) -> Deferred:
        """Answer the push when the watermark is on disk."""
        reply = Deferred()

        def done(outcome: Watermark | WhisprError) -> None:
            if isinstance(outcome, WhisprError):
                reply.fail(outcome)
            else:
                reply.resolve({"seq": outcome.seq})

        self._operations.deliveries.mark(self._conversation_id, self._user_id, seq, done)
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

    async def _members(self, wanted: wire.GetMembers) -> object:
        members, next_token = await self._operations.store.members_page(
            self._conversation_id, self._user_id, wanted.page_size, wanted.page_token
        )
        return {"members": members, "next_page_token": next_token}

    async def _history(self, wanted: wire.GetHistory) -> object:
        if wanted.cursor:
            resuming = self._operations.resuming
            return _reply(await resuming.page(self.link.topic, self._user_id, wanted.cursor))
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


def _reply(missed: Missed) -> dict[str, object]:
    """Build the reply to a join, or a page of what it did not hold."""
    reply = {**msgspec.structs.asdict(missed), "has_more": missed.resync}
    if not missed.stale:
        del reply["stale"]
    return reply
