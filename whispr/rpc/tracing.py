"""Spans of calls, as interceptors: one on servers, one on channels.

    server = RpcServer([...], interceptors=[Measured(), Logged(), TracedServer(tracer), ...])
    open_channel(target, interceptors=[TracedClient(tracer)])

Most calls are of traces that nobody records: these cost a throw of the dice, and no coroutine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from typing import Any, cast

import trio

from whispr.errors import Code
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed, cancelled_code
from whispr.rpc.statuses import status_of
from whispr.telemetry.tracing import (
    TRACEPARENT,
    TRACESTATE,
    UNSAMPLED,
    Context,
    Kind,
    Span,
    Tracer,
    current,
    enter,
    parse,
)

_STATE = "trace"
_Running = Coroutine[Any, Any, Any]


def trace_id_of(call: Call) -> str:
    """Name the trace that a call is recorded in, here or by its caller; empty for none."""
    context: Context | None = call.state.get(_STATE)
    if context is None and call.metadata:
        context = parse(call.metadata.text(TRACEPARENT))
    return context.trace_id if context is not None and context.sampled else ""


class TracedServer:
    """Each call is a span of its caller's trace, or begins one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, call: Call, proceed: Proceed) -> _Running:
        """Surround one call. What the handler does is in its span: the context is the handler's own."""
        metadata = call.metadata
        parent = None
        if metadata and (given := metadata.text(TRACEPARENT)) is not None:
            parent = parse(given, metadata.text(TRACESTATE))
        span = self._tracer.begin(call.method[1:], Kind.SERVER, parent)
        if span is None:
            enter(parent or UNSAMPLED)
            return cast(_Running, proceed())
        enter(span.context)
        call.state[_STATE] = span.context
        return _recorded(span, call, proceed())


class TracedClient:
    """Each call made within a span is one of its own, and its server hears of it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, call: Call, proceed: Proceed) -> _Running:
        """Surround one call."""
        parent = current()
        if parent is None:
            return cast(_Running, proceed())
        span = self._tracer.begin(call.method[1:], Kind.CLIENT, parent)
        if span is None:
            _tell(call, parent)
            return cast(_Running, proceed())
        _tell(call, span.context)
        return _recorded(span, call, proceed())


def _tell(call: Call, context: Context) -> None:
    """Name the trace in a call's metadata, in place of what was passed on."""
    pairs = [pair for pair in call.metadata if pair[0] not in (TRACEPARENT, TRACESTATE)]
    pairs.append((TRACEPARENT, context.traceparent))
    if context.state:
        pairs.append((TRACESTATE, context.state))
    call.metadata = type(call.metadata)(pairs)


async def _recorded(span: Span, call: Call, running: Awaitable[Any]) -> Any:
    """Run a call to its end, and keep its span (OpenTelemetry's semantic conventions for RPC)."""
    service, _, method = span.name.partition("/")
    span.attributes |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    span.set("network.peer.address" if span.kind is Kind.SERVER else "server.address", call.peer)
    try:
        return await running
    except trio.Cancelled:
        span.code = cancelled_code(call)
        raise
    except Exception as error:
        status = status_of(error)
        span.code = Code.INTERNAL if status is None else status.code
        raise
    finally:
        span.set("rpc.grpc.status_code", span.code.value)
        span.end()
