"""Events of new messages, made when they are published from the one row that an append puts into the outbox.

A message's event has the message's id, so however often a row is expanded the events are the same. What it
tells is the message as it is by then: of one erased meanwhile, that it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from whispr.conversations.database import Transaction
from whispr.conversations.domain import Kind
from whispr.conversations.rows import MESSAGE_COLUMNS, Row, map_of
from whispr.events import Batch, Event

NAME = "conversations.messages"
TEXT_CHARS_MAX = 2000
"""Characters of a message's text in its event; `text_cut` says that there are more."""

_MESSAGES = f"""
    SELECT r.place, r.kind,
        (SELECT c.member_count FROM conversations.conversations c WHERE c.id = r.conversation_id) AS member_count,
        {", ".join("m." + name.strip() for name in MESSAGE_COLUMNS.split(","))}
    FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[])
        WITH ORDINALITY AS r (conversation_id, kind, first_seq, last_seq, place)
    CROSS JOIN LATERAL (
        SELECT * FROM conversations.messages m
        WHERE m.conversation_id = r.conversation_id AND m.seq BETWEEN r.first_seq AND r.last_seq
    ) m
    ORDER BY r.place, m.seq
"""  # noqa: S608  # constants of ours


async def expand(tx: Transaction, batches: Sequence[Batch]) -> Sequence[Sequence[Event]]:
    """Make one `message_sent` per message of each batch, in seq order per conversation."""
    ranges = [(number, *entry) for number, batch in enumerate(batches) for entry in batch.data["messages"]]
    columns = [[entry[n] for entry in ranges] for n in range(1, 5)]
    traces: list[dict[str, str]] = [
        msgspec.json.decode(batch.trace) if batch.trace else {} for batch in batches
    ]
    events: list[list[Event]] = [[] for _ in batches]
    rows: Sequence[Row] = await tx.fetch(_MESSAGES, *columns)  # type: ignore[assignment]  # a Record is a Mapping
    for row in rows:
        number = ranges[row["place"] - 1][0]
        events[number].append(_event(row, traces[number].get(str(row["id"]), "")))
    return events


def _event(row: Row, trace: str) -> Event:
    return Event(
        id=str(row["id"]),
        type="message_sent",
        time=row["sent_at"],
        source="chat" if row["kind"] == Kind.ROOM else "messaging",
        subject=str(row["conversation_id"]),
        actor=str(row["sender_id"]),
        trace=trace,
        data=message_facts(row) | {"member_count": row["member_count"] or 0},
    )


def message_facts(row: Row) -> dict[str, object]:
    """Say of a message what events say: who, where, when, and its text if it is plain text."""
    facts: dict[str, object] = {
        "message_id": str(row["id"]),
        "conversation_id": str(row["conversation_id"]),
        "conversation_kind": row["kind"],
        "seq": row["seq"],
        "sender_id": str(row["sender_id"]),
        "message_type": row["message_type"],
        "metadata": map_of(row["metadata"]),
        "sent_at": row["sent_at"].isoformat(),
    }
    for name in ("reply_to_id", "client_id"):
        if row[name]:
            facts[name] = str(row[name])
    if row["expires_at"]:
        facts["expires_at"] = row["expires_at"].isoformat()
    if row["sender_public_key"]:
        # What its recipients alone can read, whatever it looks like.
        facts["encrypted"] = True
    if row["deleted_at"]:
        facts["deleted"] = True
    elif (text := plain_text(row["content"])) is not None:
        facts["text"] = text[:TEXT_CHARS_MAX]
        facts["text_cut"] = len(text) > TEXT_CHARS_MAX
    return facts


def plain_text(content: bytes) -> str | None:
    """Return a message's text, or None when it is no UTF-8, as when it is encrypted."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
