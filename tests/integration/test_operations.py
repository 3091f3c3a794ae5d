"""`/v1/operations`: what the console asks and does, for operators alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.gateway import operations
from whispr.realtime.client import open_phoenix

READS = ("workers", "health", "figures", "realtime", "events", "dead-letters", "dead-letters/1")
ACTS = ("dead-letters/replay", "dead-letters/drop")
DIED = """
INSERT INTO events.dead_letters (consumer, event_id, stream_subject, about, payload, error, attempts)
VALUES ('chat-activity', $1, 'user.events.made_up', 'x', '{"a": 1}', 'boom', 8) RETURNING id
"""


def client(world: World, role: str) -> httpx.AsyncClient:
    """Somebody's."""
    token = world.token(role)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{world.ports['gateway']}/v1/operations/", headers=headers
    )


async def test_operators_see_and_act_and_nobody_else(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """401 without a token, 403 for people and owners; answers for administrators, and who acted is logged."""
    logged: list[tuple[str, dict[str, Any]]] = []
    told = SimpleNamespace(info=lambda event, **facts: logged.append((event, facts)))
    monkeypatch.setattr(operations, "log", told)
    async with open_world(db, cache, bus, tmp_path) as world:
        for role, status in (("anonymous", 401), ("member", 403), ("owner", 403)):
            async with client(world, role) as nobody:
                for path in READS:
                    assert (await nobody.get(path)).status_code == status
                for path in ACTS:
                    assert (await nobody.post(path, json={"all": True})).status_code == status
        async with client(world, "admin") as admin:
            await _reads(world, admin)
            await _letters(db, admin, logged)
    assert {facts["by"] for _, facts in logged} == {world.id("admin")}


async def _reads(world: World, admin: httpx.AsyncClient) -> None:
    group = await world.group()
    async with open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("member")) as phone:
        await phone.join(f"conversation:{group}")
        census = (await admin.get("realtime")).json()
    assert census["workers"] == [{"worker": "1", "sockets": 1, "users": 1, "channels": 1, "topics": 1}]
    assert census["topics"] == [{"topic": f"conversation:{group}", "members": 1}]
    health = (await admin.get("health", params={"worker": "1"})).json()
    assert health["services"]["auth"]["breaker"] == "closed"
    assert (await admin.get("health", params={"worker": "9"})).status_code == 404
    [worker] = (await admin.get("workers")).json()["workers"]
    assert worker["process"]["pid"]
    figures = (await admin.get("figures")).json()
    served = figures["histograms"]["grpc_request_duration_seconds"]["series"]
    assert {"service": "whispr.v1.MessagingService", "method": "CreateConversation"} in [
        each["labels"] for each in served
    ]
    assert "chat-activity" in [each["name"] for each in (await admin.get("events")).json()["consumers"]]
    assert (await admin.get("nonsense")).status_code == 404
    assert (await admin.post("events")).status_code == 405


async def _letters(db: Postgres, admin: httpx.AsyncClient, logged: list[tuple[str, dict[str, Any]]]) -> None:
    first, second = [await db.fetchval(DIED, event_id) for event_id in ("a", "b")]
    page = (await admin.get("dead-letters", params={"limit": 1})).json()
    assert ([each["id"] for each in page["letters"]], page["has_more"]) == ([first], True)
    rest = (await admin.get("dead-letters", params={"after": first})).json()
    assert [each["id"] for each in rest["letters"]] == [second]
    shown = (await admin.get(f"dead-letters/{first}")).json()
    assert (shown["payload"], shown["error"], shown["consumer"]) == ({"a": 1}, "boom", "chat-activity")
    for asked in ({}, {"ids": [first], "all": True}, {"ids": [-1]}, {"ids": ["x"]}, {"what": 1}):
        assert (await admin.post("dead-letters/drop", json=asked)).status_code == 400
    assert (await admin.get("dead-letters/replay")).status_code == 405
    assert (await admin.get("dead-letters", params={"limit": "1000"})).status_code == 400
    assert (await admin.post("dead-letters/drop", json={"ids": [first]})).json() == {"count": 1}
    assert (await admin.post("dead-letters/replay", json={"ids": [second]})).json() == {"count": 1}
    assert [(act, facts["ids"]) for act, facts in logged] == [
        ("dead_letters_dropped", [first]),
        ("dead_letters_replayed", [second]),
    ]
    assert (await admin.get(f"dead-letters/{first}")).status_code == 404
    assert (await admin.post("dead-letters/drop", json={"ids": [first]})).status_code == 404
