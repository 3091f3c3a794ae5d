"""Messages to be sent later.

A scheduled message is a row that waits. Any process takes due ones in hand for a while (`claimed_until`), sends
them through the log as anybody would, and drops the row once the message is stored. What makes that happen once
is the message's client_id: a process that dies in between leaves a row that another one takes later, whose send
then finds the message stored already. A refusal is kept with the row, for its sender to see.

The task sleeps until the next row is due, at most `LOOK_S`; a row made here wakes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
import trio

from whispr.conversations import domain
from whispr.conversations.announcer import Announcer
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import Draft, Limits, Message, clamp_page
from whispr.conversations.paging import Place, from_token, to_token
from whispr.conversations.rows import Row, encode_map, map_of
from whispr.errors import Code, WhisprError, conflict, exhausted, exists, invalid, not_found
from whispr.ids import new_id

LOOK_S = 5.0
"""How often rows that others made are looked for."""
CLAIM_S = 30
"""How long a process has to send what it took in hand."""
TOGETHER = 50
"""Messages taken in hand at once."""

_TRY_LATER = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.RESOURCE_EXHAUSTED})

_COLUMNS = (
    "id, conversation_id, sender_id, client_id, message_type, content, metadata, reply_to_id, signature,"
    " sender_public_key, expire_after_s, send_at, created_at, failed_at, failure"
)
_KEEP = f"""
    INSERT INTO conversations.scheduled (id, conversation_id, sender_id, client_id, message_type, content, metadata,
        reply_to_id, signature, sender_public_key, expire_after_s, send_at, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11, $12, clock_timestamp())
    RETURNING {_COLUMNS}
"""  # noqa: S608  # constants of ours
_CLAIM = f"""
    UPDATE conversations.scheduled s SET claimed_until = clock_timestamp() + make_interval(secs => {CLAIM_S})
    FROM (
        SELECT id FROM conversations.scheduled
        WHERE failed_at IS NULL AND send_at <= now() AND (claimed_until IS NULL OR claimed_until < now())
        ORDER BY send_at, id LIMIT {TOGETHER} FOR UPDATE SKIP LOCKED
    ) due WHERE s.id = due.id
    RETURNING {", ".join("s." + name.strip() for name in _COLUMNS.split(","))}
"""  # noqa: S608  # constants of ours
_NEXT = """
    SELECT extract(epoch FROM min(greatest(send_at, claimed_until)) - clock_timestamp())::float8
    FROM (
        SELECT send_at, claimed_until FROM conversations.scheduled
        WHERE failed_at IS NULL ORDER BY send_at LIMIT 100
    ) first
"""
_MINE = f"""
    SELECT {_COLUMNS} FROM conversations.scheduled
    WHERE sender_id = $1 AND ($2::uuid IS NULL OR conversation_id = $2)
        AND (send_at, id) > ($4::timestamptz, $5::uuid)
    ORDER BY send_at, id LIMIT $3
"""  # noqa: S608  # constants of ours
_CANCEL = """
    DELETE FROM conversations.scheduled
    WHERE id = $1 AND sender_id = $2 AND (claimed_until IS NULL OR claimed_until < now()) RETURNING true
"""

_log = structlog.get_logger("whispr.conversations")

Send = Callable[[Draft], Awaitable[Message]]
"""Sends a message as its sender would, and returns it stored. Raises WhisprError."""


class Scheduled(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits to be sent, or could not be."""

    id: str
    draft: Draft
    send_at: datetime
    created_at: datetime
    failed_at: datetime | None
    failure: str


