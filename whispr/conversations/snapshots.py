"""One statement that reads all that joiners of conversations may have missed, as of one moment.

It serves several conversations, and several people of each, at once: what roles they have and what each has hidden
is in the answer, of which `whispr.conversations.tails` makes what one of them may see.

Watermarks have no number of their own. Those are told that moved since the moment at which the asker was last up to
date, as far as that is known: when the message and the change that they name were made, less the margin that Sync
has too. So a watermark may be told twice, which does no harm, for it only goes up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from whispr.conversations.changes import Change
from whispr.conversations.database import Database
from whispr.conversations.domain import Kind, Member, Message, Role
from whispr.conversations.history import PAGE_BYTES_MAX
from whispr.conversations.rows import EXTRA_COLUMNS, Row, message_of
from whispr.conversations.sync import MARGIN, Receipt, change_of
from whispr.errors import not_found

ROSTER_MAX = 2000
"""Members whose roles are read for whoever joins next; in larger conversations only the asker's own."""
MEMBERS_PAGE = 100
"""Members told with a join; `get_members` pages through the rest."""
RECEIPTS_MEMBERS_MAX = 1000
"""In larger conversations watermarks are not replayed: every member's row would have to be looked at."""
MARGIN_LEN = 32
"""Messages and changes read before the place asked for, for those a little further behind who ask next."""
MARGIN_BYTES_MAX = 4096
"""Longer messages are not read ahead."""

_SEAT = "m.conversation_id = c.id AND m.left_at IS NULL"
_SHARED = "c.member_count <= asked.roster_max"
# $1 conversations, $2 askers of any of them, $3 since seq, $4 since change (NULL is now), $5 length of a replay,
# $6 the margin, $7 the largest conversation of which every member's role is read. $1, $3, $4 and $7 go together.
# The messages are numbered without gaps, so a range of seqs is a number of rows.
_SNAPSHOT = f"""
    SELECT c.id::text AS id, c.kind, c.last_seq, c.last_change, c.member_count, {_SHARED} AS shared,
        seats.*, people.*, since.*, told.*, happened.*, altered.*, put_away.*, receipts.*
    FROM unnest($1::uuid[], $3::bigint[], $4::bigint[], $7::bigint[]) AS asked (id, seq, change, roster_max)
    JOIN conversations.conversations c ON c.id = asked.id
    CROSS JOIN LATERAL (
        SELECT least(asked.seq, c.last_seq) AS since_seq, least(asked.change, c.last_change) AS since_change
    ) place
    CROSS JOIN LATERAL (
        SELECT array_agg(m.user_id::text) AS user_ids, array_agg(m.role) AS roles
        FROM conversations.members m WHERE {_SEAT} AND ({_SHARED} OR m.user_id = ANY ($2::uuid[]))
    ) seats
    CROSS JOIN LATERAL (
        SELECT array_agg(page ORDER BY page.joined_at, page.user_id) AS people FROM (
            SELECT m.user_id, m.role, m.joined_at, m.delivered_seq, m.read_seq, p.username, p.display_name
            FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
            WHERE {_SEAT} ORDER BY m.joined_at, m.user_id LIMIT {MEMBERS_PAGE}
        ) page
    ) people
    CROSS JOIN LATERAL (
        SELECT greatest(
            (SELECT m.sent_at FROM conversations.messages m WHERE m.conversation_id = c.id AND m.seq = since_seq),
            (SELECT h.at FROM conversations.changes h WHERE h.conversation_id = c.id AND h.change = since_change)
        ) AS since_at
    ) since
    CROSS JOIN LATERAL (
        SELECT array_agg(x.message ORDER BY x.seq) AS messages, array_agg(x.reactions ORDER BY x.seq) AS reactions,
            array_agg(x.attachments ORDER BY x.seq) AS attachments FROM (
            SELECT m.seq, m.message, {EXTRA_COLUMNS} FROM (
                SELECT l.*, sum(l.size) OVER (ORDER BY l.seq) - l.size AS bytes_before FROM (
                    SELECT n.conversation_id, n.seq, n AS message,
                        CASE WHEN n.seq > since_seq THEN octet_length(n.content) ELSE 0 END AS size
                    FROM conversations.messages n
                    WHERE n.conversation_id = c.id AND n.seq > since_seq - {MARGIN_LEN}
                        AND n.seq <= since_seq + $5::bigint
                        AND (n.seq > since_seq OR octet_length(n.content) <= {MARGIN_BYTES_MAX})
                    ORDER BY n.seq
                ) l
            ) m WHERE m.bytes_before < {PAGE_BYTES_MAX} OR m.seq = since_seq + 1
        ) x
    ) told
    CROSS JOIN LATERAL (
        SELECT array_agg(h ORDER BY h.change) AS changes, array_agg(DISTINCT h.seq) AS changed_seqs
        FROM conversations.changes h
        WHERE h.conversation_id = c.id AND h.change > since_change - {MARGIN_LEN}
            AND h.change <= since_change + $5::bigint
    ) happened
    CROSS JOIN LATERAL (
        SELECT array_agg(x.message) AS altered, array_agg(x.reactions) AS altered_reactions,
            array_agg(x.attachments) AS altered_attachments FROM (
            SELECT m.message, {EXTRA_COLUMNS} FROM (
                SELECT n.conversation_id, n.seq, n AS message FROM conversations.messages n
                WHERE n.conversation_id = c.id AND n.seq = ANY (changed_seqs) AND n.seq <= since_seq
            ) m
        ) x
    ) altered
    CROSS JOIN LATERAL (
        SELECT array_agg(h.user_id::text) AS hiders, array_agg(h.seq) AS hidden_seqs FROM conversations.hidden h
        WHERE h.conversation_id = c.id AND (h.seq > since_seq - {MARGIN_LEN} OR h.seq = ANY (changed_seqs)
            OR since_at IS NULL OR h.hidden_at > since_at - $6::interval)
            AND ({_SHARED} OR h.user_id = ANY ($2::uuid[]))
    ) put_away
    CROSS JOIN LATERAL (
        SELECT array_agg(ROW (m.user_id::text, m.delivered_seq, m.read_seq, m.read_at)) AS receipts
        FROM conversations.members m
        WHERE c.member_count <= {RECEIPTS_MEMBERS_MAX} AND {_SEAT}
            AND m.delivered_seq > 0 AND (since_at IS NULL OR m.changed_at > since_at - $6::interval)
    ) receipts
"""  # noqa: S608  # constants of ours

