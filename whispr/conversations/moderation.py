"""Moderating messages: what members report, and what moderators do about it.

Distinct people who report a message add up: at one threshold it is flagged for review, at the next it is hidden.
A hidden message keeps its place and shows nothing but `metadata.hidden`; what it said is withheld for moderators,
who delete it, replace it, or restore it. All of it happens under the conversation's lock, and is written into the
audit log of its room.

Moderators act on messages of people they outrank, in their rooms. Elsewhere only platform moderators act
(chat:moderate), and only on messages that somebody in there has reported: nobody reads along.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from whispr.conversations import audit, domain, seats
from whispr.conversations import room_rules as rules
from whispr.conversations.audit import Act
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Queries, Transaction
from whispr.conversations.domain import Kind, Limits, Message, clamp_page
from whispr.conversations.editing import erase
from whispr.conversations.message_rules import HIDDEN, gone, no_message
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.room_rows import see
from whispr.conversations.room_rules import Person, Reported, RoomLimits
from whispr.conversations.rows import MESSAGE_COLUMNS, encode_map, map_of, message_of
from whispr.conversations.sanctions import warned
from whispr.errors import denied, invalid
from whispr.events import emit

REASONS_LEN = 10

_COLUMNS = ", ".join("m." + name.strip() for name in MESSAGE_COLUMNS.split(","))
_MESSAGE = f"""
    SELECT c.kind, {_COLUMNS} FROM conversations.messages m
    JOIN conversations.conversations c ON c.id = m.conversation_id WHERE m.id = $1
"""  # noqa: S608  # constants of ours
_WHERE = "SELECT conversation_id FROM conversations.messages WHERE id = $1"
_REPORT = """
    INSERT INTO conversations.reports (message_id, reporter_id, conversation_id, reason, reported_at)
    VALUES ($1, $2, $3, $4, clock_timestamp())
    ON CONFLICT (message_id, reporter_id) DO UPDATE SET reason = excluded.reason
    RETURNING xmax = 0 AS is_new
"""
_REPORTS = "SELECT count(*) FROM conversations.reports WHERE message_id = $1"
# A new report opens a reviewed message again; a repeated one does not.
_FLAG = """
    INSERT INTO conversations.flags AS f (message_id, conversation_id, seq, reports, flagged, hidden, flagged_at)
    VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp())
    ON CONFLICT (message_id) DO UPDATE SET reports = excluded.reports,
        flagged = f.flagged OR excluded.flagged, hidden = f.hidden OR excluded.hidden,
        reviewed_at = CASE WHEN $7 THEN NULL ELSE f.reviewed_at END
"""
_FLAGGED = "SELECT flagged, hidden FROM conversations.flags WHERE message_id = $1"
_REVIEWED = """
    UPDATE conversations.flags SET reviewed_at = clock_timestamp(), flagged = false, hidden = false
    WHERE message_id = $1
"""
_WITHHOLD = """
    INSERT INTO conversations.withheld (message_id, conversation_id, seq, sender_id, content, metadata,
        signature, sender_public_key, edited_at, withheld_at)
    SELECT id, conversation_id, seq, sender_id, content, metadata, signature, sender_public_key, edited_at,
        clock_timestamp()
    FROM conversations.messages WHERE id = $1 ON CONFLICT DO NOTHING
"""
_TAKE_BACK = "DELETE FROM conversations.withheld WHERE message_id = $1 RETURNING *"
_REWRITE = """
    UPDATE conversations.messages SET content = $2, metadata = $3::text::jsonb, signature = $4,
        sender_public_key = $5, edited_at = clock_timestamp()
    WHERE id = $1 RETURNING edited_at
