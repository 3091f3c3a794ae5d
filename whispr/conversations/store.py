"""Reads of conversations and their watermarks.

Every query that serves a person carries the membership check in the statement itself, so an answer never
rests on a cached permission alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

import msgspec

from whispr.conversations.database import Database
from whispr.conversations.domain import (
    SEQ_MAX,
    Conversation,
    Kind,
    Limits,
    Member,
    Message,
    MessagePage,
    Role,
    clamp_page,
    not_a_member,
)
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import MESSAGE_COLUMNS, Row, map_of, member_of, message_of
from whispr.errors import invalid, not_found

PAGE_BYTES_MAX = 1024 * 1024
"""Message bodies in one answer; a page ends early rather than outgrow a gRPC message or a socket's buffer."""
REPLAY_LEN_MAX = 1000
"""Messages replayed by one join."""


class Counters(msgspec.Struct, frozen=True):
    """What a conversation counts, the unread of one member among it."""

    message_count: int
    unread_count: int | None
    last_activity: datetime


class Watermark(msgspec.Struct, frozen=True):
    """Where a member's watermark stands now, whether this call moved it, and what is left unread."""

    seq: int
    moved: bool
    kind: Kind
    unread_count: int = 0
    at: datetime | None = None


class Resumption(msgspec.Struct, frozen=True):
    """What a joiner missed: `messages` from where they were, `has_more` when that is not all up to `seq`."""

    seq: int
    role: Role
    messages: list[Message]
    has_more: bool


# The innermost select takes at most $4 + 1 rows off an index; the window then ends the page early when the
# bodies grow too large (octet_length reads no TOASTed value) but keeps at least one message.
_PAGE = f"""
    SELECT {MESSAGE_COLUMNS}, available FROM (
        SELECT *, count(*) OVER () AS available, row_number() OVER (ORDER BY seq {{order}}) AS place,
            sum(octet_length(content)) OVER (ORDER BY seq {{order}}) - octet_length(content) AS bytes_before
        FROM (
            SELECT * FROM conversations.messages m
            WHERE m.conversation_id = $1 AND m.seq {{condition}} $3 ORDER BY m.seq {{order}} LIMIT $4 + 1
        ) taken
    ) sized
    WHERE place <= $4 AND bytes_before < {PAGE_BYTES_MAX}
"""  # noqa: S608  # constants of ours
_PAGE_AFTER = _PAGE.format(condition=">", order="ASC")
_PAGE_BEFORE = _PAGE.format(condition="<", order="DESC")

_SEAT = """
    SELECT c.last_seq, c.kind, s.role
    FROM conversations.conversations c
    LEFT JOIN conversations.members s ON s.conversation_id = c.id AND s.user_id = $2 AND s.left_at IS NULL
    WHERE c.id = $1
"""
_HISTORY = """
    SELECT seat.last_seq, seat.kind, seat.role AS viewer_role, page.*
    FROM ({seat}) seat LEFT JOIN LATERAL ({page}) page ON seat.role IS NOT NULL
    ORDER BY page.seq
"""
_HISTORY_AFTER = _HISTORY.format(seat=_SEAT, page=_PAGE_AFTER)
_HISTORY_BEFORE = _HISTORY.format(seat=_SEAT, page=_PAGE_BEFORE)

_MEMBERS = """
    SELECT m.user_id, m.role, m.joined_at, m.delivered_seq, m.read_seq, p.username, p.display_name
    FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
    WHERE m.conversation_id = $1 AND m.left_at IS NULL
    ORDER BY m.joined_at, m.user_id
"""

_LAST_MESSAGE_COLUMNS = ", ".join(
    f"last.{name.strip()} AS message_{name.strip()}" for name in MESSAGE_COLUMNS.split(",")
)
UNREAD = (
    "c.last_seq - {seat}.read_seq - {seat}.uncounted - CASE WHEN c.tombstone_count = 0"
    " OR {seat}.read_seq = c.last_seq THEN 0 ELSE conversations.erased_after(c.id, {seat}.read_seq) END"
)
"""The unread count of a seat in `conversations.conversations c`: see migration 0002."""
_ACTIVE_AT = "coalesce(c.last_message_at, c.created_at)"
_CONVERSATIONS = f"""
    SELECT page.*, {_LAST_MESSAGE_COLUMNS},
        peer.user_id, peer.role, peer.joined_at, peer.delivered_seq, peer.read_seq,
        person.username, person.display_name
    FROM (
        SELECT c.*, {_ACTIVE_AT} AS active_at,
            {UNREAD.format(seat="seat")} AS unread_count, seat.archived_at, seat.notify_muted_until
        FROM conversations.members seat JOIN conversations.conversations c ON c.id = seat.conversation_id
        WHERE seat.user_id = $1 AND seat.left_at IS NULL {{condition}}
        ORDER BY active_at DESC, c.id DESC LIMIT {{limit}}
    ) page
    LEFT JOIN conversations.messages last ON last.conversation_id = page.id AND last.seq = page.last_seq
    LEFT JOIN conversations.members peer
        ON page.kind = 'direct' AND peer.conversation_id = page.id AND peer.user_id <> $1
    LEFT JOIN auth.people person ON person.id = peer.user_id
    ORDER BY page.active_at DESC, page.id DESC
"""  # noqa: S608  # constants of ours
_LIST_FIRST = _CONVERSATIONS.format(condition="", limit="$2")
_LIST_AFTER = _CONVERSATIONS.format(
    condition=f"AND ({_ACTIVE_AT}, c.id) < ($3::timestamptz, $4::uuid)", limit="$2"
)
_ONE = _CONVERSATIONS.format(condition="AND c.id = $2", limit="1")

