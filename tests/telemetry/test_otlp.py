"""Spans reach a collector, or are dropped and counted; what is traced never waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2
from prometheus_client import REGISTRY

from tests.services.notification.servers import PushServer, Reply, http1_server
from whispr.errors import denied
from whispr.telemetry import otlp
from whispr.telemetry.otlp import Exporter
from whispr.telemetry.tracing import Context, Kind, Span, Tracer

PARENT = Context("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True, "vendor=1")


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between two rounds is for products."""
    monkeypatch.setattr(otlp, "EVERY_S", 0.01)


def count(name: str) -> float:
    return REGISTRY.get_sample_value(f"whispr_trace_spans_{name}_total") or 0.0


def ended(exporter: Exporter, name: str) -> Span:
    """A span of that name, handed over."""
    span = Tracer(1, exporter.record).begin(name, Kind.SERVER, PARENT)
    assert span is not None
    span.set("rpc.method", "Say")
    span.set("attempt", 2)
    span.set("share", 0.5)
    span.set("again", True)
    span.fail(denied("not for you"))
    span.end()
    return span


@asynccontextmanager
async def exporting() -> AsyncIterator[tuple[Exporter, PushServer]]:
    async with http1_server() as collector, trio.open_nursery() as nursery:
        exporter = Exporter(collector.url + "/", {"service.name": "whispr"})
        await nursery.start(exporter.run)
        yield exporter, collector
        nursery.cancel_scope.cancel(reason="the test is over")


def spans_of(collector: PushServer, number: int) -> list[trace_pb2.Span]:
    request = ExportTraceServiceRequest.FromString(collector.requests[number].body)
    return list(request.resource_spans[0].scope_spans[0].spans)


async def test_a_span_as_the_collector_gets_it() -> None:
    """Ids, times, kind, attributes of every type, state and status, in OTLP's own message; no words of errors."""
    async with exporting() as (exporter, collector):
        span = ended(exporter, "a call")
        await collector.wait_requests(1)
    (got,) = spans_of(collector, 0)
    assert (got.name, got.kind, got.trace_state) == ("a call", trace_pb2.Span.SPAN_KIND_SERVER, "vendor=1")
    assert (got.trace_id.hex(), got.parent_span_id.hex()) == (PARENT.trace_id, PARENT.span_id)
    assert got.span_id.hex() == span.context.span_id
    assert 0 < got.start_time_unix_nano <= got.end_time_unix_nano
    values = {each.key: each.value for each in got.attributes}
    assert (values["rpc.method"].string_value, values["attempt"].int_value) == ("Say", 2)
    assert (values["share"].double_value, values["again"].bool_value) == (0.5, True)
    assert (got.status.code, got.status.message) == (trace_pb2.Status.STATUS_CODE_ERROR, "PERMISSION_DENIED")


async def test_what_a_busy_collector_refuses_is_sent_again() -> None:
    """After 503 the same spans come once more; after 400 they are dropped, and later ones go on."""
    dropped = count("dropped")
    async with exporting() as (exporter, collector):
        collector.answers += [Reply(503), Reply(200), Reply(400)]
        ended(exporter, "first")
        await collector.wait_requests(2)
        assert [span.name for span in spans_of(collector, 1)] == ["first"]
        ended(exporter, "second")
        await collector.wait_requests(3)
        ended(exporter, "third")
        await collector.wait_requests(4)
    assert [span.name for span in spans_of(collector, 3)] == ["third"]
    assert count("dropped") == dropped + 1


async def test_while_the_collector_is_away_the_queue_has_its_limit() -> None:
    """What is traced goes on; what does not fit is dropped and counted."""
    dropped = count("dropped")
    exporter = Exporter("http://127.0.0.1:1", {})
    for _ in range(otlp.QUEUE_LEN_MAX + 3):
        ended(exporter, "one of many")
    assert count("dropped") == dropped + 3
    await trio.lowlevel.checkpoint()


async def test_what_is_left_is_sent_at_the_end() -> None:
    """A process that stops in order gives its last spans to the collector."""
    async with http1_server() as collector:
        async with trio.open_nursery() as nursery:
            exporter = Exporter(collector.url, {})
            await nursery.start(exporter.run)
            nursery.cancel_scope.cancel(reason="the process stops")
            ended(exporter, "the last")
        assert [span.name for span in spans_of(collector, 0)] == ["the last"]


async def test_a_busy_process_sends_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that ends while a request is under way waits for the next round: it is not a request of its own."""
    exporter = Exporter("http://127.0.0.1:1", {})
    requests = 0

    async def post(_: object) -> bool:
        nonlocal requests
        requests += 1
        exporter._done()
        ended(exporter, "meanwhile")
        await trio.lowlevel.checkpoint()
        return requests < 10

    monkeypatch.setattr(exporter, "_post", post)
    ended(exporter, "first")
    async with httpx.AsyncClient() as client:
        assert await exporter._round(client, otlp.BATCH_LEN_MAX)
    assert requests == 1
