"""phoenix.js as published, with nodes that drain and a server that falls silent: it comes back and misses nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import pytest
import trio

from tests.conversations.kit import a_group
from tests.conversations.nodes import Node, join, nodes, push
from tests.phoenix_js import driven
from whispr.adapters.postgres import Postgres
from whispr.realtime.client import ClientChannel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class Door:
    """One port that leads to whichever node takes connections, as a load balancer does."""

    def __init__(self, port_of: Callable[[], int]) -> None:
        self.port = 0
        self._port_of = port_of
        self._passing: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Accept until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._accepted, listeners)

    def fall_silent(self) -> None:
        """Carry nothing more on the connections there are, which stay open."""
        for scope in self._passing:
            scope.cancel(reason="silence")

    async def _accepted(self, near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream("127.0.0.1", self._port_of()) as far:
            with trio.CancelScope() as passing:
                self._passing.add(passing)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pass_on, near, far, nursery)
                    nursery.start_soon(_pass_on, far, near, nursery)
            self._passing.discard(passing)
            if passing.cancelled_caught:
                await trio.sleep_forever()


async def _pass_on(source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in source:
            await sink.send_all(data)
    nursery.cancel_scope.cancel(reason="one side has closed")


async def talk(channel: ClientChannel, count: int) -> None:
    """Send, one message after the other."""
    for _ in range(count):
        await push(channel, "send_message", {"text": "x"})


def taking(running: Sequence[Node]) -> int:
    """Return the port of the first node that takes connections."""
    return next(node.server.port for node in running if not node.hub.draining.is_set())


async def test_a_drain_hands_a_client_to_another_node_without_gap_or_duplicate(
    db: Postgres, node: str
) -> None:
    """While somebody sends, the node drains with 1012: phoenix.js reconnects, rejoins and has each message once."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with nodes(db, 2) as (running, _bus), trio.open_nursery() as nursery:
        door = Door(partial(taking, running))
        await nursery.start(door.run)
        async with (
            running[1].server.connect(one) as ones,
            driven(node, f"ws://127.0.0.1:{door.port}/socket", two) as step,
        ):
            channel = await join(ones, topic)
            await step({"op": "connect"})
            joined = await step({"op": "join", "topic": topic, "resume": True})
            assert joined["status"] == "ok"
            assert len(running[0].hub.sockets) == 1
            await talk(channel, 10)
            await step({"op": "expect", "topic": topic, "event": "new_message", "count": 5})
            async with trio.open_nursery() as during:
                during.start_soon(talk, channel, 30)
                during.start_soon(running[0].hub.drain)
            assert (await step({"op": "closed"}))["code"] == 1012
            await step({"op": "rejoined", "topic": topic, "count": 2})
            assert len(running[1].hub.sockets) == 2
            await talk(channel, 10)
            await step({"op": "expect", "topic": topic, "event": "new_message", "count": 50})
            got = await step({"op": "received", "topic": topic, "event": "new_message", "field": "seq"})
            assert got["values"] == list(range(1, 51))
            await step({"op": "disconnect"})
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_heartbeat_that_is_not_answered_ends_the_connection(db: Postgres, node: str) -> None:
    """Nothing comes any more, and nothing closes: phoenix.js gives up, connects anew, rejoins and has everything."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with nodes(db, 1) as (running, _bus), trio.open_nursery() as nursery:
        door = Door(partial(taking, running))
        await nursery.start(door.run)
        async with (
            running[0].server.connect(one) as ones,
            driven(node, f"ws://127.0.0.1:{door.port}/socket", two) as step,
        ):
            channel = await join(ones, topic)
            await step({"op": "connect", "options": {"heartbeatIntervalMs": 500}})
            assert (await step({"op": "join", "topic": topic, "resume": True}))["status"] == "ok"
            await step({"op": "heartbeats", "count": 1})
            await talk(channel, 5)
            await step({"op": "expect", "topic": topic, "event": "new_message", "count": 5})
            door.fall_silent()
            await talk(channel, 5)
            await step({"op": "rejoined", "topic": topic, "count": 2})
            await talk(channel, 5)
            await step({"op": "expect", "topic": topic, "event": "new_message", "count": 15})
            got = await step({"op": "received", "topic": topic, "event": "new_message", "field": "seq"})
            assert got["values"] == list(range(1, 16))
            await step({"op": "disconnect"})
        nursery.cancel_scope.cancel(reason="the test is over")
