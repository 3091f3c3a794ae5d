"""Exports spans by OTLP over HTTP, in protobuf (https://opentelemetry.io/docs/specs/otlp/#otlphttp).

One task sends what has gathered, every second or when there is enough. A batch that the collector does not take
is sent again with the next rounds, a few times; meanwhile the queue fills, and what does not fit is dropped and
counted. Tracing never holds up what it traces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import httpx
import structlog
import trio
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import Counter

from whispr import __version__
from whispr.telemetry import otlp_wire
from whispr.telemetry.tracing import AttributeValue, Span

PATH = "/v1/traces"
QUEUE_LEN_MAX = 4096
BATCH_LEN_MAX = 512
EVERY_S = 1.0
POST_S = 10.0
ATTEMPTS_MAX = 5
"""Of a batch."""
LAST_S = 2.0
"""For what is left when the process stops."""
_AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which the same batch may be sent again (OTLP/HTTP, "Retryable Response Codes")."""

EXPORTED = Counter("whispr_trace_spans_exported_total", "Spans that the collector took")
DROPPED = Counter("whispr_trace_spans_dropped_total", "Spans lost: the queue was full, or the collector away")

log = structlog.get_logger("whispr.telemetry")


class Exporter:
    """Sends the spans of one process. `run` is its task."""

    def __init__(self, endpoint: str, resource: Mapping[str, AttributeValue]) -> None:
        """`endpoint` is the collector's base URL, such as `http://localhost:4318`; `resource` says who we are."""
        self._url = endpoint.rstrip("/") + PATH
        self._resource = Resource(attributes=_attributes(resource))
        self._queue: deque[Span] = deque()
        self._batch: list[Span] = []
        """Under way, or to be sent again."""
        self._body = b""
        """The batch in protobuf, once it has been sent."""
        self._attempts = 0
        self._enough = trio.Event()

    def record(self, span: Span) -> None:
        """Take a span that has ended, to be sent soon; it is dropped when too many wait."""
        if len(self._queue) >= QUEUE_LEN_MAX:
            DROPPED.inc()
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH_LEN_MAX:
            self._enough.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled; what is left then is given a moment."""
        # No timeouts of the client's own: scopes are what ends a request here.
        async with httpx.AsyncClient(timeout=None) as client:  # noqa: S113
            task_status.started()
            try:
                while True:
                    with trio.move_on_after(EVERY_S):
                        await self._enough.wait()
                    if not await self._round(client, BATCH_LEN_MAX):
                        await trio.sleep(EVERY_S)
            finally:
                with trio.move_on_after(LAST_S, shield=True):
                    await self._round(client, 1)

    async def _round(self, client: httpx.AsyncClient, enough: int) -> bool:
        """Send what there is, and go on while `enough` more have come; False when the collector does not take it.

        Without that a busy process would send one request after another, of the few spans since the last.
        """
        self._enough = trio.Event()
        taken, least = True, 1
        while taken and (self._batch or len(self._queue) >= least):
            least = enough
            if not self._body:
                while self._queue and len(self._batch) < BATCH_LEN_MAX:
                    self._batch.append(self._queue.popleft())
                self._body = encode(self._resource, self._batch)
            taken = await self._post(client)
        return taken

    async def _post(self, client: httpx.AsyncClient) -> bool:
        """Send the batch once; False when it is to be sent again."""
        why = f"no answer within {POST_S:g} s"
        with trio.move_on_after(POST_S):
            try:
                headers = {"content-type": "application/x-protobuf"}
                answer = await client.post(self._url, content=self._body, headers=headers)
            except (httpx.HTTPError, OSError) as error:
                why = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    EXPORTED.inc(len(self._batch))
                    self._done()
                    return True
                why = f"HTTP {answer.status_code}"
                if answer.status_code not in _AGAIN:
                    self._attempts = ATTEMPTS_MAX
        self._attempts += 1
        if self._attempts >= ATTEMPTS_MAX:
            log.warning("spans_not_exported", url=self._url, why=why, spans=len(self._batch))
            DROPPED.inc(len(self._batch))
            self._done()
        return False

    def _done(self) -> None:
        self._batch, self._body = [], b""
        self._attempts = 0


def encode(resource: Resource, spans: Sequence[Span]) -> bytes:
    """Put spans into the body of an export request."""
    scope = InstrumentationScope(name="whispr", version=__version__)
    scoped = trace_pb2.ScopeSpans(scope=scope).SerializeToString() + otlp_wire.spans(spans)
    of_resource = trace_pb2.ResourceSpans(resource=resource).SerializeToString()
    of_resource += otlp_wire.field(2, scoped)
    return otlp_wire.field(1, of_resource)


def _attributes(values: Mapping[str, AttributeValue]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]


def _value(value: AttributeValue) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(double_value=value) if isinstance(value, float) else AnyValue(string_value=value)
