"""A feed: many subjects behind one reader, bounded one by one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from whispr.adapters import bus_feed
from whispr.adapters.bus import Bus, Message, Missed, open_bus
from whispr.bridge import Bridge
from whispr.embed import Backends


@asynccontextmanager
async def node(bridge: Bridge, backends: Backends) -> AsyncIterator[Bus]:
    """Open another node's connection, and wait until it is up."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as other:
        await other.wait_connected()
        yield other


async def taken(feed: bus_feed.Feed, count: int) -> list[Message | Missed]:
    """The next items, at least so many."""
    items: list[Message | Missed] = []
    with trio.fail_after(10):
        while len(items) < count:
            items += await feed.take()
    return items


async def test_what_is_wanted_arrives_in_order_and_nothing_else(
    bridge: Bridge, bus: Bus, backends: Backends
) -> None:
    """Messages of wanted subjects come in the order they were sent, whatever the subject; of others none does."""
    async with node(bridge, backends) as other, other.feed() as feed:
        for subject in ("t.a", "t.b"):
            feed.add(subject)
        await feed.in_force("t.b")
        for n in range(100):
            bus.publish("t.a" if n % 3 else "t.b", b"%d" % n)
            bus.publish("t.c", b"nobody's")
        assert await taken(feed, 100) == [Message("t.a" if n % 3 else "t.b", b"%d" % n) for n in range(100)]


async def test_a_thousand_are_in_force_after_one_round_trip(
    bridge: Bridge, bus: Bus, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a subject waits with all others for one answer of the server."""
    flushes = 0
    flush = bus_feed.LeanClient.flush

    async def counted(client: bus_feed.LeanClient, timeout: int = 10) -> None:  # nats-py's
        nonlocal flushes
        flushes += 1
        await flush(client, timeout)

    async with node(bridge, backends) as other, other.feed() as feed:
        monkeypatch.setattr(bus_feed.LeanClient, "flush", counted)
        async with trio.open_nursery() as nursery:
            for n in range(1000):
                feed.add(f"t.{n}")
                nursery.start_soon(feed.in_force, f"t.{n}")
        assert flushes <= 2
        for n in range(1000):
            bus.publish(f"t.{n}", b"%d" % n)
        assert len(await taken(feed, 1000)) == 1000


async def test_a_subject_that_brings_too_much_harms_no_other(
    bridge: Bridge, bus: Bus, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its bound a subject loses what comes, said by one mark where it began; others lose nothing."""
    monkeypatch.setattr(bus_feed, "SUBJECT_LEN_MAX", 10)
    async with node(bridge, backends) as other, other.feed() as feed, other.subscribe("t.end") as end:
        feed.add("t.loud")
        feed.add("t.quiet")
        await feed.in_force("t.quiet")
        for n in range(1000):
            bus.publish("t.loud", b"%d" % n)
            if n % 200 == 0:
                bus.publish("t.quiet", b"%d" % n)
        bus.publish("t.end", b"")
        with trio.fail_after(10):
            await anext(aiter(end))
        items = list(await feed.take())
        assert [i for i in items if i.subject == "t.quiet"] == [
            Message("t.quiet", b"%d" % n) for n in range(0, 1000, 200)
        ]
        loud = [i for i in items if i.subject == "t.loud"]
        assert loud == [*(Message("t.loud", b"%d" % n) for n in range(10)), Missed("t.loud")]
        assert feed.lost == 990
        bus.publish("t.loud", b"after")
        assert await taken(feed, 1) == [Message("t.loud", b"after")]


async def test_what_nobody_wants_is_not_heard_after_a_while(
    bridge: Bridge, bus: Bus, backends: Backends
) -> None:
    """A removed subject is heard for the length of its lingering, and who wants it again finds it in force."""
    async with node(bridge, backends) as other, other.feed(linger_s=0.05) as feed:
        for subject in ("t.a", "t.b"):
            feed.add(subject)
        await feed.in_force("t.b")
        feed.remove("t.a")
        feed.remove("t.b")
        feed.add("t.b")
        with trio.fail_after(10):
            while feed.subjects > 1:  # noqa: ASYNC110  # a real server, and no event for what it forgets
                await trio.sleep(0.01)
        bus.publish("t.a", b"unwanted")
        bus.publish("t.b", b"wanted")
        assert await taken(feed, 1) == [Message("t.b", b"wanted")]


async def test_without_a_server_nobody_waits(bridge: Bridge) -> None:
    """While NATS is away a subject that is wanted holds nobody up."""
    async with open_bus(bridge, "nats://127.0.0.1:1") as away, away.feed() as feed:
        feed.add("t.a")
        with trio.fail_after(5):
            await feed.in_force("t.a")


async def test_subjects_outlive_a_lost_connection(bridge: Bridge, bus: Bus, backends: Backends) -> None:
    """After the connection was lost, and after the client was replaced, all wanted subjects are heard again."""
    async with node(bridge, backends) as other, other.feed() as feed:
        feed.add("t.a")
        await feed.in_force("t.a")
        transport = other.client._transport
        assert transport is not None
        for ups, end in ((2, transport.close), (3, None)):  # as the network does
            if end is not None:
                end()  # type: ignore[no-untyped-call]  # nats-py's
            else:
                await bridge.call(other.client.close)
            with trio.fail_after(10):
                while other.ups < ups:  # noqa: ASYNC110  # nobody is told before those who wait for `connected`
                    await trio.sleep(0.01)
            feed.add(f"t.{ups}")
            await feed.in_force(f"t.{ups}")
            bus.publish("t.a", b"%d" % ups)
            bus.publish(f"t.{ups}", b"new")
            assert await taken(feed, 2) == [Message("t.a", b"%d" % ups), Message(f"t.{ups}", b"new")]
