"""Readers of SubscribeToStreamEvents: until when they read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import cast

import pytest
import trio

from whispr.errors import WhisprError, denied
from whispr.services.stream.notices import RECONSIDER, Notice, Notices
from whispr.services.stream.subscriptions import StreamNews, Subscriptions

STREAM = "0198f0a0-0000-7000-8000-000000000001"


class Heard:
    """What every process hears."""

    tell: Callable[[Notice], None]

    def on(self, callback: Callable[[Notice], None]) -> None:
        self.tell = callback


class World:
    """Readers, what they hear, and whether they may."""

    def __init__(self) -> None:
        self.notices = Heard()
        self.subscriptions = Subscriptions(cast("Notices", self.notices), queue_len_max=8, per_user=0)
        self.may = True

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.may:
            raise denied("no longer", reason="removed")

    def reading(self) -> AsyncGenerator[StreamNews, None]:
        return self.subscriptions.events(
            STREAM, "me", "session", float("inf"), own=False, check=self.check, kinds=()
        )


async def test_whoever_was_on_their_way_when_it_ended_is_refused() -> None:
    """A call that was let in before its session ended, or the process began to stop, opens no stream after it."""
    world = World()
    following = world.reading()
    await anext(following)
    world.subscriptions.session_ended("session", "logout")
    for events in (following, world.reading()):
        with pytest.raises(WhisprError, match="logout") as ended:
            await anext(events)
        assert ended.value.reason == "session_revoked"
    world = World()
    world.subscriptions.drain()
    with pytest.raises(WhisprError) as stopping:
        await anext(world.reading())
    assert stopping.value.reason == "unavailable"
    assert not len(world.subscriptions)


async def test_a_reader_who_is_always_behind_is_put_out_too() -> None:
    """Who may listen is asked again before what is queued, of which there may always be more."""
    world = World()
    events = world.reading()
    await anext(events)
    for _ in range(5):
        world.notices.tell(Notice(STREAM, "metadata_updated"))
    assert (await anext(events)).kind == "metadata_updated"
    world.may = False
    world.notices.tell(Notice(STREAM, RECONSIDER))
    with pytest.raises(WhisprError) as ended:
        await anext(events)
    assert ended.value.reason == "removed"