"""
_UNINDEX = "DELETE FROM conversations.search WHERE conversation_id = $1 AND seq = $2"
_OPEN = f"""
    SELECT f.reports, f.hidden AS is_hidden, f.flagged_at, w.content AS said, w.metadata AS said_metadata,
        c.kind, c.name AS conversation_name, {_COLUMNS},
        (SELECT array_agg(r.reason ORDER BY r.reported_at DESC) FROM (
            SELECT reason, reported_at FROM conversations.reports r
            WHERE r.message_id = f.message_id AND r.reason <> '' ORDER BY reported_at DESC LIMIT {REASONS_LEN}
        ) r) AS reasons
    FROM conversations.flags f
    JOIN conversations.messages m ON m.id = f.message_id
    JOIN conversations.conversations c ON c.id = f.conversation_id
    LEFT JOIN conversations.withheld w ON w.message_id = f.message_id
    WHERE f.reviewed_at IS NULL {{where}}
        AND ($1::timestamptz IS NULL OR (f.flagged_at, f.message_id) < ($1, $2::uuid))
    ORDER BY f.flagged_at DESC, f.message_id DESC LIMIT $3
"""  # noqa: S608  # constants of ours
_OPEN_IN_ROOM = _OPEN.format(where="AND f.conversation_id = $4")
_OPEN_ANYWHERE = _OPEN.format(where="")


class Action(enum.StrEnum):
    """What a moderator does to a message."""

    WARN = "WARN"
    DELETE = "DELETE"
    EDIT = "EDIT"
    FLAG = "FLAG"
    RESTORE = "RESTORE"


@dataclass(frozen=True, slots=True)
class Moderated:
    """The message as it is now, and the changes that say so, each with what its broadcast needs besides."""

    message: Message
    changes: tuple[Change, ...] = ()
    warning: str = ""
    """What its sender is to be told who was only warned."""
    moderators: tuple[str, ...] = ()
    """Who is to hear that it was flagged just now."""


class Flagged(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits for review; a hidden one with what it said."""

    message: Message
    reports: int
    reasons: Sequence[str]
    hidden: bool
    flagged_at: datetime
    conversation_name: str
    """Empty for a direct one."""


