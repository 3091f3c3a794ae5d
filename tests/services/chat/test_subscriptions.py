"""Readers of a room's events, against a log that grows while they read."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from whispr.conversations.domain import Kind, Message, MessagePage, not_a_member
from whispr.errors import WhisprError
from whispr.realtime.hub import Hub
from whispr.services.chat.subscriptions import PAGE_LEN, RECHECK_S, RoomEvent, Subscriptions

TOPIC = "room:r"


class Log:
    """A room's messages, told to the hub as they are written."""

    def __init__(self, hub: Hub) -> None:
        self.seq = 0
        self.inside = True
        self._hub = hub

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            self.seq += 1
            self._hub.broadcast(TOPIC, "new_message", {"seq": self.seq}, seq=self.seq)

    async def last_seq(self) -> int:
        await trio.lowlevel.checkpoint()
        if not self.inside:
            raise not_a_member()
        return self.seq

    async def page(self, after: int) -> MessagePage:
        await trio.lowlevel.checkpoint()
        upto = min(self.seq, after + PAGE_LEN)
        messages = [message(seq) for seq in range(after + 1, upto + 1)]
        return MessagePage(messages, has_more=upto < self.seq)


def message(seq: int) -> Message:
    return Message(
        id="m",
        conversation_id="r",
        sender_id="s",
        content=b"x",
        seq=seq,
        sent_at=datetime.now(UTC),
        kind=Kind.ROOM,
    )


def reading(subscriptions: Subscriptions, log: Log, since_seq: int | None, *types: str) -> Any:
    return subscriptions.events(
        TOPIC,
        "me",
        "session",
        float("inf"),
        read_on=log.page,
        last_seq=log.last_seq,
        since_seq=since_seq,
        types=types,
    )


@pytest.mark.parametrize("seed", range(20))
async def test_the_history_meets_what_is_live(seed: int) -> None:
    """However writing and reading interleave, each message after `since_seq` comes once and in order."""
    dice = random.Random(seed)
    hub = Hub()
    log = Log(hub)
    subscriptions = Subscriptions(hub, queue_len_max=8, per_user=0)
    log.write(dice.randrange(400))
    before = log.seq
    since = dice.randrange(before + 1)
    events = reading(subscriptions, log, since)
    seen: list[int] = []
    writes = 40
    async for event in events:
        if event.type == "new_message":
            seen.append(event.seq)
        caught_up = since + len(seen) == log.seq
        # While the history is read any number may come; afterwards no more than the queue holds.
        if writes and (caught_up or (event.seq < before and dice.random() < 0.3)):
            writes -= 1
            log.write(dice.randrange(1, 9))
        elif caught_up:
            break
    await events.aclose()
    assert seen == list(range(since + 1, log.seq + 1))
    assert len(subscriptions) == 0
    assert hub.broadcast(TOPIC, "new_message", {}) == 0


async def test_a_quiet_reader_is_asked_about_again(autojump_clock: MockClock) -> None:
    """Whoever was put out while the news of it was lost is noticed before long."""
    hub = Hub()
    log = Log(hub)
    events = reading(Subscriptions(hub, queue_len_max=8, per_user=0), log, None)
    assert (await anext(events)).type == "subscribed"
    log.inside = False
    with pytest.raises(WhisprError) as ended:
        await anext(events)
    assert ended.value.reason == "not_a_member"
    assert trio.current_time() == pytest.approx(RECHECK_S, abs=0.1)


async def test_what_no_event_should_be_is_borne() -> None:
    """A payload that names nobody, or is no object, ends no stream and breaks no broadcast."""
    hub = Hub()
    log = Log(hub)
    events = reading(Subscriptions(hub, queue_len_max=8, per_user=0), log, None, "user_left", "room_closed")
    await anext(events)
    odd: list[object] = [[], {}, {"user_id": 5}, {"user_id": "somebody else"}]
    for payload in odd:
        hub.broadcast(TOPIC, "user_left", payload)
        event: RoomEvent = await anext(events)
        assert msgspec.json.decode(event.payload) == payload
    await events.aclose()


async def test_whoever_was_on_their_way_when_it_ended_is_refused() -> None:
    """A call that was let in before its session ended, or the process began to stop, opens no stream after it."""
    hub = Hub()
    log = Log(hub)
    subscriptions = Subscriptions(hub, queue_len_max=8, per_user=0)
    subscriptions.session_ended("another", "logout")
    following = reading(subscriptions, log, None)
    await anext(following)
    subscriptions.session_ended("session", "logout")
    late = reading(subscriptions, log, None)
    for events in (following, late):
        with pytest.raises(WhisprError, match="logout") as ended:
            await anext(events)
        assert ended.value.reason == "session_revoked"
    subscriptions = Subscriptions(hub, queue_len_max=8, per_user=0)
    subscriptions.drain()
    with pytest.raises(WhisprError) as stopping:
        await anext(reading(subscriptions, log, None))
    assert stopping.value.reason == "unavailable"
    assert len(subscriptions) == 0
