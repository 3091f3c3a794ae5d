"""What a slow reader goes without, what it keeps the latest of, and what it is told once it has caught up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
import trio
from trio.testing import MockClock

from whispr.realtime import metrics
from whispr.realtime.channel import Channel
from whispr.realtime.frames import Closed
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.policies import POLICIES, key_of
from whispr.realtime.testing import Server, Wire, served

LIFTED = Limits(operations_per_min=0, presence_s=0.01)
TOPIC = "room:1"


class Room(Channel):
    """Everybody is present."""

    async def join(self, payload: object) -> object:
        self.link.track({})
        return None


@asynccontextmanager
async def blocked(limits: Limits = LIFTED) -> AsyncIterator[tuple[Server, Wire, Link]]:
    """A hub with a reader who has stopped to read, so that the kernel takes no more for it."""
    async with (
        served({"room": Room}, limits) as server,
        server.wire("slow", receive_buffer_bytes=4096) as wire,
    ):
        await wire.join(TOPIC)
        (link,) = server.hub.subscribers(TOPIC)
        assert link.transport is not None
        while not link.transport.blocked:
            server.hub.broadcast(TOPIC, "fill", "x" * 50_000)
            await trio.lowlevel.checkpoint()
        yield server, wire, link


async def rest(wire: Wire, until: str) -> list[tuple[str, object]]:
    """Read on: the events but those that filled the buffer, up to one of this name."""
    found: list[tuple[str, object]] = []
    with trio.fail_after(20):
        while not found or found[-1][0] != until:
            message = await wire.receive()
            assert isinstance(message, list), message
            if message[3] != "fill":
                found.append((message[3], message[4]))
    return found


async def test_typing_is_dropped_for_whom_it_would_wait() -> None:
    """A message waits, a typing indicator before and after it does not; both are counted."""
    before = metrics.SPARED.labels("typing_indicator", "drop")._value.get()
    async with blocked() as (server, wire, _):
        for user in ("a", "b"):
            server.hub.broadcast(TOPIC, "typing_indicator", {"user_id": user})
            server.hub.broadcast(TOPIC, "new_message", {"from": user})
        events = await rest(wire, "new_message") + await rest(wire, "new_message")
        assert [each for each in events if each[0] != "presence_diff"] == [
            ("new_message", {"from": "a"}),
            ("new_message", {"from": "b"}),
        ]
    assert metrics.SPARED.labels("typing_indicator", "drop")._value.get() == before + 2


async def test_missed_presence_is_made_good_by_the_state() -> None:
    """Who came and went meanwhile is in the `presence_state` that follows when the reader has caught up."""
    async with blocked() as (server, wire, link):
        server.hub.presence.track(TOPIC, "late", {})
        before = metrics.SPARED.labels("presence_diff", "drop")._value.get()
        with trio.fail_after(10):
            while metrics.SPARED.labels("presence_diff", "drop")._value.get() == before:  # noqa: ASYNC110  # a counter
                await trio.sleep(0.01)
        (*_, (_, state)) = await rest(wire, "presence_state")
        assert isinstance(state, dict)
        assert state.keys() == {"slow", "late"}
        assert link.transport is not None
        assert not link.transport.blocked


async def test_only_the_latest_of_each_key_waits() -> None:
    """Receipts, one for each user with the last seq, after what was queued; also those encoded elsewhere."""
    async with blocked() as (server, wire, _):
        for seq in range(1, 2000):
            for user in ("a", "b"):
                receipt = msgspec.Raw(msgspec.json.encode({"user_id": user, "seq": seq}))
                server.hub.broadcast(TOPIC, "read_receipt", receipt)
        server.hub.broadcast(TOPIC, "new_message", {})
        (message, *receipts) = [
            each for each in await rest(wire, "read_receipt") if each[0] != "presence_diff"
        ]
        assert message == ("new_message", {})
        assert receipts == [("read_receipt", {"user_id": "a", "seq": 1999})]
        assert await rest(wire, "read_receipt") == [("read_receipt", {"user_id": "b", "seq": 1999})]


async def test_what_is_kept_the_latest_of_counts_too() -> None:
    """Many keys fill the buffer as messages do: the reader is closed with 1013."""
    async with blocked(replace(LIFTED, buffer_bytes=200_000)) as (server, wire, link):
        for n in range(10_000):
            server.hub.broadcast(TOPIC, "read_receipt", {"user_id": str(n), "seq": 1})
        assert (await wire.closed()).code == 1013
        assert link.ended


async def test_messages_alone_close_a_slow_reader() -> None:
    """A thousand things it can do without do not; messages past the buffer do."""
    async with blocked(replace(LIFTED, buffer_bytes=200_000, typing_s=0)) as (server, wire, link):
        for _ in range(10_000):
            server.hub.broadcast(TOPIC, "typing_indicator", {"user_id": "a"})
            server.hub.broadcast(TOPIC, "presence_count", {"count": 5})
        assert not link.ended
        for _ in range(6):
            server.hub.broadcast(TOPIC, "new_message", "x" * 50_000)
        while not isinstance(item := await wire.receive(), Closed):
            assert isinstance(item, list)
        assert item.code == 1013


async def test_a_reader_who_keeps_up_misses_nothing() -> None:
    """Policies are about slow readers: everybody else gets every event."""
    async with served({"room": Room}, replace(LIFTED, typing_s=0)) as server, server.wire("alice") as wire:
        await wire.join(TOPIC)
        for n in range(50):
            for event in POLICIES:
                server.hub.broadcast(TOPIC, event, {"user_id": "a", "conversation_id": "c", "n": n})
        found = await rest(wire, "conversation_updated")
        while len(found) < 50 * len(POLICIES):
            found += await rest(wire, "conversation_updated")
        assert [payload["n"] for _, payload in found if isinstance(payload, dict) and "n" in payload] == [
            n for n in range(50) for _ in POLICIES
        ]


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_spared_the_stream_stays_whole(seed: int) -> None:
    """A reader that now reads and now does not gets every message in order, and in the end the latest receipts."""
    chance = random.Random(seed)
    limits = replace(LIFTED, buffer_bytes=1 << 30, typing_s=0)
    seqs: list[int] = []
    receipts: dict[str, list[int]] = {}
    said: dict[str, int] = {}
    sent: list[int] = []
    async with (
        served({"room": Room}, limits) as server,
        server.wire("slow", receive_buffer_bytes=4096) as wire,
    ):
        await wire.join(TOPIC)

        async def read(until: str) -> None:
            with trio.fail_after(30):
                while isinstance(message := await wire.receive(), list):
                    if message[3] == "new_message":
                        seqs.append(message[4][0])
                    elif message[3] == "read_receipt":
                        receipts.setdefault(message[4]["user_id"], []).append(message[4]["seq"])
                    elif message[3] == until:
                        return

        seq = 0
        for pause in range(20):
            for _ in range(chance.randrange(60)):
                seq += 1
                event = chance.choice(["new_message", "read_receipt", "typing_indicator"])
                user = chance.choice("abc")
                if event == "new_message":
                    sent.append(seq)
                    server.hub.broadcast(
                        TOPIC, event, [seq, "x" * chance.choice([10, 1000, 70_000])], seq=seq
                    )
                else:
                    server.hub.broadcast(TOPIC, event, {"user_id": user, "seq": seq})
                    said |= {user: seq} if event == "read_receipt" else {}
                if chance.random() < 0.3:
                    await trio.lowlevel.checkpoint()
            if chance.random() < 0.5:
                server.hub.broadcast(TOPIC, f"pause {pause}", {})
                await read(f"pause {pause}")
        server.hub.broadcast(TOPIC, "new_message", [seq + 1, ""], seq=seq + 1)
        server.hub.broadcast(TOPIC, "pause", {})
        await read("pause")
        with trio.fail_after(30):
            while {user: numbers[-1] for user, numbers in receipts.items()} != said:
                server.hub.broadcast(TOPIC, "pause", {})
                await read("pause")
    assert seqs == [*sent, seq + 1]
    assert all(numbers == sorted(set(numbers)) for numbers in receipts.values())


async def test_typing_is_said_at_most_so_often(autojump_clock: MockClock) -> None:
    """Twenty key strokes of one user in a second are four broadcasts, the last of them what was said last."""
    async with (
        served({"room": Room}, replace(LIFTED, typing_s=0.5, presence_s=5)) as server,
        server.connect("alice") as alice,
    ):
        channel = await alice.join(TOPIC)
        for n in range(20):
            server.hub.broadcast(TOPIC, "typing_indicator", {"user_id": "bob", "n": n})
            if n % 5 == 0:
                server.hub.broadcast("room:2", "typing_indicator", {"user_id": "bob", "n": n})
            await trio.sleep(0.05)
        server.hub.broadcast(TOPIC, "typing_indicator", {"user_id": "eve", "n": -1})
        await trio.sleep(2)
        server.hub.broadcast(TOPIC, "end", {})
        found = []
        while (said := await channel.__anext__())[0] != "end":
            assert isinstance(said[1], dict)
            found.append((said[1]["user_id"], said[1]["n"]))
        assert [n for user, n in found if user == "bob"] == [0, 10, 19] or [
            n for user, n in found if user == "bob"
        ] == [0, 9, 19]
        assert ("eve", -1) in found


@pytest.mark.parametrize(
    ("event", "one", "other", "same"),
    [
        ("read_receipt", {"user_id": "a", "seq": 1}, {"user_id": "a", "seq": 2}, True),
        ("read_receipt", {"user_id": "a", "seq": 1}, {"user_id": "b", "seq": 1}, False),
        ("presence_count", {"count": 1}, {"count": 2}, True),
        (
            "conversation_updated",
            {"conversation_id": "c", "read_seq": 1},
            {"conversation_id": "c", "read_seq": 2},
            True,
        ),
        (
            "conversation_updated",
            {"conversation_id": "c", "read_seq": 1},
            {"conversation_id": "c", "draft": {}},
            False,
        ),
    ],
)
def test_what_takes_the_place_of_what(event: str, one: object, other: object, same: bool) -> None:
    """The latest of the same, and of parts only the same part."""
    policy = POLICIES[event]
    assert (key_of(policy, TOPIC, event, one) == key_of(policy, TOPIC, event, other)) is same
    assert key_of(policy, "room:2", event, one) != key_of(policy, TOPIC, event, one)


def test_a_change_is_a_matter_of_record() -> None:
    """One that carries the number of a change must arrive, whatever its event is called."""
    policy = POLICIES["conversation_updated"]
    assert key_of(policy, TOPIC, "conversation_updated", {"conversation_id": "c", "change": 3}) is None
