"""Who is online: over all nodes through Valkey, from this node's own sockets when it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr import online as module
from whispr.adapters.cache import Cache, open_cache
from whispr.bridge import Bridge
from whispr.errors import WhisprError
from whispr.online import Online
from whispr.realtime.channel import Channel
from whispr.realtime.client import Phoenix
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served

MOUNTS = {"room": Channel, "user": Channel}
LIFTED = Limits(operations_per_min=0, user_sockets=0, channels=10_000)


@dataclass
class Node:
    """A node with sockets and what it knows of everybody."""

    server: Server
    online: Online


@asynccontextmanager
async def a_node(cache: Cache) -> AsyncIterator[Node]:
    async with served(MOUNTS, LIFTED) as server:
        yield Node(server, Online(cache, server.hub))


async def gone(node: Node, *phoenixes: Phoenix) -> None:
    """Close connections and wait until the hub has noticed."""
    for phoenix in phoenixes:
        await phoenix.close()
    with trio.fail_after(5):
        while node.server.hub.sockets:
            await wait_all_tasks_blocked(0.001)


async def test_any_node_answers_for_all(cache: Cache) -> None:
    """Who is connected and who has a topic joined is known on every node once the other has written it."""
    async with (
        a_node(cache) as one,
        a_node(cache) as two,
        one.server.connect("ann") as ann,
        two.server.connect("bob") as bob,
    ):
        await ann.join("room:1")
        await bob.join("room:1")
        await bob.join("room:2")
        await one.online.flush()
        await two.online.flush()
        asker = Online(cache)  # a process without sockets
        for online in (one.online, two.online, asker):
            assert await online.connected(["ann", "bob", "cid"]) == {"ann", "bob"}
            assert await online.reading("room:1") == {"ann", "bob"}
            assert await online.reading("room:1", among=["bob", "cid"]) == {"bob"}
            assert await online.reading("room:") == set()
            counts = await online.counts(["room:1", "room:2", "room:3"])
            assert counts == {"room:1": 2, "room:2": 1, "room:3": 0}


async def test_leaving_and_disconnecting_are_known_too(cache: Cache) -> None:
    """A left topic is not read any more, a closed socket is not connected, and says when it was last there."""
    async with a_node(cache) as node:
        asker = Online(cache)
        async with node.server.connect("ann") as ann:
            room = await ann.join("room:1")
            await node.online.flush()
            assert await asker.reading("room:1") == {"ann"}
            await room.leave()
            await node.online.flush()
            assert await asker.reading("room:1") == set()
            assert await asker.connected(["ann"]) == {"ann"}
            before = datetime.now(UTC)
        await gone(node, ann)
        await node.online.flush()
        assert await asker.connected(["ann"]) == set()
        seen = await asker.last_seen(["ann", "never"])
        assert list(seen) == ["ann"]
        assert abs((seen["ann"] - before).total_seconds()) < 5


async def test_a_node_knows_its_own_sockets_before_they_are_written(cache: Cache) -> None:
    """What happened here counts at once, whatever Redis says."""
    async with a_node(cache) as node, node.server.connect("ann") as ann:
        await ann.join("room:1")
        assert await node.online.connected(["ann"]) == {"ann"}
        assert await node.online.reading("room:1") == {"ann"}
        assert (await node.online.last_seen(["ann"])).keys() == {"ann"}


async def test_the_status_chosen_last_is_shown(cache: Cache) -> None:
    """A status lasts as long as a socket of the node where it was chosen; without one a person is offline."""
    clock = iter(range(1000, 2000))
    async with served(MOUNTS, LIFTED) as first, served(MOUNTS, LIFTED) as second:
        nodes = [Online(cache, each.hub, wall_clock=lambda: next(clock)) for each in (first, second)]
        asker = Online(cache)
        async with first.connect("ann"), second.connect("ann") as phone:
            for each in nodes:
                await each.flush()
            assert await asker.status(["ann", "bob"]) == {"ann": "online", "bob": "offline"}
            nodes[0].choose("ann", "busy")
            nodes[1].choose("ann", "away")
            for each in nodes:
                await each.flush()
            assert await asker.status(["ann"]) == {"ann": "away"}
            assert await nodes[0].status(["ann"]) == {"ann": "away"}
            await gone(Node(second, nodes[1]), phone)
            await nodes[1].flush()
            assert await asker.status(["ann"]) == {"ann": "busy"}
            nodes[0].choose("ann", "offline")
            await nodes[0].flush()
            assert await asker.status(["ann"]) == {"ann": "offline"}
            assert await asker.connected(["ann"]) == {"ann"}
            assert await asker.shown(["ann"]) == set()
            chose_at = (await asker.last_seen(["ann"]))["ann"]
            assert (await nodes[0].last_seen(["ann"]))["ann"] == chose_at
            nodes[0].choose("ann", "away")
            assert await nodes[0].shown(["ann", "bob"]) == {"ann"}


async def test_a_node_that_dies_takes_its_people_with_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a node that stopped touching is believed, and its keys expire by themselves."""
    monkeypatch.setattr(module, "TTL_S", 0.05)
    async with a_node(cache) as node, node.server.connect("ann") as ann:
        await ann.join("room:1")
        await node.online.flush()
        asker = Online(cache)
        assert await cache.command("KEYS", "*:users") != []
        with trio.fail_after(5):
            while await asker.connected(["ann"]) or await cache.command("KEYS", "*:links"):
                await cache.ping()
        assert await asker.reading("room:1") == set()
        # It had only slept: with the next touch, which finds it unknown, everything is written anew.
        monkeypatch.setattr(module, "TTL_S", 20.0)
        await node.online.flush()
        await node.online.flush()
        assert await asker.reading("room:1") == {"ann"}
        assert await asker.connected(["ann"]) == {"ann"}


