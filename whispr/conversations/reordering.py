"""Where the hub reads broadcasts of conversations that have not arrived: the log of messages and that of changes.

What is read is what would have been broadcast, but for messages: these come as they are now. So somebody may hear of
an edit twice, first in the message and then as the change; the end is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from whispr.conversations import snapshots
from whispr.conversations.changes import Change
from whispr.conversations.database import Database
from whispr.conversations.domain import Kind, Message
from whispr.conversations.topics import is_conversation, topic_of
from whispr.conversations.wire import encoded, message_json
from whispr.ids import is_id
from whispr.realtime.ordering import Gap
from whispr.realtime.sequencer import Filled, Said

FILL_LEN = 500
"""Messages, and changes, in one read."""

_HEADS = """
    SELECT c.id::text AS id, c.kind, c.last_seq, c.last_change
    FROM conversations.conversations c WHERE c.id = ANY ($1::uuid[])
"""


class Missing:
    """Reads what a node has missed. See `whispr.realtime.sequencer.Source`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def covers(self, topic: str) -> bool:
        """Tell whether a topic is a conversation's."""
        return is_conversation(topic)

    async def heads(self, topics: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the last seq and change of each topic's conversation."""
        ids = {topic.partition(":")[2] for topic in topics}
        rows = await self._db.fetch(_HEADS, [id_ for id_ in ids if is_id(id_)])
        return {topic_of(Kind(row["kind"]), row["id"]): (row["last_seq"], row["last_change"]) for row in rows}

    async def fill(self, topic: str, gap: Gap) -> Filled:
        """Read messages and changes as one statement sees them, as many of each as fit."""
        ask = snapshots.Ask(topic.partition(":")[2], gap.seq_after, gap.change_after)
        read = await snapshots.read_one(self._db, ask, (), FILL_LEN)
        new = [message for message in read.messages if message.seq > gap.seq_after]
        states = {message.seq: message for message in (*read.altered, *read.messages)}
        found = [Said(topic, "new_message", encoded(message), message.seq) for message in new]
        found += [_said(topic, change, states) for change in read.changes if change.change > gap.change_after]
        return Filled(found, read.seq_upto, read.change_upto)


def _said(topic: str, change: Change, states: Mapping[int, Message]) -> Said:
    message = states.get(change.seq or 0)
    more = {} if message is None or change.kind != "message_edited" else {"message": message_json(message)}
    payload = msgspec.Raw(_encode(change.payload(**more)))
    return Said(topic, change.kind, payload, None, change.change, change.seq or 0)


_encode = msgspec.json.Encoder().encode