class Moderation:
    """Reports, and acts on messages; `person` is who does it."""

    def __init__(self, db: Database, limits: RoomLimits, pages: Limits) -> None:
        self._db = db
        self._limits = limits
        self._pages = pages

    async def report(self, person: Person, message_id: str, reason: str) -> tuple[Reported, Moderated]:
        """Report a message that the person may read; the same person again only changes the reason.

        Raises NOT_FOUND, also when they may not read it, INVALID_ARGUMENT for one's own.
        """
        async with self._db.transaction() as tx:
            message = await _locked(tx, message_id)
            seat = await seats.seat_or_none(tx, message.conversation_id, person.user_id)
            if seat is None or gone(message, datetime.now(UTC)):
                raise no_message(message_id)
            if message.sender_id == person.user_id:
                raise invalid({"message_id": "nobody reports themselves; delete the message instead"})
            is_new = await tx.fetchval(_REPORT, message_id, person.user_id, message.conversation_id, reason)
            if is_new:
                data = {"message_id": message_id, "sender_id": message.sender_id, "reason": reason}
                await _tell(tx, message, "message_reported", person.user_id, data)
            return await self._weigh(tx, message, is_new=is_new)

    async def _weigh(self, tx: Transaction, message: Message, *, is_new: bool) -> tuple[Reported, Moderated]:
        """Flag and hide the message when enough people have reported it."""
        before = await tx.fetchrow(_FLAGGED, message.id)
        count: int = await tx.fetchval(_REPORTS, message.id)
        found = rules.weigh_reports(count, self._limits)
        place = (message.id, message.conversation_id, message.seq)
        await tx.execute(_FLAG, *place, count, found.flagged, found.hidden, is_new)
        about = {"reports": str(count)}
        moderators: tuple[str, ...] = ()
        if found.flagged and not (before and before["flagged"]):
            await _log(tx, message, Act.FLAG_MESSAGE, "", "reported", about)
            await _tell(tx, message, "message_flagged", None, {"message_id": message.id, "reports": count})
            moderators = await seats.moderators(tx, message.conversation_id)
        if not found.hidden or (before and before["hidden"]):
            return found, Moderated(message, moderators=moderators)
        await _log(tx, message, Act.HIDE_MESSAGE, "", "reported", about)
        return found, replace(await _hide(tx, message), moderators=moderators)

    async def moderate(
        self, person: Person, message_id: str, action: Action, reason: str, content: bytes
    ) -> Moderated:
        """Act on a message. Deleting one that is gone changes nothing.

        Raises NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT.
        """
        if action is Action.EDIT:
            domain.check_content(content, domain.MessageType.TEXT, self._pages)
        elif content:
            raise invalid({"content": "goes with EDIT"})
        async with self._db.transaction() as tx:
            message = await _locked(tx, message_id)
            await self._check_may(tx, person, message)
            if gone(message, datetime.now(UTC)):
                if action is Action.DELETE:
                    return Moderated(message)
                raise no_message(message_id)
            done = await _act(tx, message, action, person.user_id, reason, content)
            data = {"message_id": message_id, "sender_id": message.sender_id, "action": action.value}
            await _tell(tx, message, "message_moderated", person.user_id, {**data, "reason": reason})
            return done

    async def message(self, message_id: str) -> Message:
        """Return a message, to nobody in particular. Raises NOT_FOUND."""
        return await _message(self._db, message_id)

    async def open_flags(self, room_id: str, page_size: int, page_token: str) -> tuple[list[Flagged], str]:
        """Return what waits for review, the latest first, and the next token; without a room, of everywhere.

        Does not ask who wants to know.
        """
        size = clamp_page(page_size, self._pages)
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        place = (at, last_id, size + 1)
        rows = await (
            self._db.fetch(_OPEN_IN_ROOM, *place, room_id)
            if room_id
            else self._db.fetch(_OPEN_ANYWHERE, *place)
        )
        found = [_flagged_of(row) for row in rows[:size]]
        token = to_token(Place(found[-1].flagged_at, found[-1].message.id)) if len(rows) > size else ""
        return found, token

    async def _check_may(self, tx: Transaction, person: Person, message: Message) -> None:
        """Raises NOT_FOUND to who may not know of the message, PERMISSION_DENIED to who may not act on it."""
        if message.kind is not Kind.ROOM:
            reported = await tx.fetchval(
                "SELECT true FROM conversations.flags WHERE message_id = $1", message.id
            )
            if reported and person.moderates_people:
                return
            seat = await seats.seat_or_none(tx, message.conversation_id, person.user_id)
            raise denied("moderators act in rooms") if seat is not None else no_message(message.id)
        seen = await see(tx, message.conversation_id, person, self._limits)
        if seen.room.role is None and not person.moderates_people:
            raise no_message(message.id)
        sender = await seats.seat_or_none(tx, message.conversation_id, message.sender_id)
        rules.check_may_sanction(
            seen.room.role,
            sender.role if sender is not None else None,
            platform=person.moderates_people,
            oneself=message.sender_id == person.user_id,
        )


async def _message(queries: Queries, message_id: str) -> Message:
    row = await queries.fetchrow(_MESSAGE, message_id)
    if row is None:
        raise no_message(message_id)
    return message_of(row, row["kind"])


async def _locked(tx: Transaction, message_id: str) -> Message:
    """Take the lock of a message's conversation and read the message under it. Raises NOT_FOUND."""
    conversation_id = await tx.fetchval(_WHERE, message_id)
    if conversation_id is None:
        raise no_message(message_id)
    await seats.lock(tx, str(conversation_id))
    return await _message(tx, message_id)


