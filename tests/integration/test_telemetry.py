"""What an operator sees of a running product: metrics, tasks and logs."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.world import PASSWORD, World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.realtime.client import open_phoenix
from whispr.rpc.health import HealthCheckRequest, HealthStub
from whispr.telemetry.logging import configure_logging

PROMISED = {
    "grpc_requests", "grpc_request_duration_seconds", "http_requests", "http_request_duration_seconds",
    "whispr_ws_sockets", "whispr_ws_channels", "whispr_ws_joins", "whispr_ws_deliveries",
    "whispr_messages_queued", "whispr_message_batch_len", "whispr_message_write_seconds",
    "whispr_events_outbox_rows", "whispr_events_outbox_lag_seconds", "whispr_events_batch_len",
    "whispr_events_consumer_lag", "whispr_events_handle_seconds", "whispr_postgres_pool_size",
    "whispr_postgres_pool_in_use", "whispr_postgres_pool_waiting", "whispr_bus_connected",
    "whispr_breaker_state", "whispr_rpc_connections", "whispr_rpc_calls_in_progress",
    "whispr_pushes_in_flight", "whispr_loop_lag_seconds", "whispr_tasks", "whispr_tasks_runnable",
    "python_gc_collections", "process_open_fds", "process_max_fds", "process_resident_memory_bytes",
    "process_cpu_seconds",
}  # fmt: skip
"""Families that an operator may build on."""
LABELS = {
    "service", "method", "status", "side", "route", "reason", "outcome", "code", "consumer", "stream", "platform",
    "event", "policy", "target", "of", "by", "le", "generation", "version", "major", "minor", "patchlevel",
    "implementation", "kind", "state", "signal", "action", "step", "result", "direction", "format", "cause",
    "dependency", "name", "type", "why", "transport", "fate",
}  # fmt: skip
"""Names that labels may have: each is of a small set that the code knows."""
VALUES_MAX = 300
"""Values that one label may have; the methods of the API are the most."""
AN_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}|\d+\.\d+\.\d+\.\d+:\d+")


@pytest.fixture
async def world(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(db, cache, bus, tmp_path, log={"calls": 1}) as running:
        yield running


def gateway(world: World, role: str = "anonymous") -> httpx.AsyncClient:
    token = world.token(role)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{world.ports['gateway']}", headers=headers)


async def traffic(world: World, words: str) -> None:
    """A bit of everything: a request, calls, a socket, a message that is sent and heard."""
    group = await world.group()
    async with (
        gateway(world, "member") as rest,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("member")) as phone,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("owner")) as desk,
    ):
        assert (await rest.get("/v1/conversations")).is_success
        heard = await phone.join(f"conversation:{group}")
        channel = await desk.join(f"conversation:{group}")
        await channel.push("send_message", {"text": words})
        with trio.fail_after(10):
            async for event, payload in heard:
                if event == "new_message":
                    assert isinstance(payload, dict)
                    assert payload["text"] == words
                    break


async def scraped(world: World) -> dict[str, list[Sample]]:
    """The samples of every family that Prometheus would get."""
    async with gateway(world) as client:
        text = (await client.get("/metrics")).text
    return {family.name: list(family.samples) for family in text_string_to_metric_families(text)}


async def test_every_promised_metric_is_there(world: World) -> None:
    """After some traffic each family has sane values, and no label holds an id, an address or free text."""
    await traffic(world, "hello")
    families = await scraped(world)
    assert not PROMISED - families.keys()
    values: dict[tuple[str, str], set[str]] = {}
    for name, samples in families.items():
        for sample in samples:
            assert math.isfinite(sample.value), sample
            assert sample.value >= 0 or name.startswith("python"), sample
            for label, value in sample.labels.items():
                assert label in LABELS, f"{name} has a label {label}"
                assert not AN_ID.search(value), f"{name} has {label}={value}"
                values.setdefault((name, label), set()).add(value)
    assert max(len(each) for each in values.values()) <= VALUES_MAX

    def total(name: str, **labels: str) -> float:
        family = next(family for family in families if name.startswith(family))
        matching = [s for s in families[family] if s.name == name and labels.items() <= s.labels.items()]
        return sum(sample.value for sample in matching)

    asked = {"service": "whispr.v1.MessagingService", "method": "CreateConversation", "status": "OK"}
    assert total("grpc_requests_total", **asked, side="server") >= 1
    assert total("grpc_request_duration_seconds_count", **asked, side="server") >= 1
    checked = {"service": "whispr.v1.UserService", "side": "client", "status": "OK"}
    assert total("grpc_requests_total", **checked) >= 1
    assert total("whispr_message_batch_len_count") >= 1
    assert total("whispr_postgres_pool_size") >= 1
    assert total("whispr_bus_connected") >= 1
    assert total("whispr_rpc_connections") >= 1
    assert total("whispr_tasks") > 50
    assert total("process_open_fds") > 10
    assert total("whispr_loop_lag_seconds_count") >= 1


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("children", node.get("examples", [])):
        yield from nodes(child)


@pytest.mark.slow
async def test_the_task_tree_of_a_running_product(world: World) -> None:
    """Services, sockets, calls and consumers show with age, deadline and wait, to operators alone."""
    async with gateway(world) as nobody, gateway(world, "member") as member:
        assert (await nobody.get("/v1/debug/tasks")).status_code == 401
        assert (await member.get("/v1/debug/tasks")).status_code == 403
    async with gateway(world, "service") as service:
        assert (await service.get("/v1/debug/tasks", params={"nodes": 5})).is_success
        refused = await service.get("/v1/debug/tasks", params={"nodes": "all", "what": ""})
        assert refused.status_code == 400
    watching = {"service": "whispr.v1.UserService"}
    watch = "/grpc.health.v1.Health/Watch"
    group = await world.group()
    async with (
        gateway(world, "admin") as admin,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("member")) as phone,
    ):
        await phone.join(f"conversation:{group}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hold_a_call, world, watching)
            shown: list[dict[str, Any]] = []
            with trio.fail_after(30):
                while not any(n["kind"] == "call" and watch.endswith(n["name"]) for n in shown):
                    answer = (await admin.get("/v1/debug/tasks", params={"expand": "call"})).json()
                    shown = list(nodes(answer["tree"]))
            nursery.cancel_scope.cancel(reason="seen")
    kinds = {node["kind"] for node in shown}
    assert {"process", "service", "listener", "connection", "call", "consumer", "socket", "request"} <= kinds
    services = set(answer["process"]["services"])
    assert {n["name"].partition(" ")[0] for n in shown if n["kind"] == "listener"} == services
    assert {n["name"] for n in shown if n["kind"] == "service"} >= services - {"user"}, "which has no task"
    for kind in ("service", "connection", "call", "consumer", "socket"):
        for node in (n for n in shown if n["kind"] == kind and "count" not in n):
            assert node["age_s"] is not None, node
            assert node["age_s"] >= -1, node
    for consumer in (n for n in shown if n["kind"] == "consumer" and "count" not in n):
        assert 0 < consumer["deadline_in_s"] < 10, "the end of its lease"
    call = next(n for n in shown if n["kind"] == "call" and n["name"] in watch)
    assert call["at"], "where it waits"
    assert world.token("member") not in json.dumps(answer)


async def _hold_a_call(world: World, request: dict[str, str]) -> None:
    """Have a call that waits."""
    async with HealthStub(world.channels["user"]).Watch(HealthCheckRequest(**request)) as call:
        async for _ in call:
            pass


async def test_logs_hold_no_secret_and_nothing_that_was_said(log: io.StringIO, world: World) -> None:
    """One event a call, with actor, code and duration; passwords, tokens and messages are in none of them."""
    words = "meet me at the old lighthouse"
    await traffic(world, words)
    name = world.people["member"].username
    async with gateway(world) as client:
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        body = {"username": name, "password": PASSWORD}
        tokens = (await client.post("/v1/auth/login", json=body, headers=headers)).json()
        wrong = {"username": name, "password": "wrong horse entirely"}
        assert (await client.post("/v1/auth/login", json=wrong)).status_code == 401
    text = log.getvalue()
    for secret in (PASSWORD, "wrong horse", words, tokens["access_token"], tokens["refresh_token"]):
        assert secret not in text
    assert all(world.token(role) not in text for role in world.people)
    calls = [event for event in map(json.loads, text.splitlines()) if event["event"] == "call"]
    logins = [event for event in calls if event["method"].endswith("/Login")]
    assert [(event["code"], event["level"]) for event in logins] == [
        ("OK", "info"),
        ("UNAUTHENTICATED", "info"),
    ]
    assert logins[0]["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    listed = next(event for event in calls if event["method"].endswith("/ListConversations"))
    assert listed["actor"] == world.id("member")
    assert listed["duration_ms"] > 0


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged from info on, as JSON."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level, configuration = list(root.handlers), root.level, structlog.get_config()
    configure_logging("info", "json", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
