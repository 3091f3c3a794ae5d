"""What people are told, in the form of inbox entries and pushes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from whispr.conversations.domain import Kind
from whispr.ids import new_id
from whispr.services.notification.bursts import Burst, NewMessage
from whispr.services.notification.domain import Priority, Why, words_for
from whispr.services.notification.inbox import Entry
from whispr.services.notification.senders.port import Push, fitted
from whispr.services.notification.wishes import Standing

MESSAGE, MENTION, CLEAR = "message", "mention", "clear"
COLLAPSE_CHARS_MAX = 64
"""What FCM and APNs take."""


class Telling(msgspec.Struct, frozen=True, kw_only=True):
    """What a service wants people to be told."""

    type: str
    conversation_id: str
    kind: Kind | None = None
    actor_id: str
    recipient_ids: Sequence[str] = ()
    """Empty for all members."""
    title: str = ""
    body: str = ""
    data: Mapping[str, str] = {}
    priority: Priority = Priority.NORMAL
    silent: bool = False
    id: str = ""
    """Of the event it comes from: then it is told once, under that id."""
    message_id: str = ""
    """Set for a message: then it is told once, to members who do not read along."""
    preview: str = ""
    mentions: Collection[str] = ()


class Recipient(msgspec.Struct, frozen=True):
    """Somebody whose inbox gets an entry, and whose devices are pushed unless `why` says why not."""

    user_id: str
    standing: Standing
    why: Why | None
    messages: Sequence[NewMessage] = ()

    @property
    def mentioned(self) -> bool:
        """Whether one of the messages mentions them."""
        return any(self.user_id in message.mentions for message in self.messages)


def event_of(entry: Entry, unread: int) -> dict[str, object]:
    """Build the `notification` event of a new or changed entry."""
    return {
        "id": entry.id,
        "type": entry.type,
        "conversation_id": entry.conversation_id,
        "actor_id": entry.actor_id,
        "title": entry.title,
        "body": entry.body,
        "data": entry.data,
        "priority": entry.priority.name,
        "count": entry.count,
        "created_at": entry.at,
        "unread_count": unread,
    }


def priority_of(kind: Kind, mentioned: bool) -> Priority:
    """Say how much a message matters to somebody."""
    return Priority.HIGH if mentioned or kind is Kind.DIRECT else Priority.NORMAL


def collapse_key_of(entry: Entry) -> str:
    """Of the messages of a conversation one notification is on a screen, and one of each event in it."""
    if not entry.conversation_id:
        return f"notification:{entry.id}"
    if entry.type in (MESSAGE, MENTION):
        return f"conversation:{entry.conversation_id}"
    return f"{entry.conversation_id}:{entry.type}"[:COLLAPSE_CHARS_MAX]


def burst_entry(
    recipient: Recipient,
    burst: Burst,
    before: tuple[str, int, str] | None,
    names: Mapping[str, str],
    group: str,
    at: datetime,
) -> Entry:
    """Build what a recipient is told of a burst: a new entry, or what becomes of the one they had."""
    last = recipient.messages[-1]
    entry_id, count, kind = before or (new_id(), 0, MESSAGE)
    count += len(recipient.messages)
    senders = dict.fromkeys(message.sender_id for message in reversed(recipient.messages))
    preview = last.preview if recipient.standing.own.previews else None
    who = [names.get(sender, "Somebody") for sender in senders]
    title, body = words_for(count, who, preview, group)
    mentioned = recipient.mentioned or kind == MENTION
    return Entry(
        user_id=recipient.user_id,
        id=entry_id,
        type=MENTION if mentioned else MESSAGE,
        conversation_id=burst.conversation_id,
        actor_id=last.sender_id,
        message_id=last.message_id,
        seq=last.seq,
        title=title,
        body=body,
        data={"message_id": last.message_id, "seq": str(last.seq), "conversation_kind": burst.kind.value},
        priority=priority_of(burst.kind, mentioned),
        count=count,
        at=at,
    )


def told_entry(
    telling: Telling,
    notification_id: str,
    user_id: str,
    standing: Standing,
    names: Mapping[str, str],
    at: datetime,
) -> Entry:
    """Build what a recipient is told by a service."""
    title, body = telling.title, telling.body
    if telling.message_id:
        preview = telling.preview if standing.own.previews else None
        title, body = words_for(1, [names.get(telling.actor_id, "Somebody")], preview or None, "")
    own = {"message_id": telling.message_id} if telling.message_id else {}
    return Entry(
        user_id=user_id,
        id=notification_id,
        type=telling.type,
        conversation_id=telling.conversation_id,
        actor_id=telling.actor_id,
        message_id=telling.message_id,
        title=title,
        body=body,
        data={**telling.data, **own},
        priority=telling.priority,
        at=at,
    )


def push_of(entry: Entry, badge: int, *, silent: bool) -> Push:
    """Build what devices are told of an entry."""
    own = {
        "conversation_id": entry.conversation_id,
        "actor_id": entry.actor_id,
        "count": str(entry.count),
    }
    push = Push(
        type=entry.type,
        notification_id=entry.id,
        title=entry.title,
        body=entry.body,
        data={**entry.data, **{name: value for name, value in own.items() if value}},
        collapse_key=collapse_key_of(entry),
        priority=entry.priority,
        silent=silent,
        badge=badge,
    )
    return fitted(push)
