"""Rooms: their making, who comes and goes, and what may be changed of them.

Everything that decides takes the conversation's lock first and reads what it decides by after, so a join never
passes a ban, the last place is taken once, and a code admits no more than it says. Each change is logged and
emitted in the same transaction (`changes.record`); callers announce it after the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from whispr.conversations import audit, domain, seats
from whispr.conversations import room_rules as rules
from whispr.conversations.audit import Act
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Queries, Transaction
from whispr.conversations.domain import Member, Role
from whispr.conversations.membership import record_role
from whispr.conversations.room_rows import (
    RoomMember,
    Seen,
    room_member_of,
    see,
)
from whispr.conversations.room_rules import (
    Allows,
    Changes,
    Person,
    Room,
    RoomLimits,
    RoomType,
    Visibility,
)
from whispr.errors import denied, invalid, not_found
from whispr.ids import new_id

_LOCK = "SELECT FROM conversations.conversations WHERE id = $1 FOR NO KEY UPDATE"
_MAKE = """
    INSERT INTO conversations.conversations (id, kind, name, created_by, member_count, slow_mode_s)
    VALUES ($1, 'room', $2, $3, 1, $4)
"""
_MAKE_ROOM = """
    INSERT INTO conversations.rooms (id, type, visibility, description, name_key)
    VALUES ($1, $2, $3, $4, lower($5))
"""
_CHANGE = """
    UPDATE conversations.conversations SET name = $2, slow_mode_s = $3 WHERE id = $1
"""
_CHANGE_ROOM = """
    UPDATE conversations.rooms SET visibility = $2, description = $3, member_limit = $4, antispam = $5 WHERE id = $1
"""
MEMBER_COLUMNS = """
    m.user_id, m.role, m.joined_at, m.read_at, p.username,
    CASE WHEN m.muted_until > now() THEN m.muted_until END AS muted_until
"""
_MEMBER = f"""
    SELECT {MEMBER_COLUMNS}
    FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
    WHERE m.conversation_id = $1 AND m.user_id = $2 AND m.left_at IS NULL
"""  # noqa: S608  # constants of ours
_OWNER = """
    SELECT m.user_id FROM conversations.members m
    WHERE m.conversation_id = $1 AND m.left_at IS NULL AND m.role = 'owner'
"""
# What an invitation admits by: the person's own, or a code with uses left.
_CODE = """
    SELECT id FROM conversations.invitations
    WHERE conversation_id = $1 AND code = $2 AND expires_at > now() AND (uses_max = 0 OR uses < uses_max)
