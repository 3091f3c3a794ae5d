"""Sanctions against people in rooms: mutes, bans, kicks, by moderators and by the machine.

A mute is a time in the member's row, which the append reads under the conversation's lock, so it is in force from
its commit and ends by itself. A ban is a row of its own, read by whatever gives out seats. Both outlast leaving
and coming back. Every act is written into the audit log in its own transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from whispr.conversations import audit, seats, spam
from whispr.conversations import room_rules as rules
from whispr.conversations.audit import Act
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import Limits, Member, Role, clamp_page
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.room_rows import Ban, Seen, ban_of
from whispr.conversations.room_rules import Person, Room, RoomLimits, RoomType, moment
from whispr.conversations.rooms import locked, take_out
from whispr.conversations.spam import Sanction, Signal, Step
from whispr.errors import denied, not_found
from whispr.events import emit

_UNTIL = "coalesce(clock_timestamp() + ${n}::interval, 'infinity')"
_MUTE = f"""
    UPDATE conversations.members SET muted_until = {_UNTIL.format(n=3)}, changed_at = clock_timestamp()
    WHERE conversation_id = $1 AND user_id = $2 RETURNING muted_until
"""  # noqa: S608  # constants of ours
_UNMUTE = """
    UPDATE conversations.members SET muted_until = NULL, changed_at = clock_timestamp()
    WHERE conversation_id = $1 AND user_id = $2 AND muted_until > now() RETURNING user_id
"""
_BAN = f"""
    INSERT INTO conversations.bans (conversation_id, user_id, until, reason, banned_by, banned_at)
    VALUES ($1, $2, {_UNTIL.format(n=3)}, $4, $5, clock_timestamp())
    ON CONFLICT (conversation_id, user_id) DO UPDATE SET until = excluded.until, reason = excluded.reason,
        banned_by = excluded.banned_by, banned_at = excluded.banned_at
    RETURNING until
"""  # noqa: S608  # constants of ours
_UNBAN = """
    DELETE FROM conversations.bans WHERE conversation_id = $1 AND user_id = $2 RETURNING until > now()
"""
_BANS = """
    SELECT * FROM conversations.bans
    WHERE conversation_id = $1 AND until > now()
        AND ($2::timestamptz IS NULL OR (banned_at, user_id) < ($2, $3::uuid))
    ORDER BY banned_at DESC, user_id DESC LIMIT $4
"""
_UNINVITE = "DELETE FROM conversations.invitations WHERE conversation_id = $1 AND user_id = $2"
_EARLIER = """
    SELECT count(*) AS earlier, coalesce(max(a.at) > clock_timestamp() - $4::interval, false) AS just_now
    FROM conversations.audit a
    WHERE a.conversation_id = $1 AND a.target_id = $2 AND a.actor_id IS NULL
        AND a.action IN ('warn', 'mute', 'ban', 'ban_proposed') AND a.at > clock_timestamp() - $3::interval
