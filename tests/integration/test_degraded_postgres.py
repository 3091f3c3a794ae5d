"""PostgreSQL is frozen, or killed under load: what is refused and how soon, what is told again, and what is kept."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.faults import eventually
from tests.integration.test_degraded import PATIENCE_S, send, texts
from tests.integration.test_degraded_backends import health, next_text, status_of
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.migrations import migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.app import MIGRATIONS
from whispr.bridge import Bridge
from whispr.conversations import resuming
from whispr.embed import Backends, run_children
from whispr.realtime.client import Refused, open_phoenix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

AT_ONCE_S = 5.0
"""What ten refusals in a row may take together on a busy machine; one that waits takes that long alone."""


@asynccontextmanager
async def own_postgres(bridge: Bridge, folder: Path) -> AsyncIterator[tuple[Postgres, Backends]]:
    """A PostgreSQL that nobody else uses, and a pool on its migrated database."""
    async with trio.open_nursery() as nursery:
        running: Backends = await nursery.start(run_children, folder, {"postgres"})
        async with open_postgres(bridge, str(running.postgres_url)) as db:
            await migrate(db, MIGRATIONS)
            yield db, running
        nursery.cancel_scope.cancel()


def _family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def signal_all(running: Backends, number: signal.Signals) -> None:
    """Signal the server and every process of its own."""
    pid = running.status["postgres"].pid
    assert pid is not None, "it runs"
    for each in _family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


@asynccontextmanager
async def browser(world: World, role: str = "owner") -> AsyncIterator[httpx.AsyncClient]:
    """Somebody's client of the REST API."""
    gateway = f"http://127.0.0.1:{world.ports['gateway']}"
    headers = {"authorization": f"Bearer {world.token(role)}"}
    async with httpx.AsyncClient(base_url=gateway, timeout=PATIENCE_S, headers=headers) as client:
        yield client


def websocket(world: World) -> str:
    """Where sockets are opened."""
    return f"ws://127.0.0.1:{world.ports['websocket']}/socket/websocket"


async def check_refused(client: httpx.AsyncClient, group: str, bodies: list[dict[str, str]]) -> None:
    """Every send is refused at once; the refusal names what is away, and says when to come again."""
    with trio.fail_after(AT_ONCE_S):
        for body in bodies:
            reply = await client.post(f"/v1/conversations/{group}/messages", json=body)
            assert reply.status_code == 503, reply.text
            assert int(reply.headers["retry-after"]) >= 1
            (info,) = [each for each in reply.json()["details"] if "reason" in each]
            assert info["reason"] == "breaker_open"
            assert info["metadata"]["dependency"] == "postgres"


