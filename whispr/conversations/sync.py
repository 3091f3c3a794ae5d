"""Catching up over all conversations at once: what changed for a person since a cursor.

A cursor is a moment of PostgreSQL's clock. What has a time after it, less a margin, is told: the margin covers
transactions that had taken their time but not committed when the cursor was made, so nothing is missed and a
little may come twice; messages are numbered by seq and changes by change number, so that does no harm. A
transaction takes its times in its last statement, under its conversation's lock, and one that idles is ended
after 10 s: three times that is the margin.

An answer tells of some conversations, by id; its cursor goes on from there as of the same moment, and the last
one's starts from it. Of one conversation it tells what fits, the latest; what does not is `truncated`, and is
read from the history instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec

from whispr.conversations.changes import Change
from whispr.conversations.database import Database, Queries
from whispr.conversations.domain import Conversation, Kind, Limits, Message, clamp_page
from whispr.conversations.history import NOT_HIDDEN
from whispr.conversations.paging import from_token, to_token
from whispr.conversations.rows import EXTRA_COLUMNS, MESSAGE_COLUMNS, Row, message_of
from whispr.conversations.store import SEVERAL, conversation_of
from whispr.ids import UUID_PATTERN

MARGIN = timedelta(seconds=30)
"""How far before a cursor an answer begins."""
EACH_MAX = 100
"""Messages, and changes, told of one conversation."""
EACH_BYTES_MAX = 128 * 1024
"""Bodies of the messages told of one conversation."""
BYTES_MAX = 512 * 1024
"""Bodies in one answer, after which it ends early."""
RECEIPTS_MEMBERS_MAX = 100
"""Larger groups, and rooms, have no receipts here: their members' rows would all have to be looked at."""

_LOWEST = "00000000-0000-0000-0000-000000000000"


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    """`since` is where it began, None at the very beginning; `until` the moment of the first answer."""

    since: Annotated[datetime, msgspec.Meta(tz=True)] | None
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    after: Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)] = _LOWEST


def cursor_at(moment: datetime) -> str:
    """Return the cursor that a first answer at that moment would have had."""
    return to_token(_Cursor(moment))


class Receipt(msgspec.Struct, frozen=True):
    """Where a member's watermarks are."""

    user_id: str
    delivered_seq: int
    read_seq: int
    read_at: datetime | None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What changed in one conversation."""

    conversation: Conversation
    read_seq: int
    delivered_seq: int
    messages: Sequence[Message] = ()
    changes: Sequence[Change] = ()
    changed_messages: Sequence[Message] = ()
    receipts: Sequence[Receipt] = ()
    hidden_seqs: Sequence[int] = ()
    truncated: bool = False


class Synced(msgspec.Struct, frozen=True):
    """One answer."""

    conversations: Sequence[Told]
    left_ids: Sequence[str]
    cursor: str
    has_more: bool


# $2 is the time to begin after, NULL for everything.
_WHICH = f"""
    SELECT c.id, seat.read_seq, seat.delivered_seq
    FROM conversations.members seat JOIN conversations.conversations c ON c.id = seat.conversation_id
    WHERE seat.user_id = $1 AND seat.left_at IS NULL AND seat.conversation_id > $3 AND (
        $2::timestamptz IS NULL
        OR greatest(c.last_message_at, c.changed_at, c.created_at, seat.changed_at, seat.joined_at) > $2
        OR (c.kind <> 'room' AND c.member_count <= {RECEIPTS_MEMBERS_MAX} AND (
            SELECT max(o.changed_at) FROM conversations.members o WHERE o.conversation_id = c.id) > $2))
    ORDER BY seat.conversation_id LIMIT $4
"""  # noqa: S608  # constants of ours
_LEFT = """
    SELECT conversation_id FROM conversations.members WHERE user_id = $1 AND left_at IS NOT NULL AND left_at > $2
    ORDER BY left_at LIMIT 1000
