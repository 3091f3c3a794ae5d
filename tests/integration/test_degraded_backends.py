"""Redis, NATS and PostgreSQL are taken away and given back: what goes on meanwhile, and what is refused in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.faults import Link, eventually, linked
from tests.integration.test_degraded import PATIENCE_S, refused, send, texts
from tests.world import World, open_world
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache, open_cache
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import Code
from whispr.realtime.client import open_phoenix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@asynccontextmanager
async def behind(url: str) -> AsyncIterator[tuple[Link, str]]:
    """A link to the backend at `url`, and the URL that leads through it."""
    async with trio.open_nursery() as nursery:
        link, through = linked(url, nursery)
        await link.join()
        yield link, through()
        nursery.cancel_scope.cancel()


async def health(world: World) -> Any:
    """What the product says of itself."""
    gateway = f"http://127.0.0.1:{world.ports['gateway']}"
    async with httpx.AsyncClient(base_url=gateway, timeout=PATIENCE_S) as client:
        return (await client.get("/v1/health")).json()


async def status_of(world: World, name: str, status: str) -> None:
    """Wait until a dependency is said to be up or down."""

    async def said() -> bool:
        return bool((await health(world))["dependencies"][name]["status"] == status)

    await eventually(said)


async def test_redis_away(
    bridge: Bridge, backends: Backends, db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Limits are kept by each process, signing in goes on, sockets stay; and Redis is used again once it is there."""
    assert backends.redis_url is not None
    few = {"user_calls_per_min": 50}
    async with (
        behind(backends.redis_url) as (link, url),
        open_cache(bridge, url) as through,
        open_world(db, through, bus, tmp_path) as world,
    ):
        group = await world.group()
        websocket = f"ws://127.0.0.1:{world.ports['websocket']}/socket/websocket"
        async with open_phoenix(websocket, world.token("member")) as phoenix:
            channel = await phoenix.join(f"conversation:{group}")
            link.cut()
            await status_of(world, "redis", "down")
            assert (await health(world))["status"] == "degraded"
            for number in range(5):
                await send(world, group, text=f"during {number}")
            got = [await next_text(channel) for _ in range(5)]
            assert got == [f"during {number}" for number in range(5)]
            limiter = world.node._limiter if world.node is not None else None
            assert limiter is not None
            for _ in range(few["user_calls_per_min"]):
                await limiter.take("somebody", few["user_calls_per_min"], 60)
            await refused(limiter.take("somebody", few["user_calls_per_min"], 60), Code.RESOURCE_EXHAUSTED)
            await link.join()
            await status_of(world, "redis", "up")
            await send(world, group, text="after")
            assert await next_text(channel) == "after"


async def test_nats_away(
    bridge: Bridge, backends: Backends, db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """The outbox holds events, sockets of this process hear each other, and everything derived catches up."""
    assert backends.nats_url is not None
    quick = {"notification": {"batch_s": 0}}
    async with behind(backends.nats_url) as (link, url), open_bus(bridge, url) as through:
        await through.wait_connected()
        async with open_world(db, cache, through, tmp_path, **quick) as world:
            group = await world.group()

            async def told_of() -> int:
                body = {"conversation_id": group}
                reply = await world.call("NotificationService/ListNotifications", body, "moderator")
                return sum(each.count for each in reply.notifications if each.type == "message")

            websocket = f"ws://127.0.0.1:{world.ports['websocket']}/socket/websocket"
            async with open_phoenix(websocket, world.token("member")) as phoenix:
                channel = await phoenix.join(f"conversation:{group}")
                await send(world, group, text="before")
                assert await next_text(channel) == "before"
                await eventually(told_of)
                link.cut()
                await status_of(world, "nats", "down")
                for number in range(10):
                    await send(world, group, text=f"during {number}")
                got = [await next_text(channel) for _ in range(10)]
                assert got == [f"during {number}" for number in range(10)]
                held = await db.fetchval("SELECT count(*) FROM events.outbox")
                assert held > 0
                await link.join()
                await status_of(world, "nats", "up")

                async def all_told() -> bool:
                    return await told_of() == 11

                await eventually(all_told)


async def test_postgres_away(
    bridge: Bridge, postgres_url: str, db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Writes are refused within their deadline, sockets and tokens go on; nothing acknowledged is lost or doubled."""
    async with (
        behind(postgres_url) as (link, url),
        open_postgres(bridge, url) as through,
        open_world(through, cache, bus, tmp_path) as world,
    ):
        group = await world.group()
        websocket = f"ws://127.0.0.1:{world.ports['websocket']}/socket/websocket"
        async with open_phoenix(websocket, world.token("member")) as phoenix:
            channel = await phoenix.join(f"conversation:{group}")
            await send(world, group, text="1 before")
            assert await next_text(channel) == "1 before"
            link.cut()
            await status_of(world, "postgres", "down")
            assert (await health(world))["status"] == "down"
            gateway = f"http://127.0.0.1:{world.ports['gateway']}"
            headers = {"authorization": f"Bearer {world.token('owner')}"}
            acknowledged = []
            async with httpx.AsyncClient(base_url=gateway, timeout=PATIENCE_S, headers=headers) as client:
                assert (await client.get("/livez")).status_code == 200
                assert (await client.get("/readyz")).status_code == 503
                for number in range(3):
                    body = {"text": f"2 during {number}", "client_id": f"during {number}"}
                    reply = await client.post(f"/v1/conversations/{group}/messages", json=body)
                    assert reply.status_code in (503, 504), reply.text
                    acknowledged.append(body)
                await link.join()

                async def sent(body: dict[str, str]) -> bool:
                    reply = await client.post(f"/v1/conversations/{group}/messages", json=body)
                    return reply.status_code == 200

                for body in acknowledged:

                    async def again(body: dict[str, str] = body) -> bool:
                        return await sent(body)

                    await eventually(again)
            await status_of(world, "postgres", "up")
            expected = ["1 before", *(f"2 during {number}" for number in range(3))]
            assert await texts(world, group) == expected
            assert sorted([await next_text(channel) for _ in range(3)]) == expected[1:]


async def next_text(channel: Any) -> str:
    """The text of the next message."""
    with trio.fail_after(PATIENCE_S):
        while True:
            event, payload = await anext(channel)
            if event == "new_message":
                return str(payload["text"])
