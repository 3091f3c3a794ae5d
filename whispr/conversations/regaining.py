"""What is made good after broadcasts have been lost: `resync` for people, watermarks for conversations.

Messages and changes are numbered, so that the hub sees by itself which are missing (`whispr.realtime.sequencer`).
What concerns a person on `user:<id>`, and how far members have read and received, has no numbers. So when something
may have been lost (the bus was away, a reader lagged, another node could not send) people who may have missed it get
`resync {"cursor"}` on their topic, upon which a client calls `sync {"since": cursor}`; and watermarks that have moved
since are read, all conversations in one statement, and told again to those who have joined here.

Losses within `GATHER_S` are made good together. How far back the moment lies from which things may be missing is the
caller's to say; `SLACK_S` more is taken, for watermarks are written before they are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import structlog
import trio

from whispr.conversations.database import Database
from whispr.conversations.sync import RECEIPTS_MEMBERS_MAX, cursor_at
from whispr.conversations.topics import is_conversation
from whispr.errors import WhisprError
from whispr.ids import is_id
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.protocol import encode_json
from whispr.resilience.retry import Backoff

GATHER_S = 0.5
SLACK_S = 5.0
RESYNCS, RESYNCS_S = 500, 0.25
"""People who are told to ask at once, and how long until the next are."""
TOGETHER = 1_000
"""Conversations in one read."""
_AGAIN = Backoff(0.2, 5.0, low=0.5)

_MOVED = f"""
    SELECT o.conversation_id::text AS id, o.user_id::text AS user_id, o.delivered_seq, o.read_seq, o.read_at
    FROM conversations.conversations c JOIN conversations.members o ON o.conversation_id = c.id
    WHERE c.id = ANY ($1::uuid[]) AND c.member_count <= {RECEIPTS_MEMBERS_MAX}
        AND o.left_at IS NULL AND o.changed_at > $2
"""  # noqa: S608  # a constant of ours

log = structlog.get_logger("whispr.conversations")


class Regaining:
    """Makes good what one process has missed. `run` must be running."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub
        self._since: dict[str | None, datetime] = {}
        """Topic, or None for all of them → since when something of it may be missing."""
        self._some = trio.Event()

    def missed(self, since: datetime, topic: str | None = None) -> None:
        """Note that broadcasts of a topic, or of any, may have been lost since then. Never waits."""
        self._since[topic] = min(since, self._since.get(topic, since))
        self._some.set()

    async def run(self) -> NoReturn:
        """Make good what is noted, until cancelled."""
        while True:
            await self._some.wait()
            await trio.sleep(GATHER_S)
            self._some = trio.Event()
            noted, self._since = self._since, {}
            since = min(noted.values())
            topics = (
                self._hub.joined_topics() if None in noted else [each for each in noted if each is not None]
            )
            await self._tell_moved([topic for topic in topics if is_conversation(topic)], since)
            await self._resync([topic for topic in topics if topic.startswith("user:")], since)

    async def _resync(self, topics: Sequence[str], since: datetime) -> None:
        """Have people's clients ask, not all at the same time."""
        body = encode_json({"cursor": cursor_at(since)})
        for at in range(0, len(topics), RESYNCS):
            for topic in topics[at : at + RESYNCS]:
                self._hub.deliver(Broadcast(topic, "resync", body))
            await trio.sleep(RESYNCS_S)

    async def _tell_moved(self, topics: Sequence[str], since: datetime) -> None:
        """Read which watermarks have moved and tell them; while the database is away again and again."""
        by_id = {topic.partition(":")[2]: topic for topic in topics}
        ids = [each for each in by_id if is_id(each)]
        for at in range(0, len(ids), TOGETHER):
            for row in await self._moved(ids[at : at + TOGETHER], since):
                self._tell(by_id[row["id"]], row)

    async def _moved(self, ids: Sequence[str], since: datetime) -> Sequence[Any]:
        failures = 0
        while True:
            try:
                return await self._db.fetch(_MOVED, ids, since - timedelta(seconds=SLACK_S))
            except WhisprError as error:
                log.info("watermarks_not_read", error=str(error))
                failures += 1
                await trio.sleep(_AGAIN.pause_s(failures))

    def _tell(self, topic: str, row: Any) -> None:
        """Tell as it would have been told; whoever has heard of it hears it twice, which changes nothing."""
        if row["delivered_seq"]:
            event = {"user_id": row["user_id"], "seq": row["delivered_seq"]}
            self._hub.deliver(Broadcast(topic, "delivery_status", encode_json(event)))
        if row["read_seq"]:
            event = {"user_id": row["user_id"], "seq": row["read_seq"], "read_at": row["read_at"]}
            self._hub.deliver(Broadcast(topic, "read_receipt", encode_json(event)))


def now() -> datetime:
    """Return the time, as the clocks of all nodes have it within seconds."""
    return datetime.now(UTC)