"""
SAME_BURST = timedelta(seconds=1)
"""A sanction of the machine this soon after another is for the same burst, noticed by another process."""


@dataclass(frozen=True, slots=True)
class Sanctioned:
    """What was done: until when, and the changes that say so."""

    until: datetime | None
    changes: tuple[Change, ...] = ()
    warning: str = ""
    """What a person is to be told who was only warned."""
    proposal: str = ""
    """Why the machine proposes a ban."""
    moderators: tuple[str, ...] = ()
    """Who is to hear of the proposal."""


class Sanctions:
    """Acts against people; `person` is who does it, `reason` goes into the audit log and to the person."""

    def __init__(self, db: Database, limits: RoomLimits, pages: Limits) -> None:
        self._db = db
        self._limits = limits
        self._pages = pages

    async def mute(
        self, person: Person, room_id: str, user_id: str, lasts: timedelta | None, reason: str
    ) -> Sanctioned:
        """Silence a member, for good when `lasts` is None. Raises NOT_FOUND, PERMISSION_DENIED."""
        async with self._db.transaction() as tx:
            _, target = await self._target(tx, person, room_id, user_id)
            if target is None:
                raise not_found("member", user_id)
            return await _mute(tx, room_id, user_id, lasts, person.user_id, reason)

    async def unmute(self, person: Person, room_id: str, user_id: str, reason: str) -> tuple[Change, ...]:
        """Let somebody speak again; without a mute nothing changes. Raises NOT_FOUND, PERMISSION_DENIED."""
        async with self._db.transaction() as tx:
            await self._target(tx, person, room_id, user_id)
            if await tx.fetchval(_UNMUTE, room_id, user_id) is None:
                return ()
            await audit.add(
                tx, room_id, Act.UNMUTE, actor_id=person.user_id, target_id=user_id, reason=reason
            )
            data = {"user_id": user_id, "by": person.user_id}
            return (await record(tx, room_id, "user_unmuted", actor_id=person.user_id, data=data),)

    async def ban(
        self, person: Person, room_id: str, user_id: str, lasts: timedelta | None, reason: str
    ) -> Sanctioned:
        """Remove a person and keep them out, for good when `lasts` is None; also one who is not inside.

        Raises NOT_FOUND, PERMISSION_DENIED.
        """
        async with self._db.transaction() as tx:
            room, target = await self._target(tx, person, room_id, user_id)
            if target is None:
                await seats.check_people(tx, [user_id])
            return await _ban(tx, room, user_id, target, lasts, person.user_id, reason)

    async def unban(self, person: Person, room_id: str, user_id: str, reason: str) -> tuple[Change, ...]:
        """Let somebody come back; without a ban nothing changes. Raises NOT_FOUND, PERMISSION_DENIED."""
        async with self._db.transaction() as tx:
            await self._target(tx, person, room_id, user_id)
            if not await tx.fetchval(_UNBAN, room_id, user_id):
                return ()
            await audit.add(tx, room_id, Act.UNBAN, actor_id=person.user_id, target_id=user_id, reason=reason)
            data = {"user_id": user_id, "by": person.user_id}
            return (await record(tx, room_id, "user_unbanned", actor_id=person.user_id, data=data),)

    async def kick(self, person: Person, room_id: str, user_id: str, reason: str) -> tuple[Change, ...]:
        """Remove a member, who may come back. One who is gone already changes nothing.

        Raises NOT_FOUND, PERMISSION_DENIED.
        """
        async with self._db.transaction() as tx:
            room, target = await self._target(tx, person, room_id, user_id)
            if target is None:
                return ()
            await tx.execute(_UNINVITE, room_id, user_id)
            await audit.add(tx, room_id, Act.KICK, actor_id=person.user_id, target_id=user_id, reason=reason)
            data = {"reason": reason or "kicked", "by": person.user_id}
            return await take_out(tx, room, target, "user_kicked", person.user_id, data)

    async def bans(self, room_id: str, page_size: int, page_token: str) -> tuple[list[Ban], str]:
        """Return bans in force, the latest first, and the next token. Does not ask who wants to know."""
        size = clamp_page(page_size, self._pages)
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_BANS, room_id, at, last_id, size + 1)
        found = [ban_of(row) for row in rows[:size]]
        token = to_token(Place(found[-1].banned_at, found[-1].user_id)) if len(rows) > size else ""
        return found, token

    async def by_machine(
        self, room_id: str, user_id: str, signal: Signal, *, bans: bool
    ) -> Sanctioned | None:
        """Sanction a spammer one step harder than last time.

        None for whom the machine leaves alone: moderators, people who are gone or sanctioned for the same burst
        a moment ago, and rooms that do not want it.
        """
        nobody = Person("00000000-0000-0000-0000-000000000000", moderates_people=True)
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, nobody, self._limits, known=False)
            target = await seats.seat_or_none(tx, room_id, user_id)
            if target is None or target.role is not Role.MEMBER or not _watched(seen.room):
                return None
            row = await tx.fetchrow(_EARLIER, room_id, user_id, spam.DAY, SAME_BURST)
            assert row is not None, "an aggregate always has a row"
            if row["just_now"]:
                return None
            return await _sanction(tx, seen, target, spam.next_sanction(row["earlier"], bans=bans), signal)

    async def _target(
        self, tx: Transaction, person: Person, room_id: str, user_id: str
    ) -> tuple[Room, Member | None]:
        """Lock the room and return it with whom is acted against, if they are inside. Raises as the acts do."""
        seen = await locked(tx, room_id, person, self._limits)
        if seen.room.type is RoomType.DIRECT:
            raise denied("a direct conversation is between its two people")
        target = await seats.seat_or_none(tx, room_id, user_id)
        rules.check_may_sanction(
            seen.room.role,
            target.role if target is not None else None,
            platform=person.moderates_people,
            oneself=user_id == person.user_id,
        )
        return seen.room, target


def _watched(room: Room) -> bool:
    return room.antispam and room.is_active and room.type is not RoomType.DIRECT


async def _mute(
    tx: Transaction, room_id: str, user_id: str, lasts: timedelta | None, actor_id: str, reason: str
) -> Sanctioned:
    until = rules.until_of(await tx.fetchval(_MUTE, room_id, user_id, lasts))
    assert until is not None, "the update has just set it"
    facts = {"until": moment(until)}
    await audit.add(tx, room_id, Act.MUTE, actor_id=actor_id, target_id=user_id, reason=reason, details=facts)
    data = {"user_id": user_id, "until": moment(until), "reason": reason, "by": actor_id or None}
    change = await record(tx, room_id, "user_muted", actor_id=actor_id or None, data=data)
    return Sanctioned(until, (change,))


async def _ban(
    tx: Transaction,
    room: Room,
    user_id: str,
    target: Member | None,
    lasts: timedelta | None,
    actor_id: str,
    reason: str,
) -> Sanctioned:
    until = rules.until_of(await tx.fetchval(_BAN, room.id, user_id, lasts, reason, actor_id or None))
    assert until is not None, "the insert has just set it"
    await tx.execute(_UNINVITE, room.id, user_id)
    facts = {"until": moment(until)}
    await audit.add(tx, room.id, Act.BAN, actor_id=actor_id, target_id=user_id, reason=reason, details=facts)
    data = {"until": moment(until), "reason": reason, "by": actor_id or None}
    if target is not None:
        return Sanctioned(until, await take_out(tx, room, target, "user_banned", actor_id or None, data))
    data = {"user_id": user_id, **data}
    return Sanctioned(
        until, (await record(tx, room.id, "user_banned", actor_id=actor_id or None, data=data),)
    )


async def _sanction(
    tx: Transaction, seen: Seen, target: Member, sanction: Sanction, signal: Signal
) -> Sanctioned:
    """Do what the machine chose."""
    room, user_id = seen.room, target.user_id
    reason = f"spam: {signal}"
    match sanction.step:
        case Step.WARN:
            await audit.add(tx, room.id, Act.WARN, actor_id="", target_id=user_id, reason=reason)
            await warned(tx, room.id, user_id, "", reason)
            return Sanctioned(None, warning=reason)
        case Step.MUTE:
            return await _mute(tx, room.id, user_id, sanction.lasts, "", reason)
        case Step.BAN:
            return await _ban(tx, room, user_id, target, sanction.lasts, "", reason)
        case Step.PROPOSE_BAN:
            muted = await _mute(tx, room.id, user_id, sanction.lasts, "", reason)
            await audit.add(tx, room.id, Act.BAN_PROPOSED, actor_id="", target_id=user_id, reason=reason)
            facts: Mapping[str, object] = {"room_id": room.id, "user_id": user_id, "reason": reason}
            await emit(tx, "chat.events.ban_proposed", about=room.id, actor=None, data=dict(facts))
            moderators = await seats.moderators(tx, room.id)
            return Sanctioned(muted.until, muted.changes, proposal=reason, moderators=moderators)


async def warned(
    tx: Transaction, room_id: str, user_id: str, actor_id: str, reason: str, message_id: str = ""
) -> None:
    """Emit that somebody was warned: theirs to know, so it is no change of the room."""
    data = {"room_id": room_id, "user_id": user_id, "reason": reason}
    if message_id:
        data["message_id"] = message_id
    await emit(tx, "chat.events.user_warned", about=room_id, actor=actor_id or None, data=data)