async def _act(
    tx: Transaction, message: Message, action: Action, actor_id: str, reason: str, content: bytes
) -> Moderated:
    match action:
        case Action.WARN:
            await _log(tx, message, Act.WARN, actor_id, reason)
            await warned(tx, message.conversation_id, message.sender_id, actor_id, reason, message.id)
            return Moderated(message, warning=reason or "a moderator has warned you")
        case Action.DELETE:
            await _log(tx, message, Act.DELETE_MESSAGE, actor_id, reason)
            await tx.execute(_REVIEWED, message.id)
            changes = await erase(tx, message.conversation_id, [message.seq], actor_id, reason=reason)
            return Moderated(await _message(tx, message.id), tuple(changes))
        case Action.EDIT:
            await _log(tx, message, Act.EDIT_MESSAGE, actor_id, reason)
            await tx.execute(_REVIEWED, message.id)
            await tx.execute(_TAKE_BACK, message.id)
            kept = {key: value for key, value in message.metadata.items() if key != HIDDEN}
            return await _rewrite(tx, message, actor_id, content, kept, reason=reason)
        case Action.FLAG:
            await _log(tx, message, Act.FLAG_MESSAGE, actor_id, reason)
            count: int = await tx.fetchval(_REPORTS, message.id)
            place = (message.id, message.conversation_id, message.seq)
            await tx.execute(_FLAG, *place, count, True, False, True)
            return Moderated(message)
        case Action.RESTORE:
            await _log(tx, message, Act.RESTORE_MESSAGE, actor_id, reason)
            await tx.execute("DELETE FROM conversations.reports WHERE message_id = $1", message.id)
            await tx.execute(_REVIEWED, message.id)
            return await _restore(tx, message, actor_id)


async def _hide(tx: Transaction, message: Message) -> Moderated:
    """Withhold what a message says."""
    await tx.execute(_WITHHOLD, message.id)
    await tx.execute(_UNINDEX, message.conversation_id, message.seq)
    return await _rewrite(tx, message, None, b"", {HIDDEN: "reported"}, reason="reported")


async def _restore(tx: Transaction, message: Message, actor_id: str) -> Moderated:
    """Put back what was withheld, if it was."""
    row = await tx.fetchrow(_TAKE_BACK, message.id)
    if row is None:
        return Moderated(message)
    return await _rewrite(
        tx,
        message,
        actor_id,
        row["content"],
        map_of(row["metadata"]),
        signature=row["signature"],
        sender_public_key=row["sender_public_key"],
        reason="restored",
    )


async def _rewrite(
    tx: Transaction,
    message: Message,
    actor_id: str | None,
    content: bytes,
    metadata: Mapping[str, str],
    *,
    signature: bytes | None = None,
    sender_public_key: bytes | None = None,
    reason: str = "",
) -> Moderated:
    """Replace what a message says; a signature of its sender goes, for it was made for other words."""
    encoded = encode_map(dict(metadata)).decode() if metadata else None
    edited_at = await tx.fetchval(_REWRITE, message.id, content, encoded, signature, sender_public_key)
    data = {
        "message_id": message.id,
        "sender_id": message.sender_id,
        "edited_by": actor_id,
        "edited_at": edited_at,
        "reason": reason,
    }
    change = await record(
        tx, message.conversation_id, "message_edited", actor_id=actor_id, data=data, seq=message.seq
    )
    return Moderated(await _message(tx, message.id), (change,))


async def _log(
    tx: Transaction,
    message: Message,
    act: Act,
    actor_id: str,
    reason: str,
    details: Mapping[str, str] | None = None,
) -> None:
    await audit.add(
        tx,
        message.conversation_id,
        act,
        actor_id=actor_id,
        target_id=message.sender_id,
        message_id=message.id,
        reason=reason,
        details=details,
    )


async def _tell(
    tx: Transaction, message: Message, event: str, actor_id: str | None, data: Mapping[str, Any]
) -> None:
    """Emit what is for moderators and the operator, and no change of the conversation."""
    where = {"conversation_id": message.conversation_id, "conversation_kind": message.kind.value}
    subject = f"{'chat' if message.kind is Kind.ROOM else 'messaging'}.events.{event}"
    await emit(tx, subject, about=message.conversation_id, actor=actor_id, data={**where, **data})


def _flagged_of(row: Mapping[str, Any]) -> Flagged:
    message = message_of(row, row["kind"])
    if row["said"] is not None:
        message = msgspec.structs.replace(
            message, content=row["said"], metadata={**map_of(row["said_metadata"]), HIDDEN: "reported"}
        )
    return Flagged(
        message=message,
        reports=row["reports"],
        reasons=list(row["reasons"] or ()),
        hidden=row["is_hidden"],
        flagged_at=row["flagged_at"],
        conversation_name=row["conversation_name"] or "",
    )
