"""Reads of conversations, their members and watermarks.

As in `history`, every query that serves a person carries the membership check in the statement itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from whispr.conversations.domain import (
    Conversation,
    DraftText,
    Kind,
    Member,
    clamp_page,
    not_a_member,
)
from whispr.conversations.history import NOT_HIDDEN, PAGE_BYTES_MAX, History
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import EXTRA_COLUMNS, MESSAGE_COLUMNS, Row, map_of, member_of, message_of
from whispr.errors import not_found


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


_MEMBERS = """
    SELECT m.user_id, m.role, m.joined_at, m.delivered_seq, m.read_seq, p.username, p.display_name
    FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
    WHERE m.conversation_id = $1 AND m.left_at IS NULL
    ORDER BY m.joined_at, m.user_id
"""
# One row without a member when the viewer is one and there are no more; none when the viewer is a stranger.
_MEMBERS_PAGE = """
    SELECT page.* FROM conversations.members viewer LEFT JOIN LATERAL (
        SELECT m.user_id, m.role, m.joined_at, m.delivered_seq, m.read_seq, p.username, p.display_name
        FROM conversations.members m LEFT JOIN auth.people p ON p.id = m.user_id
        WHERE m.conversation_id = $1 AND m.left_at IS NULL
            AND ($3::timestamptz IS NULL OR (m.joined_at, m.user_id) > ($3, $4::uuid))
        ORDER BY m.joined_at, m.user_id LIMIT $5
    ) page ON true
    WHERE viewer.conversation_id = $1 AND viewer.user_id = $2 AND viewer.left_at IS NULL
    ORDER BY page.joined_at, page.user_id
"""

UNREAD = (
    "c.last_seq - {seat}.read_seq - {seat}.uncounted - CASE WHEN c.tombstone_count = 0"
    " OR {seat}.read_seq = c.last_seq THEN 0 ELSE conversations.erased_after(c.id, {seat}.read_seq) END"
)
"""The unread count of a seat in `conversations.conversations c`: see migration 0002."""
_LAST_COLUMNS = [name.strip() for name in MESSAGE_COLUMNS.split(",")] + ["reactions", "attachments"]
_ACTIVE_AT = "coalesce(c.last_message_at, c.created_at)"
_CONVERSATIONS = f"""
    SELECT page.*, {", ".join(f"last.{name} AS message_{name}" for name in _LAST_COLUMNS)},
        peer.user_id, peer.role, peer.joined_at, peer.delivered_seq, peer.read_seq,
        person.username, person.display_name,
        draft.content AS draft_content, draft.reply_to_id AS draft_reply_to_id,
        draft.updated_at AS draft_updated_at
    FROM (
        SELECT c.*, {_ACTIVE_AT} AS active_at, {UNREAD.format(seat="seat")} AS unread_count,
            seat.archived_at, seat.notify_muted_until, seat.read_seq AS own_read_seq,
            seat.delivered_seq AS own_delivered_seq
        FROM conversations.members seat JOIN conversations.conversations c ON c.id = seat.conversation_id
        WHERE seat.user_id = $1 AND seat.left_at IS NULL {{condition}}
        ORDER BY active_at DESC, c.id DESC LIMIT {{limit}}
    ) page
    LEFT JOIN LATERAL (
        SELECT {MESSAGE_COLUMNS}, {EXTRA_COLUMNS} FROM conversations.messages m
        WHERE m.conversation_id = page.id AND {NOT_HIDDEN.format(viewer="$1")}
        ORDER BY m.seq DESC LIMIT 1
    ) last ON true
    LEFT JOIN conversations.members peer
        ON page.kind = 'direct' AND peer.conversation_id = page.id AND peer.user_id <> $1
    LEFT JOIN auth.people person ON person.id = peer.user_id
    LEFT JOIN conversations.drafts draft ON draft.user_id = $1 AND draft.conversation_id = page.id
    ORDER BY page.active_at DESC, page.id DESC
"""  # noqa: S608  # constants of ours
_LIST_FIRST = _CONVERSATIONS.format(condition="AND (seat.archived_at IS NOT NULL) = $3", limit="$2")
_LIST_AFTER = _CONVERSATIONS.format(
    condition="AND (seat.archived_at IS NOT NULL) = $3"
    f" AND ({_ACTIVE_AT}, c.id) < ($4::timestamptz, $5::uuid)",
    limit="$2",
)
_ONE = _CONVERSATIONS.format(condition="AND c.id = $2", limit="1")
SEVERAL = _CONVERSATIONS.format(condition="AND c.id = ANY ($2::uuid[])", limit="cardinality($2::uuid[])")

_MARK_READ = "SELECT * FROM conversations.mark_read($1, $2, $3)"
_WATERMARKS = f"""
    SELECT m.user_id, m.read_seq, m.read_at, m.delivered_seq, c.last_seq, c.kind,
        c.last_seq - c.tombstone_count AS message_count, {UNREAD.format(seat="m")} AS unread_count,
        coalesce(c.last_message_at, c.created_at) AS last_activity
    FROM conversations.conversations c
    LEFT JOIN conversations.members m ON m.conversation_id = c.id AND m.user_id = $2 AND m.left_at IS NULL
    WHERE c.id = $1
"""  # noqa: S608  # constants of ours
_UNREAD_OF = f"""
    SELECT c.id FROM conversations.members m JOIN conversations.conversations c ON c.id = m.conversation_id
    WHERE m.user_id = $1 AND m.left_at IS NULL AND ($2::uuid[] IS NULL OR c.id = ANY ($2::uuid[]))
        AND m.read_seq < c.last_seq AND {UNREAD.format(seat="m")} > 0
