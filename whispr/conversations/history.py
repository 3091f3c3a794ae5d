"""Reads of messages: pages of history, one message.

Every query that serves a person carries the membership check in the statement itself, so an answer never
rests on a cached permission alone. What the viewer has hidden is left out; what was deleted for everyone or
has expired is there, without what it said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from whispr.conversations.database import Database
from whispr.conversations.domain import (
    SEQ_MAX,
    Limits,
    Message,
    MessagePage,
    clamp_page,
    not_a_member,
)
from whispr.conversations.message_rules import no_message
from whispr.conversations.rows import EXTRA_COLUMNS, MESSAGE_COLUMNS, Row, message_of
from whispr.errors import invalid, not_found

PAGE_BYTES_MAX = 1024 * 1024
"""Message bodies in one answer; a page ends early rather than outgrow a gRPC message or a socket's buffer."""

NOT_HIDDEN = """
    NOT EXISTS (
        SELECT FROM conversations.hidden h
        WHERE h.conversation_id = m.conversation_id AND h.user_id = {viewer} AND h.seq = m.seq)
"""
"""Leaves out of messages `m` those that the viewer has deleted for themselves."""

# The innermost select takes at most $4 + 1 rows off an index; the window then ends the page early when the
# bodies grow too large (octet_length reads no TOASTed value) but keeps at least one message.
_PAGE = f"""
    SELECT {MESSAGE_COLUMNS}, {EXTRA_COLUMNS}, available FROM (
        SELECT *, count(*) OVER () AS available, row_number() OVER (ORDER BY seq {{order}}) AS place,
            sum(octet_length(content)) OVER (ORDER BY seq {{order}}) - octet_length(content) AS bytes_before
        FROM (
            SELECT * FROM conversations.messages m
            WHERE m.conversation_id = $1 AND m.seq {{condition}} $3 AND {NOT_HIDDEN.format(viewer="$2")}
            ORDER BY m.seq {{order}} LIMIT $4 + 1
        ) taken
    ) m
    WHERE place <= $4 AND bytes_before < {PAGE_BYTES_MAX}
"""  # noqa: S608  # constants of ours
_PAGE_AFTER = _PAGE.format(condition=">", order="ASC")
_PAGE_BEFORE = _PAGE.format(condition="<", order="DESC")

_SEAT = """
    SELECT c.last_seq, c.last_change, c.kind, s.role
    FROM conversations.conversations c
    LEFT JOIN conversations.members s ON s.conversation_id = c.id AND s.user_id = $2 AND s.left_at IS NULL
    WHERE c.id = $1
"""
_HISTORY = """
    SELECT seat.last_seq, seat.last_change, seat.kind, seat.role AS viewer_role, page.*
    FROM ({seat}) seat LEFT JOIN LATERAL ({page}) page ON seat.role IS NOT NULL
    ORDER BY page.seq
"""
_HISTORY_AFTER = _HISTORY.format(seat=_SEAT, page=_PAGE_AFTER)
_HISTORY_BEFORE = _HISTORY.format(seat=_SEAT, page=_PAGE_BEFORE)
_OVERSEEN = f"""
    SELECT c.kind, page.* FROM conversations.conversations c LEFT JOIN LATERAL ({_PAGE_BEFORE}) page ON true
    WHERE c.id = $1 ORDER BY page.seq
"""  # noqa: S608  # constants of ours
_ONE_MESSAGE = f"""
    SELECT seat.kind, seat.role AS viewer_role, found.*
    FROM ({_SEAT}) seat LEFT JOIN LATERAL (
        SELECT {MESSAGE_COLUMNS}, {EXTRA_COLUMNS} FROM conversations.messages m
        WHERE m.id = $3 AND m.conversation_id = $1 AND {NOT_HIDDEN.format(viewer="$2")}
    ) found ON seat.role IS NOT NULL
"""  # noqa: S608  # constants of ours


class History:
    """Reads messages for members. Raises NOT_FOUND for unknown conversations, not_a_member for strangers."""

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db = db
        self._limits = limits

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
        check_seat(rows, conversation_id)
        return _page_of(rows)

    async def overseen(self, conversation_id: str, before_seq: int, size: int) -> MessagePage:
        """Return the last messages before `before_seq` to somebody without a seat; the caller has judged that.

        Raises NOT_FOUND.
        """
        before = before_seq or SEQ_MAX + 1
        size = clamp_page(size, self._limits)
        rows = await self._db.fetch(_OVERSEEN, conversation_id, None, before, size)
        if not rows:
            raise not_found("conversation", conversation_id)
        return _page_of(rows)

    async def message(self, conversation_id: str, viewer_id: str, message_id: str) -> Message:
        """Return one message. Raises NOT_FOUND, also when the viewer has hidden it."""
        rows = await self._db.fetch(_ONE_MESSAGE, conversation_id, viewer_id, message_id)
        check_seat(rows, conversation_id)
        if rows[0]["id"] is None:
            raise no_message(message_id)
        return message_of(rows[0], rows[0]["kind"])

    async def _refuse(self, conversation_id: str) -> NoReturn:
        """Raise what fits a viewer without a seat."""
        kind = await self._db.fetchval(
            "SELECT kind FROM conversations.conversations WHERE id = $1", conversation_id
        )
        raise not_found("conversation", conversation_id) if kind is None else not_a_member()


def check_seat(rows: Sequence[Row], conversation_id: str) -> None:
    """Refuse who has no seat, by rows that carry `viewer_role`. Raises NOT_FOUND, not_a_member."""
    if not rows:
        raise not_found("conversation", conversation_id)
    if rows[0]["viewer_role"] is None:
        raise not_a_member()


def _page_of(rows: Sequence[Row]) -> MessagePage:
    """Build a page from history rows; a lone row without a seq is the seat of an empty page."""
    if rows[0]["seq"] is None:
        return MessagePage([], has_more=False)
    messages = [message_of(row, row["kind"]) for row in rows]
    return MessagePage(messages, has_more=rows[0]["available"] > len(rows))