"""
_USE_CODE = "UPDATE conversations.invitations SET uses = uses + 1 WHERE id = $1"
_USE_OWN = "DELETE FROM conversations.invitations WHERE conversation_id = $1 AND user_id = $2"


@dataclass(frozen=True, slots=True)
class Entered:
    """Who entered, and what changed: nothing for somebody who was inside already."""

    member: RoomMember
    changes: tuple[Change, ...] = ()


class Rooms:
    """Makes and changes rooms; `person` is who asks."""

    def __init__(self, db: Database, limits: RoomLimits) -> None:
        self._db = db
        self._limits = limits

    async def see(self, person: Person, room_id: str) -> Seen:
        """Return a room as a person sees it. Raises NOT_FOUND, also when they may not know of it."""
        return await see(self._db, room_id, person, self._limits)

    async def member(self, room_id: str, user_id: str) -> RoomMember:
        """Return a member. Raises NOT_FOUND."""
        return await member_of(self._db, room_id, user_id)

    async def create(
        self,
        person: Person,
        allows: Allows,
        *,
        name: str,
        description: str,
        room_type: RoomType,
        visibility: Visibility | None,
        slow_mode_s: int,
    ) -> Change:
        """Make a room owned by the person. Raises INVALID_ARGUMENT, PERMISSION_DENIED."""
        rules.check_may_create(room_type, allows)
        found = rules.visibility_of(room_type, visibility)
        name = rules.check_name(name)
        description = rules.check_text(description, "description", rules.DESCRIPTION_CHARS_MAX)
        rules.check_slow_mode(slow_mode_s)
        room_id = new_id()
        async with self._db.transaction() as tx:
            await tx.execute(_MAKE, room_id, name, person.user_id, slow_mode_s)
            await tx.execute(_MAKE_ROOM, room_id, room_type.value, found.value, description, name)
            await seats.seat_people(tx, room_id, [person.user_id], Role.OWNER, 0)
            data = {
                "user_id": person.user_id,
                "name": name,
                "type": room_type.value,
                "visibility": found.value,
                "created_by": person.user_id,
            }
            return await record(tx, room_id, "room_created", actor_id=person.user_id, data=data)

    async def join(self, person: Person, room_id: str, code: str = "") -> Entered:
        """Let a person in; again changes nothing.

        Raises NOT_FOUND, PERMISSION_DENIED (banned, invitation_required, premium_required),
        FAILED_PRECONDITION (room_closed), RESOURCE_EXHAUSTED (room_full).
        """
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits, known=False)
            if seen.standing.inside:
                return Entered(await member_of(tx, room_id, person.user_id))
            code_id = await tx.fetchval(_CODE, room_id, code) if rules.is_code(code) else None
            self._check_may_join(person, seen, code, code_id is not None)
            await seats.seat_people(tx, room_id, [person.user_id], Role.MEMBER, await _last_seq(tx, room_id))
            await seats.recount(tx, room_id, 1)
            if code_id is not None and not seen.standing.invited:
                await tx.execute(_USE_CODE, code_id)
            await tx.execute(_USE_OWN, room_id, person.user_id)
            seat = await seats.seat_of(tx, room_id, person.user_id)
            data = {"user_id": person.user_id, "member": msgspec.to_builtins(seat)}
            change = await record(tx, room_id, "user_joined", actor_id=person.user_id, data=data)
            return Entered(await member_of(tx, room_id, person.user_id), (change,))

    def _check_may_join(self, person: Person, seen: Seen, code: str, code_is_good: bool) -> None:
        room = seen.room
        standing = rules.Standing(invited=seen.standing.invited or code_is_good, banned=seen.standing.banned)
        rules.check_may_enter(
            room.id, room.type, room.visibility, person, standing, banned_until=seen.banned_until
        )
        if code and not code_is_good:
            raise not_found("invitation", code)
        if not room.is_active:
            raise domain.inactive()
        if room.member_limit and room.member_count >= room.member_limit:
            raise rules.room_full(room.member_limit)

    async def leave(self, person: Person, room_id: str) -> tuple[Change, ...]:
        """Let a person out; again changes nothing. Raises NOT_FOUND, PERMISSION_DENIED for a direct one."""
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            if seen.room.type is RoomType.DIRECT:
                raise denied("a direct conversation is between its two people")
            if not seen.standing.inside:
                return ()
            seat = await seats.seat_of(tx, room_id, person.user_id)
            return await take_out(tx, seen.room, seat, "user_left", person.user_id, {})

    async def update(self, person: Person, room_id: str, changes: Changes) -> Change | None:
        """Change a room; None when nothing was to be changed.

        Raises NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT, FAILED_PRECONDITION (room_closed).
        """
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            before = seen.room
            _check_is_room(before)
            rules.check_may_administer(before.role, platform=person.moderates_rooms)
            if not before.is_active:
                raise domain.inactive()
            changes = rules.check_changes(changes, before.type, self._limits)
            after = _with_changes(before, changes)
            different = _differences(before, after)
            if not different:
                return None
            own_limit = await tx.fetchval(
                "SELECT member_limit FROM conversations.rooms WHERE id = $1", room_id
            )
            limit = own_limit if changes.member_limit is None else changes.member_limit
            await tx.execute(_CHANGE, room_id, after.name, after.slow_mode_s)
            await tx.execute(
                _CHANGE_ROOM,
                *(room_id, after.visibility.value, after.description, limit, after.antispam),
            )
            shown = {key: str(value) for key, value in different.items()}
            await audit.add(tx, room_id, Act.UPDATE_ROOM, actor_id=person.user_id, details=shown)
            data = {**_facts(after), "changed_by": person.user_id}
            return await record(tx, room_id, "settings_changed", actor_id=person.user_id, data=data)

    async def close(self, person: Person, room_id: str, reason: str) -> Change | None:
        """Close a room for good; again changes nothing. Raises NOT_FOUND, PERMISSION_DENIED."""
        reason = rules.check_text(reason, "reason", rules.REASON_CHARS_MAX)
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            _check_is_room(seen.room)
            rules.check_may_close(seen.room.role, platform=person.moderates_rooms)
            if not seen.room.is_active:
                return None
            await audit.add(tx, room_id, Act.CLOSE_ROOM, actor_id=person.user_id, reason=reason)
            return await shut(tx, room_id, person.user_id, reason)

    async def set_role(
        self, person: Person, room_id: str, user_id: str, role: Role
    ) -> tuple[RoomMember, tuple[Change, ...]]:
        """Give a member a role. Raises NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT."""
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            _check_is_room(seen.room)
            target = await seats.seat_or_none(tx, room_id, user_id)
            platform = person.moderates_rooms
            if target is None:
                rules.check_moderates(seen.room.role, platform=platform)
                raise not_found("member", user_id)
            oneself = user_id == person.user_id and not platform
            rules.check_may_set_role(seen.room.role, target.role, role, platform=platform, oneself=oneself)
            if target.role is Role.OWNER and role is not Role.OWNER:
                raise invalid({"role": "an owner is replaced by making somebody else the owner"})
            if target.role is role:
                return await member_of(tx, room_id, user_id), ()
            changes = await _give(tx, room_id, target, role, person.user_id)
            details = {"from": target.role.value, "to": role.value}
            await audit.add(
                tx, room_id, Act.ROLE, actor_id=person.user_id, target_id=user_id, details=details
            )
            return await member_of(tx, room_id, user_id), changes


async def locked(
    tx: Transaction, room_id: str, person: Person, limits: RoomLimits, *, known: bool = True
) -> Seen:
    """Take a room's lock, then read it as `room_rows.see` does."""
    await tx.execute(_LOCK, room_id)
    return await see(tx, room_id, person, limits, known=known)


