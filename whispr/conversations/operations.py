"""What people do with conversations, the same for gRPC and for channels: check, change, announce.

`actor_id` is who does it. Sending and joining ask the user service first (remembered for a while); every change
and every read then checks membership again in its own statement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from whispr.conversations import domain
from whispr.conversations.announcer import Announcer
from whispr.conversations.domain import Action, Conversation, Draft, Limits, Member, Role
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.permissions import Permissions
from whispr.conversations.store import Resumption, Store, Watermark
from whispr.conversations.tickets import Ticket
from whispr.errors import invalid

MINUTE_S = 60.0


class Limiter(Protocol):
    """What is needed of `whispr.adapters.cache.RateLimiter`."""

    async def take(self, key: str, limit: int, period_s: float) -> None:
        """Count one. Raises RESOURCE_EXHAUSTED past the limit."""


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
        limits: Limits,
    ) -> None:
        self.log = log
        self.store = store
        self.permissions = permissions
        self.announcer = announcer
        self.limits = limits
        self._membership = membership
        self._limiter = limiter

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
        return self.log.append(draft)

    async def send(self, draft: Draft, *, by_service: bool = False, deadline: float | None = None) -> Ticket:
        """Check a draft, the sender's permission and their rate, and append it. Raises WhisprError."""
        domain.check_draft(draft, self.limits, by_service=by_service)
        await self.permissions.check_send(draft.sender_id, draft.conversation_id, draft.message_type)
        per_min = self.limits.user_messages_per_min
        if per_min and not by_service:
            await self._limiter.take(f"messages:{draft.sender_id}", per_min, MINUTE_S)
        return self.log.append(draft, deadline=deadline)

    async def resume(self, conversation_id: str, actor_id: str, since_seq: int | None) -> Resumption:
        """Admit somebody to the live conversation, with what they missed."""
        await self.permissions.check_access(actor_id, conversation_id, Action.JOIN)
        return await self.store.resume(conversation_id, actor_id, since_seq)

    async def mark_read(self, conversation_id: str, actor_id: str, seq: int) -> Watermark:
        """Move the read watermark and tell the others if it moved."""
        mark = await self.store.mark_read(conversation_id, actor_id, seq)
        if mark.moved:
            self.announcer.read(conversation_id, actor_id, mark)
        return mark

    async def mark_delivered(self, conversation_id: str, actor_id: str, seq: int) -> Watermark:
        """Move the delivered watermark and tell the others if it moved."""
        mark = await self.store.mark_delivered(conversation_id, actor_id, seq)
        if mark.moved:
            self.announcer.delivered(conversation_id, actor_id, mark)
        return mark

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

    async def set_role(self, conversation_id: str, actor_id: str, user_id: str, role: Role) -> Member:
        """Give somebody a role and tell everybody."""
        member, changes = await self._membership.set_role(conversation_id, actor_id, user_id, role)
        for change in changes:
            self.announcer.changed(change)
        return member
