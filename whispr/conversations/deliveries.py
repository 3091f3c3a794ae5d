"""Marks of what has been delivered: clients send many, so they are written together.

What waits while a statement runs goes into the next one, and of several marks of one member only the highest is
written: acknowledging every message costs a client nothing but frames, and the database one statement for all. A
mark is answered after the commit. Rows that somebody else holds are left for the next statement rather than waited
for, so marks never stand in a deadlock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import structlog
import trio

from whispr.conversations.announcer import Announcer
from whispr.conversations.database import Database
from whispr.conversations.domain import Kind, not_a_member
from whispr.conversations.store import Watermark
from whispr.errors import WhisprError, internal, invalid, not_found, unavailable

TOGETHER = 500
"""Marks in one statement."""
WAITING_MAX = 20_000
"""Members whose marks wait; more are refused as unavailable."""
BUSY_S = 0.01
"""Pause before rows that were held are tried again."""

_MARK = """
    WITH asked AS (
        SELECT a.*, c.kind, least(a.seq, c.last_seq) AS target
        FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS a (conversation_id, user_id, seq)
        LEFT JOIN conversations.conversations c ON c.id = a.conversation_id
    ), taken AS (
        SELECT m.conversation_id, m.user_id, a.target FROM asked a
        JOIN conversations.members m ON m.conversation_id = a.conversation_id AND m.user_id = a.user_id
        WHERE m.left_at IS NULL AND m.delivered_seq < a.target
        FOR NO KEY UPDATE OF m SKIP LOCKED
    ), moved AS (
        UPDATE conversations.members m SET delivered_seq = t.target, changed_at = clock_timestamp() FROM taken t
        WHERE m.conversation_id = t.conversation_id AND m.user_id = t.user_id
        RETURNING m.conversation_id, m.user_id, m.delivered_seq
    )
    SELECT a.kind, seat.delivered_seq AS before, a.target, moved.delivered_seq AS after,
        CASE WHEN a.kind = 'direct' AND moved.user_id IS NOT NULL THEN (
            SELECT array_agg(o.user_id::text) FROM conversations.members o
            WHERE o.conversation_id = a.conversation_id AND o.left_at IS NULL) END AS members
    FROM asked a
    LEFT JOIN conversations.members seat
        ON seat.conversation_id = a.conversation_id AND seat.user_id = a.user_id AND seat.left_at IS NULL
    LEFT JOIN moved ON moved.conversation_id = a.conversation_id AND moved.user_id = a.user_id
    ORDER BY a.conversation_id, a.user_id
"""

Done = Callable[[Watermark | WhisprError], None]
_Key = tuple[str, str]

log = structlog.get_logger("whispr.conversations")


class _Mark:
    __slots__ = ("done", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.done: list[Done] = []


class Deliveries:
    """Marks of one process. `run` must be running."""

    def __init__(self, db: Database, announcer: Announcer) -> None:
        self._db = db
        self._announcer = announcer
        self._waiting: dict[_Key, _Mark] = {}
        self._some = trio.Event()

    def mark(self, conversation_id: str, user_id: str, seq: int, done: Done) -> None:
        """Move the delivered watermark up to `seq`, never back, and call `done` once it is on disk.

        Raises INVALID_ARGUMENT, UNAVAILABLE. `done` is called with NOT_FOUND, not_a_member, UNAVAILABLE.
        """
        if seq == 0:
            raise invalid({"seq": "must be at least 1"})
        key = (conversation_id, user_id)
        mark = self._waiting.get(key)
        if mark is None:
            if len(self._waiting) >= WAITING_MAX:
                raise unavailable("too many marks are waiting to be written")
            mark = self._waiting[key] = _Mark()
            self._some.set()
        mark.seq = max(mark.seq, seq)
        mark.done.append(done)

    async def run(self) -> NoReturn:
        """Write marks until cancelled."""
        while True:
            await self._some.wait()
            # In the order of their rows: so the answer, which is sorted, goes with them.
            keys = sorted(list(self._waiting)[:TOGETHER])
            marks = {key: self._waiting.pop(key) for key in keys}
            if not self._waiting:
                self._some = trio.Event()
            await self._write(marks)

    async def _write(self, marks: Mapping[_Key, _Mark]) -> None:
        rows: list[Any] | None = None
        error: WhisprError = internal("the mark could not be written")
        try:
            conversations, users = [key[0] for key in marks], [key[1] for key in marks]
            rows = list(await self._db.fetch(_MARK, conversations, users, [m.seq for m in marks.values()]))
        except WhisprError as failed:
            error = failed
        except Exception:
            log.exception("marks_not_written", marks=len(marks))
        busy = False
        for number, (key, mark) in enumerate(marks.items()):
            outcome = error if rows is None else self._outcome(key, rows[number])
            if outcome is None:
                busy = True
                self._again(key, mark)
                continue
            for done in mark.done:
                done(outcome)
        if busy:
            await trio.sleep(BUSY_S)

    def _outcome(self, key: _Key, row: Any) -> Watermark | WhisprError | None:
        """Judge one mark, and tell of it; None when its row was held by somebody."""
        conversation_id, user_id = key
        if row["kind"] is None:
            return not_found("conversation", conversation_id)
        if row["before"] is None:
            return not_a_member()
        kind = Kind(row["kind"])
        if row["after"] is None:
            return None if row["before"] < row["target"] else Watermark(row["before"], moved=False, kind=kind)
        mark = Watermark(row["after"], moved=True, kind=kind)
        # Whose message it was is told wherever they are; in larger circles, whoever has the topic open.
        self._announcer.delivered(conversation_id, user_id, mark, row["members"] or ())
        return mark

    def _again(self, key: _Key, mark: _Mark) -> None:
        later = self._waiting.setdefault(key, mark)
        if later is not mark:
            later.seq = max(later.seq, mark.seq)
            later.done += mark.done
        self._some.set()