_MARK_READ = "SELECT * FROM conversations.mark_read($1, $2, $3)"
_TARGET = "least($3::bigint, c.last_seq)"
_MARK_DELIVERED = f"""
    UPDATE conversations.members m SET delivered_seq = {_TARGET}, changed_at = clock_timestamp()
    FROM conversations.conversations c
    WHERE c.id = $1 AND m.conversation_id = $1 AND m.user_id = $2 AND m.left_at IS NULL
        AND m.delivered_seq < {_TARGET}
    RETURNING m.delivered_seq, c.kind
"""  # noqa: S608  # constants of ours
_WATERMARKS = f"""
    SELECT m.user_id, m.read_seq, m.read_at, m.delivered_seq, c.last_seq, c.kind,
        c.last_seq - c.tombstone_count AS message_count, {UNREAD.format(seat="m")} AS unread_count,
        coalesce(c.last_message_at, c.created_at) AS last_activity
    FROM conversations.conversations c
    LEFT JOIN conversations.members m ON m.conversation_id = c.id AND m.user_id = $2 AND m.left_at IS NULL
    WHERE c.id = $1
"""  # noqa: S608  # constants of ours


class Store:
    """Reads for members. Raises NOT_FOUND for unknown conversations, not_a_member for strangers."""

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db = db
        self._limits = limits

    async def conversation(
        self, conversation_id: str, viewer_id: str, *, members: bool = True
    ) -> Conversation:
        """Return one conversation as `viewer_id` sees it."""
        row = await self._db.fetchrow(_ONE, viewer_id, conversation_id)
        if row is None:
            await self._refuse(conversation_id)
        found = _conversation_of(row)
        if not members:
            return found
        return msgspec.structs.replace(found, members=await self.members(conversation_id))

    async def conversations(
        self, viewer_id: str, page_size: int, page_token: str
    ) -> tuple[list[Conversation], str]:
        """Return a page of the viewer's conversations, the most recently active first, and the next token."""
        size = clamp_page(page_size, self._limits)
        after = from_token(page_token, Place)
        if after is None:
            rows = await self._db.fetch(_LIST_FIRST, viewer_id, size + 1)
        else:
            rows = await self._db.fetch(_LIST_AFTER, viewer_id, size + 1, after.at, after.id)
        taken = _within_bytes(rows[:size])
        next_token = ""
        if len(taken) < len(rows):
            next_token = to_token(Place(taken[-1]["active_at"], str(taken[-1]["id"])))
        return [_conversation_of(row) for row in taken], next_token

    async def members(self, conversation_id: str) -> tuple[Member, ...]:
        """Return those present, in the order they came. Does not ask who wants to know."""
        return tuple(member_of(row) for row in await self._db.fetch(_MEMBERS, conversation_id))

    async def members_seen_by(self, conversation_id: str, viewer_id: str) -> tuple[Member, ...]:
        """Return those present, to one of them."""
        members = await self.members(conversation_id)
        if all(member.user_id != viewer_id for member in members):
            await self._refuse(conversation_id)
        return members

    async def member_ids(self, conversation_id: str) -> tuple[str, ...]:
        """Return the ids of those present."""
        rows = await self._db.fetch(
            "SELECT user_id FROM conversations.members WHERE conversation_id = $1 AND left_at IS NULL",
            conversation_id,
        )
        return tuple(str(row["user_id"]) for row in rows)

    async def messages(
        self,
        conversation_id: str,
        viewer_id: str,
        *,
        before_seq: int = 0,
        after_seq: int | None = None,
        size: int = 0,
    ) -> MessagePage:
        """Return a page: the last before `before_seq`, the first after `after_seq`, or the latest."""
        if before_seq and after_seq is not None:
            raise invalid({"after_seq": "give before_seq or after_seq, not both"})
        size = clamp_page(size, self._limits)
        if after_seq is not None:
            rows = await self._db.fetch(_HISTORY_AFTER, conversation_id, viewer_id, after_seq, size)
        else:
            before = before_seq or SEQ_MAX + 1
            rows = await self._db.fetch(_HISTORY_BEFORE, conversation_id, viewer_id, before, size)
        self._check_seat(rows, conversation_id)
        return _page_of(rows)

    async def resume(self, conversation_id: str, viewer_id: str, since_seq: int | None) -> Resumption:
        """Return what the viewer missed since `since_seq`, nothing when None, as of one moment."""
        since = SEQ_MAX if since_seq is None else since_seq
        rows = await self._db.fetch(_HISTORY_AFTER, conversation_id, viewer_id, since, REPLAY_LEN_MAX)
        self._check_seat(rows, conversation_id)
        page = _page_of(rows)
        return Resumption(rows[0]["last_seq"], Role(rows[0]["viewer_role"]), page.messages, page.has_more)

    async def mark_read(self, conversation_id: str, user_id: str, seq: int) -> Watermark:
        """Move the read watermark up to `seq`, to the end when 0; never back."""
        row = await self._db.fetchrow(_MARK_READ, conversation_id, user_id, seq)
        if row is None:
            await self._refuse(conversation_id)
        if row["moved"]:
            self._db.ring()
        kind = Kind(row["conversation_kind"])
        return Watermark(row["read_seq"], row["moved"], kind, row["unread_count"], row["read_at"])

    async def mark_delivered(self, conversation_id: str, user_id: str, seq: int) -> Watermark:
        """Move the delivered watermark up to `seq`; never back."""
        if seq == 0:
            raise invalid({"seq": "must be at least 1"})
        moved = await self._db.fetchrow(_MARK_DELIVERED, conversation_id, user_id, seq)
        if moved is not None:
            return Watermark(moved["delivered_seq"], moved=True, kind=Kind(moved["kind"]))
        row = await self._watermarks(conversation_id, user_id)
        return Watermark(row["delivered_seq"], moved=False, kind=Kind(row["kind"]))

    async def counters(self, conversation_id: str, user_id: str | None) -> Counters:
        """Return the counters of a conversation, with the unread of the member `user_id`, if one is named."""
        row = await self._watermarks(conversation_id, user_id)
        return Counters(row["message_count"], row["unread_count"], row["last_activity"])

    async def _watermarks(self, conversation_id: str, user_id: str | None) -> Row:
        row: Row | None = await self._db.fetchrow(_WATERMARKS, conversation_id, user_id)
        if row is None:
            raise not_found("conversation", conversation_id)
        if user_id is not None and row["user_id"] is None:
            raise not_a_member()
        return row

    def _check_seat(self, rows: Sequence[Row], conversation_id: str) -> None:
        if not rows:
            raise not_found("conversation", conversation_id)
        if rows[0]["viewer_role"] is None:
            raise not_a_member()

    async def _refuse(self, conversation_id: str) -> NoReturn:
        """Raise what fits a viewer without a seat."""
        kind = await self._db.fetchval(
            "SELECT kind FROM conversations.conversations WHERE id = $1", conversation_id
        )
        raise not_found("conversation", conversation_id) if kind is None else not_a_member()


