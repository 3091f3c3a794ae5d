"""The log of changes: everything that happens to a conversation and is no new message.

A change has a number, gap-free in its conversation, and a `kind`, which is the name of its broadcast and of
its event. Its `data` is what both carry, so whoever catches up gets what they would have heard. Content is
never in it: a change of a message names the message, whose present state is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from whispr.conversations.database import Transaction
from whispr.conversations.domain import Kind
from whispr.events.outbox import current_trace
from whispr.ids import new_id

_RECORD = (
    "SELECT change, at, conversation_kind FROM conversations.change($1, $2, $3, $4, $5::text::jsonb, $6, $7)"
)

_json = msgspec.json.Encoder().encode


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change, as logged."""

    conversation_id: str
    conversation_kind: Kind
    change: int
    kind: str
    data: Mapping[str, Any]
    at: datetime
    seq: int | None = None
    """Of the message that changed, if it is one."""
    actor_id: str | None = None
    event_id: str = ""
    """Of the event that tells of it, where it has just been recorded."""

    def payload(self, **more: object) -> dict[str, object]:
        """Build what its broadcast carries, with `more` that is not logged, such as a message's content."""
        own: dict[str, object] = {"conversation_id": self.conversation_id, "change": self.change}
        if self.seq is not None:
            own["seq"] = self.seq
        return {**self.data, **own, **more}


async def record(
    tx: Transaction,
    conversation_id: str,
    kind: str,
    *,
    actor_id: str | None,
    data: Mapping[str, Any],
    seq: int | None = None,
) -> Change:
    """Number and log a change, and emit its event, in the transaction that makes it.

    The transaction holds the conversation's lock (`seats.lock`) or takes it here, before any lock on members.
    """
    event_id = new_id()
    row = await tx.fetchrow(
        _RECORD,
        *(conversation_id, kind, seq, actor_id or None, _json(data).decode(), current_trace(), event_id),
    )
    tx.ring_after_commit()
    assert row is not None
    return Change(
        conversation_id=conversation_id,
        conversation_kind=Kind(row["conversation_kind"]),
        change=row["change"],
        kind=kind,
        data=data,
        at=row["at"],
        seq=seq,
        actor_id=actor_id or None,
        event_id=event_id,
    )
