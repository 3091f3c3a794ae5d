"""What a member keeps for themselves about a conversation: archived or not, notifications, a draft.

None of it concerns the others, so it takes no lock of the conversation and is not among its changes; the
member's other sockets are told on `user:<id>`, and Sync finds it by `changed_at` of the seat.
"""

from __future__ import annotations

from datetime import UTC, datetime

from whispr.conversations import seats
from whispr.conversations.announcer import Announcer
from whispr.conversations.database import Database
from whispr.conversations.domain import DraftText, Limits, MessageType, check_content
from whispr.conversations.store import draft_of
from whispr.conversations.wire import draft_json
from whispr.events import emit

_ARCHIVE = """
    UPDATE conversations.members SET changed_at = clock_timestamp(),
        archived_at = CASE WHEN $3 THEN clock_timestamp() END
    WHERE conversation_id = $1 AND user_id = $2 AND left_at IS NULL AND (archived_at IS NOT NULL) <> $3
    RETURNING true
"""
_MUTE = """
    UPDATE conversations.members SET changed_at = clock_timestamp(), notify_muted_until = CASE
        WHEN NOT $3 THEN NULL
        WHEN $4::integer = 0 THEN 'infinity'
        ELSE clock_timestamp() + make_interval(secs => $4::integer) END
    WHERE conversation_id = $1 AND user_id = $2 AND left_at IS NULL
    RETURNING notify_muted_until
"""
_SAVE = """
    WITH seat AS (
        UPDATE conversations.members SET changed_at = clock_timestamp()
        WHERE conversation_id = $1 AND user_id = $2 AND left_at IS NULL RETURNING user_id
    )
    INSERT INTO conversations.drafts AS d (user_id, conversation_id, content, reply_to_id, updated_at)
    SELECT seat.user_id, $1, $3, $4, clock_timestamp() FROM seat
    ON CONFLICT (user_id, conversation_id) DO UPDATE SET
        content = excluded.content, reply_to_id = excluded.reply_to_id, updated_at = excluded.updated_at
    RETURNING content, reply_to_id, updated_at
"""
_DROP = """
    WITH dropped AS (
        DELETE FROM conversations.drafts WHERE conversation_id = $1 AND user_id = $2 RETURNING user_id
    )
    UPDATE conversations.members m SET changed_at = clock_timestamp()
    FROM dropped WHERE m.conversation_id = $1 AND m.user_id = dropped.user_id RETURNING true
"""


class Personal:
    """Changes what a member keeps for themselves. All raise NOT_FOUND and not_a_member."""

    def __init__(self, db: Database, announcer: Announcer, limits: Limits) -> None:
        self._db = db
        self._announcer = announcer
        self._limits = limits

    async def archive(self, conversation_id: str, user_id: str, *, archived: bool) -> None:
        """Put a conversation aside, or take it back; again changes nothing."""
        if await self._db.fetchval(_ARCHIVE, conversation_id, user_id, archived) is None:
            await seats.check_reader(self._db, conversation_id, user_id)
            return
        self._tell(conversation_id, user_id, archived=archived)

    async def mute(
        self, conversation_id: str, user_id: str, *, muted: bool, duration_s: int
    ) -> datetime | None:
        """Stop notifications for a time, for good when `duration_s` is 0, or start them; return until when."""
        async with self._db.transaction() as tx:
            row = await tx.fetchrow(_MUTE, conversation_id, user_id, muted, duration_s)
            if row is None:
                await seats.check_reader(tx, conversation_id, user_id)
                return None
            until: datetime | None = row["notify_muted_until"]
            until = until and until.replace(tzinfo=UTC)
            data = {"conversation_id": conversation_id, "user_id": user_id, "muted_until": until}
            await emit(
                tx, "messaging.events.conversation_muted", about=conversation_id, actor=user_id, data=data
            )
        self._tell(conversation_id, user_id, muted_until=until)
        return until

    async def save_draft(
        self, conversation_id: str, user_id: str, content: bytes, reply_to_id: str
    ) -> DraftText | None:
        """Keep what the member is writing; an empty one is none. Raises INVALID_ARGUMENT too."""
        if not content and not reply_to_id:
            if await self._db.fetchval(_DROP, conversation_id, user_id) is None:
                await seats.check_reader(self._db, conversation_id, user_id)
                return None
            self._tell(conversation_id, user_id, draft=None)
            return None
        check_content(content, MessageType.MEDIA, self._limits)
        row = await self._db.fetchrow(_SAVE, conversation_id, user_id, content, reply_to_id or None)
        if row is None:
            await seats.check_reader(self._db, conversation_id, user_id)
            return None
        draft = draft_of(row)
        self._tell(conversation_id, user_id, draft=draft_json(draft))
        return draft

    async def draft(self, conversation_id: str, user_id: str) -> DraftText | None:
        """Return the member's draft, or None."""
        await seats.check_reader(self._db, conversation_id, user_id)
        row = await self._db.fetchrow(
            "SELECT content, reply_to_id, updated_at FROM conversations.drafts"
            " WHERE conversation_id = $1 AND user_id = $2",
            *(conversation_id, user_id),
        )
        return draft_of(row) if row is not None else None

    def _tell(self, conversation_id: str, user_id: str, **what: object) -> None:
        self._announcer.tell(user_id, "conversation_updated", {"conversation_id": conversation_id, **what})
