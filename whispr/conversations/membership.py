"""Who is in a conversation: its making, its members and their roles.

Every change takes the lock of the conversation's row first and decides under it, so two changes, or a change
and an append, never decide on each other's stale state (see the head of migration 0001).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from whispr.conversations import domain
from whispr.conversations.database import Database, Queries
from whispr.conversations.domain import Kind, Limits, Member, Role
from whispr.conversations.ids import new_id
from whispr.conversations.rows import Row, encode_map, map_of, member_of
from whispr.errors import invalid, not_found

_MAKE_DIRECT = """
    WITH made AS (
        INSERT INTO conversations.conversations (id, kind, created_by, direct_key, member_count)
        SELECT $1, 'direct', $2, $4, 2 WHERE EXISTS (SELECT FROM auth.people p WHERE p.id = $3)
        ON CONFLICT (direct_key) DO NOTHING RETURNING id
    ), seated AS (
        INSERT INTO conversations.members (conversation_id, user_id, role)
        SELECT made.id, unnest(ARRAY[$2::uuid, $3::uuid]), 'member' FROM made
    )
    SELECT id FROM made
"""
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
# Unread counts start where a person joins, also when they come back.
_SEAT_PEOPLE = """
    INSERT INTO conversations.members (conversation_id, user_id, role, delivered_seq, read_seq)
    SELECT $1, person, $3, $4, $4 FROM unnest($2::uuid[]) AS person
    ON CONFLICT (conversation_id, user_id) DO UPDATE SET
        role = excluded.role, joined_at = now(), left_at = NULL, delivered_seq = excluded.delivered_seq,
        read_seq = excluded.read_seq, read_at = NULL, own_after_read = 0