"""
# The latest ones of each conversation are taken off the index, one more than are told, and then those after
# the time: times go up with numbers, so what is left out is older.
_MESSAGES = f"""
    SELECT w.kind, m.*, m.place > {EACH_MAX} OR m.bytes_before >= {EACH_BYTES_MAX} AS beyond
    FROM (SELECT c.id, c.kind FROM conversations.conversations c WHERE c.id = ANY ($2::uuid[])) w
    CROSS JOIN LATERAL (
        SELECT {MESSAGE_COLUMNS}, {EXTRA_COLUMNS}, place, bytes_before FROM (
            SELECT l.*, row_number() OVER (ORDER BY l.seq DESC) AS place,
                sum(octet_length(l.content)) OVER (ORDER BY l.seq DESC) - octet_length(l.content) AS bytes_before
            FROM (
                SELECT * FROM conversations.messages m
                WHERE m.conversation_id = w.id AND {NOT_HIDDEN.format(viewer="$1")}
                ORDER BY m.seq DESC LIMIT {EACH_MAX} + 1
            ) l WHERE l.sent_at > $3
        ) m
    ) m
    ORDER BY m.conversation_id, m.seq
"""  # noqa: S608  # constants of ours
_CHANGES = f"""
    SELECT w.kind AS conversation_kind, l.* FROM (
        SELECT c.id, c.kind FROM conversations.conversations c WHERE c.id = ANY ($1::uuid[])
    ) w CROSS JOIN LATERAL (
        SELECT * FROM (
            SELECT * FROM conversations.changes h WHERE h.conversation_id = w.id
            ORDER BY h.change DESC LIMIT {EACH_MAX} + 1
        ) latest WHERE latest.at > $2
    ) l ORDER BY l.conversation_id, l.change
"""  # noqa: S608  # constants of ours
_CHANGED = f"""
    SELECT c.kind, {", ".join("m." + name.strip() for name in MESSAGE_COLUMNS.split(","))}, {EXTRA_COLUMNS}
    FROM unnest($2::uuid[], $3::bigint[]) AS w (conversation_id, seq)
    JOIN conversations.conversations c ON c.id = w.conversation_id
    JOIN conversations.messages m ON m.conversation_id = w.conversation_id AND m.seq = w.seq
    WHERE {NOT_HIDDEN.format(viewer="$1")} ORDER BY m.seq
"""  # noqa: S608  # constants of ours
_RECEIPTS = f"""
    SELECT o.conversation_id, o.user_id, o.delivered_seq, o.read_seq, o.read_at
    FROM conversations.conversations c JOIN conversations.members o ON o.conversation_id = c.id
    WHERE c.id = ANY ($1::uuid[]) AND c.kind <> 'room' AND c.member_count <= {RECEIPTS_MEMBERS_MAX}
        AND o.left_at IS NULL AND o.changed_at > $2
"""  # noqa: S608  # constants of ours
_HIDDEN = """
    SELECT h.conversation_id, h.seq FROM conversations.hidden h
    WHERE h.conversation_id = ANY ($2::uuid[]) AND h.user_id = $1 AND h.hidden_at > $3