"""  # noqa: S608  # constants of ours


class Store(History):
    """Reads for members. Raises NOT_FOUND for unknown conversations, not_a_member for strangers."""

    async def conversation(
        self, conversation_id: str, viewer_id: str, *, members: bool = True
    ) -> Conversation:
        """Return one conversation as `viewer_id` sees it."""
        row = await self._db.fetchrow(_ONE, viewer_id, conversation_id)
        if row is None:
            await self._refuse(conversation_id)
        found = conversation_of(row)
        if not members:
            return found
        return msgspec.structs.replace(found, members=await self.members(conversation_id))

    async def conversations(
        self, viewer_id: str, page_size: int, page_token: str, *, archived: bool = False
    ) -> tuple[list[Conversation], str]:
        """Return a page of the viewer's conversations, the most recently active first, and the next token."""
        size = clamp_page(page_size, self._limits)
        after = from_token(page_token, Place)
        if after is None:
            rows = await self._db.fetch(_LIST_FIRST, viewer_id, size + 1, archived)
        else:
            rows = await self._db.fetch(_LIST_AFTER, viewer_id, size + 1, archived, after.at, after.id)
        taken = _within_bytes(rows[:size])
        next_token = ""
        if len(taken) < len(rows):
            next_token = to_token(Place(taken[-1]["active_at"], str(taken[-1]["id"])))
        return [conversation_of(row) for row in taken], next_token

    async def members(self, conversation_id: str) -> tuple[Member, ...]:
        """Return those present, in the order they came. Does not ask who wants to know."""
        return tuple(member_of(row) for row in await self._db.fetch(_MEMBERS, conversation_id))

    async def members_seen_by(self, conversation_id: str, viewer_id: str) -> tuple[Member, ...]:
        """Return those present, to one of them."""
        members = await self.members(conversation_id)
        if all(member.user_id != viewer_id for member in members):
            await self._refuse(conversation_id)
        return members

    async def members_page(
        self, conversation_id: str, viewer_id: str, page_size: int, page_token: str
    ) -> tuple[list[Member], str]:
        """Return a page of those present, in the order they came, to one of them, and the next token."""
        size = clamp_page(page_size, self._limits)
        after = from_token(page_token, Place)
        at, last_id = (after.at, after.id) if after is not None else (None, None)
        rows = await self._db.fetch(_MEMBERS_PAGE, conversation_id, viewer_id, at, last_id, size + 1)
        if not rows:
            await self._refuse(conversation_id)
        members = [member_of(row) for row in rows[:size] if row["user_id"] is not None]
        more = len(rows) > size
        return members, to_token(Place(members[-1].joined_at, members[-1].user_id)) if more else ""

    async def member_ids(self, conversation_id: str) -> tuple[str, ...]:
        """Return the ids of those present."""
        rows = await self._db.fetch(
            "SELECT user_id FROM conversations.members WHERE conversation_id = $1 AND left_at IS NULL",
            conversation_id,
        )
        return tuple(str(row["user_id"]) for row in rows)

    async def mark_read(self, conversation_id: str, user_id: str, seq: int) -> Watermark:
        """Move the read watermark up to `seq`, to the end when 0; never back."""
        row = await self._db.fetchrow(_MARK_READ, conversation_id, user_id, seq)
        if row is None:
            await self._refuse(conversation_id)
        if row["moved"]:
            self._db.ring()
        kind = Kind(row["conversation_kind"])
        return Watermark(row["read_seq"], row["moved"], kind, row["unread_count"], row["read_at"])

    async def unread(self, user_id: str, among: Sequence[str] = ()) -> list[str]:
        """Return the ids of a person's conversations that have something unread, of these if any are named."""
        rows = await self._db.fetch(_UNREAD_OF, user_id, list(among) or None)
        return [str(row["id"]) for row in rows]

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


def conversation_of(row: Row) -> Conversation:
    """Build a conversation from a row of the list of conversations."""
    last = None
    if row["message_id"] is not None:
        last = message_of({name: row[f"message_{name}"] for name in _LAST_COLUMNS}, row["kind"])
    muted: datetime | None = row["notify_muted_until"]
    muted = muted and muted.replace(tzinfo=UTC)
    return Conversation(
        id=str(row["id"]),
        kind=Kind(row["kind"]),
        name=row["name"],
        created_by=str(row["created_by"]),
        created_at=row["created_at"],
        last_seq=row["last_seq"],
        last_change=row["last_change"],
        member_count=row["member_count"],
        settings=map_of(row["settings"]),
        unread_count=row["unread_count"],
        last_message=last,
        peer=member_of(row) if row["user_id"] is not None else None,
        archived=row["archived_at"] is not None,
        muted_until=muted if muted and muted > datetime.now(UTC) else None,
        is_active=row["is_active"],
        draft=draft_of(row, "draft_") if row["draft_content"] is not None else None,
    )


def draft_of(row: Row, prefix: str = "") -> DraftText:
    """Build a draft from a row of `conversations.drafts`."""
    reply_to = row[f"{prefix}reply_to_id"]
    return DraftText(row[f"{prefix}content"], str(reply_to or ""), row[f"{prefix}updated_at"])


def _within_bytes(rows: Sequence[Row]) -> Sequence[Row]:
    """Cut a page of conversations where the bodies of last messages and drafts outgrow the bound."""
    size = 0
    for index, row in enumerate(rows):
        size += len(row["message_content"] or b"") + len(row["draft_content"] or b"")
        if index and size > PAGE_BYTES_MAX:
            return rows[:index]
    return rows
