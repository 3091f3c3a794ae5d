"""How much people write: counts derived from the messages, and answered without counting them.

`conversations.count_sent_in` counts what conversations have gained since they were last counted and moves their marks
in the same transaction, so it may be called at any time, by anybody, any number of times. Events of new messages say
when; a sweep finds what no event told of, such as messages of before there were counts. What is not counted yet is
added when somebody asks, for conversations that are a few messages behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Transaction
from whispr.conversations.database import Database
from whispr.errors import WhisprError, not_found
from whispr.events import Consumer, Event

KNOWN_MAX = 50_000
"""Conversations whose mark is remembered, so that events of counted messages cost nothing."""
GATHER_S = 0.5
"""Events are counted together, at most twice a second."""
SWEEP_S = 3600.0
SWEEP_LEN = 200
SWEEP_PAUSE_S = 0.05
BEHIND_MAX = 500
"""Uncounted messages of one conversation that an answer still looks at."""

# What a crash forgets is counted again.
_COUNT = """
    SELECT k.conversation_id, k.seq
    FROM (SELECT set_config('synchronous_commit', 'off', true)) AS lightly,
        conversations.count_sent_in($1::uuid[]) AS k
"""
_UNCOUNTED = """
    SELECT c.id FROM conversations.conversations c
    LEFT JOIN conversations.counted k ON k.conversation_id = c.id
    WHERE c.id > $1 AND c.last_seq > coalesce(k.seq, 0) ORDER BY c.id LIMIT $2
"""
_ACTIVITY = """
    SELECT p.id,
        (SELECT count(*) FROM conversations.members m JOIN conversations.conversations c ON c.id = m.conversation_id
            WHERE m.user_id = $1 AND m.left_at IS NULL AND c.kind = 'room') AS rooms,
        s.messages_sent, s.last_message_at, fresh.sent AS fresh_sent, fresh.last_at AS fresh_at
    FROM auth.people p
    LEFT JOIN conversations.sent_counts s ON s.user_id = p.id
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(own.sent), 0)::bigint AS sent, max(own.last_at) AS last_at
        FROM conversations.members m
        JOIN conversations.conversations c ON c.id = m.conversation_id
        LEFT JOIN conversations.counted k ON k.conversation_id = c.id
        CROSS JOIN LATERAL (
            SELECT count(*) AS sent, max(g.sent_at) AS last_at FROM conversations.messages g
            WHERE g.conversation_id = c.id AND g.seq > coalesce(k.seq, 0) AND g.sender_id = $1
        ) own
        WHERE m.user_id = $1 AND m.left_at IS NULL AND c.last_seq > coalesce(k.seq, 0)
            AND c.last_seq <= coalesce(k.seq, 0) + $2
    ) fresh
    WHERE p.id = $1
"""
_FIRST = "00000000-0000-0000-0000-000000000000"

log = structlog.get_logger("whispr.chat")


class Figures(msgspec.Struct, frozen=True):
    """How active a person is."""

    rooms_joined: int
    messages_sent: int
    last_activity: datetime | None


class _Sent(msgspec.Struct):
    conversation_id: str
    seq: int


class Activity:
    """Keeps the counts, and reads them."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: OrderedDict[str, int] = OrderedDict()

    @property
    def consumer(self) -> Consumer:
        """What listens to new messages, wherever they are."""
        return Consumer(
            "chat-activity",
            ("chat.events.message_sent", "messaging.events.message_sent"),
            self.message_sent,
            handle_many=self.messages_sent,
            gather_s=GATHER_S,
            reset=self.reset,
        )

    async def message_sent(self, event: Event) -> None:
        """Count up to a message, and what else is there to count."""
        await self.messages_sent((event,))

    async def messages_sent(self, events: Sequence[Event]) -> None:
        """Count up to the last of these messages of each conversation, and what else is there to count."""
        wanted: dict[str, int] = {}
        for event in events:
            sent = msgspec.convert(event.data, _Sent)
            if sent.seq > self._known.get(sent.conversation_id, -1):
                wanted[sent.conversation_id] = sent.seq
        await trio.lowlevel.checkpoint()
        while wanted:
            done = await self._count(list(wanted))
            # What does not get on is a conversation that is gone, or whose messages are fewer than was told.
            wanted = {
                each: seq for each, seq in wanted.items() if self._known.get(each, -1) < done[each] < seq
            }
            self._remember(done)

    async def _count(self, conversation_ids: Sequence[str]) -> dict[str, int]:
        """Count in these conversations; return how far each has been counted."""
        rows = await self._db.fetch(_COUNT, conversation_ids)
        return {str(row["conversation_id"]): row["seq"] for row in rows}

    def _remember(self, done: Mapping[str, int]) -> None:
        for conversation_id, seq in done.items():
            self._known[conversation_id] = seq
            self._known.move_to_end(conversation_id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def reset(self, tx: Transaction) -> None:
        """Forget all counts; a replay derives them again."""
        self._known.clear()
        await tx.execute("TRUNCATE conversations.sent_counts, conversations.counted")

    async def of(self, user_id: str) -> Figures:
        """Return a person's figures. Raises NOT_FOUND."""
        row = await self._db.fetchrow(_ACTIVITY, user_id, BEHIND_MAX)
        if row is None:
            raise not_found("user", user_id)
        times = [at for at in (row["last_message_at"], row["fresh_at"]) if at is not None]
        return Figures(
            row["rooms"], (row["messages_sent"] or 0) + row["fresh_sent"], max(times, default=None)
        )

    async def run(self) -> None:
        """Now and then, count what no event told of."""
        while True:
            try:
                await self.sweep()
            except WhisprError as error:
                log.warning("activity_not_swept", error=str(error))
            await trio.sleep(SWEEP_S)

    async def sweep(self) -> int:
        """Count every conversation that is behind, gently; return how many were."""
        last, found = _FIRST, 0
        while rows := await self._db.fetch(_UNCOUNTED, last, SWEEP_LEN):
            behind = [str(row["id"]) for row in rows]
            await self._count(behind)
            last = behind[-1]
            found += len(rows)
            await trio.sleep(SWEEP_PAUSE_S)
        return found