def _page_of(rows: Sequence[Row]) -> MessagePage:
    """Build a page from history rows; a lone row without a seq is the seat of an empty page."""
    if rows[0]["seq"] is None:
        return MessagePage([], has_more=False)
    return MessagePage(
        [message_of(row, row["kind"]) for row in rows], has_more=rows[0]["available"] > len(rows)
    )


def _conversation_of(row: Row) -> Conversation:
    last = None
    if row["message_id"] is not None:
        last = message_of(
            {name.strip(): row[f"message_{name.strip()}"] for name in MESSAGE_COLUMNS.split(",")},
            row["kind"],
        )
    return Conversation(
        id=str(row["id"]),
        kind=Kind(row["kind"]),
        name=row["name"],
        created_by=str(row["created_by"]),
        created_at=row["created_at"],
        last_seq=row["last_seq"],
        member_count=row["member_count"],
        settings=map_of(row["settings"]),
        unread_count=row["unread_count"],
        last_message=last,
        peer=member_of(row) if row["user_id"] is not None else None,
    )


def _within_bytes(rows: Sequence[Row]) -> Sequence[Row]:
    """Cut a page of conversations where the bodies of the last messages outgrow the bound."""
    size = 0
    for index, row in enumerate(rows):
        size += len(row["message_content"] or b"")
        if index and size > PAGE_BYTES_MAX:
            return rows[:index]
    return rows
