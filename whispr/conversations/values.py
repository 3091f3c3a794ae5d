"""The values of conversations: what there is, and the limits on it. Pure; the rules are in `domain`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator may set; 0 lifts one, but for `resume_len`."""

    message_body_bytes: int = 64 * 1024
    group_members: int = 1000
    user_messages_per_min: int = 100
    conversation_messages_per_min: int = 3000
    """Of all its members together."""
    page_size: int = 50
    page_size_max: int = 100
    typing_expires_s: float = 10.0
    edit_window_s: int = 24 * 3600
    """How long its sender may edit a message."""
    erase_window_s: int = 48 * 3600
    """How long its sender may delete a message for everyone; moderators always may."""
    message_reactions: int = 50
    """Different emoji on one message."""
    conversation_pins: int = 10
    user_scheduled: int = 100
    """Scheduled messages that wait, of one person."""
    schedule_ahead_s: int = 366 * 24 * 3600
    resume_len: int = 1000
    """Messages, and changes, that one join replays; `resync` and a cursor stand for the rest."""


class Kind(enum.StrEnum):
    """What sort of conversation it is."""

    DIRECT = "direct"
    GROUP = "group"
    ROOM = "room"


class Role(enum.StrEnum):
    """What a member may do; each role may all that the ones before it may."""

    MEMBER = "member"
    MODERATOR = "moderator"
    ADMIN = "admin"
    OWNER = "owner"

    @property
    def rank(self) -> int:
        """Where the role stands: 0 for member, 3 for owner."""
        return _RANKS[self]

    def outranks(self, other: Role) -> bool:
        """Tell whether this role stands strictly above `other`."""
        return self.rank > other.rank


_RANKS = {role: rank for rank, role in enumerate(Role)}


class MessageType(enum.StrEnum):
    """What a message is; `system` is for services."""

    TEXT = "text"
    MEDIA = "media"
    SYSTEM = "system"


class Action(enum.StrEnum):
    """What a person may want to do with a conversation as a whole."""

    JOIN = "join"
    LEAVE = "leave"
    READ = "read"
    WRITE = "write"


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is not stored yet. `id` is ours; `client_id` is the sender's own, or empty."""

    id: str
    conversation_id: str
    sender_id: str
    content: bytes
    message_type: str = MessageType.TEXT.value
    metadata: dict[str, str] = {}
    client_id: str = ""
    reply_to_id: str = ""
    signature: bytes = b""
    sender_public_key: bytes = b""
    expire_after_s: int = 0
    """How long it lives; 0 leaves that to the conversation. A stored message has `expires_at` instead."""


class NewContent(msgspec.Struct, frozen=True):
    """What a message says from now on; an empty `metadata` leaves the old one."""

    content: bytes
    metadata: Mapping[str, str]
    signature: bytes = b""
    sender_public_key: bytes = b""


class Reaction(msgspec.Struct, frozen=True):
    """One emoji on a message, and whose it is, the first ones first."""

    emoji: str
    user_ids: tuple[str, ...]
    """At most `REACTION_USERS_MAX` of them."""
    count: int


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A medium linked to a message; `pending` until the media service has confirmed it."""

    link_id: str
    media_id: str
    media_type: str
    metadata: dict[str, str]
    state: str


class Message(Draft, frozen=True, kw_only=True):
    """A stored message: `seq` counts 1, 2, 3, … without gaps in its conversation.

    An erased message keeps its place: `deleted_at` is set, and what it said is gone.
    """

    seq: int
    sent_at: datetime
    kind: Kind
    """Of its conversation."""
    edited_at: datetime | None = None
    deleted_at: datetime | None = None
    expires_at: datetime | None = None
    reactions: tuple[Reaction, ...] = ()
    attachments: tuple[Attachment, ...] = ()


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A person in a conversation, with the name that others see."""

    user_id: str
    username: str
    display_name: str
    role: Role
    joined_at: datetime
    delivered_seq: int
    read_seq: int


class DraftText(msgspec.Struct, frozen=True):
    """What a member is writing in a conversation and has not sent."""

    content: bytes
    reply_to_id: str
    updated_at: datetime


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as one of its members sees it.

    Of the viewer are `unread_count`, `peer`, `archived`, `muted_until` (of notifications) and `draft`.
    """

    id: str
    kind: Kind
    name: str
    created_by: str
    created_at: datetime
    last_seq: int
    member_count: int
    settings: dict[str, str]
    unread_count: int = 0
    last_message: Message | None = None
    peer: Member | None = None
    members: tuple[Member, ...] = ()
    last_change: int = 0
    archived: bool = False
    muted_until: datetime | None = None
    is_active: bool = True
    draft: DraftText | None = None


class MessagePage(msgspec.Struct, frozen=True):
    """Messages in ascending `seq`, and whether there are more in the direction asked for."""

    messages: list[Message]
    has_more: bool
