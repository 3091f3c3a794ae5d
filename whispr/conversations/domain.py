"""The rules of conversations: who may do what, and what is well-formed. Pure: no clock, no I/O.

Reading: every present member reads the whole history, also what was said before they came; unread counts
start where they joined. Receipts: `read_seq` and `delivered_seq` are watermarks that only move forward.
Unread is exactly the number of messages by others after the read watermark; sending does not read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from whispr.conversations.values import (
    Action,
    Attachment,
    Conversation,
    Draft,
    DraftText,
    Kind,
    Limits,
    Member,
    Message,
    MessagePage,
    MessageType,
    NewContent,
    Reaction,
    Role,
)
from whispr.errors import WhisprError, conflict, denied, invalid

__all__ = [
    "CLIENT_ID_CHARS_MAX",
    "KEY_CHARS_MAX",
    "MESSAGE_TTL",
    "MESSAGE_TTL_S_MAX",
    "METADATA_BYTES_MAX",
    "METADATA_KEYS_MAX",
    "NAME_CHARS_MAX",
    "PUBLIC_KEY_BYTES_MAX",
    "REACTION_USERS_MAX",
    "SEQ_MAX",
    "SETTINGS_BYTES_MAX",
    "SETTINGS_KEYS_MAX",
    "SIGNATURE_BYTES_MAX",
    "Action",
    "Attachment",
    "Conversation",
    "Draft",
    "DraftText",
    "Kind",
    "Limits",
    "Member",
    "Message",
    "MessagePage",
    "MessageType",
    "NewContent",
    "Reaction",
    "Role",
    "allowed_actions",
    "check_content",
    "check_draft",
    "check_may_add",
    "check_may_remove",
    "check_may_set_role",
    "check_may_update",
    "check_member_limit",
    "check_name",
    "check_settings",
    "clamp_page",
    "direct_key",
    "inactive",
    "map_problem",
    "may_send",
    "merged_settings",
    "message_ttl_s",
    "muted",
    "not_a_member",
    "role_named",
    "same_message",
    "successor",
]

METADATA_KEYS_MAX = 32
METADATA_BYTES_MAX = 8 * 1024
SETTINGS_KEYS_MAX = 32
SETTINGS_BYTES_MAX = 8 * 1024
KEY_CHARS_MAX = 64
NAME_CHARS_MAX = 100
CLIENT_ID_CHARS_MAX = 128
SIGNATURE_BYTES_MAX = 1024
PUBLIC_KEY_BYTES_MAX = 1024
SEQ_MAX = 2**32 - 1
"""`seq` is a uint32 in the API."""
MESSAGE_TTL = "message_ttl_s"
"""The setting that says how many seconds the messages of a conversation live; absent or 0 is for ever."""
MESSAGE_TTL_S_MAX = 366 * 24 * 3600
REACTION_USERS_MAX = 50
"""People named in each reaction of a message; `count` counts them all."""


# Messages


def check_draft(draft: Draft, limits: Limits, *, by_service: bool = False) -> None:
    """Refuse a draft that is not well-formed. Raises INVALID_ARGUMENT (message_too_large for the body)."""
    check_content(draft.content, draft.message_type, limits)
    wrong: dict[str, str] = {}
    if draft.message_type not in _MESSAGE_TYPES:
        wrong["message_type"] = f"must be one of {', '.join(MessageType)}"
    elif draft.message_type == MessageType.SYSTEM and not by_service:
        raise denied("only services send system messages")
    if draft.client_id and (why := _client_id_problem(draft.client_id)):
        wrong["client_id"] = why
    if draft.metadata and (why := map_problem(draft.metadata, METADATA_KEYS_MAX, METADATA_BYTES_MAX)):
        wrong["metadata"] = why
    if len(draft.signature) > SIGNATURE_BYTES_MAX:
        wrong["signature"] = f"at most {SIGNATURE_BYTES_MAX} bytes"
    if len(draft.sender_public_key) > PUBLIC_KEY_BYTES_MAX:
        wrong["sender_public_key"] = f"at most {PUBLIC_KEY_BYTES_MAX} bytes"
    if not 0 <= draft.expire_after_s <= MESSAGE_TTL_S_MAX:
        wrong["expire_after_s"] = f"0 to {MESSAGE_TTL_S_MAX}"
    if wrong:
        raise invalid(wrong)


_MESSAGE_TYPES = frozenset(kind.value for kind in MessageType)


def check_content(content: bytes, message_type: str, limits: Limits) -> None:
    """Refuse a body over the limit, and an empty one of a text message."""
    if limits.message_body_bytes and len(content) > limits.message_body_bytes:
        why = f"{len(content)} bytes, at most {limits.message_body_bytes}"
        raise invalid({"content": why}, reason="message_too_large")
    if not content and message_type == MessageType.TEXT:
        raise invalid({"content": "must not be empty in a text message"})


def same_message(draft: Draft, stored: Draft) -> bool:
    """Tell whether a repeated `client_id` repeats the message too, or is a slip of the sender.

    What was edited or erased since is no longer what was sent; then the conversation alone decides.
    """
    if isinstance(stored, Message) and (stored.edited_at or stored.deleted_at):
        return draft.conversation_id == stored.conversation_id
    return (
        draft.content == stored.content
        and draft.conversation_id == stored.conversation_id
        and draft.message_type == stored.message_type
        and draft.reply_to_id == stored.reply_to_id
        and draft.metadata == stored.metadata
        and draft.signature == stored.signature
        and draft.sender_public_key == stored.sender_public_key
    )


def _client_id_problem(client_id: str) -> str:
    if len(client_id) > CLIENT_ID_CHARS_MAX:
        return f"at most {CLIENT_ID_CHARS_MAX} characters"
    return "" if client_id.isprintable() else "printable characters only"


def map_problem(pairs: Mapping[str, str], keys_max: int, bytes_max: int) -> str:
    """Say what is wrong with a map of strings, or return an empty string."""
    if len(pairs) > keys_max:
        return f"at most {keys_max} keys"
    for key, value in pairs.items():
        if not 0 < len(key) <= KEY_CHARS_MAX or not key.isprintable():
            return f"keys are 1 to {KEY_CHARS_MAX} printable characters"
        # PostgreSQL's text and jsonb cannot hold NUL.
        if "\0" in value:
            return f"the value of {key!r} holds a NUL character"
    size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs.items())
    return "" if size <= bytes_max else f"{size} bytes in all, at most {bytes_max}"


# Conversations


def check_name(name: str, field: str = "name") -> str:
    """Return a group's name without surrounding space. Raises INVALID_ARGUMENT naming `field`."""
    name = name.strip()
    if len(name) > NAME_CHARS_MAX:
        raise invalid({field: f"at most {NAME_CHARS_MAX} characters"})
    if not name.isprintable():
        raise invalid({field: "printable characters only"})
    return name


