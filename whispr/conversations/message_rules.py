"""The rules of what happens to messages after they are sent. Pure: the caller knows the time."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime, timedelta

from whispr.conversations.domain import Kind, Limits, Message, MessageType, Role
from whispr.errors import WhisprError, denied, invalid, not_found

EMOJI_CHARS_MAX = 32
"""Code points in one emoji; families and flags of regions are sequences of up to 14."""

_SHORT_NAME = re.compile(r":[a-z0-9_+-]{1,48}:")
_PLANES = range(0x1F000, 0x1FB00)
"""Where new emoji are added, some younger than this Python's tables."""
_MARKS = frozenset("#*0123456789‼⁉〰")
"""Characters that are emoji by their variation selector or keycap alone, and of categories with much else."""
_JOINED = frozenset({"So", "Sk", "Sm", "Mn", "Me", "Cf"})
_VISIBLE = frozenset({"So", "Sm"})
_KEYCAP = "\u20e3"


def check_emoji(emoji: str) -> str:
    """Return what is one emoji, or the `:short_name:` of a custom one. Raises INVALID_ARGUMENT.

    A sequence of symbols, modifiers and joiners passes as one emoji without asking whether a font draws it:
    tables of those go out of date. Letters, digits alone, spaces and control characters do not pass.
    """
    if _SHORT_NAME.fullmatch(emoji):
        return emoji
    if not 0 < len(emoji) <= EMOJI_CHARS_MAX or not all(_may_be_in_emoji(char) for char in emoji):
        raise invalid({"emoji": "must be one emoji, or a short name such as :tada:"})
    shown = [char for char in emoji if ord(char) in _PLANES or unicodedata.category(char) in _VISIBLE]
    if not shown and emoji[0] not in "‼⁉〰" and _KEYCAP not in emoji:
        raise invalid({"emoji": "must be one emoji, or a short name such as :tada:"})
    return emoji


def _may_be_in_emoji(char: str) -> bool:
    return ord(char) in _PLANES or char in _MARKS or unicodedata.category(char) in _JOINED


HIDDEN = "hidden"
"""The key in the metadata of a message that is hidden until moderators have reviewed it."""


def gone(message: Message, now: datetime) -> bool:
    """Tell whether a message has been deleted for everyone or has expired."""
    return message.deleted_at is not None or (message.expires_at is not None and message.expires_at <= now)


def check_may_edit(message: Message, actor_id: str, now: datetime, limits: Limits) -> None:
    """Only its sender edits a text message, and for a while. Raises PERMISSION_DENIED (not_editable)."""
    if message.sender_id != actor_id:
        raise not_editable("only its sender edits a message")
    if gone(message, now):
        raise not_editable("the message was deleted")
    if HIDDEN in message.metadata:
        raise not_editable("the message is hidden until it is reviewed")
    if message.message_type == MessageType.SYSTEM:
        raise not_editable("system messages are not edited")
    if limits.edit_window_s and now - message.sent_at > timedelta(seconds=limits.edit_window_s):
        raise not_editable("the message is too old to be edited")


def check_may_erase(
    message: Message,
    actor_id: str,
    role: Role,
    sender_role: Role | None,
    now: datetime,
    limits: Limits,
) -> None:
    """Check who deletes for everyone: its sender for a while, moderators and above those not above them.

    `sender_role` is None when the sender has left. Raises PERMISSION_DENIED (not_deletable).
    """
    if message.kind is not Kind.DIRECT and role.rank >= Role.MODERATOR.rank:
        if message.sender_id == actor_id or sender_role is None or sender_role.rank <= role.rank:
            return
        raise not_deletable(f"a {role} does not delete messages of a {sender_role}")
    if message.sender_id != actor_id:
        raise not_deletable("only its sender, or a moderator, deletes a message for everyone")
    if limits.erase_window_s and now - message.sent_at > timedelta(seconds=limits.erase_window_s):
        raise not_deletable("the message is too old to be deleted for everyone")


def check_may_pin(kind: Kind, role: Role) -> None:
    """Either of the two pins in a direct conversation; elsewhere moderators and above do."""
    if kind is not Kind.DIRECT and role.rank < Role.MODERATOR.rank:
        raise denied("only a moderator, an admin or the owner pins messages")


def not_editable(why: str) -> WhisprError:
    """PERMISSION_DENIED for an edit."""
    return denied(why, reason="not_editable")


def not_deletable(why: str) -> WhisprError:
    """PERMISSION_DENIED for a deletion for everyone."""
    return denied(why, reason="not_deletable")


def no_message(message_id: str) -> WhisprError:
    """NOT_FOUND for a message."""
    return not_found("message", message_id)
