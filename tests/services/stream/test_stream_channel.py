"""The channel of a stream, on a link that is none: what is begun and taken back, and who may stay."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.services.stream.hearing import STREAM, a_stream
from whispr.errors import WhisprError, unavailable
from whispr.realtime.channel import Deferred
from whispr.services.stream.channel import CHECK_AGAIN_S, Members, StreamChannel
from whispr.services.stream.domain import Visibility
from whispr.services.stream.notices import RECONSIDER, Notice, OnNotice
from whispr.services.stream.store import Standing
from whispr.tokens import user_claims


class World:
    """A member's link, and what the channel asks about."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.subtopic = STREAM
        self.session = user_claims(
            user_id="u", session_id="s", username="u", role="user", now=time.time(), lifetime_s=60
        )
        self.closed: list[str] = []
        self.start_soon = nursery.start_soon
        self.tell: OnNotice = lambda notice: None
        self.visibility = Visibility.PUBLIC_STREAM
        self.failures: list[WhisprError] = []
        self.looks = self.under_way = 0

    def close(self, event: str, payload: object) -> None:
        del payload
        self.closed.append(event)

    def on(self, callback: OnNotice) -> None:
        self.tell = callback

    async def standing(self, stream_id: str, user_id: str) -> Standing:
        await trio.sleep(0.01)
        self.looks += 1
        if self.failures:
            raise self.failures.pop()
        return Standing(a_stream(self.visibility), invited=False, removed=False)

    async def find(self, stream_id: str) -> None:
        await self.wait()

    async def source(self, stream_id: str, shown: object) -> None:
        await self.wait()

    async def wait(self) -> None:
        """Be under way without end."""
        self.under_way += 1
        try:
            await trio.sleep_forever()
        finally:
            self.under_way -= 1


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[World, StreamChannel]]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        parts: Any = world
        members = Members(parts, parts, parts, parts, parts, parts, parts, world.find)
        channel = members.channel(parts)
        members.channels.add(channel)
        yield world, channel
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_what_is_begun_twice_is_one_and_taken_back(autojump_clock: MockClock) -> None:
    """However fast a client asks again and again, it listens once at most; each of its pushes is answered."""
    async with joined() as (world, channel):
        replies = [cast(Deferred, await channel.handle("listen", {})) for _ in range(5)]
        await wait_all_tasks_blocked()
        assert (world.under_way, [reply.settled for reply in replies]) == (1, [True] * 4 + [False])
        await channel.handle("unlisten", {})
        await wait_all_tasks_blocked()
        assert (world.under_way, replies[-1].settled) == (0, True)


@pytest.mark.parametrize("begin", [True, False])
async def test_sources_that_are_taken_back_at_once(begin: bool, autojump_clock: MockClock) -> None:
    """As `listen`: the last one counts, unless that is taken back, too."""
    async with joined() as (world, channel):
        replies = [cast(Deferred, await channel.handle("publish", {"key": "k"})) for _ in range(3)]
        if not begin:
            await channel.handle("unpublish", {})
        await wait_all_tasks_blocked()
        assert (world.under_way, sum(not reply.settled for reply in replies)) == ((1, 1) if begin else (0, 0))


async def test_a_member_whose_access_ended_is_put_out_once_that_can_be_told(
    autojump_clock: MockClock,
) -> None:
    """PostgreSQL may be away when it ends; many orders at once are one look, and one after it for those meanwhile."""
    async with joined() as (world, _):
        look: Callable[[], None] = lambda: world.tell(Notice(STREAM, RECONSIDER))  # noqa: E731  # no more than its name
        for _ in range(50):
            look()
        await trio.sleep(0.1)
        assert (world.looks, world.closed) == (1, [])
        world.visibility = Visibility.PRIVATE_STREAM
        world.failures = [unavailable("no PostgreSQL")]
        look()
        await trio.sleep(CHECK_AGAIN_S / 2)
        assert world.closed == []
        await trio.sleep(CHECK_AGAIN_S)
        assert world.closed == ["removed"]


async def test_a_join_that_comes_to_nothing_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    """Clients that are refused, or hang up while they join, are not kept; who is put out meanwhile is heard of."""
    async with joined() as (world, channel):
        members = channel._shared
        members.channels.clear()
        world.visibility = Visibility.PRIVATE_STREAM
        with pytest.raises(WhisprError, match="no such stream"):
            await channel.join({})
        assert not members.channels
        world.visibility = Visibility.PUBLIC_STREAM
        with trio.CancelScope() as hanging_up:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.join, {})
                await wait_all_tasks_blocked()
                world.tell(Notice(STREAM, RECONSIDER))
                assert channel._doubts == 1
                hanging_up.cancel()
        assert not members.channels
