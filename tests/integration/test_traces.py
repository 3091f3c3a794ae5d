"""One trace, from what somebody does to the last that follows from it, as a collector gets it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.services.notification.servers import PushServer, http1_server
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.realtime.client import ClientChannel, open_phoenix
from whispr.telemetry import otlp

AT_HOME = {"batch_s": 0, "allow_http": True, "allow_private_addresses": True}
HEAR_S = 20.0
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP receiver, and the spans it was sent."""

    def __init__(self, server: PushServer) -> None:
        self._server = server

    @property
    def url(self) -> str:
        return self._server.url

    def spans(self, trace_id: str = TRACE) -> dict[str, Span]:
        """The spans of a trace so far, by name."""
        found: dict[str, Span] = {}
        for request in self._server.requests:
            assert (request.method, request.path) == ("POST", "/v1/traces")
            assert request.headers["content-type"] == "application/x-protobuf"
            for of_resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
                names = {each.key: each.value.string_value for each in of_resource.resource.attributes}
                assert names["service.name"] == "whispr"
                spans = [span for scope in of_resource.scope_spans for span in scope.spans]
                found |= {span.name: span for span in spans if span.trace_id.hex() == trace_id}
        return found

    async def wait_for(self, names: Iterable[str]) -> dict[str, Span]:
        """Wait until spans of these names have come."""
        with trio.fail_after(HEAR_S):
            while not set(names) <= self.spans().keys():
                await self._server.arrived.wait()
        return self.spans()


@asynccontextmanager
async def traced(
    db: Postgres, cache: Cache, bus: Bus, folder: Path, ratio: float
) -> AsyncIterator[tuple[World, Collector]]:
    """A product that exports to a collector in this process."""
    async with http1_server() as server:
        tracing = {"endpoint": server.url, "ratio": ratio}
        async with open_world(db, cache, bus, folder, notification=AT_HOME, tracing=tracing) as world:
            yield world, Collector(server)


async def being_told(channel: ClientChannel, push: PushServer) -> None:
    """Send messages until there is a push of one: a new consumer hears what is sent once it listens."""
    with trio.fail_after(HEAR_S):
        while not any(b'"type":"message"' in request.body for request in push.requests):
            await channel.push("send_message", {"text": "hello?"})
            with trio.move_on_after(1):
                await push.arrived.wait()


async def test_one_trace_from_a_websocket_to_the_push(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a message gives rise to is of its trace, each span the child of what caused it.

    Outbox, bus, consumer, the calls in which others are asked, and the push. No span tells what was said.
    """
    monkeypatch.setattr(otlp, "EVERY_S", 0.1)
    async with traced(db, cache, bus, tmp_path, 0.0) as (world, collector), http1_server() as push:
        group = await world.group()
        gateway = f"http://127.0.0.1:{world.ports['gateway']}"
        async with httpx.AsyncClient(base_url=gateway) as rest:
            headers = {"authorization": f"Bearer {world.token('member')}"}
            body = {"platform": "webhook", "token": f"{push.url}/member"}
            assert (await rest.post("/v1/devices", json=body, headers=headers)).is_success
        socket = f"ws://127.0.0.1:{world.ports['websocket']}"
        async with open_phoenix(socket, world.token("owner")) as desk:
            channel = await desk.join(f"conversation:{group}")
            await being_told(channel, push)
            payload = {"text": "a word in confidence", "traceparent": f"00-{TRACE}-{CALLER}-01"}
            await channel.push("send_message", payload)
        spans = await collector.wait_for(
            ["push send_message", "notification-messages messaging.events.message_sent", "push webhook"]
        )
        sent = spans["push send_message"]
        consumed = spans["notification-messages messaging.events.message_sent"]
        told, pushed = spans["notification-burst"], spans["push webhook"]
        assert sent.parent_span_id.hex() == CALLER
        assert (sent.kind, consumed.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
        assert consumed.parent_span_id == sent.span_id
        assert told.parent_span_id in {sent.span_id, consumed.span_id}
        assert pushed.parent_span_id == told.span_id
        assert sent.start_time_unix_nano < consumed.start_time_unix_nano < pushed.end_time_unix_nano
        calls = [span for name, span in spans.items() if name.startswith("whispr.v1.")]
        assert calls, "the burst asked other services"
        everything = b"".join(span.SerializeToString() for span in spans.values())
        assert b"confidence" not in everything
        assert world.token("owner").encode() not in everything


async def test_a_request_and_its_call_are_of_the_callers_trace(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REST: the gateway's span, the call it makes and the call that is served, parent to child.

    Requests that name no trace are not recorded where the ratio is 0.
    """
    monkeypatch.setattr(otlp, "EVERY_S", 0.1)
    async with traced(db, cache, bus, tmp_path, 0.0) as (world, collector):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{world.ports['gateway']}") as rest:
            headers = {"authorization": f"Bearer {world.token('member')}"}
            assert (await rest.get("/v1/conversations", headers=headers)).is_success
            headers["traceparent"] = f"00-{TRACE}-{CALLER}-01"
            assert (await rest.get("/v1/conversations", headers=headers)).is_success
        spans = await collector.wait_for(["GET /v1/conversations"])
        request = spans["GET /v1/conversations"]
        assert request.parent_span_id.hex() == CALLER
        (call,) = [span for name, span in spans.items() if name.startswith("whispr.v1.MessagingService/")]
        # Client and server name their spans alike; the later one that was sent is the client's.
        assert call.parent_span_id == request.span_id
        assert call.kind == Span.SPAN_KIND_CLIENT
