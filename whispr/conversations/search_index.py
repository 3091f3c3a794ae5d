"""The search index, derived from messages by a consumer of events, so that sending pays nothing for it.

An event of a new message brings its conversation's index up to the conversation's end: under load one event
indexes what many told of, and those find nothing left to do. An edited message is indexed anew. What is deleted
leaves the index with the message; its event removes what an indexing under way may have put back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import structlog
import trio

from whispr.conversations.database import Database, Transaction
from whispr.conversations.rows import Row
from whispr.conversations.search import HASH, STRETCH_BITS, searchable
from whispr.errors import WhisprError
from whispr.events import Consumer, Event

NAME = "messaging-search"
TOGETHER = 500
"""Messages indexed in one transaction."""
PLACES_MAX = 50_000
"""Conversations whose progress is remembered here."""

_SUBJECTS = tuple(
    f"{source}.events.{event}"
    for source in ("messaging", "chat")
    for event in ("message_sent", "message_edited", "message_deleted")
)
_PROGRESS = """
    INSERT INTO conversations.search_progress AS p (conversation_id, indexed_seq) VALUES ($1, 0)
    ON CONFLICT (conversation_id) DO UPDATE SET indexed_seq = p.indexed_seq RETURNING indexed_seq
"""
_NEXT = """
    SELECT seq, message_type, content, deleted_at, sender_public_key FROM conversations.messages
    WHERE conversation_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""
_ONE = """
    SELECT seq, message_type, content, deleted_at, sender_public_key FROM conversations.messages
    WHERE conversation_id = $1 AND seq = $2
"""
_HASH = HASH.format(conversation="$1::uuid", stretch=f"(t.seq >> {STRETCH_BITS})")
_PUT = f"""
    INSERT INTO conversations.search (conversation_id, seq, tokens)
    SELECT $1::uuid, t.seq, (
        SELECT coalesce(array_agg({_HASH}), '{{}}')
        FROM unnest(tsvector_to_array(to_tsvector($2::text::regconfig, t.body))) AS lexeme)
    FROM unnest($3::bigint[], $4::text[]) AS t (seq, body)
    ON CONFLICT (conversation_id, seq) DO UPDATE SET tokens = excluded.tokens
"""  # noqa: S608  # constants of ours
_BEHIND = """
    SELECT c.id FROM conversations.conversations c
    WHERE c.last_seq > 0 AND NOT EXISTS (
        SELECT FROM conversations.search_progress p WHERE p.conversation_id = c.id)
    LIMIT 100
"""

_log = structlog.get_logger("whispr.conversations")


class SearchIndex:
    """Keeps the index; `consumer` listens, `run` indexes what is older than the events."""

    def __init__(self, db: Database, language: str = "simple") -> None:
        self._db = db
        self._language = language
        self._indexed: OrderedDict[str, int] = OrderedDict()
        self.consumer = Consumer(
            NAME, _SUBJECTS, self.handle, deadline_s=120.0, concurrency=2, reset=self.reset
        )

    async def handle(self, event: Event) -> None:
        """Bring the index up to date with what an event tells. Harmless when repeated."""
        seq: int = event.data["seq"]
        if event.type == "message_sent":
            if self._indexed.get(event.subject, 0) < seq:
                await self.catch_up(event.subject)
        elif event.type == "message_edited":
            async with self._db.transaction() as tx:
                rows = await tx.fetch(_ONE, event.subject, seq)
                await self._put(tx, event.subject, rows)  # type: ignore[arg-type]  # a Record is a Mapping
        else:
            await self._db.execute(
                "DELETE FROM conversations.search WHERE conversation_id = $1 AND seq = $2", event.subject, seq
            )

    async def catch_up(self, conversation_id: str) -> None:
        """Index what is not indexed yet of a conversation."""
        while True:
            async with self._db.transaction() as tx:
                indexed: int = await tx.fetchval(_PROGRESS, conversation_id)
                rows = await tx.fetch(_NEXT, conversation_id, indexed, TOGETHER)
                if rows:
                    await self._put(tx, conversation_id, rows)  # type: ignore[arg-type]  # a Record is a Mapping
                    indexed = rows[-1]["seq"]
                    await tx.execute(
                        "UPDATE conversations.search_progress SET indexed_seq = $2 WHERE conversation_id = $1",
                        *(conversation_id, indexed),
                    )
            self._remember(conversation_id, indexed)
            if len(rows) < TOGETHER:
                return

    async def reset(self, tx: Transaction) -> None:
        """Empty the index, for a replay."""
        self._indexed.clear()
        await tx.execute("DELETE FROM conversations.search")
        await tx.execute("DELETE FROM conversations.search_progress")

    async def run(self) -> None:
        """Index, once, conversations that no event will tell of: they are older than the index."""
        while True:
            try:
                rows = await self._db.fetch(_BEHIND)
                for row in rows:
                    await self.catch_up(str(row["id"]))
            except WhisprError as error:
                _log.warning("search_index_waits", error=str(error))
                await trio.sleep(5)
                continue
            if not rows:
                return

    async def _put(self, tx: Transaction, conversation_id: str, rows: Iterable[Row]) -> None:
        texts: Sequence[tuple[int, str]] = [
            (row["seq"], text) for row in rows if (text := searchable(row)) is not None
        ]
        if texts:
            seqs, bodies = [seq for seq, _ in texts], [body for _, body in texts]
            await tx.execute(_PUT, conversation_id, self._language, seqs, bodies)

    def _remember(self, conversation_id: str, indexed: int) -> None:
        self._indexed[conversation_id] = indexed
        self._indexed.move_to_end(conversation_id)
        if len(self._indexed) > PLACES_MAX:
            self._indexed.popitem(last=False)
