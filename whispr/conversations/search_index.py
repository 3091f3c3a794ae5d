"""The search index, derived from messages by a consumer of events, so that sending pays nothing for it.

Events of new messages bring the index of their conversations up to the conversations' ends, some hundred events and
conversations at a time: five statements whatever their number. An edited message is indexed anew. What is deleted
leaves the index with the message; its event removes what an indexing under way may have put back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence

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
GATHER_S = 0.2
"""Events are handled together, at most five times a second."""
PLACES_MAX = 50_000
"""Conversations whose progress is remembered here."""

_SUBJECTS = tuple(
    f"{source}.events.{event}"
    for source in ("messaging", "chat")
    for event in ("message_sent", "message_edited", "message_deleted")
)
# A commit that a crash forgets takes the later one of the consumer's position with it: the events come again.
_PROGRESS = """
    INSERT INTO conversations.search_progress AS p (conversation_id, indexed_seq)
    SELECT each.id, 0
    FROM (SELECT set_config('synchronous_commit', 'off', true)) AS lightly,
        (SELECT DISTINCT id FROM unnest($1::uuid[]) AS id ORDER BY id) AS each
    ON CONFLICT (conversation_id) DO UPDATE SET indexed_seq = p.indexed_seq
    RETURNING conversation_id, indexed_seq
"""
_NEXT = """
    SELECT m.conversation_id, m.seq, m.message_type, m.content, m.deleted_at, m.sender_public_key
    FROM unnest($1::uuid[], $2::bigint[]) AS p (conversation_id, indexed_seq)
    CROSS JOIN LATERAL (
        SELECT * FROM conversations.messages m
        WHERE m.conversation_id = p.conversation_id AND m.seq > p.indexed_seq ORDER BY m.seq LIMIT $3
    ) m
"""
_ONE = """
    SELECT conversation_id, seq, message_type, content, deleted_at, sender_public_key FROM conversations.messages
    WHERE conversation_id = $1 AND seq = $2
"""
_HASH = HASH.format(conversation="t.conversation_id", stretch=f"(t.seq >> {STRETCH_BITS})")
_PUT = f"""
    INSERT INTO conversations.search (conversation_id, seq, tokens)
    SELECT t.conversation_id, t.seq, (
        SELECT coalesce(array_agg({_HASH}), '{{}}')
        FROM unnest(tsvector_to_array(to_tsvector($1::text::regconfig, t.body))) AS lexeme)
    FROM unnest($2::uuid[], $3::bigint[], $4::text[]) AS t (conversation_id, seq, body)
    ON CONFLICT (conversation_id, seq) DO UPDATE SET tokens = excluded.tokens
"""  # noqa: S608  # constants of ours
_ADVANCE = """
    UPDATE conversations.search_progress p SET indexed_seq = i.seq
    FROM unnest($1::uuid[], $2::bigint[]) AS i (conversation_id, seq)
    WHERE p.conversation_id = i.conversation_id
"""
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
            NAME,
            _SUBJECTS,
            self.handle,
            deadline_s=120.0,
            concurrency=2,
            handle_many=self.handle_many,
            gather_s=GATHER_S,
            reset=self.reset,
        )

    async def handle(self, event: Event) -> None:
        """Bring the index up to date with what an event tells. Harmless when repeated."""
        seq: int = event.data["seq"]
        if event.type == "message_sent":
            if self._indexed.get(event.subject, 0) < seq:
                await self.catch_up((event.subject,))
        elif event.type == "message_edited":
            async with self._db.transaction() as tx:
                await self._put(tx, await tx.fetch(_ONE, event.subject, seq))  # type: ignore[arg-type]  # a Record is a Mapping
        else:
            await self._db.execute(
                "DELETE FROM conversations.search WHERE conversation_id = $1 AND seq = $2", event.subject, seq
            )

    async def handle_many(self, events: Sequence[Event]) -> None:
        """Bring the index up to date with what events tell; their order matters not, for it is read what is true."""
        await trio.lowlevel.checkpoint()
        sent = [event for event in events if event.type == "message_sent"]
        new = {event.subject for event in sent if self._indexed.get(event.subject, 0) < event.data["seq"]}
        if new:
            await self.catch_up(sorted(new))
        for event in events:
            if event.type != "message_sent":
                await self.handle(event)

    async def catch_up(self, conversation_ids: Sequence[str]) -> None:
        """Index what is not indexed yet of some conversations."""
        behind = conversation_ids
        while behind:
            each_max = max(1, TOGETHER // len(behind))
            async with self._db.transaction() as tx:
                progress = await tx.fetch(_PROGRESS, behind)
                indexed = {str(row["conversation_id"]): row["indexed_seq"] for row in progress}
                rows = await tx.fetch(_NEXT, list(indexed), list(indexed.values()), each_max)
                last = {str(row["conversation_id"]): row["seq"] for row in rows}
                if rows:
                    await self._put(tx, rows)  # type: ignore[arg-type]  # a Record is a Mapping
                    await tx.execute(_ADVANCE, list(last), list(last.values()))
            self._remember(indexed | last)
            counts = Counter(str(row["conversation_id"]) for row in rows)
            behind = [each for each, count in counts.items() if count == each_max]

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
                    await self.catch_up((str(row["id"]),))
            except WhisprError as error:
                _log.warning("search_index_waits", error=str(error))
                await trio.sleep(5)
                continue
            if not rows:
                return

    async def _put(self, tx: Transaction, rows: Iterable[Row]) -> None:
        texts = [
            (row["conversation_id"], row["seq"], text)
            for row in rows
            if (text := searchable(row)) is not None
        ]
        if texts:
            await tx.execute(_PUT, self._language, *(list(column) for column in zip(*texts, strict=True)))

    def _remember(self, indexed: Mapping[str, int]) -> None:
        for conversation_id, seq in indexed.items():
            self._indexed[conversation_id] = seq
            self._indexed.move_to_end(conversation_id)
        while len(self._indexed) > PLACES_MAX:
            self._indexed.popitem(last=False)
