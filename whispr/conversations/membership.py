"""Who is in a conversation: its making, its members and their roles.

Every change takes the lock of the conversation's row first and decides under it, so two changes, or a change
and an append, never decide on each other's stale state (see the head of migration 0001). Each is logged and
emitted in the same transaction (`changes.record`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from whispr.conversations import domain, seats
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import Kind, Limits, Member, Role
from whispr.conversations.rows import encode_map, map_of
from whispr.errors import WhisprError, conflict, denied, invalid, not_found
from whispr.ids import new_id

_MAKE_DIRECT = """
    WITH made AS (
        INSERT INTO conversations.conversations (id, kind, created_by, direct_key, member_count)
        SELECT $1, 'direct', $2, $4, 2 WHERE EXISTS (SELECT FROM auth.people p WHERE p.id = $3)
        ON CONFLICT (direct_key) DO NOTHING RETURNING id
    ), seated AS (
        INSERT INTO conversations.members (conversation_id, user_id, role, changed_at)
        SELECT made.id, unnest(ARRAY[$2::uuid, $3::uuid]), 'member', clock_timestamp() FROM made
    )
    SELECT id FROM made
"""
_MAKE_GROUP = """
    INSERT INTO conversations.conversations
        (id, kind, name, created_by, settings, member_count, message_ttl_s)
    VALUES ($1, 'group', $2, $3, $4::jsonb, $5, $6)