"""


@dataclass(frozen=True, slots=True)
class Added:
    """Those asked for, and which of them are new."""

    members: tuple[Member, ...]
    new_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Removed:
    """Whether somebody went, and who became owner for it."""

    gone: bool
    successor: Member | None = None


class Membership:
    """Changes who is in a conversation; `actor_id` is who asks."""

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db = db
        self._limits = limits

    async def open_direct(self, actor_id: str, other_id: str) -> tuple[str, bool]:
        """Return the direct conversation of two people and whether it is new; there is never a second.

        Raises NOT_FOUND when there is no such person, INVALID_ARGUMENT for oneself.
        """
        if actor_id == other_id:
            raise invalid({"member_ids": "a direct conversation is with another person"})
        key = domain.direct_key(actor_id, other_id)
        found = await self.find_direct(actor_id, other_id)
        if found is not None:
            return found, False
        made = await self._db.fetchval(_MAKE_DIRECT, new_id(), actor_id, other_id, key)
        if made is not None:
            return str(made), True
        # ON CONFLICT waited for the transaction that made it first, so it is there unless the person is not.
        found = await self.find_direct(actor_id, other_id)
        if found is None:
            raise not_found("user", other_id)
        return found, False

    async def find_direct(self, actor_id: str, other_id: str) -> str | None:
        """Return the id of the direct conversation of two people, or None."""
        key = domain.direct_key(actor_id, other_id)
        found = await self._db.fetchval(
            "SELECT id FROM conversations.conversations WHERE direct_key = $1", key
        )
        return str(found) if found is not None else None

    async def open_group(
        self, actor_id: str, others: Collection[str], name: str, settings: Mapping[str, str]
    ) -> str:
        """Make a group owned by the actor and return its id. Raises INVALID_ARGUMENT, NOT_FOUND for people."""
        people = set(others) - {actor_id}
        domain.check_member_limit(len(people) + 1, self._limits)
        domain.check_settings(settings)
        name = domain.check_name(name)
        conversation_id = new_id()
        kept = {key: value for key, value in settings.items() if value}
        async with self._db.transaction() as tx:
            await _check_people(tx, people)
            await tx.execute(
                "INSERT INTO conversations.conversations (id, kind, name, created_by, settings, member_count)"
                " VALUES ($1, 'group', $2, $3, $4::jsonb, $5)",
                *(conversation_id, name, actor_id, encode_map(kept).decode(), len(people) + 1),
            )
            await tx.execute(_SEAT_PEOPLE, conversation_id, [actor_id], Role.OWNER.value, 0)
            await tx.execute(_SEAT_PEOPLE, conversation_id, sorted(people), Role.MEMBER.value, 0)
        return conversation_id

    async def update(
        self, conversation_id: str, actor_id: str, name: str, changes: Mapping[str, str]
    ) -> None:
        """Rename a group (unless `name` is empty) and merge settings; admins and the owner only."""
        name = domain.check_name(name)
        async with self._db.transaction() as tx:
            conversation = await _lock(tx, conversation_id)
            seat = await _seat_of(tx, conversation_id, actor_id)
            domain.check_may_update(Kind(conversation["kind"]), seat.role)
            settings = domain.merged_settings(map_of(conversation["settings"]), changes)
            await tx.execute(
                "UPDATE conversations.conversations SET name = $2, settings = $3::jsonb WHERE id = $1",
                *(conversation_id, name or conversation["name"], encode_map(settings).decode()),
            )

    async def add(self, conversation_id: str, actor_id: str, user_ids: Collection[str], role: Role) -> Added:
        """Add people; those present already stay as they are.

        Raises NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT past the limit of members.
        """
        wanted = set(user_ids)
        async with self._db.transaction() as tx:
            conversation = await _lock(tx, conversation_id)
            actor = await _seat_of(tx, conversation_id, actor_id)
            domain.check_may_add(Kind(conversation["kind"]), actor.role, role)
            new = wanted - {seat.user_id for seat in await _seats(tx, conversation_id, wanted)}
            domain.check_member_limit(conversation["member_count"] + len(new), self._limits)
            await _check_people(tx, new)
            await tx.execute(_SEAT_PEOPLE, conversation_id, sorted(new), role.value, conversation["last_seq"])
            await _recount(tx, conversation_id, len(new))
            return Added(tuple(await _seats(tx, conversation_id, wanted)), frozenset(new))

    async def remove(self, conversation_id: str, actor_id: str, user_id: str) -> Removed:
        """Remove a person, or leave; removing somebody who is not there changes nothing.

        When the owner leaves, the member of the highest role, then the longest present, becomes owner. The
        last one out leaves the conversation empty and out of everybody's reach.
        """
        async with self._db.transaction() as tx:
            conversation = await _lock(tx, conversation_id)
            oneself = actor_id == user_id
            if oneself and await _has_left(tx, conversation_id, actor_id):
                return Removed(gone=False)
            actor = await _seat_of(tx, conversation_id, actor_id)
            target = actor if oneself else await _seat_or_none(tx, conversation_id, user_id)
            if target is None:
                domain.check_may_remove(Kind(conversation["kind"]), actor.role, Role.MEMBER, oneself=False)
                return Removed(gone=False)
            domain.check_may_remove(Kind(conversation["kind"]), actor.role, target.role, oneself=oneself)
            await tx.execute(
                "UPDATE conversations.members SET left_at = now(), role = 'member'"
                " WHERE conversation_id = $1 AND user_id = $2",
                *(conversation_id, user_id),
            )
            await _recount(tx, conversation_id, -1)
            if target.role is not Role.OWNER:
                return Removed(gone=True)
            return Removed(gone=True, successor=await _crown(tx, conversation_id))

    async def set_role(
        self, conversation_id: str, actor_id: str, user_id: str, role: Role
    ) -> tuple[Member, Member | None]:
        """Give a role; when an owner gives theirs away they become admin.

        Returns the member, and the former owner if ownership changed hands.
        """
        async with self._db.transaction() as tx:
            conversation = await _lock(tx, conversation_id)
            actor = await _seat_of(tx, conversation_id, actor_id)
            target = await _seat_or_none(tx, conversation_id, user_id)
            if target is None:
                raise not_found("member", user_id)
            oneself = actor_id == user_id
            domain.check_may_set_role(
                Kind(conversation["kind"]), actor.role, target.role, role, oneself=oneself
            )
            await _give_role(tx, conversation_id, user_id, role)
            former = None
            if role is Role.OWNER:
                await _give_role(tx, conversation_id, actor_id, Role.ADMIN)
                former = await _seat_of(tx, conversation_id, actor_id)
            return await _seat_of(tx, conversation_id, user_id), former


async def _lock(tx: Queries, conversation_id: str) -> Row:
    row: Row | None = await tx.fetchrow(
        "SELECT kind, name, settings, last_seq, member_count FROM conversations.conversations WHERE id = $1"
        " FOR NO KEY UPDATE",
        conversation_id,
    )
    if row is None:
        raise not_found("conversation", conversation_id)
    return row


async def _seats(tx: Queries, conversation_id: str, user_ids: Collection[str]) -> Sequence[Member]:
    rows = await tx.fetch(_SEATS, conversation_id, list(user_ids))
    return [member_of(row) for row in rows if row["left_at"] is None]


async def _seat_or_none(tx: Queries, conversation_id: str, user_id: str) -> Member | None:
    return next(iter(await _seats(tx, conversation_id, [user_id])), None)


async def _seat_of(tx: Queries, conversation_id: str, user_id: str) -> Member:
    seat = await _seat_or_none(tx, conversation_id, user_id)
    if seat is None:
        raise domain.not_a_member()
    return seat


async def _has_left(tx: Queries, conversation_id: str, user_id: str) -> bool:
    left = await tx.fetchval(
        "SELECT left_at IS NOT NULL FROM conversations.members WHERE conversation_id = $1 AND user_id = $2",
        *(conversation_id, user_id),
    )
    return left is True


async def _check_people(tx: Queries, user_ids: Collection[str]) -> None:
    known = await tx.fetch("SELECT id FROM auth.people WHERE id = ANY ($1::uuid[])", list(user_ids))
    missing = set(user_ids) - {str(row["id"]) for row in known}
    if missing:
        raise not_found("user", ", ".join(sorted(missing)))


async def _recount(tx: Queries, conversation_id: str, change: int) -> None:
    await tx.execute(
        "UPDATE conversations.conversations SET member_count = member_count + $2 WHERE id = $1",
        *(conversation_id, change),
    )


async def _give_role(tx: Queries, conversation_id: str, user_id: str, role: Role) -> None:
    await tx.execute(
        "UPDATE conversations.members SET role = $3 WHERE conversation_id = $1 AND user_id = $2",
        *(conversation_id, user_id, role.value),
    )


async def _crown(tx: Queries, conversation_id: str) -> Member | None:
    rows = await tx.fetch(_PRESENT, conversation_id)
    heir = domain.successor([member_of(row) for row in rows])
    if heir is None:
        return None
    await _give_role(tx, conversation_id, heir.user_id, Role.OWNER)
    return await _seat_of(tx, conversation_id, heir.user_id)
