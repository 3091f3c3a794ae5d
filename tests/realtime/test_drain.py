"""A drain closes sockets in batches, so that their clients do not come back all at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from whispr.realtime.channel import Channel
from whispr.realtime.hub import batches
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Wire, served


class Quiet(Channel):
    async def join(self, payload: object) -> None:
        """Admit everybody."""


async def test_sockets_are_closed_in_batches(autojump_clock: MockClock) -> None:
    """All get 1012, at most `drain_batch` at a time, and the last begins within about `drain_spread_s`."""
    closed: list[tuple[float, int | None]] = []

    async def wait(wire: Wire) -> None:
        code = (await wire.closed()).code
        closed.append((trio.current_time(), code))

    limits = Limits(drain_batch=2, drain_spread_s=1)
    async with served({"quiet": Quiet}, limits) as server, AsyncExitStack() as stack:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for n in range(6):
                wire = await stack.enter_async_context(server.wire(f"user{n}"))
                await wire.join("quiet:1")
                nursery.start_soon(wait, wire)
            await server.hub.drain()
    assert [code for _, code in closed] == [1012] * 6
    times = [round(at - began, 3) for at, _ in closed]
    assert len(set(times)) == 3
    assert max(times) < 1


@pytest.mark.parametrize(
    ("count", "size_min", "spread_s", "sizes"),
    [
        (0, 100, 2, []),
        (5, 2, 2, [2, 2, 1]),
        (100, 100, 0, [100]),
        (4000, 100, 2, [200] * 20),
        (50, 10, 0, [50]),
    ],
)
def test_batches_grow_so_that_all_fit_the_time(
    count: int, size_min: int, spread_s: float, sizes: list[int]
) -> None:
    """Every socket is in one batch; there are no more batches than pauses in the time."""
    sockets: list[Any] = list(range(count))
    found: list[list[Any]] = [*batches(list(sockets), size_min, spread_s)]
    assert [len(batch) for batch in found] == sizes
    assert sorted(each for batch in found for each in batch) == sockets
