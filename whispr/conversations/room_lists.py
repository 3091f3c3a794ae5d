"""Lists of rooms and of their members, and figures of both, each at a cost that does not grow with the history.

Totals come from counters that a trigger keeps (`room_counts`), figures of messages from arithmetic on seqs:
`last_seq` is how many there are, and the seq where a day begins is found by some twenty look-ups
(`conversations.seq_before`). Nothing counts messages.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, clamp_page
from whispr.conversations.paging import After, from_token, to_token
from whispr.conversations.room_rows import (
    ROOM_COLUMNS,
    STANDING_COLUMNS,
    RoomMember,
    room_member_of,
    seen_of,
)
from whispr.conversations.room_rules import Person, Room, RoomLimits, Visibility
from whispr.conversations.rooms import MEMBER_COLUMNS
from whispr.errors import invalid, not_found

ROOMS_DEEP_MAX = 10_000
"""How far pages of rooms go; a query finds what lies beyond."""
FOUND_MAX = 1000
"""Rooms among which a query's result is taken."""
QUERY_CHARS_MAX = 100
ACTIVE_LEN = 50
ACTIVE_AMONG = 1000
"""Latest messages among which active people are looked for."""
ACTIVE_FOR = timedelta(hours=24)

_OWN = """
    SELECT r.id FROM conversations.members m JOIN conversations.rooms r ON r.id = m.conversation_id
    WHERE m.user_id = $2 AND m.left_at IS NULL AND r.visibility = 'HIDDEN' AND r.closed_at IS NULL
    UNION
    SELECT r.id FROM conversations.invitations i JOIN conversations.rooms r ON r.id = i.conversation_id
    WHERE i.user_id = $2 AND i.expires_at > now() AND r.visibility = 'HIDDEN' AND r.closed_at IS NULL
        AND NOT EXISTS (SELECT FROM conversations.bans b
            WHERE b.conversation_id = r.id AND b.user_id = $2 AND b.until > now())
"""
_LISTED = """
    SELECT r.id FROM conversations.rooms r
    WHERE r.closed_at IS NULL AND r.visibility <> 'HIDDEN' ORDER BY r.id DESC LIMIT $3::bigint + $4::bigint
"""
_LISTED_AS = """
    SELECT r.id FROM conversations.rooms r
    WHERE r.closed_at IS NULL AND r.visibility = $5 ORDER BY r.id DESC LIMIT $3::bigint + $4::bigint
"""
_NAMED = f"""
    SELECT r.id FROM conversations.rooms r
    WHERE r.closed_at IS NULL AND r.visibility <> 'HIDDEN' AND r.name_key LIKE $6
        AND ($5::text IS NULL OR r.visibility = $5)
    LIMIT {FOUND_MAX}
"""  # noqa: S608  # constants of ours
# $1 is no parameter of these lists; $2 is the viewer, as STANDING_COLUMNS has it, $3 the size, $4 the offset.
_LIST = f"""
    WITH found AS MATERIALIZED ({{found}}), page AS (
        SELECT f.id FROM found f ORDER BY f.id DESC LIMIT $3::bigint OFFSET $4::bigint
    )
    SELECT {{total}} AS total, room.* FROM (SELECT $1::int) one LEFT JOIN LATERAL (
        SELECT {ROOM_COLUMNS}, {STANDING_COLUMNS}
        FROM page JOIN conversations.conversations c ON c.id = page.id
        JOIN conversations.rooms r ON r.id = c.id
        LEFT JOIN conversations.members s
            ON s.conversation_id = c.id AND s.user_id = $2 AND s.left_at IS NULL
    ) room ON true
    ORDER BY room.id DESC
"""  # noqa: S608  # constants of ours
_COUNT_ALL = f"""
    (SELECT n.open + n.invite_only FROM conversations.room_counts n) + (SELECT count(*) FROM ({_OWN}) o)
"""  # noqa: S608  # constants of ours
_LIST_ALL = f"SELECT l.id FROM ({_LISTED}) l UNION ALL SELECT o.id FROM ({_OWN}) o"  # noqa: S608  # as above
_ALL = _LIST.format(found=_LIST_ALL, total=_COUNT_ALL)
_OPEN = _LIST.format(found=_LISTED_AS, total="(SELECT n.open FROM conversations.room_counts n)")
_INVITE_ONLY = _LIST.format(found=_LISTED_AS, total="(SELECT n.invite_only FROM conversations.room_counts n)")
_HIDDEN = _LIST.format(found=_OWN, total="(SELECT count(*) FROM found)")
_FOUND = _LIST.format(found=_NAMED, total="(SELECT count(*) FROM found)")