"""


class Sync:
    """Tells people what they missed."""

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db = db
        self._limits = limits

    async def since(self, viewer_id: str, cursor: str, page_size: int) -> Synced:
        """Return what changed since a cursor; an empty one is the beginning. Raises INVALID_ARGUMENT."""
        size = clamp_page(page_size, self._limits)
        place = from_token(cursor, _Cursor) or _Cursor(None)
        begin = None if place.since is None else place.since - MARGIN
        # One snapshot for all statements: what they tell of a conversation agrees.
        async with self._db.transaction("REPEATABLE READ") as tx:
            until = place.until or await tx.fetchval("SELECT clock_timestamp()")
            left: Sequence[Any] = ()
            if begin is not None and place.after == _LOWEST:
                left = await tx.fetch(_LEFT, viewer_id, begin)
            which = await tx.fetch(_WHICH, viewer_id, begin, place.after, size + 1)
            told = await _told(tx, viewer_id, which[:size], begin)
        more = len(which) > size or len(told) < len(which[:size])
        after = told[-1].conversation.id if told else _LOWEST
        following = _Cursor(place.since, until, after) if more else _Cursor(until)
        return Synced(told, [str(row["conversation_id"]) for row in left], to_token(following), more)


async def _told(tx: Queries, viewer_id: str, which: Sequence[Any], begin: datetime | None) -> list[Told]:
    """Tell of these conversations, in their order, as many as fit."""
    ids = [str(row["id"]) for row in which]
    if not ids:
        return []
    rows = {str(row["id"]): row for row in await tx.fetch(SEVERAL, viewer_id, ids)}
    found = _Found() if begin is None else await _found(tx, viewer_id, ids, begin)
    told: list[Told] = []
    size = 0
    for seat in which:
        each = found.of(str(seat["id"]), conversation_of(rows[str(seat["id"])]), seat)
        if begin is None:
            each = msgspec.structs.replace(each, truncated=each.conversation.last_seq > 0)
        size += sum(len(message.content) for message in (*each.messages, *each.changed_messages))
        if told and size > BYTES_MAX:
            break
        told.append(each)
    return told


class _Found:
    """What was found, by conversation."""

    def __init__(self) -> None:
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.changes: dict[str, list[Change]] = defaultdict(list)
        self.changed: dict[str, list[Message]] = defaultdict(list)
        self.receipts: dict[str, list[Receipt]] = defaultdict(list)
        self.hidden: dict[str, list[int]] = defaultdict(list)
        self.truncated: set[str] = set()

    def of(self, conversation_id: str, conversation: Conversation, seat: Mapping[str, Any]) -> Told:
        """Put together what concerns one conversation."""
        return Told(
            conversation=conversation,
            read_seq=seat["read_seq"],
            delivered_seq=seat["delivered_seq"],
            messages=self.messages.get(conversation_id, ()),
            changes=self.changes.get(conversation_id, ()),
            changed_messages=self.changed.get(conversation_id, ()),
            receipts=self.receipts.get(conversation_id, ()),
            hidden_seqs=self.hidden.get(conversation_id, ()),
            truncated=conversation_id in self.truncated,
        )


async def _found(tx: Queries, viewer_id: str, ids: list[str], begin: datetime) -> _Found:
    found = _Found()
    for row in await tx.fetch(_MESSAGES, viewer_id, ids, begin):
        if row["beyond"]:
            found.truncated.add(str(row["conversation_id"]))
        else:
            found.messages[str(row["conversation_id"])].append(message_of(row, row["kind"]))
    for row in await tx.fetch(_CHANGES, ids, begin):
        found.changes[str(row["conversation_id"])].append(change_of(row))
    for conversation_id, changes in found.changes.items():
        if len(changes) > EACH_MAX:
            del changes[0]
            found.truncated.add(conversation_id)
    await _add_changed(tx, viewer_id, found)
    for row in await tx.fetch(_RECEIPTS, ids, begin):
        receipt = Receipt(str(row["user_id"]), row["delivered_seq"], row["read_seq"], row["read_at"])
        found.receipts[str(row["conversation_id"])].append(receipt)
    for row in await tx.fetch(_HIDDEN, viewer_id, ids, begin):
        found.hidden[str(row["conversation_id"])].append(row["seq"])
    return found


async def _add_changed(tx: Queries, viewer_id: str, found: _Found) -> None:
    """Look up, once each, the messages that changed and are not told as new."""
    wanted = {
        (conversation_id, change.seq)
        for conversation_id, changes in found.changes.items()
        for change in changes
        if change.seq is not None
    }
    known = {(id_, message.seq) for id_, messages in found.messages.items() for message in messages}
    places = sorted(wanted - known)
    if places:
        for row in await tx.fetch(_CHANGED, viewer_id, [p[0] for p in places], [p[1] for p in places]):
            found.changed[str(row["conversation_id"])].append(message_of(row, row["kind"]))


def change_of(row: Row) -> Change:
    """Build a change from a row of `conversations.changes` and its conversation's kind."""
    return Change(
        conversation_id=str(row["conversation_id"]),
        conversation_kind=Kind(row["conversation_kind"]),
        change=row["change"],
        kind=row["kind"],
        data=msgspec.json.decode(row["data"]),
        at=row["at"],
        seq=row["seq"],
        actor_id=str(row["actor_id"]) if row["actor_id"] else None,
    )
