"""What people do with conversations, the same for gRPC and for channels: check, change, announce.

`actor_id` is who does it. Sending and joining ask the user service first (remembered for a while); every change
and every read then checks membership again in its own statement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Protocol

import trio

from whispr.conversations import domain
from whispr.conversations.announcer import Announcer
from whispr.conversations.database import Database
from whispr.conversations.deliveries import Deliveries
from whispr.conversations.domain import (
    Conversation,
    Draft,
    Limits,
    Member,
    Message,
    MessageType,
    NewContent,
    Role,
)
from whispr.conversations.editing import Editing
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.permissions import Permissions
from whispr.conversations.personal import Personal
from whispr.conversations.reactions import Reactions
from whispr.conversations.resuming import Resuming
from whispr.conversations.schedule import Schedule, Scheduled
from whispr.conversations.search import Search
from whispr.conversations.store import Store, Watermark
from whispr.conversations.sync import Sync
from whispr.conversations.tickets import Ticket
from whispr.errors import WhisprError, invalid

MINUTE_S = 60.0
MARK_ALL_MAX = 100
"""Conversations named in one `mark_all_read`."""


class Limiter(Protocol):
    """What is needed of `whispr.adapters.rate_limit.RateLimiter`, which says more."""

    async def take(self, key: str, limit: int, period_s: float) -> None:
        """Count one. Raises RESOURCE_EXHAUSTED past the limit."""

    def on_account(self, key: str, limit: int, period_s: float) -> bool:
        """Count one here if that will do; else `settle`. Raises as `take`."""

    async def settle(self, key: str, limit: int, period_s: float) -> None:
        """Count one, and charge what is on account. Raises as `take`."""


class Operations:
    """The operations of one process."""

    def __init__(
        self,
        *,
        log: MessageLog,
        store: Store,
        membership: Membership,
        permissions: Permissions,
        limiter: Limiter,
        announcer: Announcer,
        resuming: Resuming,
        limits: Limits,
        db: Database,
        language: str,
    ) -> None:
        self.log = log
        self.store = store
        self.permissions = permissions
        self.announcer = announcer
        self.resuming = resuming
        self.limits = limits
        self._membership = membership
        self._limiter = limiter
        self.deliveries = Deliveries(db, announcer)
        self.editing = Editing(db, announcer, limits)
        self.reactions = Reactions(db, announcer, limits)
        self.personal = Personal(db, announcer, limits)
        self.schedule = Schedule(db, announcer, self.send_scheduled, limits)
        self.search = Search(db, limits, language)
        self.sync = Sync(db, limits)

    # Messages

    def send_now(self, draft: Draft) -> Ticket | None:
        """Append without waiting for anything, or return None when something must be asked first.

        Raises what `send` raises.
        """
        if self.limits.user_messages_per_min:
            return None
        if not self.permissions.may_send_now(draft.sender_id, draft.conversation_id, draft.message_type):
            return None
        domain.check_draft(draft, self.limits)
        if not self._on_account(draft.conversation_id):
            return None
        return self.log.append(draft)

    def _on_account(self, conversation_id: str) -> bool:
        """Count a message against its conversation, if nobody must be asked for that."""
        per_min = self.limits.conversation_messages_per_min
        return self._limiter.on_account(f"conversation:{conversation_id}", per_min, MINUTE_S)

    async def send(self, draft: Draft, *, by_service: bool = False, deadline: float | None = None) -> Ticket:
        """Check a draft, the sender's permission and their rate, and append it. Raises WhisprError."""
        domain.check_draft(draft, self.limits, by_service=by_service)
        await self.permissions.check_send(draft.sender_id, draft.conversation_id, draft.message_type)
        per_min = self.limits.user_messages_per_min
        if per_min and not by_service:
            await self._limiter.take(f"messages:{draft.sender_id}", per_min, MINUTE_S)
        if not by_service and not self._on_account(draft.conversation_id):
            per_min = self.limits.conversation_messages_per_min
            await self._limiter.settle(f"conversation:{draft.conversation_id}", per_min, MINUTE_S)
        return self.log.append(draft, deadline=deadline)

    async def mark_read(self, conversation_id: str, actor_id: str, seq: int) -> Watermark:
        """Move the read watermark and tell the others if it moved."""
        mark = await self.store.mark_read(conversation_id, actor_id, seq)
        if mark.moved:
            self.announcer.read(conversation_id, actor_id, mark)
        return mark

    async def mark_delivered(self, conversation_id: str, actor_id: str, seq: int) -> Watermark:
        """Move the delivered watermark and tell the others if it moved."""
        settled = trio.Event()
        outcomes: list[Watermark | WhisprError] = []

        def done(outcome: Watermark | WhisprError) -> None:
            outcomes.append(outcome)
            settled.set()

        self.deliveries.mark(conversation_id, actor_id, seq, done)
        await settled.wait()
        if isinstance(outcomes[0], WhisprError):
            raise outcomes[0]
        return outcomes[0]

    async def mark_all_read(self, actor_id: str, conversation_ids: Collection[str]) -> int:
        """Read these conversations, or all, to their ends; return how many had something unread."""
        if len(conversation_ids) > MARK_ALL_MAX:
            raise invalid({"conversation_ids": f"at most {MARK_ALL_MAX}"})
        unread = await self.store.unread(actor_id, tuple(conversation_ids))
        for conversation_id in unread:
            await self.mark_read(conversation_id, actor_id, 0)
        return len(unread)

    async def check_change(self, actor_id: str, conversation_id: str) -> None:
        """Check that a person may change what was said: permission as for sending, and their rate."""
        await self.permissions.check_send(actor_id, conversation_id, MessageType.TEXT.value)
        if per_min := self.limits.user_messages_per_min:
            await self._limiter.take(f"changes:{actor_id}", per_min, MINUTE_S)

    async def edit(self, conversation_id: str, message_id: str, actor_id: str, new: NewContent) -> Message:
        """Replace what the actor's own message says. Raises as `Editing.edit`, and as `check_change`."""
        await self.check_change(actor_id, conversation_id)
        return await self.editing.edit(conversation_id, message_id, actor_id, new)

    async def react(self, conversation_id: str, message_id: str, actor_id: str, emoji: str) -> None:
        """Add the actor's reaction. Raises as `Reactions.add`, and as `check_change`."""
        await self.check_change(actor_id, conversation_id)
        await self.reactions.add(conversation_id, message_id, actor_id, emoji)

    async def schedule_message(self, draft: Draft, send_at: datetime) -> Scheduled:
        """Keep a message to be sent later, if it could be sent now. Raises as `send`, and as `Schedule.keep`."""
        domain.check_draft(draft, self.limits)
        await self.permissions.check_send(draft.sender_id, draft.conversation_id, draft.message_type)
        return await self.schedule.keep(draft, send_at)

    async def send_scheduled(self, draft: Draft) -> Message:
        """Send a message that has waited."""
        return await (await self.send(draft)).wait()

    # Conversations

    async def open_direct(self, actor_id: str, other_id: str) -> tuple[Conversation, bool]:
        """Return the one direct conversation with somebody, and whether it is new."""
        found = await self._membership.find_direct(actor_id, other_id)
        created = False
        if found is None:
            if actor_id == other_id:
                raise invalid({"member_ids": "a direct conversation is with another person"})
            await self.permissions.check_contact(actor_id, other_id)
            found, created = await self._membership.open_direct(actor_id, other_id)
        if created:
            self.permissions.forget(found)
            theirs = await self.store.conversation(found, other_id, members=False)
            self.announcer.invited(theirs, [other_id], actor_id)
        return await self.store.conversation(found, actor_id), created

    async def open_group(
        self,
        actor_id: str,
        others: Collection[str],
        name: str,
        settings: Mapping[str, str],
        *,
        group_id: str = "",
    ) -> Conversation:
        """Make a group and tell those in it; with `group_id`, that one, and once only."""
        made = await self._membership.open_group(actor_id, others, name, settings, group_id=group_id)
        conversation = await self.store.conversation(made, actor_id)
        invited = [member.user_id for member in conversation.members if member.user_id != actor_id]
        self.announcer.invited(conversation, invited, actor_id)
        return conversation

    async def update(
        self, conversation_id: str, actor_id: str, name: str, settings: Mapping[str, str]
    ) -> Conversation:
        """Rename a group or merge settings, and tell its members."""
        change = await self._membership.update(conversation_id, actor_id, name, settings)
        conversation = await self.store.conversation(conversation_id, actor_id)
        if change is not None:
            self.announcer.updated(change, [member.user_id for member in conversation.members])
        return conversation

    async def add(
        self, conversation_id: str, actor_id: str, user_ids: Collection[str], role: Role
    ) -> tuple[Member, ...]:
        """Add people and tell everybody. Returns those asked for."""
        added = await self._membership.add(conversation_id, actor_id, user_ids, role)
        if added.new_ids:
            conversation = await self.store.conversation(conversation_id, actor_id, members=False)
            new = [member for member in added.members if member.user_id in added.new_ids]
            self.announcer.added(conversation, new, added.changes, actor_id)
        return added.members

    async def remove(self, conversation_id: str, actor_id: str, user_id: str) -> None:
        """Remove somebody, or leave, and tell everybody."""
        removed = await self._membership.remove(conversation_id, actor_id, user_id)
        self.announcer.removed(removed.changes)

    async def notified(
        self, conversation_id: str, event_type: str, user_id: str, metadata: Mapping[str, str], at: datetime
    ) -> str:
        """Make true what another service tells of a conversation, and tell everybody.

        Returns the event's id; an empty one when it was so already. Raises as `Membership.notified`.
        """
        change, members = await self._membership.notified(conversation_id, event_type, user_id, metadata, at)
        if not change:
            return ""
        if event_type == "member_added":
            theirs = await self.store.conversation(conversation_id, user_id, members=False)
            self.announcer.added(theirs, members, change, "")
        elif event_type == "member_removed":
            self.announcer.removed(change)
        else:
            self.announcer.updated(change[0], await self.store.member_ids(conversation_id))
        return change[0].event_id

    async def set_role(self, conversation_id: str, actor_id: str, user_id: str, role: Role) -> Member:
        """Give somebody a role and tell everybody."""
        member, changes = await self._membership.set_role(conversation_id, actor_id, user_id, role)
        for change in changes:
            self.announcer.changed(change)
        return member