async def test_a_frozen_postgres(
    bridge: Bridge, cache: Cache, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People are told again what they knew, marked as stale; sends are refused at once; sockets live; all returns."""
    monkeypatch.setattr(resuming, "KEPT_S", 0.1)
    async with (
        own_postgres(bridge, tmp_path / "own") as (db, running),
        open_world(db, cache, bus, tmp_path) as world,
        browser(world) as client,
        open_phoenix(websocket(world), world.token("member")) as phoenix,
    ):
        group = await world.group()
        topic = f"conversation:{group}"
        channel = await phoenix.join(topic)
        await send(world, group, text="before")
        assert await next_text(channel) == "before"
        async with open_phoenix(websocket(world), world.token("moderator")) as other:
            await other.join(topic)
        pages = [f"/v1/conversations/{group}/messages", "/v1/conversations", "/v1/users/me"]
        known = {page: (await client.get(page)).json() for page in pages}
        signal_all(running, signal.SIGSTOP)
        waiting: list[Any] = []

        async def wait() -> None:
            waiting.append(await client.post(f"/v1/conversations/{group}/messages", json={"text": "waits"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await status_of(world, "postgres", "down")
        assert waiting[0].status_code == 503, "what waited has been ended as the breaker tripped"
        assert (await health(world))["dependencies"]["postgres"]["breaker"] != "closed"
        bodies = [{"text": f"during {number}", "client_id": f"during {number}"} for number in range(10)]
        await check_refused(client, group, bodies)
        for page, shown in known.items():
            reply = await client.get(page)
            assert (reply.status_code, reply.json()) == (200, shown)
            assert int(reply.headers["whispr-stale"]) == int(reply.headers["age"]) >= 0
        assert (await client.get(f"/v1/conversations/{group}/members")).status_code == 503, "never asked"
        async with browser(world, "stranger") as stranger:
            for page in pages[:2]:
                assert (await stranger.get(page)).status_code == 503, "what others were told is theirs"
        await check_sockets(world, topic, channel)
        signal_all(running, signal.SIGCONT)
        await check_back(world, client, group, bodies)
        assert "whispr-stale" not in (await client.get(pages[0])).headers


async def check_sockets(world: World, topic: str, channel: Any) -> None:
    """Typing goes through, members who are known join by what was read last, and strangers do not."""
    async with open_phoenix(websocket(world), world.token("owner")) as phoenix:
        joined = await phoenix.join(topic, {"since_seq": "0"})
        reply: Any = joined.response
        assert reply["stale"] is True
        await joined.push("typing_start", {})
        with trio.fail_after(PATIENCE_S):
            while (await anext(channel))[0] != "typing_indicator":
                pass
    async with open_phoenix(websocket(world), world.token("stranger")) as phoenix:
        with pytest.raises(Refused) as refused:
            await phoenix.join(topic)
        assert refused.value.reason in ("unavailable", "not_a_member", "breaker_open")


async def check_back(
    world: World, client: httpx.AsyncClient, group: str, bodies: list[dict[str, str]]
) -> None:
    """Whatever was refused is taken once it is sent again, and is there once."""
    for body in bodies:

        async def again(body: dict[str, str] = body) -> bool:
            reply = await client.post(f"/v1/conversations/{group}/messages", json=body)
            return reply.status_code == 200

        await eventually(again)
        await again()
    await status_of(world, "postgres", "up")
    told = [text for text in await texts(world, group) if text.startswith("during")]
    assert told == sorted(body["text"] for body in bodies)


async def test_a_killed_postgres(bridge: Bridge, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Killed three times under load: what was acknowledged is there, once, and it goes on by itself each time."""
    async with (
        own_postgres(bridge, tmp_path / "own") as (db, running),
        open_world(db, cache, bus, tmp_path) as world,
    ):
        group = await world.group()
        tried: list[str] = []
        acknowledged: list[str] = []

        async def chatter(number: int) -> None:
            async with browser(world) as client:
                for count in range(1_000_000):
                    text = f"{number}.{count}"
                    tried.append(text)
                    body = {"text": text, "client_id": text}
                    reply = await client.post(f"/v1/conversations/{group}/messages", json=body)
                    assert reply.status_code in (200, 503), reply.text
                    if reply.status_code == 200:
                        acknowledged.append(text)
                    else:
                        await trio.sleep(0.02)

        async def more() -> None:
            enough = len(acknowledged) + 20

            async def there() -> bool:
                return len(acknowledged) >= enough

            await eventually(there)

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(chatter, number)
            for _ in range(3):
                await more()
                pid = running.status["postgres"].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                restarts = running.status["postgres"].restarts

                async def restarted(before: int = restarts) -> bool:
                    return running.status["postgres"].restarts > before

                await eventually(restarted)
            await more()
            nursery.cancel_scope.cancel()
        sql = "SELECT convert_from(content, 'UTF8') AS text FROM conversations.messages WHERE conversation_id = $1"
        kept = [row["text"] for row in await db.fetch(sql, group)]
        assert len(kept) == len(set(kept))
        assert set(acknowledged) <= set(kept) <= set(tried)
        assert db.in_use == 0 or await eventually(lambda: _idle(db))


async def _idle(db: Postgres) -> bool:
    await trio.lowlevel.checkpoint()
    return db.in_use == 0