def check_settings(settings: Mapping[str, str], field: str = "settings") -> None:
    """Refuse settings out of bounds. Raises INVALID_ARGUMENT naming `field`."""
    if why := map_problem(settings, SETTINGS_KEYS_MAX, SETTINGS_BYTES_MAX):
        raise invalid({field: why})


def merged_settings(
    settings: Mapping[str, str], changes: Mapping[str, str], field: str = "settings"
) -> dict[str, str]:
    """Merge `changes` into `settings`: an empty value removes its key. Raises INVALID_ARGUMENT naming `field`."""
    merged = {key: value for key, value in {**settings, **changes}.items() if value}
    check_settings(merged, field)
    return merged


def message_ttl_s(settings: Mapping[str, str]) -> int:
    """Read how long messages live, in seconds, 0 for ever. Raises INVALID_ARGUMENT."""
    value = settings.get(MESSAGE_TTL, "") or "0"
    if not value.isascii() or not value.isdigit() or int(value) > MESSAGE_TTL_S_MAX:
        raise invalid({f"settings.{MESSAGE_TTL}": f"whole seconds, 0 to {MESSAGE_TTL_S_MAX}"})
    return int(value)


def direct_key(one: str, other: str) -> str:
    """Name the pair, whoever asks: what makes a direct conversation unique."""
    return ":".join(sorted((one, other)))


def check_member_limit(count: int, limits: Limits, field: str = "member_ids") -> None:
    """Refuse more than the limit of members. Raises INVALID_ARGUMENT naming `field`."""
    if limits.group_members and count > limits.group_members:
        raise invalid({field: f"{count} members, at most {limits.group_members}"})


