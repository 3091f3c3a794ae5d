"""Health checking: whoever watches, however many."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair

from whispr.errors import Code, WhisprError
from whispr.rpc import health as module
from whispr.rpc.channel import open_channel
from whispr.rpc.health import SERVING, HealthCheckRequest, HealthServicer, HealthStub
from whispr.rpc.server import RpcServer


async def test_nobody_takes_all_the_places_of_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address has so many; what another watches goes on, and a watch that ends makes room for the next."""
    monkeypatch.setattr(module, "_WATCHERS_OF_ADDRESS_MAX", 2)
    health = HealthServicer()
    health.set("", SERVING)
    server = RpcServer([health])

    async with trio.open_nursery() as nursery:

        async def connect(peer: str) -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(server.serve_stream, theirs, peer)
            return ours

        async def watch(
            peer: str, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
        ) -> None:
            """Watch over a connection of its own, until cancelled."""
            with trio.CancelScope() as scope:
                async with (
                    open_channel("memory", connect=partial(connect, peer)) as channel,
                    HealthStub(channel).Watch(HealthCheckRequest()) as call,
                ):
                    assert (await anext(call)).status == SERVING
                    task_status.started(scope)
                    await trio.sleep_forever()

        await nursery.start(watch, "tcp:6.6.6.6:1")
        last: trio.CancelScope = await nursery.start(watch, "tcp:6.6.6.6:2")
        with pytest.raises(WhisprError, match="too many health watchers") as refused:
            await watch("tcp:6.6.6.6:3")
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        await nursery.start(watch, "tcp:10.0.0.1:1")
        last.cancel()
        with trio.fail_after(10):
            while health._watchers["tcp:6.6.6.6"] > 1:
                await trio.lowlevel.checkpoint()
        await nursery.start(watch, "tcp:6.6.6.6:4")
        nursery.cancel_scope.cancel()
    assert not health._watchers
