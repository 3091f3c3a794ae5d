"""The caller of one call after another reads for itself: whatever happens meanwhile, nobody is kept waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.rpc.raw_server import RawServer, answer, channel_to, go_away
from whispr.errors import Code, WhisprError
from whispr.http2.connection import Connection
from whispr.rpc.channel import Channel
from whispr.rpc.client_connection import ClientConnection


@dataclass
class Leading:
    """A channel over real sockets, whose server holds the calls that say so until another says `release`."""

    echo: Any
    channel: Channel | None = None
    server: RawServer = field(init=False)
    led: bool = False
    """The caller of the request that came last reads."""
    held: list[tuple[Connection, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = RawServer(self.script)

    @property
    def connection(self) -> ClientConnection:
        assert self.channel is not None
        return self.channel.connections[0]

    def script(self, core: Connection, stream_id: int, connection: int) -> None:
        text = self.echo.Message.FromString(self.server.bodies[connection, stream_id][5:]).text
        self.led = self.connection._led
        if text == "move" and connection == 0:
            go_away(core, stream_id - 2)
            return
        if text == "hold":
            self.held.append((core, stream_id))
            return
        answer(core, stream_id)
        if text == "release":
            for each in self.held:
                answer(*each)

    async def say(self, text: str) -> None:
        await self.echo.Stub(self.channel).Say(self.echo.Message(text=text))

    async def lead(self, text: str) -> None:
        """Make calls until their caller reads, then this one."""
        self.led = False
        with trio.fail_after(10):
            while not self.led:  # who comes first after an answer, the caller or the reader, is by chance
                await self.say("again")
        await self.say(text)


@pytest.fixture
async def leading(echo: Any) -> AsyncIterator[Leading]:
    async with open_leading(echo) as ready:
        yield ready


@asynccontextmanager
async def open_leading(echo: Any) -> AsyncIterator[Leading]:
    ready = Leading(echo)
    async with channel_to(ready.server, sockets=True) as ready.channel:
        yield ready


async def test_a_cancelled_leader_gives_reading_back(leading: Leading) -> None:
    """The connection goes on: its own task reads again, and later calls are answered."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leading.lead, "hold")
        await wait_all_tasks_blocked(0.01)
        assert leading.connection._led
        nursery.cancel_scope.cancel(reason="nobody wants the answer")
    await wait_all_tasks_blocked(0.01)
    assert not leading.connection._led
    assert leading.connection._reading
    await leading.say("again")
    assert leading.server.connections == 1


async def test_a_leader_reads_for_others_too(leading: Leading) -> None:
    """Calls that begin while it waits are answered while it still waits."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leading.lead, "hold")
        await wait_all_tasks_blocked(0.01)
        await leading.say("quick")
        assert leading.connection._led
        await leading.say("release")


async def test_a_connection_lost_under_a_leader(leading: Leading) -> None:
    """Its call fails as any other would, and the next one has a connection of its own."""
    async with trio.open_nursery() as nursery:

        async def lose() -> None:
            await wait_all_tasks_blocked(0.01)
            stream = leading.server.streams[0]
            assert isinstance(stream, trio.SocketStream)
            await stream.send_eof()

        nursery.start_soon(lose)
        with pytest.raises(WhisprError, match="the connection was lost") as caught:
            await leading.lead("hold")
    assert (caught.value.code, caught.value.facts["processed"]) == (Code.UNAVAILABLE, "maybe")
    await leading.say("again")
    assert leading.server.connections == 2


async def test_a_call_that_moves_elsewhere_leads_no_longer(leading: Leading) -> None:
    """The server goes away without having looked at it; its answer comes over another connection."""
    await leading.lead("move")
    assert leading.server.connections == 2


async def test_a_leader_whose_channel_closes(echo: Any) -> None:
    """It fails at once: it reads in a task that the channel does not own."""
    async with trio.open_nursery() as nursery, open_leading(echo) as leading:

        async def call() -> None:
            with pytest.raises(WhisprError, match="was closed"):
                await leading.lead("hold")

        nursery.start_soon(call)
        await wait_all_tasks_blocked(0.01)
        assert leading.connection._led
