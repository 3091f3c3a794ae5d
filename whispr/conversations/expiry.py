"""Messages that end by themselves: erased like those deleted for everyone, once their time has come.

Reads show an expired message as erased at once (`rows.message_of`); unread counts follow when it is erased, a
moment later. Every process looks; a message is erased once, under its conversation's lock.
"""

from __future__ import annotations

from collections import defaultdict

import structlog
import trio

from whispr.conversations import seats
from whispr.conversations.announcer import Announcer
from whispr.conversations.database import Database
from whispr.conversations.editing import erase
from whispr.errors import WhisprError

LOOK_S = 1.0
"""How often, at least, expired messages are looked for."""
TOGETHER = 200
"""Messages erased at once, of one conversation in one transaction."""

_DUE = f"""
    SELECT conversation_id, seq FROM conversations.messages
    WHERE expires_at <= now() AND expires_at IS NOT NULL AND deleted_at IS NULL
    ORDER BY expires_at LIMIT {TOGETHER}
"""  # noqa: S608  # constants of ours

_log = structlog.get_logger("whispr.conversations")


class Expiry:
    """Erases what has expired; `run` is its task."""

    def __init__(self, db: Database, announcer: Announcer) -> None:
        self._db = db
        self._announcer = announcer

    async def run(self) -> None:
        """Erase for ever."""
        while True:
            found = 0
            try:
                found = await self.sweep()
            except WhisprError as error:
                _log.warning("expired_messages_wait", error=str(error))
            if found < TOGETHER:
                await trio.sleep(LOOK_S)

    async def sweep(self) -> int:
        """Erase the messages that have expired, as many as are taken at once; return how many were found."""
        rows = await self._db.fetch(_DUE)
        due: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            due[str(row["conversation_id"])].append(row["seq"])
        for conversation_id, seqs in due.items():
            async with self._db.transaction() as tx:
                await seats.lock(tx, conversation_id)
                changes = await erase(tx, conversation_id, sorted(seqs), None, reason="expired")
            for change in changes:
                self._announcer.changed(change)
        return len(rows)