async def test_a_redis_that_forgot_is_told_everything_again(cache: Cache) -> None:
    """After a restart of Redis the next touch notices, and what is true is written once more."""
    async with a_node(cache) as node, node.server.connect("ann") as ann, node.server.connect("bob") as bob:
        await ann.join("room:1")
        await bob.join("room:1")
        await node.online.flush()
        await cache.command("FLUSHDB")
        await node.online.flush()
        await node.online.flush()
        asker = Online(cache)
        assert await asker.connected(["ann", "bob"]) == {"ann", "bob"}
        assert await asker.reading("room:1") == {"ann", "bob"}


async def test_without_redis_a_node_answers_from_its_own_sockets(bridge: Bridge) -> None:
    """Redis away: nobody waits or fails, and what this node knows is the answer; nothing noted is lost."""
    async with (
        open_cache(bridge, "unix:///nowhere/valkey.sock") as cache,
        a_node(cache) as node,
        node.server.connect("ann") as ann,
    ):
        await ann.join("room:1")
        with trio.fail_after(1):
            assert await node.online.connected(["ann", "bob"]) == {"ann"}
            assert await node.online.reading("room:1") == {"ann"}
            assert await node.online.status(["ann", "bob"]) == {"ann": "online", "bob": "offline"}
            assert await node.online.counts(["room:1"]) == {"room:1": 1}
            assert (await node.online.last_seen(["ann", "bob"])).keys() == {"ann"}
        with pytest.raises(WhisprError, match="cache is away"):
            await node.online.flush()
        assert list(node.online._users) == ["ann"]
        assert list(node.online._links) == [("room:1", "ann")]


class Counting:
    """A cache that counts round trips."""

    def __init__(self, cache: Cache) -> None:
        self.pipelines: list[int] = []
        self._cache = cache

    async def script(self, *args: Any) -> Any:
        return await self._cache.script(*args)

    async def pipeline(self, commands: Sequence[Sequence[bytes | str | float]]) -> list[Any]:
        self.pipelines.append(len(commands))
        return await self._cache.pipeline(commands)


async def test_many_changes_are_one_round_trip(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storm of joins is one pipeline of a dozen commands; beyond the cap the rest goes with the next."""
    counting = Counting(cache)
    async with served(MOUNTS, LIFTED) as server:
        online = Online(counting, server.hub)
        async with server.connect("ann") as ann:
            for number in range(60):
                await ann.join(f"room:{number}")
            await online.flush()
            assert len(counting.pipelines) == 1
            assert counting.pipelines[0] < 12
            await online.flush()  # the first touch found us unknown, so everything is written once more
            assert await Online(cache).counts(["room:59"]) == {"room:59": 1}
            monkeypatch.setattr(module, "CHANGES_MAX", 50)
            for number in range(60, 120):
                await ann.join(f"room:{number}")
            await online.flush()
            assert await Online(cache).counts(["room:60", "room:119"]) == {"room:60": 1, "room:119": 0}
            await online.flush()
            assert await Online(cache).counts(["room:119"]) == {"room:119": 1}


async def test_many_people_are_asked_about_in_parts(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list longer than one script takes is asked in parts, and answered whole."""
    monkeypatch.setattr(module, "ASKED_MAX", 2)
    async with a_node(cache) as node, node.server.connect("ann") as ann, node.server.connect("bob") as bob:
        await ann.join("room:1")
        await bob.join("room:1")
        await node.online.flush()
        asker = Online(cache)
        people = ["x", "ann", "y", "z", "bob"]
        assert await asker.connected(people) == {"ann", "bob"}
        assert await asker.reading("room:1", among=people) == {"ann", "bob"}
        assert (await asker.last_seen(people)).keys() == {"ann", "bob"}


async def test_run_writes_changes_and_withdraws_at_the_end(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task writes soon after a change, and a node that stops is gone at once for the others."""
    monkeypatch.setattr(module, "GATHER_S", 0.001)
    asker = Online(cache)
    async with a_node(cache) as node, node.server.connect("ann"):
        async with trio.open_nursery() as nursery:
            await nursery.start(node.online.run)
            with trio.fail_after(5):
                while not await asker.connected(["ann"]):
                    await cache.ping()
            nursery.cancel_scope.cancel(reason="the node stops")
        assert await asker.connected(["ann"]) == set()
        assert await cache.command("KEYS", "*:users") == []


async def test_topics_of_users_are_no_reading(cache: Cache) -> None:
    """`user:<id>` is joined by every client; it is not noted."""
    async with a_node(cache) as node, node.server.connect("ann") as ann:
        await ann.join("user:ann")
        await node.online.flush()
        assert await Online(cache).reading("user:ann") == set()


async def test_a_process_has_one_hub(cache: Cache) -> None:
    """Attaching a second hub is a defect."""
    online = Online(cache, Hub())
    with pytest.raises(AssertionError, match="one hub"):
        online.attach(Hub())
