"""The JSON of channels: what clients push, and how messages and conversations look there.

The body of a message is `text` when it is valid UTF-8, else `content` in base64. Times are RFC 3339. Fields
that would be empty are left out, `metadata` excepted. A message is encoded once for all who get it, so its
`client_id` is visible to every member; the sender's own devices match it with what they show as unsent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from whispr.conversations.domain import (
    Attachment,
    Conversation,
    Draft,
    DraftText,
    Member,
    Message,
    MessageType,
    NewContent,
    Reaction,
)
from whispr.errors import invalid
from whispr.ids import new_id, parse_id

PushT = TypeVar("PushT")


# What clients push


class Join(msgspec.Struct):
    """Joining `conversation:<id>`: with `since_seq` and `since_change`, what came after them is replayed."""

    since_seq: int | str | None = None
    since_change: int | str | None = None


class SendMessage(msgspec.Struct):
    """`send_message`: either `text` or `content`, the rest as in the proto."""

    text: str | None = None
    content: bytes | None = None
    message_type: str | None = None
    client_id: str | None = None
    reply_to_id: str | None = None
    metadata: dict[str, str] | None = None
    signature: bytes | None = None
    sender_public_key: bytes | None = None
    expire_after_s: int = 0


class EditMessage(msgspec.Struct):
    """`edit_message`: the new body as `text` or `content`; an absent `metadata` leaves the old one."""

    message_id: str
    text: str | None = None
    content: bytes | None = None
    metadata: dict[str, str] | None = None
    signature: bytes | None = None
    sender_public_key: bytes | None = None


class DeleteMessage(msgspec.Struct):
    """`delete_message`: for the sender of the push alone unless it says for everyone."""

    message_id: str
    for_everyone: bool = False


class React(msgspec.Struct):
    """`add_reaction` and `remove_reaction`."""

    message_id: str
    emoji: str


class PinMessage(msgspec.Struct):
    """`pin_message` and `unpin_message`."""

    message_id: str


class SaveDraft(msgspec.Struct):
    """`save_draft`: without a body the draft is dropped."""

    text: str | None = None
    content: bytes | None = None
    reply_to_id: str = ""


class MarkAllRead(msgspec.Struct):
    """`mark_all_read` of `user:<id>`: these conversations, or all."""

    conversation_ids: list[str] = []


class Sync(msgspec.Struct):
    """`sync` of `user:<id>`: since the cursor of an earlier answer."""

    since: str = ""
    page_size: int = 0


class Mark(msgspec.Struct):
    """`mark_read` and `mark_delivered`: the watermark; 0 reads everything."""

    seq: int = 0


class GetHistory(msgspec.Struct):
    """`get_history`: a page before or after a seq, or the latest."""

    before_seq: int = 0
    after_seq: int | None = None
    limit: int = 0
    cursor: str = ""
    """Of a join that says `resync`, or of the page before: what was missed after it, instead of a page."""


class GetMembers(msgspec.Struct):
    """`get_members`: a page of those present, in the order they came."""

    page_token: str = ""
    page_size: int = 0


class UpdateStatus(msgspec.Struct):
    """`update_status` of `user:<id>`."""

    status: str


class GetConversations(msgspec.Struct):
    """`get_conversations` of `user:<id>`."""

    page_size: int = 0
    page_token: str = ""
    archived: bool = False


_FIELD = re.compile(r" - at `\$\.([^`\[.]+)")


def parse(payload: object, kind: type[PushT]) -> PushT:
    """Read a push's payload. Raises INVALID_ARGUMENT naming the field."""
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as error:
        what = str(error)
        found = _FIELD.search(what)
        missing = re.search(r"missing required field `(\w+)`", what)
        field = found[1] if found else missing[1] if missing else "payload"
        raise invalid({field: what.partition(" - at ")[0]}) from None


def seq_of(value: int, field: str) -> int:
    """Refuse a negative or huge seq. Raises INVALID_ARGUMENT."""
    if not 0 <= value < 2**32:
        raise invalid({field: "must be a uint32"})
    return value


