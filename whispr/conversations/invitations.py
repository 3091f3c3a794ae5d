"""Invitations to rooms: to a person, once, or a code that admits whoever shows it; each runs out."""

from __future__ import annotations

import secrets
from datetime import timedelta

from whispr.conversations import domain, seats
from whispr.conversations import room_rules as rules
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import Limits, Role, clamp_page
from whispr.conversations.paging import After, from_token, to_token
from whispr.conversations.room_rows import Invitation, Seen, invitation_of, see
from whispr.conversations.room_rules import Person, RoomLimits
from whispr.conversations.rooms import locked
from whispr.errors import denied, exhausted, exists, not_found
from whispr.events import emit
from whispr.ids import new_id

CODE_BYTES = 12

_FORGET_OLD = """
    DELETE FROM conversations.invitations
    WHERE conversation_id = $1 AND (expires_at <= now() OR (uses_max > 0 AND uses >= uses_max))
"""
_OUT = "SELECT count(*) FROM conversations.invitations WHERE conversation_id = $1 AND created_by = $2"
_MAKE = """
    INSERT INTO conversations.invitations
        (id, conversation_id, user_id, code, created_by, created_at, expires_at, uses_max)
    VALUES ($1, $2, $3, $4, $5, now(), now() + $6::interval, $7)
    ON CONFLICT (conversation_id, user_id) WHERE user_id IS NOT NULL DO UPDATE SET
        id = excluded.id, created_by = excluded.created_by, created_at = excluded.created_at,
        expires_at = excluded.expires_at
    RETURNING *
"""
_TARGET = """
    SELECT
        EXISTS (SELECT FROM conversations.members m
            WHERE m.conversation_id = $1 AND m.user_id = $2 AND m.left_at IS NULL) AS inside,
        EXISTS (SELECT FROM conversations.bans b
            WHERE b.conversation_id = $1 AND b.user_id = $2 AND b.until > now()) AS banned
"""
_PAGE = """
    SELECT * FROM conversations.invitations
    WHERE conversation_id = $1 AND expires_at > now() AND (uses_max = 0 OR uses < uses_max)
        AND ($2::uuid IS NULL OR created_by = $2 OR user_id = $2) AND ($3::uuid IS NULL OR id < $3)
    ORDER BY id DESC LIMIT $4
"""
_WHOSE = "SELECT created_by, user_id FROM conversations.invitations WHERE conversation_id = $1 AND id = $2"
_REVOKE = "DELETE FROM conversations.invitations WHERE id = $1"


class Invitations:
    """Makes, lists and takes back invitations; `person` is who asks."""

    def __init__(self, db: Database, limits: RoomLimits, pages: Limits) -> None:
        self._db = db
        self._limits = limits
        self._pages = pages

    async def invite(
        self, person: Person, room_id: str, user_id: str, lasts: timedelta, uses_max: int
    ) -> tuple[Invitation, Seen]:
        """Invite a person, or, without one, make a code. Inviting somebody again renews it.

        Raises NOT_FOUND, PERMISSION_DENIED, ALREADY_EXISTS (already_member), FAILED_PRECONDITION (room_closed),
        RESOURCE_EXHAUSTED (too_many_invitations).
        """
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            rules.check_may_invite(seen.room.type, seen.room.role)
            if not seen.room.is_active:
                raise domain.inactive()
            await tx.execute(_FORGET_OLD, room_id)
            out: int = await tx.fetchval(_OUT, room_id, person.user_id)
            if self._limits.invitations and out >= self._limits.invitations:
                raise exhausted(
                    f"at most {self._limits.invitations} invitations out at once",
                    reason="too_many_invitations",
                )
            if user_id:
                await _check_target(tx, room_id, user_id)
            code = "" if user_id else secrets.token_urlsafe(CODE_BYTES)
            row = await tx.fetchrow(
                _MAKE,
                *(new_id(), room_id, user_id or None, code or None, person.user_id, lasts, uses_max),
            )
            assert row is not None, "an insert or an update always returns its row"
            invitation = invitation_of(dict(row))
            data = {
                "room_id": room_id,
                "user_id": user_id,
                "invited_by": person.user_id,
                "expires_at": invitation.expires_at.isoformat(),
            }
            if user_id:
                await emit(tx, "chat.events.user_invited", about=room_id, actor=person.user_id, data=data)
            return invitation, seen

    async def page(
        self, person: Person, room_id: str, page_size: int, page_token: str
    ) -> tuple[list[Invitation], str]:
        """Return invitations that are good, the latest first: all to moderators, to others their own.

        Raises NOT_FOUND, PERMISSION_DENIED (not_a_member) to who is neither inside nor invited.
        """
        seen = await see(self._db, room_id, person, self._limits)
        if not (seen.standing.inside or seen.standing.invited or _sees_all(person, seen)):
            raise domain.not_a_member()
        size = clamp_page(page_size, self._pages)
        whose = None if _sees_all(person, seen) else person.user_id
        last = from_token(page_token, After)
        rows = await self._db.fetch(_PAGE, room_id, whose, last and last.id, size + 1)
        found = [invitation_of(row) for row in rows[:size]]
        return found, to_token(After(found[-1].id)) if len(rows) > size else ""

    async def revoke(self, person: Person, room_id: str, invitation_id: str) -> None:
        """Take one back, as its maker, as a moderator, or as the invited who declines.

        One that is gone already changes nothing. Raises NOT_FOUND to outsiders, PERMISSION_DENIED to members.
        """
        async with self._db.transaction() as tx:
            seen = await locked(tx, room_id, person, self._limits)
            row = await tx.fetchrow(_WHOSE, room_id, invitation_id)
            theirs = row is not None and person.user_id in (str(row["created_by"]), str(row["user_id"]))
            if not theirs and not _sees_all(person, seen):
                if not seen.standing.inside:
                    raise not_found("invitation", invitation_id)
                if row is not None:
                    raise denied("the invitation is somebody else's")
            await tx.execute(_REVOKE, invitation_id)


def _sees_all(person: Person, seen: Seen) -> bool:
    role = seen.room.role
    return person.is_platform_moderator or (role is not None and role.rank >= Role.MODERATOR.rank)


async def _check_target(tx: Transaction, room_id: str, user_id: str) -> None:
    await seats.check_people(tx, [user_id])
    row = await tx.fetchrow(_TARGET, room_id, user_id)
    assert row is not None, "the query has no FROM"
    if row["inside"]:
        raise exists("they are a member already", "already_member")
    if row["banned"]:
        raise denied("they are banned from this room", reason="banned")
