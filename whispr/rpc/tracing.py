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
from whispr.http2.headers import encode, list_bytes
from whispr.rpc.call import NO_METADATA, Call, current_call
from whispr.rpc.client_call import ClientCall
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
_SPAN = "span"
_UNSAMPLED = [(TRACEPARENT, UNSAMPLED.traceparent)]
_UNSAMPLED_HEAD = (encode(_UNSAMPLED), list_bytes(_UNSAMPLED))
"""What nearly all calls say, once and for all."""
_Running = Coroutine[Any, Any, Any]


def trace_id_of(call: Call) -> str:
    """Name the trace that a call is recorded in, here or by its caller; empty for none."""
    context: Context | None = call.state.get(_STATE) or _parent(call)
    return context.trace_id if context is not None and context.sampled else ""


class TracedServer:
    """Each call is a span of its caller's trace, or begins one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._samples = tracer.samples

    def wants(self, call: Call) -> bool:
        """Tell whether a call is recorded, and begin its span if it is."""
        parent = _parent(call) if call.metadata is not NO_METADATA else None
        if not self._samples(parent):
            return False
        span = self._tracer.recorded(call.method[1:], Kind.SERVER, parent)
        call.state[_SPAN], call.state[_STATE] = span, span.context
        return True

    def __call__(self, call: Call, proceed: Proceed) -> _Running:
        """Surround a call that is wanted. What the handler does is in its span: the context is the handler's own."""
        span: Span = call.state.pop(_SPAN)
        enter(span.context)
        return _recorded(span, call, proceed())


class TracedClient:
    """Each call made within a span is one of its own, and its server hears of it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __call__(self, call: Call, proceed: Proceed) -> _Running:
        """Surround one call."""
        parent = current() or _unrecorded()
        if parent is None:
            return cast(_Running, proceed())
        span = self._tracer.begin(call.method[1:], Kind.CLIENT, parent)
        if span is None:
            _tell(call, parent)
            return cast(_Running, proceed())
        _tell(call, span.context)
        return _recorded(span, call, proceed())


def _parent(call: Call) -> Context | None:
    metadata = call.metadata
    given = metadata.text(TRACEPARENT) if metadata else None
    return None if given is None else parse(given, metadata.text(TRACESTATE))


def _unrecorded() -> Context | None:
    """Return the trace of the call being handled, if there is one: without a span, it is not recorded."""
    try:
        return _parent(current_call()) or UNSAMPLED
    except LookupError:
        return None


def _tell(call: Call, context: Context) -> None:
    """Name the trace in a call's metadata, in place of what was passed on."""
    if context is UNSAMPLED and isinstance(call, ClientCall) and TRACEPARENT not in call.metadata:
        call.extra_head = _UNSAMPLED_HEAD
        return
    pairs = [pair for pair in call.metadata if pair[0] not in (TRACEPARENT, TRACESTATE)]
    pairs.append((TRACEPARENT, context.traceparent))
    if context.state:
        pairs.append((TRACESTATE, context.state))
    call.metadata = type(call.metadata)(pairs)


async def _recorded(span: Span, call: Call, running: Awaitable[Any]) -> Any:
    """Run a call to its end, and keep its span (OpenTelemetry's semantic conventions for RPC)."""
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
        service, _, method = span.name.partition("/")
        span.attributes |= {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "network.peer.address" if span.kind is Kind.SERVER else "server.address": call.peer,
            "rpc.grpc.status_code": span.code.value,
        }
        span.end()