def since(value: int | str | None, field: str) -> int | None:
    """Read a number that a client may keep as a string. Raises INVALID_ARGUMENT."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) < 20):
            raise invalid({field: "must be a uint32"})
        value = int(value)
    return None if value is None else seq_of(value, field)


def draft_of(push: SendMessage, conversation_id: str, sender_id: str) -> Draft:
    """Turn a push into a draft. Raises INVALID_ARGUMENT when it has no body or two."""
    content = body_of(push.text, push.content)
    return Draft(
        id=new_id(),
        conversation_id=conversation_id,
        sender_id=sender_id,
        content=content,
        message_type=push.message_type or MessageType.TEXT.value,
        metadata=push.metadata or {},
        client_id=push.client_id or "",
        reply_to_id=parse_id(push.reply_to_id, "reply_to_id") if push.reply_to_id else "",
        signature=push.signature or b"",
        sender_public_key=push.sender_public_key or b"",
        expire_after_s=push.expire_after_s,
    )


def new_content(push: EditMessage) -> NewContent:
    """Turn a push into what a message says from now on. Raises INVALID_ARGUMENT when it has no body or two."""
    return NewContent(
        body_of(push.text, push.content),
        push.metadata or {},
        push.signature or b"",
        push.sender_public_key or b"",
    )


def body_of(text: str | None, content: bytes | None) -> bytes:
    """Return the one body given. Raises INVALID_ARGUMENT when there is none or two."""
    if (text is None) == (content is None):
        raise invalid({"text": "give the message's body as `text`, or as `content` in base64"})
    try:
        return text.encode() if text is not None else content or b""
    except UnicodeEncodeError:
        raise invalid({"text": "holds a lone surrogate"}) from None


# What clients get


class MessageJson(msgspec.Struct, omit_defaults=True, frozen=True, gc=False):
    """A message as channels carry it, as long as nothing has happened to it: most of them, so this is lean."""

    id: str
    conversation_id: str
    seq: int
    sender_id: str
    message_type: str
    metadata: dict[str, str]
    sent_at: datetime
    text: str | None = None
    content: bytes | None = None
    client_id: str = ""
    reply_to_id: str = ""
    signature: bytes = b""
    sender_public_key: bytes = b""


class ChangedMessageJson(MessageJson, omit_defaults=True, frozen=True):
    """A message to which something has happened, or will."""

    edited_at: datetime | None = None
    deleted_at: datetime | None = None
    expires_at: datetime | None = None
    reactions: Sequence[Reaction] = ()
    attachments: Sequence[Attachment] = ()


class DraftJson(msgspec.Struct, omit_defaults=True, frozen=True):
    """A member's draft as channels carry it."""

    updated_at: datetime
    text: str | None = None
    content: bytes | None = None
    reply_to_id: str = ""


class ConversationJson(msgspec.Struct, omit_defaults=True, frozen=True):
    """A conversation as channels carry it."""

    id: str
    kind: str
    name: str
    created_by: str
    created_at: datetime
    last_seq: int
    member_count: int
    unread_count: int
    settings: dict[str, str]
    last_message: MessageJson | None = None
    peer: Member | None = None
    members: Sequence[Member] = ()
    last_change: int = 0
    archived: bool = False
    muted_until: datetime | None = None
    is_active: bool = True
    draft: DraftJson | None = None


class Sent(msgspec.Struct, frozen=True):
    """The reply to `send_message`: it is on disk."""

    message_id: str
    seq: int
    sent_at: datetime


def message_json(message: Message) -> MessageJson:
    """Build the JSON of a message."""
    text, content = (None, None) if message.deleted_at else text_or_content(message.content)
    plain = MessageJson(
        message.id,
        message.conversation_id,
        message.seq,
        message.sender_id,
        message.message_type,
        message.metadata,
        message.sent_at,
        text,
        content,
        message.client_id,
        message.reply_to_id,
        message.signature,
        message.sender_public_key,
    )
    if not (
        message.edited_at
        or message.deleted_at
        or message.expires_at
        or message.reactions
        or message.attachments
    ):
        return plain
    return ChangedMessageJson(
        **msgspec.structs.asdict(plain),
        edited_at=message.edited_at,
        deleted_at=message.deleted_at,
        expires_at=message.expires_at,
        reactions=message.reactions,
        attachments=message.attachments,
    )


def text_or_content(body: bytes) -> tuple[str | None, bytes | None]:
    """Return a body as the one of `text` and `content` that carries it."""
    try:
        return body.decode(), None
    except UnicodeDecodeError:
        return None, body


def draft_json(draft: DraftText) -> DraftJson:
    """Build the JSON of a draft."""
    text, content = text_or_content(draft.content)
    return DraftJson(draft.updated_at, text, content, draft.reply_to_id)


def conversation_json(conversation: Conversation) -> ConversationJson:
    """Build the JSON of a conversation."""
    last = conversation.last_message
    return ConversationJson(
        id=conversation.id,
        kind=conversation.kind.value,
        name=conversation.name,
        created_by=conversation.created_by,
        created_at=conversation.created_at,
        last_seq=conversation.last_seq,
        member_count=conversation.member_count,
        unread_count=conversation.unread_count,
        settings=conversation.settings,
        last_message=message_json(last) if last is not None else None,
        peer=conversation.peer,
        members=conversation.members,
        last_change=conversation.last_change,
        archived=conversation.archived,
        muted_until=conversation.muted_until,
        is_active=conversation.is_active,
        draft=draft_json(conversation.draft) if conversation.draft is not None else None,
    )


_encode = msgspec.json.Encoder().encode


def encoded(message: Message) -> msgspec.Raw:
    """Encode a message once, for every frame that will carry it."""
    return msgspec.Raw(_encode(message_json(message)))
