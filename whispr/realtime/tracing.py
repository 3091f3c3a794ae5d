"""Spans of pushes: from when a push is handled to its reply, in the trace that its payload names, or a new one.

A client says which trace a push is of beside what the event has: `{"text": …, "traceparent": "00-…"}`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from whispr.errors import WhisprError
from whispr.realtime.channel import Deferred
from whispr.realtime.protocol import Message
from whispr.telemetry import tracing
from whispr.telemetry.tracing import Kind, Span

_EVENT_CHARS_MAX = 64
"""Of an event's name in a span: clients may push anything."""
_OFF: AbstractContextManager[None] = nullcontext()

Listener = Callable[[Deferred, object], None]


def push_span(topic: str, message: Message) -> AbstractContextManager[Span | None]:
    """Be in the span of a push over the block; None while tracing is off."""
    if tracing.active() is None:
        return _OFF
    payload = message.payload
    given = payload if isinstance(payload, dict) else {}
    parent = tracing.parse(given.get("traceparent"), given.get("tracestate"))
    name = f"push {message.event[:_EVENT_CHARS_MAX]}"
    about = {"messaging.system": "phoenix", "messaging.destination.name": topic}
    return tracing.span(name, Kind.SERVER, parent=parent, attributes=about)


def ended_with(span: Span, listener: Listener) -> Listener:
    """Return a listener that ends the span, with what a reply turned out to be, and calls this one."""

    def settled(deferred: Deferred, result: object) -> None:
        if isinstance(result, WhisprError):
            span.fail(result)
        span.end()
        listener(deferred, result)

    return settled
