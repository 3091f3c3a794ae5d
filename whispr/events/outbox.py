"""Writing events, in the transaction that makes them true; and remembering which were handled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from whispr.adapters.postgres import Transaction
from whispr.events.envelope import Event
from whispr.rpc.call import current_call
from whispr.telemetry.tracing import TRACEPARENT, current_traceparent

handling: ContextVar[Event] = ContextVar("whispr_event")
"""The event this task is handling, if it is a consumer's."""

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of the outbox that stands for several events."""

    id: str
    about: str
    actor: str
    trace: str
    time: datetime
    data: Mapping[str, Any]


Expander: TypeAlias = Callable[[Transaction, Sequence[Batch]], Awaitable[Sequence[Sequence[Event]]]]
"""Makes the events each batch stands for, in order, the same ones however often it is asked. It may read."""


async def emit(
    tx: Transaction,
    stream_subject: str,
    *,
    about: str,
    actor: str | None = None,
    data: Mapping[str, Any],
    version: int = 1,
    event_id: str | None = None,
) -> str:
    """Tell of something in the transaction that makes it true; return the event's id.

    Published soon after the commit, in order per `about`, with the trace of the call or event being handled.
    The transaction must hold the lock of what it is about, as by having changed its row. `data` is plain JSON.
    """
    made = await tx.fetchval(
        "SELECT events.emit($1, $2, $3, $4::text::jsonb, $5, $6, $7)",
        stream_subject, about, actor or None, _json(data).decode(), current_trace(), event_id, version,
    )  # fmt: skip
    tx.ring_after_commit()
    return str(made)


async def emit_batch(
    tx: Transaction, expander: str, *, data: Mapping[str, Any], about: str = "", actor: str | None = None
) -> str:
    """Tell of many things by one row, which the expander of that name makes into events; return the row's id."""
    made = await tx.fetchval(
        "SELECT events.emit_batch($1, $2::text::jsonb, $3, $4, $5)",
        expander, _json(data).decode(), about, actor or None, current_trace(),
    )  # fmt: skip
    tx.ring_after_commit()
    return str(made)


async def once(tx: Transaction, consumer: str, event_id: str) -> bool:
    """Mark an event as handled by a consumer; False if it was already, and then nothing is to be done.

    The mark commits with the effects. A handler of the same event elsewhere makes this wait for its outcome.
    """
    tag = await tx.execute(
        "INSERT INTO events.handled (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        consumer, event_id,
    )  # fmt: skip
    return tag.endswith(" 1")


async def once_each(tx: Transaction, consumer: str, event_ids: Collection[str]) -> set[str]:
    """As `once`, of several events; return those that were not handled before."""
    rows = await tx.fetch(
        "INSERT INTO events.handled (consumer, event_id) SELECT $1, id FROM unnest($2::text[]) AS id"
        " ON CONFLICT DO NOTHING RETURNING event_id",
        consumer, sorted(event_ids),
    )  # fmt: skip
    return {row["event_id"] for row in rows}


def current_trace() -> str | None:
    """Return the trace of what this task is doing: of its span, else of the event being handled, or the call."""
    traceparent = current_traceparent()
    if traceparent:
        return traceparent
    event = handling.get(None)
    if event is not None:
        return event.trace or None
    try:
        return current_call().metadata.text(TRACEPARENT)
    except LookupError:
        return None