class Schedule:
    """Keeps messages and sends them when they are due; `run` is its task."""

    def __init__(self, db: Database, announcer: Announcer, send: Send, limits: Limits) -> None:
        self._db = db
        self._announcer = announcer
        self._send = send
        self._limits = limits
        self._sooner = trio.Event()

    async def keep(self, draft: Draft, send_at: datetime) -> Scheduled:
        """Keep a message that its sender may send now. The caller has checked draft and permission.

        Raises INVALID_ARGUMENT (send_at), ALREADY_EXISTS (duplicate_mismatch), RESOURCE_EXHAUSTED
        (too_many_scheduled).
        """
        ahead = send_at - datetime.now(UTC)
        if ahead > timedelta(seconds=self._limits.schedule_ahead_s):
            raise invalid({"send_at": f"at most {self._limits.schedule_ahead_s} s ahead"})
        if ahead < timedelta(seconds=-60):
            raise invalid({"send_at": "has passed"})
        async with self._db.transaction() as tx:
            # One at a time of each sender: the limit holds, and a repeat finds what the first one kept.
            await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", draft.sender_id)
            if draft.client_id and (kept := await _same(tx, draft, send_at)) is not None:
                return kept
            await self._check_room(tx, draft.sender_id)
            kept_id = new_id()
            row = await tx.fetchrow(
                _KEEP,
                *(kept_id, draft.conversation_id, draft.sender_id, draft.client_id or f"scheduled:{kept_id}"),
                *(draft.message_type, draft.content),
                encode_map(draft.metadata).decode() if draft.metadata else None,
                *(draft.reply_to_id or None, draft.signature or None, draft.sender_public_key or None),
                *(draft.expire_after_s, send_at),
            )
            assert row is not None
        self._sooner.set()
        return scheduled_of(row)  # type: ignore[arg-type]  # a Record is a Mapping

    async def waiting(
        self, sender_id: str, conversation_id: str | None, page_size: int, page_token: str
    ) -> tuple[list[Scheduled], str]:
        """Return a page of a sender's messages that wait or have failed, the earliest first, and the next token."""
        size = clamp_page(page_size, self._limits)
        after = from_token(page_token, Place) or _BEGINNING
        rows = await self._db.fetch(_MINE, sender_id, conversation_id, size + 1, after.at, after.id)
        taken = rows[:size]
        more = len(rows) > size
        token = to_token(Place(taken[-1]["send_at"], str(taken[-1]["id"]))) if more else ""
        return [scheduled_of(row) for row in taken], token

    async def cancel(self, scheduled_id: str, sender_id: str) -> None:
        """Drop a message that waits or has failed.

        Raises NOT_FOUND when it is not there, FAILED_PRECONDITION (being_sent) when it is in hand.
        """
        if await self._db.fetchval(_CANCEL, scheduled_id, sender_id):
            return
        found = await self._db.fetchval(
            "SELECT true FROM conversations.scheduled WHERE id = $1 AND sender_id = $2",
            *(scheduled_id, sender_id),
        )
        if found:
            raise conflict("the message is being sent", "being_sent")
        raise not_found("scheduled message", scheduled_id)

    async def run(self) -> None:
        """Send what is due, for ever."""
        while True:
            self._sooner = trio.Event()
            wait_s = LOOK_S
            try:
                wait_s = await self._send_due()
            except WhisprError as error:
                _log.warning("scheduled_messages_wait", error=str(error))
            with trio.move_on_after(wait_s):
                await self._sooner.wait()

    async def _send_due(self) -> float:
        """Send what is due; return for how long nothing will be, as far as is known."""
        while rows := await self._db.fetch(_CLAIM):
            async with trio.open_nursery() as nursery:
                for row in sorted(rows, key=lambda row: (row["send_at"], row["id"])):
                    nursery.start_soon(self._send_one, scheduled_of(row))
        ahead_s: float | None = await self._db.fetchval(_NEXT)
        return LOOK_S if ahead_s is None else min(max(ahead_s, 0.0), LOOK_S)

    async def _send_one(self, scheduled: Scheduled) -> None:
        """Send one message and drop its row, or keep why it was refused."""
        try:
            try:
                await self._send(scheduled.draft)
            except WhisprError as error:
                if error.code in _TRY_LATER:
                    await self._put_back(scheduled, error)
                else:
                    await self._give_up(scheduled, error)
                return
            await self._db.execute("DELETE FROM conversations.scheduled WHERE id = $1", scheduled.id)
        except WhisprError as error:
            # The claim runs out, and somebody tries again.
            _log.warning("scheduled_message_left", scheduled_id=scheduled.id, error=str(error))

    async def _put_back(self, scheduled: Scheduled, error: WhisprError) -> None:
        """Try again after a while."""
        pause_s = min(max(error.retry_after_s or 0.0, 1.0), 3600.0)
        await self._db.execute(
            "UPDATE conversations.scheduled SET claimed_until = NULL,"
            " send_at = clock_timestamp() + make_interval(secs => $2) WHERE id = $1",
            *(scheduled.id, pause_s),
        )

    async def _give_up(self, scheduled: Scheduled, error: WhisprError) -> None:
        await self._db.execute(
            "UPDATE conversations.scheduled SET failed_at = clock_timestamp(), failure = $2, claimed_until = NULL"
            " WHERE id = $1",
            *(scheduled.id, error.reason),
        )
        event = {
            "scheduled_id": scheduled.id,
            "conversation_id": scheduled.draft.conversation_id,
            "client_id": scheduled.draft.client_id,
            "reason": error.reason,
        }
        self._announcer.tell(scheduled.draft.sender_id, "scheduled_failed", event)

    async def _check_room(self, tx: Transaction, sender_id: str) -> None:
        limit = self._limits.user_scheduled
        kept = await tx.fetchval(
            "SELECT count(*) FROM conversations.scheduled WHERE sender_id = $1", sender_id
        )
        if limit and kept >= limit:
            raise exhausted(f"at most {limit} scheduled messages", reason="too_many_scheduled")


_BEGINNING = Place(datetime.min.replace(tzinfo=UTC, year=1970), "00000000-0000-0000-0000-000000000000")


async def _same(tx: Transaction, draft: Draft, send_at: datetime) -> Scheduled | None:
    """Return what is kept under the client_id. Raises ALREADY_EXISTS when it is another message."""
    row = await tx.fetchrow(
        f"SELECT {_COLUMNS} FROM conversations.scheduled WHERE sender_id = $1 AND client_id = $2",  # noqa: S608  # constants of ours
        *(draft.sender_id, draft.client_id),
    )
    if row is None:
        return None
    kept = scheduled_of(row)  # type: ignore[arg-type]  # a Record is a Mapping
    if domain.same_message(draft, kept.draft) and kept.send_at == send_at:
        return kept
    raise exists("client_id was used for another scheduled message", "duplicate_mismatch")


def scheduled_of(row: Row) -> Scheduled:
    """Build a scheduled message from its row; its client_id is what makes sending it again harmless."""
    return Scheduled(
        id=str(row["id"]),
        draft=Draft(
            id=new_id(),
            conversation_id=str(row["conversation_id"]),
            sender_id=str(row["sender_id"]),
            content=row["content"],
            message_type=row["message_type"],
            metadata=map_of(row["metadata"]),
            client_id=row["client_id"],
            reply_to_id=str(row["reply_to_id"] or ""),
            signature=row["signature"] or b"",
            sender_public_key=row["sender_public_key"] or b"",
            expire_after_s=row["expire_after_s"],
        ),
        send_at=row["send_at"],
        created_at=row["created_at"],
        failed_at=row["failed_at"],
        failure=row["failure"] or "",
    )
