"""Long polls of two nodes behind one address, over the real bus, by phoenix.js."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle

import pytest
import trio

from tests.phoenix_js import driven
from tests.realtime.polling import admit
from whispr import polling as module
from whispr.adapters.bus import open_bus
from whispr.adapters.cache import Cache
from whispr.asgi import HttpLimits
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.polling import Polling
from whispr.realtime.channel import Channel
from whispr.realtime.hub import Hub
from whispr.realtime.metrics import POLLS_PASSED
from whispr.realtime.server import ServeHttp
from whispr.realtime.testing import authenticate


class Echo(Channel):
    """Answers with what it was sent."""

    async def handle(self, event: str, payload: object) -> object:
        return payload


@asynccontextmanager
async def two_nodes(bridge: Bridge, cache: Cache, url: str) -> AsyncIterator[tuple[int, list[Hub]]]:
    """Two nodes, and a port whose connections go to each in turn."""
    async with (
        open_bus(bridge, url) as first,
        open_bus(bridge, url) as second,
        trio.open_nursery() as nursery,
    ):
        hubs, nodes = [], []
        for bus in (first, second):
            await bus.wait_connected()
            hub = Hub()
            hub.mount("echo", Echo)
            nursery.start_soon(hub.run)
            polling = Polling(hub, bus, cache, authenticate, admit, origins=(), http=HttpLimits())
            serve: ServeHttp = await nursery.start(polling.run)
            hubs.append(hub)
            nodes.append(serve)
        turns = cycle(nodes)

        async def accepted(stream: trio.SocketStream) -> None:
            await next(turns)(stream)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, accepted, listeners)
        yield listeners[0].socket.getsockname()[1], hubs
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_polls_that_go_to_either_node_are_of_one_session(
    bridge: Bridge, backends: Backends, cache: Cache, node: str
) -> None:
    """phoenix.js polls over one connection and posts over another, to different nodes: one session serves it."""
    assert backends.nats_url is not None
    passed = POLLS_PASSED._value.get()
    async with (
        two_nodes(bridge, cache, backends.nats_url) as (port, hubs),
        driven(node, f"ws://127.0.0.1:{port}/socket", "alice") as step,
    ):
        opened = await step({"op": "connect", "transport": "longpoll"})
        assert opened["transport"] == "longpoll"
        assert (await step({"op": "join", "topic": "echo:1"}))["status"] == "ok"
        for n in range(20):
            reply = await step({"op": "push", "topic": "echo:1", "event": "any", "payload": {"n": n}})
            assert (reply["status"], reply["response"]) == ("ok", {"n": n})
        assert (await step({"op": "reconnected", "count": 1}))["count"] == 1, "it never had to reconnect"
        assert sum(len(hub.sockets) for hub in hubs) == 1
        await step({"op": "disconnect"})
    assert POLLS_PASSED._value.get() > passed, "some requests went to the other node"


async def test_processes_agree_on_the_key_of_tokens(
    bridge: Bridge, backends: Backends, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sign with the one that is in Redis; when Redis has forgotten it, it is put back as it was."""
    assert backends.nats_url is not None
    monkeypatch.setattr(module, "AGREE_EVERY_S", 0.02)
    async with two_nodes(bridge, cache, backends.nats_url):
        key = await cache.get(module.KEY)
        assert key is not None
        await cache.delete(module.KEY)
        with trio.fail_after(10):
            while (again := await cache.get(module.KEY)) is None:
                pass
        assert again == key
