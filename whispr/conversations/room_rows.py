"""Reading rooms: a room as one person sees it, and the rows of its members, bans, invitations and audit log.

A direct conversation is a room of type DIRECT here; groups are no rooms.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from whispr.conversations.database import Queries
from whispr.conversations.domain import Kind, Role
from whispr.conversations.room_rules import (
    Person,
    Room,
    RoomLimits,
    RoomType,
    Standing,
    Visibility,
    knows,
    member_limit,
    until_of,
)
from whispr.conversations.rows import Row, map_of
from whispr.errors import not_found

ROOM_COLUMNS = """
    c.id, c.kind, c.name, c.created_by, c.created_at, c.member_count, c.is_active, c.slow_mode_s, c.last_seq,
    r.type, r.visibility, r.description, r.member_limit, r.antispam
"""
STANDING_COLUMNS = """
    s.role,
    EXISTS (
        SELECT FROM conversations.invitations i
        WHERE i.conversation_id = c.id AND i.user_id = $2 AND i.expires_at > now()
    ) AS invited,
    (SELECT b.until FROM conversations.bans b
        WHERE b.conversation_id = c.id AND b.user_id = $2 AND b.until > now()) AS banned_until
"""
_SEEN = f"""
    SELECT {ROOM_COLUMNS}, {STANDING_COLUMNS}
    FROM conversations.conversations c
    LEFT JOIN conversations.rooms r ON r.id = c.id
    LEFT JOIN conversations.members s ON s.conversation_id = c.id AND s.user_id = $2 AND s.left_at IS NULL
    WHERE c.id = $1 AND (r.id IS NOT NULL OR c.kind = 'direct')
"""  # noqa: S608  # constants of ours


class Seen(msgspec.Struct, frozen=True):
    """A room, and what the viewer is to it."""

    room: Room
    standing: Standing
    banned_until: datetime | None = None


class RoomMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a room, as others see them."""

    user_id: str
    username: str
    role: Role
    joined_at: datetime
    read_at: datetime | None = None
    muted_until: datetime | None = None


class Ban(msgspec.Struct, frozen=True, kw_only=True):
    """A ban in force. `banned_by` is empty for the machine."""

    user_id: str
    banned_by: str
    banned_at: datetime
    until: datetime
    reason: str


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """A way in: for `user_id`, or for whoever shows `code`. `uses_max` 0 is no limit."""

    id: str
    room_id: str
    user_id: str
    code: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    uses_max: int
    uses: int


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One act of moderation. `actor_id` is empty for the machine."""

    id: str
    room_id: str
    position: int
    at: datetime
    actor_id: str
    action: str
    target_id: str
    message_id: str
    reason: str
    details: Mapping[str, str]


async def see(
    queries: Queries, room_id: str, person: Person, limits: RoomLimits, *, known: bool = True
) -> Seen:
    """Return a room as a person sees it.

    Raises NOT_FOUND when there is none, and, unless `known` is False, when they may not know of it.
    """
    row = await queries.fetchrow(_SEEN, room_id, person.user_id)
    if row is None:
        raise not_found("room", room_id)
    seen = seen_of(row, limits)
    if known and not knows(seen.room.type, seen.room.visibility, person, seen.standing):
        raise not_found("room", room_id)
    return seen


def seen_of(row: Row, limits: RoomLimits) -> Seen:
    """Build a room and the viewer's standing from `ROOM_COLUMNS` and `STANDING_COLUMNS`."""
    role = Role(row["role"]) if row["role"] is not None else None
    direct = row["kind"] == Kind.DIRECT
    room_type = RoomType.DIRECT if direct else RoomType(row["type"])
    room = Room(
        id=str(row["id"]),
        name=row["name"],
        description=row["description"] or "",
        type=room_type,
        visibility=Visibility.HIDDEN if direct else Visibility(row["visibility"]),
        created_by=str(row["created_by"]),
        created_at=row["created_at"],
        member_count=row["member_count"],
        is_active=row["is_active"],
        slow_mode_s=row["slow_mode_s"],
        member_limit=member_limit(row["member_limit"] or 0, room_type, limits),
        antispam=bool(row["antispam"]),
        role=role,
        last_seq=row["last_seq"] if role is not None else 0,
    )
    standing = Standing(role, invited=row["invited"], banned=row["banned_until"] is not None)
    return Seen(room, standing, until_of(row["banned_until"]))


def room_member_of(row: Row) -> RoomMember:
    """Build a member; a mute that has run out is none."""
    return RoomMember(
        user_id=str(row["user_id"]),
        username=row["username"] or "",
        role=Role(row["role"]),
        joined_at=row["joined_at"],
        read_at=row["read_at"],
        muted_until=until_of(row["muted_until"]),
    )


def ban_of(row: Row) -> Ban:
    """Build a ban."""
    until = until_of(row["until"])
    assert until is not None, "the column is never null"
    return Ban(
        user_id=str(row["user_id"]),
        banned_by=str(row["banned_by"] or ""),
        banned_at=row["banned_at"],
        until=until,
        reason=row["reason"],
    )


def invitation_of(row: Row) -> Invitation:
    """Build an invitation."""
    return Invitation(
        id=str(row["id"]),
        room_id=str(row["conversation_id"]),
        user_id=str(row["user_id"] or ""),
        code=row["code"] or "",
        created_by=str(row["created_by"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        uses_max=row["uses_max"],
        uses=row["uses"],
    )


def audit_of(row: Row) -> AuditEntry:
    """Build an entry of the audit log."""
    return AuditEntry(
        id=str(row["id"]),
        room_id=str(row["conversation_id"]),
        position=row["position"],
        at=row["at"],
        actor_id=str(row["actor_id"] or ""),
        action=row["action"],
        target_id=str(row["target_id"] or ""),
        message_id=str(row["message_id"] or ""),
        reason=row["reason"],
        details=map_of(row["details"]),
    )
