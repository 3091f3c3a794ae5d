"""The audit log of a room: what was done by way of moderation, by people and by the machine.

Entries are written in the transaction of the act, and only ever added: a trigger refuses the rest.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from whispr.conversations.database import Database, Queries
from whispr.conversations.paging import Position, from_token, to_token
from whispr.conversations.room_rows import AuditEntry, audit_of
from whispr.conversations.rows import encode_map

_ADD = """
    INSERT INTO conversations.audit (conversation_id, actor_id, action, target_id, message_id, reason, details)
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb)
"""
_PAGE = """
    SELECT * FROM conversations.audit a
    WHERE a.conversation_id = $1 {whose} AND a.position < $2
    ORDER BY a.position DESC LIMIT $3
"""
_OF_ROOM = _PAGE.format(whose="")
_OF_TARGET = _PAGE.format(whose="AND a.target_id = $4")
_NEWEST = 2**63 - 1


class Act(enum.StrEnum):
    """What was done."""

    WARN = "warn"
    MUTE = "mute"
    UNMUTE = "unmute"
    KICK = "kick"
    BAN = "ban"
    UNBAN = "unban"
    BAN_PROPOSED = "ban_proposed"
    DELETE_MESSAGE = "delete_message"
    EDIT_MESSAGE = "edit_message"
    FLAG_MESSAGE = "flag_message"
    HIDE_MESSAGE = "hide_message"
    RESTORE_MESSAGE = "restore_message"
    ROLE = "role"
    UPDATE_ROOM = "update_room"
    CLOSE_ROOM = "close_room"


async def add(
    tx: Queries,
    room_id: str,
    act: Act,
    *,
    actor_id: str,
    target_id: str = "",
    message_id: str = "",
    reason: str = "",
    details: Mapping[str, str] | None = None,
) -> None:
    """Write an entry; an empty `actor_id` is the machine."""
    await tx.execute(
        _ADD,
        *(room_id, actor_id or None, act.value, target_id or None, message_id or None, reason),
        encode_map(dict(details or {})).decode(),
    )


async def page(
    db: Database, room_id: str, size: int, page_token: str, target_id: str = ""
) -> tuple[list[AuditEntry], str]:
    """Return entries, the latest first, and the next token. Does not ask who wants to know."""
    last = from_token(page_token, Position)
    before = last.number if last is not None else _NEWEST
    if target_id:
        rows = await db.fetch(_OF_TARGET, room_id, before, size + 1, target_id)
    else:
        rows = await db.fetch(_OF_ROOM, room_id, before, size + 1)
    entries = [audit_of(row) for row in rows[:size]]
    return entries, to_token(Position(entries[-1].position)) if len(rows) > size else ""