_MEMBERS = f"""
    SELECT {MEMBER_COLUMNS}
    FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
    WHERE m.conversation_id = $1 AND m.left_at IS NULL AND ($2::uuid IS NULL OR m.user_id > $2)
    ORDER BY m.user_id LIMIT $3
"""  # noqa: S608  # constants of ours

_STATS = """
    SELECT c.member_count, c.last_seq,
        c.last_seq - conversations.seq_before(c.id, c.last_seq, $2) AS today,
        (SELECT array_agg(a.sender_id ORDER BY a.sent DESC, a.sender_id) FROM (
            SELECT m.sender_id, count(*) AS sent FROM conversations.messages m
            WHERE m.conversation_id = c.id AND m.seq > c.last_seq - $4 AND m.sent_at > $3
            GROUP BY m.sender_id ORDER BY sent DESC, m.sender_id LIMIT $5
        ) a) AS active
    FROM conversations.conversations c WHERE c.id = $1
"""


class Stats(msgspec.Struct, frozen=True):
    """Figures of a room."""

    members: int
    messages_today: int
    messages: int
    active_ids: tuple[str, ...]


class RoomLists:
    """Lists and figures. They do not ask who wants to know, beyond whom they list rooms for."""

    def __init__(self, db: Database, limits: RoomLimits, pages: Limits) -> None:
        self._db = db
        self._limits = limits
        self._pages = pages

    async def rooms(
        self, person: Person, visibility: Visibility | None, page: int, limit: int, query: str
    ) -> tuple[list[Room], int]:
        """Return a page of rooms, the newest first, and how many there are on all pages."""
        size = clamp_page(limit, self._pages)
        page = max(page, 1) if page >= 0 else 0
        offset = (page - 1) * size
        if page == 0 or offset >= ROOMS_DEEP_MAX:
            raise invalid({"page": f"1 to {ROOMS_DEEP_MAX // size}"})
        arguments: list[object] = [0, person.user_id, size, offset]
        if query:
            sql = _FOUND
            arguments += [visibility.value if visibility else None, _prefix(query)]
        elif visibility is None or visibility is Visibility.HIDDEN:
            sql = _ALL if visibility is None else _HIDDEN
        else:
            sql = _OPEN if visibility is Visibility.OPEN else _INVITE_ONLY
            arguments.append(visibility.value)
        rows = await self._db.fetch(sql, *arguments)
        found = [seen_of(row, self._limits).room for row in rows if row["id"] is not None]
        return found, rows[0]["total"]

    async def members(self, room_id: str, page_size: int, page_token: str) -> tuple[list[RoomMember], str]:
        """Return a page of members by id, and the next token."""
        size = clamp_page(page_size, self._pages)
        last = from_token(page_token, After)
        rows = await self._db.fetch(_MEMBERS, room_id, last and last.id, size + 1)
        found = [room_member_of(row) for row in rows[:size]]
        return found, to_token(After(found[-1].user_id)) if len(rows) > size else ""

    async def stats(self, room_id: str) -> Stats:
        """Return the figures of a room. Raises NOT_FOUND."""
        now = datetime.now(UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        row = await self._db.fetchrow(_STATS, room_id, midnight, now - ACTIVE_FOR, ACTIVE_AMONG, ACTIVE_LEN)
        if row is None:
            raise not_found("room", room_id)
        active = tuple(str(user_id) for user_id in row["active"] or ())
        return Stats(row["member_count"], row["today"], row["last_seq"], active)


def _prefix(query: str) -> str:
    """Make a LIKE pattern of what a name begins with. Raises INVALID_ARGUMENT."""
    query = query.strip().lower()
    if not 0 < len(query) <= QUERY_CHARS_MAX or not query.isprintable():
        raise invalid({"query": f"1 to {QUERY_CHARS_MAX} printable characters"})
    escaped = query.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"{escaped}%"