"""


@dataclass(frozen=True, slots=True)
class Added:
    """Those asked for, which of them are new, and the changes that say so."""

    members: tuple[Member, ...]
    new_ids: frozenset[str]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Removed:
    """Whether somebody went, and who became owner for it."""

    gone: bool
    successor: Member | None = None
    changes: tuple[Change, ...] = ()


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
        async with self._db.transaction() as tx:
            made = await tx.fetchval(_MAKE_DIRECT, new_id(), actor_id, other_id, key)
            if made is not None:
                data = {"member_ids": [actor_id, other_id], "created_by": actor_id}
                await record(tx, str(made), "conversation_created", actor_id=actor_id, data=data)
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
        self,
        actor_id: str,
        others: Collection[str],
        name: str,
        settings: Mapping[str, str],
        *,
        group_id: str = "",
    ) -> str:
        """Make a group owned by the actor and return its id. Raises INVALID_ARGUMENT, NOT_FOUND for people.

        With `group_id` that is the conversation's id, and making it again by the same actor changes nothing;
        ALREADY_EXISTS when the id is another conversation's.
        """
        people = set(others) - {actor_id}
        domain.check_member_limit(len(people) + 1, self._limits)
        domain.check_settings(settings)
        ttl_s = domain.message_ttl_s(settings)
        name = domain.check_name(name)
        conversation_id = group_id or new_id()
        kept = {key: value for key, value in settings.items() if value}
        async with self._db.transaction() as tx:
            if group_id and await _made_before(tx, group_id, actor_id):
                return group_id
            await seats.check_people(tx, {*people, actor_id})
            await tx.execute(
                _MAKE_GROUP,
                *(conversation_id, name, actor_id, encode_map(kept).decode(), len(people) + 1, ttl_s),
            )
            await seats.seat_people(tx, conversation_id, [actor_id], Role.OWNER, 0)
            await seats.seat_people(tx, conversation_id, people, Role.MEMBER, 0)
            data = {"member_ids": [actor_id, *sorted(people)], "created_by": actor_id, "name": name}
            await record(tx, conversation_id, "conversation_created", actor_id=actor_id, data=data)
        return conversation_id

    async def update(
        self, conversation_id: str, actor_id: str, name: str, changes: Mapping[str, str]
    ) -> Change | None:
        """Rename a group (unless `name` is empty) and merge settings; admins and the owner only.

        In a direct conversation either of the two may say how long messages live, and nothing else. Returns
        None when nothing was to be changed.
        """
        name = domain.check_name(name)
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            seat = await seats.seat_of(tx, conversation_id, actor_id)
            domain.check_may_update(Kind(conversation["kind"]), seat.role, name, changes)
            before = map_of(conversation["settings"])
            settings = domain.merged_settings(before, changes)
            name = name or conversation["name"]
            if settings == before and name == conversation["name"]:
                return None
            return await _set(tx, conversation_id, name, settings, actor_id)

    async def add(self, conversation_id: str, actor_id: str, user_ids: Collection[str], role: Role) -> Added:
        """Add people; those present already stay as they are.

        Raises NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT past the limit of members.
        """
        wanted = set(user_ids)
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            actor = await seats.seat_of(tx, conversation_id, actor_id)
            domain.check_may_add(Kind(conversation["kind"]), actor.role, role)
            new = wanted - {seat.user_id for seat in await seats.seats(tx, conversation_id, wanted)}
            domain.check_member_limit(conversation["member_count"] + len(new), self._limits, "user_ids")
            await seats.check_people(tx, new)
            await seats.seat_people(tx, conversation_id, new, role, conversation["last_seq"])
            await seats.recount(tx, conversation_id, len(new))
            members = tuple(await seats.seats(tx, conversation_id, wanted))
            logged = await record_added(
                tx, conversation_id, [member for member in members if member.user_id in new], actor_id
            )
            return Added(members, frozenset(new), logged)

    async def remove(self, conversation_id: str, actor_id: str, user_id: str) -> Removed:
        """Remove a person, or leave; removing somebody who is not there changes nothing.

        When the owner leaves, the member of the highest role, then the longest present, becomes owner. The
        last one out leaves the conversation empty and out of everybody's reach.
        """
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            oneself = actor_id == user_id
            if oneself and await seats.has_left(tx, conversation_id, actor_id):
                return Removed(gone=False)
            actor = await seats.seat_of(tx, conversation_id, actor_id)
            target = actor if oneself else await seats.seat_or_none(tx, conversation_id, user_id)
            if target is None:
                domain.check_may_remove(Kind(conversation["kind"]), actor.role, Role.MEMBER, oneself=False)
                return Removed(gone=False)
            domain.check_may_remove(Kind(conversation["kind"]), actor.role, target.role, oneself=oneself)
            return await remove_seat(tx, conversation_id, target, actor_id)

    async def notified(
        self, conversation_id: str, event_type: str, user_id: str, metadata: Mapping[str, str], at: datetime
    ) -> tuple[tuple[Change, ...], tuple[Member, ...]]:
        """Make true what another service tells: return the changes, none if it was so, and who was added.

        Raises INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED for members of what is no group.
        """
        told = {"metadata": dict(metadata), "occurred_at": at}
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            if event_type == "settings_changed":
                settings = domain.merged_settings(map_of(conversation["settings"]), metadata, "metadata")
                if settings == map_of(conversation["settings"]):
                    return (), ()
                return (await _set(tx, conversation_id, conversation["name"], settings, None, **told),), ()
            if conversation["kind"] != Kind.GROUP:
                raise denied("other services tell of the members of groups alone")
            seat = await seats.seat_or_none(tx, conversation_id, user_id)
            if event_type == "member_removed":
                if seat is None:
                    return (), ()
                return (await remove_seat(tx, conversation_id, seat, None, **told)).changes, ()
            if seat is not None:
                return (), ()
            domain.check_member_limit(conversation["member_count"] + 1, self._limits)
            role = domain.role_named(metadata.get("role", "") or Role.MEMBER.value, "metadata.role")
            await seats.check_people(tx, [user_id])
            await seats.seat_people(tx, conversation_id, [user_id], role, conversation["last_seq"])
            await seats.recount(tx, conversation_id, 1)
            members = tuple(await seats.seats(tx, conversation_id, [user_id]))
            return await record_added(tx, conversation_id, members, None, **told), members

    async def set_role(
        self, conversation_id: str, actor_id: str, user_id: str, role: Role
    ) -> tuple[Member, tuple[Change, ...]]:
        """Give a role; when an owner gives theirs away they become admin. Returns the member and the changes."""
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            actor = await seats.seat_of(tx, conversation_id, actor_id)
            target = await seats.seat_or_none(tx, conversation_id, user_id)
            if target is None:
                raise not_found("member", user_id)
            oneself = actor_id == user_id
            domain.check_may_set_role(
                Kind(conversation["kind"]), actor.role, target.role, role, oneself=oneself
            )
            await seats.give_role(tx, conversation_id, user_id, role)
            member = await seats.seat_of(tx, conversation_id, user_id)
            logged = [await record_role(tx, conversation_id, member, actor_id)]
            if role is Role.OWNER:
                await seats.give_role(tx, conversation_id, actor_id, Role.ADMIN)
                former = await seats.seat_of(tx, conversation_id, actor_id)
                logged.append(await record_role(tx, conversation_id, former, actor_id))
            return member, tuple(logged)


async def _set(
    tx: Transaction,
    conversation_id: str,
    name: str,
    settings: Mapping[str, str],
    actor_id: str | None,
    **more: object,
) -> Change:
    """Write a name and settings, and log it."""
    await tx.execute(
        "UPDATE conversations.conversations SET name = $2, settings = $3::jsonb, message_ttl_s = $4"
        " WHERE id = $1",
        *(conversation_id, name, encode_map(settings).decode(), domain.message_ttl_s(settings)),
    )
    data = {"name": name, "settings": settings, "changed_by": actor_id, **more}
    return await record(tx, conversation_id, "settings_changed", actor_id=actor_id, data=data)


async def record_added(
    tx: Transaction,
    conversation_id: str,
    members: Collection[Member],
    actor_id: str | None,
    **more: object,
) -> tuple[Change, ...]:
    """Log that people have been given seats."""
    return tuple(
        [
            await record(
                tx,
                conversation_id,
                "member_added",
                actor_id=actor_id,
                data={
                    "user_id": member.user_id,
                    "member": msgspec.to_builtins(member),
                    "added_by": actor_id,
                    **more,
                },
            )
            for member in members
        ]
    )


async def remove_seat(
    tx: Transaction, conversation_id: str, target: Member, actor_id: str | None, **more: object
) -> Removed:
    """Take a seat away under the lock, log it, and crown an heir when it was the owner's."""
    await seats.unseat(tx, conversation_id, target.user_id)
    data = {"user_id": target.user_id, "removed_by": actor_id, **more}
    logged = [await record(tx, conversation_id, "member_removed", actor_id=actor_id, data=data)]
    heir = await seats.crown(tx, conversation_id) if target.role is Role.OWNER else None
    if heir is not None:
        logged.append(await record_role(tx, conversation_id, heir, None))
    return Removed(gone=True, successor=heir, changes=tuple(logged))


async def record_role(tx: Transaction, conversation_id: str, member: Member, actor_id: str | None) -> Change:
    """Log a member's new role; `actor_id` None when it fell to them."""
    data = {"member": msgspec.to_builtins(member), "changed_by": actor_id}
    return await record(tx, conversation_id, "settings_changed", actor_id=actor_id, data=data)


async def _made_before(tx: Transaction, group_id: str, actor_id: str) -> bool:
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", group_id)
    row = await tx.fetchrow(
        "SELECT kind, created_by FROM conversations.conversations WHERE id = $1", group_id
    )
    if row is None:
        return False
    if row["kind"] == Kind.GROUP and str(row["created_by"]) == actor_id:
        return True
    raise _taken(group_id)


def _taken(group_id: str) -> WhisprError:
    return conflict(f"{group_id} is another conversation", "group_id_taken")
