"""The statement that appends messages: a batch of tickets in, a row for each out.

`conversations.append` (its last form is in migration 0002) locks the batch's conversations, decides about every
message under those locks, numbers and stores what may be stored, and puts one row for all of it into the outbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from whispr.conversations.domain import Draft, Message, inactive, muted, not_a_member, same_message
from whispr.conversations.rows import KINDS, message_of
from whispr.conversations.tickets import Ticket
from whispr.errors import WhisprError, exhausted, exists, invalid, not_found, unavailable

_APPEND = (
    "SELECT outcome, seq, sent_at, expires_at, until, kind, original"
    " FROM conversations.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
)
# Arguments are computed before the function runs, in which the batch's row of the outbox takes the setting. It is a
# CASE because PostgreSQL may leave out what an AND does not need.
_APPEND_TRACED = _APPEND.replace(
    "($1,", "(CASE WHEN set_config('whispr.trace', $14, true) IS NULL THEN NULL ELSE $1::boolean END,"
)

_json = msgspec.json.Encoder().encode


class Database(Protocol):
    """What the log needs of the pool."""

    async def fetch(self, sql: str, /, *args: Any) -> Sequence[Any]:
        """Run a statement and return its rows. Raises WhisprError."""


async def append(db: Database, batch: Sequence[Ticket]) -> Sequence[Any]:
    """Send the statement once; return a row per ticket. Raises WhisprError, and then some may be stored or none.

    What was tried before is looked for, and what is settled is looked for alone and not stored.
    """
    again = any(ticket.tried for ticket in batch)
    columns = _columns(batch)
    for ticket in batch:
        ticket.tried = True
    traces = {ticket.draft.id: ticket.trace for ticket in batch if ticket.trace}
    if traces:
        return await db.fetch(_APPEND_TRACED, again, *columns, _json(traces).decode())
    return await db.fetch(_APPEND, again, *columns)


def _columns(batch: Sequence[Ticket]) -> list[list[Any]]:
    """Turn the batch into the parallel arrays of `conversations.append`."""
    drafts = [ticket.draft for ticket in batch]
    return [
        [not ticket.settled for ticket in batch],
        [draft.id for draft in drafts],
        [draft.conversation_id for draft in drafts],
        [draft.sender_id for draft in drafts],
        [draft.client_id or None for draft in drafts],
        [draft.message_type for draft in drafts],
        [draft.content for draft in drafts],
        [_json(draft.metadata).decode() if draft.metadata else None for draft in drafts],
        [draft.reply_to_id or None for draft in drafts],
        [draft.signature or None for draft in drafts],
        [draft.sender_public_key or None for draft in drafts],
        [draft.expire_after_s for draft in drafts],
    ]


def outcome_of(draft: Draft, row: Any) -> Message | WhisprError:
    """Turn a row into the message that is stored, or the reason why there is none."""
    match row["outcome"]:
        case "stored":
            return _stored(draft, row)
        case "found":
            return message_of(row["original"], row["kind"])
        case "repeated":
            original = message_of(row["original"], row["kind"])
            return original if same_message(draft, original) else mismatch()
        case "not_a_member":
            return not_a_member()
        case "no_conversation":
            return not_found("conversation", draft.conversation_id)
        case "no_reply_target":
            return invalid({"reply_to_id": "no such message in this conversation"})
        case "inactive":
            return inactive()
        case "muted":
            return muted(row["until"])
        case "slow_mode":
            wait_s = max(0.0, (row["until"] - row["sent_at"]).total_seconds())
            return exhausted("slow mode: wait before the next message", wait_s, reason="slow_mode")
        case _:
            return too_late()


def _stored(draft: Draft, row: Any) -> Message:
    return Message(
        id=draft.id,
        conversation_id=draft.conversation_id,
        sender_id=draft.sender_id,
        content=draft.content,
        message_type=draft.message_type,
        metadata=draft.metadata,
        client_id=draft.client_id,
        reply_to_id=draft.reply_to_id,
        signature=draft.signature,
        sender_public_key=draft.sender_public_key,
        seq=row["seq"],
        sent_at=row["sent_at"],
        kind=KINDS[row["kind"]],
        expires_at=row["expires_at"],
    )


def mismatch() -> WhisprError:
    """Return the refusal of a client_id that was used before, with another body."""
    return exists("client_id was used for another message", "duplicate_mismatch")


def too_late() -> WhisprError:
    """Return what senders hear whose message was not written by their deadline."""
    return unavailable(
        "the message could not be written in time; it is safe to send it again with its client_id"
    )
