"""Seats: the rows of members, read and changed under the conversation's lock.

Whoever changes who is a member, or decides by it, takes `lock` first and asks for seats after.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from whispr.conversations import domain
from whispr.conversations.database import Queries
from whispr.conversations.domain import Member, Role
from whispr.conversations.rows import Row, member_of
from whispr.errors import not_found

MODERATORS_MAX = 100

_SEATS = """
    SELECT m.user_id, m.role, m.joined_at, m.left_at, m.delivered_seq, m.read_seq, p.username, p.display_name
    FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
    WHERE m.conversation_id = $1 AND m.user_id = ANY ($2::uuid[])
    ORDER BY m.joined_at, m.user_id
"""
_PRESENT = """
    SELECT m.user_id, m.role, m.joined_at, m.delivered_seq, m.read_seq, '' AS username, '' AS display_name
    FROM conversations.members m WHERE m.conversation_id = $1 AND m.left_at IS NULL
"""
_READER = """
    SELECT c.kind, c.last_seq, s.role, s.read_seq
    FROM conversations.conversations c
    LEFT JOIN conversations.members s ON s.conversation_id = c.id AND s.user_id = $2 AND s.left_at IS NULL
    WHERE c.id = $1
"""
_MODERATORS = """
    SELECT m.user_id FROM conversations.members m
    WHERE m.conversation_id = $1 AND m.left_at IS NULL AND m.role <> 'member' ORDER BY m.user_id LIMIT $2
"""
# Unread counts start where a person joins, also when they come back. A mute outlasts leaving.
_SEAT_PEOPLE = """
    INSERT INTO conversations.members (conversation_id, user_id, role, delivered_seq, read_seq, changed_at)
    SELECT $1, person, $3, $4, $4, clock_timestamp() FROM unnest($2::uuid[]) AS person
    ON CONFLICT (conversation_id, user_id) DO UPDATE SET
        role = excluded.role, joined_at = now(), left_at = NULL, delivered_seq = excluded.delivered_seq,
        read_seq = excluded.read_seq, read_at = NULL, uncounted = 0, archived_at = NULL,
        changed_at = excluded.changed_at
"""


async def lock(tx: Queries, conversation_id: str) -> Row:
    """Take the conversation's lock and return its row. Raises NOT_FOUND."""
    row: Row | None = await tx.fetchrow(
        "SELECT kind, name, settings, last_seq, member_count, is_active, created_by, slow_mode_s, message_ttl_s"
        " FROM conversations.conversations WHERE id = $1 FOR NO KEY UPDATE",
        conversation_id,
    )
    if row is None:
        raise not_found("conversation", conversation_id)
    return row


async def seats(tx: Queries, conversation_id: str, user_ids: Collection[str]) -> Sequence[Member]:
    """Return those of these people who are present."""
    rows = await tx.fetch(_SEATS, conversation_id, list(user_ids))
    return [member_of(row) for row in rows if row["left_at"] is None]


async def seat_or_none(tx: Queries, conversation_id: str, user_id: str) -> Member | None:
    """Return a person's seat, or None when they are not present."""
    return next(iter(await seats(tx, conversation_id, [user_id])), None)


async def seat_of(tx: Queries, conversation_id: str, user_id: str) -> Member:
    """Return a person's seat. Raises not_a_member."""
    seat = await seat_or_none(tx, conversation_id, user_id)
    if seat is None:
        raise domain.not_a_member()
    return seat


async def check_reader(tx: Queries, conversation_id: str, user_id: str) -> Row:
    """Check that a person reads a conversation; return its kind and their seat's watermarks, without a lock.

    Raises NOT_FOUND, not_a_member.
    """
    row: Row | None = await tx.fetchrow(_READER, conversation_id, user_id)
    if row is None:
        raise not_found("conversation", conversation_id)
    if row["role"] is None:
        raise domain.not_a_member()
    return row


async def moderators(tx: Queries, conversation_id: str) -> tuple[str, ...]:
    """Return the ids of those who moderate: moderators, admins, the owner; at most `MODERATORS_MAX`."""
    rows = await tx.fetch(_MODERATORS, conversation_id, MODERATORS_MAX)
    return tuple(str(row["user_id"]) for row in rows)


async def has_left(tx: Queries, conversation_id: str, user_id: str) -> bool:
    """Tell whether a person was a member once and is no longer."""
    left = await tx.fetchval(
        "SELECT left_at IS NOT NULL FROM conversations.members WHERE conversation_id = $1 AND user_id = $2",
        *(conversation_id, user_id),
    )
    return left is True


async def check_people(tx: Queries, user_ids: Collection[str]) -> None:
    """Check that there are such people. Raises NOT_FOUND naming those that are not."""
    known = await tx.fetch("SELECT id FROM auth.people WHERE id = ANY ($1::uuid[])", list(user_ids))
    missing = set(user_ids) - {str(row["id"]) for row in known}
    if missing:
        raise not_found("user", ", ".join(sorted(missing)))


async def seat_people(
    tx: Queries, conversation_id: str, user_ids: Collection[str], role: Role, last_seq: int
) -> None:
    """Give seats to people who have none; they have nothing unread. The caller counts them with `recount`."""
    await tx.execute(_SEAT_PEOPLE, conversation_id, sorted(user_ids), role.value, last_seq)


async def unseat(tx: Queries, conversation_id: str, user_id: str) -> None:
    """Take a present person's seat away, and count them out."""
    await tx.execute(
        "UPDATE conversations.members SET left_at = now(), role = 'member', changed_at = clock_timestamp()"
        " WHERE conversation_id = $1 AND user_id = $2",
        *(conversation_id, user_id),
    )
    await recount(tx, conversation_id, -1)


async def recount(tx: Queries, conversation_id: str, change: int) -> None:
    """Adjust the number of members."""
    await tx.execute(
        "UPDATE conversations.conversations SET member_count = member_count + $2 WHERE id = $1",
        *(conversation_id, change),
    )


async def give_role(tx: Queries, conversation_id: str, user_id: str, role: Role) -> None:
    """Set a member's role."""
    await tx.execute(
        "UPDATE conversations.members SET role = $3 WHERE conversation_id = $1 AND user_id = $2",
        *(conversation_id, user_id, role.value),
    )


async def crown(tx: Queries, conversation_id: str) -> Member | None:
    """Make the highest, longest present member the owner; None when nobody is left."""
    rows = await tx.fetch(_PRESENT, conversation_id)
    heir = domain.successor([member_of(row) for row in rows])
    if heir is None:
        return None
    await give_role(tx, conversation_id, heir.user_id, Role.OWNER)
    return await seat_of(tx, conversation_id, heir.user_id)