async def take_out(
    tx: Transaction, room: Room, target: Member, kind: str, actor_id: str | None, data: Mapping[str, object]
) -> tuple[Change, ...]:
    """Take a seat away under the lock, log it as `kind`, find an heir, and close a room left empty."""
    await seats.unseat(tx, room.id, target.user_id)
    facts = {"user_id": target.user_id, **data}
    logged = [await record(tx, room.id, kind, actor_id=actor_id, data=facts)]
    if target.role is Role.OWNER:
        heir = await seats.crown(tx, room.id)
        if heir is not None:
            logged.append(await record_role(tx, room.id, heir, None))
    if room.member_count == 1 and room.is_active:
        logged.append(await shut(tx, room.id, None, "nobody is left"))
    return tuple(logged)


async def shut(tx: Transaction, room_id: str, actor_id: str | None, reason: str) -> Change:
    """Close a room under its lock."""
    await tx.execute("UPDATE conversations.conversations SET is_active = false WHERE id = $1", room_id)
    await tx.execute("UPDATE conversations.rooms SET closed_at = clock_timestamp() WHERE id = $1", room_id)
    await tx.execute("DELETE FROM conversations.invitations WHERE conversation_id = $1", room_id)
    data = {"closed_by": actor_id, "reason": reason}
    return await record(tx, room_id, "room_closed", actor_id=actor_id, data=data)


async def member_of(queries: Queries, room_id: str, user_id: str) -> RoomMember:
    """Return a member. Raises NOT_FOUND."""
    row = await queries.fetchrow(_MEMBER, room_id, user_id)
    if row is None:
        raise not_found("member", user_id)
    return room_member_of(row)


async def _last_seq(tx: Transaction, room_id: str) -> int:
    last_seq: int = await tx.fetchval(
        "SELECT last_seq FROM conversations.conversations WHERE id = $1", room_id
    )
    return last_seq


async def _give(
    tx: Transaction, room_id: str, target: Member, role: Role, actor_id: str
) -> tuple[Change, ...]:
    """Give a role; who was the owner before becomes an admin."""
    logged = []
    if role is Role.OWNER:
        for row in await tx.fetch(_OWNER, room_id):
            former_id = str(row["user_id"])
            await seats.give_role(tx, room_id, former_id, Role.ADMIN)
            former = await seats.seat_of(tx, room_id, former_id)
            logged.append(await record_role(tx, room_id, former, actor_id))
    await seats.give_role(tx, room_id, target.user_id, role)
    member = await seats.seat_of(tx, room_id, target.user_id)
    logged.append(await record_role(tx, room_id, member, actor_id))
    return tuple(logged)


def _check_is_room(room: Room) -> None:
    if room.type is RoomType.DIRECT:
        raise denied("a direct conversation is between its two people")


def _with_changes(room: Room, changes: Changes) -> Room:
    given = {
        name: value
        for name, value in msgspec.structs.asdict(changes).items()
        if value is not None and name != "member_limit"
    }
    if changes.member_limit is not None:
        given["member_limit"] = changes.member_limit
    return msgspec.structs.replace(room, **given)


def _differences(before: Room, after: Room) -> dict[str, object]:
    one, other = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {name: value for name, value in other.items() if one[name] != value}


def _facts(room: Room) -> dict[str, object]:
    return {
        "name": room.name,
        "description": room.description,
        "visibility": room.visibility.value,
        "slow_mode_seconds": room.slow_mode_s,
        "antispam": room.antispam,
    }