# Who may do what


def role_named(name: str, field: str) -> Role:
    """Return the role of that name. Raises INVALID_ARGUMENT naming `field`."""
    try:
        return Role(name)
    except ValueError:
        raise invalid({field: f"must be one of {', '.join(Role)}"}) from None


def may_send(role: Role | None) -> bool:
    """Tell whether a person writes to a conversation: any present member does."""
    return role is not None


def allowed_actions(kind: Kind, role: Role | None) -> dict[Action, bool]:
    """Answer for each action; `role` None is a stranger. A direct conversation cannot be left."""
    member = role is not None
    return {
        Action.JOIN: member,
        Action.LEAVE: member and kind is not Kind.DIRECT,
        Action.READ: member,
        Action.WRITE: may_send(role),
    }


def check_may_update(kind: Kind, role: Role, name: str, settings: Mapping[str, str]) -> None:
    """Only admins and the owner rename a group or change its settings. Raises PERMISSION_DENIED.

    In a direct conversation either of the two says how long messages live; there is nothing else to set.
    """
    if kind is Kind.DIRECT and not name and set(settings) == {MESSAGE_TTL}:
        return
    _check_is_group(kind)
    if role.rank < Role.ADMIN.rank:
        raise denied("only an admin or the owner changes a conversation")


def check_may_add(kind: Kind, role: Role, new_role: Role) -> None:
    """Moderators and above add people, to roles below their own. Raises PERMISSION_DENIED."""
    _check_is_group(kind)
    if role.rank < Role.MODERATOR.rank:
        raise denied("only a moderator, an admin or the owner adds people")
    if not role.outranks(new_role):
        raise denied(f"a {role} adds people to roles below {role}")


def check_may_remove(kind: Kind, role: Role, target: Role, *, oneself: bool) -> None:
    """Remove people of lower roles, as moderator or above; everybody may leave. Raises PERMISSION_DENIED."""
    _check_is_group(kind)
    if oneself:
        return
    if role.rank < Role.MODERATOR.rank or not role.outranks(target):
        raise denied(f"a {role} does not remove a {target}")


def check_may_set_role(kind: Kind, role: Role, target: Role, new_role: Role, *, oneself: bool) -> None:
    """Give roles below one's own to people below oneself; the owner also hands over. Raises PERMISSION_DENIED."""
    _check_is_group(kind)
    if oneself:
        raise denied("nobody changes their own role; an owner hands over to another member")
    if not role.outranks(target):
        raise denied(f"a {role} does not change the role of a {target}")
    if not role.outranks(new_role) and role is not Role.OWNER:
        raise denied(f"a {role} gives roles below {role}")


def successor(members: Collection[Member]) -> Member | None:
    """Choose who owns a group whose owner leaves: the highest role, then the longest in, then the lowest id."""
    return min(members, key=lambda m: (-m.role.rank, m.joined_at, m.user_id), default=None)


def _check_is_group(kind: Kind) -> None:
    if kind is Kind.DIRECT:
        raise denied("a direct conversation is between its two people", reason="forbidden")
    if kind is Kind.ROOM:
        # Bans, invitations, limits and the audit log are kept by what ChatService does.
        raise denied("a room and who is in it are changed through ChatService", reason="forbidden")


def not_a_member() -> WhisprError:
    """PERMISSION_DENIED for those outside a conversation."""
    return denied("only members of the conversation may do this", reason="not_a_member")


def muted(until: datetime) -> WhisprError:
    """PERMISSION_DENIED for those who may not write for a while; `until` infinity is for ever.

    asyncpg reads PostgreSQL's infinity as the last moment that a datetime holds.
    """
    forever = until.year == datetime.max.year
    facts = {"until": "forever" if forever else until.isoformat()}
    return denied("you are muted in this conversation", reason="muted", facts=facts)


def inactive() -> WhisprError:
    """FAILED_PRECONDITION for writing to a closed conversation."""
    return conflict("the conversation is closed", "room_closed")


def clamp_page(size: int, limits: Limits) -> int:
    """Turn a requested page size into one within the limits; 0 asks for the default."""
    if size < 0:
        raise invalid({"page_size": "must not be negative"})
    wanted = size or limits.page_size
    return min(wanted, limits.page_size_max) if limits.page_size_max else wanted