ROLES = {role.value: role for role in Role}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation's state for those who asked, and for whoever asks with the same or a later place."""

    kind: Kind
    seq: int
    change: int
    member_count: int
    roles: Mapping[str, Role]
    """Of every member when `shared`, else of those who asked."""
    shared: bool
    people: Sequence[Member]
    seq_floor: int
    """`messages` are all there are after this seq, up to `seq_upto`."""
    seq_upto: int
    change_floor: int
    change_upto: int
    messages: Sequence[Message]
    changes: Sequence[Change]
    altered: Sequence[Message]
    hidden: Mapping[str, set[int]]
    """What people have deleted for themselves, of all these and since the place asked for."""
    receipts: Sequence[Receipt]


class Ask(msgspec.Struct, frozen=True):
    """What is asked of one conversation: everything after these numbers, None is now."""

    conversation_id: str
    since_seq: int | None
    since_change: int | None
    roster_max: int = 0
    """With at most so many members the role of each is read, else those of the people asked for."""


async def read(
    db: Database, asks: Sequence[Ask], user_ids: Collection[str], length: int
) -> Mapping[str, Snapshot]:
    """Read what is new of some conversations, at most `length` messages and changes of each.

    Returns those that exist, by id; all are as of one moment.
    """
    rows = await db.fetch(
        _SNAPSHOT,
        [ask.conversation_id for ask in asks],
        list(user_ids),
        [ask.since_seq for ask in asks],
        [ask.since_change for ask in asks],
        *(length, MARGIN),
        [ask.roster_max for ask in asks],
    )
    by_id = {ask.conversation_id: ask for ask in asks}
    return {row["id"]: _snapshot_of(row, by_id[row["id"]], length) for row in rows}


async def read_one(db: Database, ask: Ask, user_ids: Collection[str], length: int) -> Snapshot:
    """Read what is new of one conversation. Raises NOT_FOUND."""
    found = await read(db, (ask,), user_ids, length)
    if not found:
        raise not_found("conversation", ask.conversation_id)
    return found[ask.conversation_id]


def _snapshot_of(row: Row, ask: Ask, length: int) -> Snapshot:
    seq, change, kind = row["last_seq"], row["last_change"], row["kind"]
    asked_seq = seq if ask.since_seq is None else min(ask.since_seq, seq)
    asked_change = change if ask.since_change is None else min(ask.since_change, change)
    messages = _messages(row["messages"], row["reactions"], row["attachments"], kind)
    changes = [change_of({**each, "conversation_kind": kind}) for each in row["changes"] or ()]
    hidden: dict[str, set[int]] = {}
    for user_id, number in zip(row["hiders"] or (), row["hidden_seqs"] or (), strict=True):
        hidden.setdefault(user_id, set()).add(number)
    roles = zip(row["user_ids"] or (), row["roles"] or (), strict=True)
    new = [message.seq for message in messages if message.seq > asked_seq]
    return Snapshot(
        kind=Kind(kind),
        seq=seq,
        change=change,
        member_count=row["member_count"],
        roles={user_id: ROLES[role] for user_id, role in roles},
        shared=row["shared"],
        people=[_member(each) for each in row["people"] or ()],
        seq_floor=_floor(asked_seq, [message.seq for message in messages]),
        seq_upto=new[-1] if new else min(asked_seq + length, seq),
        change_floor=_floor(asked_change, [each.change for each in changes]),
        change_upto=min(asked_change + length, change),
        messages=messages,
        changes=changes,
        altered=_messages(row["altered"], row["altered_reactions"], row["altered_attachments"], kind),
        hidden=hidden,
        receipts=[Receipt(*each) for each in row["receipts"] or ()],
    )


def _floor(asked: int, numbers: Sequence[int]) -> int:
    """Return after which number everything has been read, though more was read than was asked for."""
    known = set(numbers)
    while asked in known:
        asked -= 1
    return asked


def _messages(
    rows: Sequence[Row] | None, reactions: Sequence[str | None] | None, attachments: Any, kind: str
) -> list[Message]:
    extras = zip(rows or (), reactions or (), attachments or (), strict=True)
    return [
        message_of({**row, "reactions": reacted, "attachments": attached}, kind)
        for row, reacted, attached in extras
    ]


def _member(row: Sequence[Any]) -> Member:
    user_id, role, joined_at, delivered_seq, read_seq, username, display_name = row
    return Member(
        user_id=str(user_id),
        username=username or "",
        display_name=display_name or "",
        role=ROLES[role],
        joined_at=joined_at,
        delivered_seq=delivered_seq,
        read_seq=read_seq,
    )
