"""What has no numbers is made good after a loss: people are told to ask, watermarks are told again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.conversations.kit import a_group
from tests.conversations.nodes import Bus, Faults, Node, expect, join, nodes, push
from tests.integration.faults import linked
from whispr.adapters.bus import open_bus
from whispr.adapters.postgres import Postgres
from whispr.bridge import Bridge
from whispr.conversations import regaining
from whispr.embed import Backends
from whispr.peers import Peers
from whispr.realtime.client import ClientChannel


class Pair(NamedTuple):
    """One member on one node, another on the other, each with their own topic and the conversation's."""

    here: Node
    there: Node
    bus: Bus
    group: str
    mine: ClientChannel
    theirs: ClientChannel
    their_own: ClientChannel

    @property
    def one(self) -> str:
        return self.here.hub.subscribers(self.mine.topic)[0].session.user_id


@asynccontextmanager
async def a_pair(db: Postgres) -> AsyncIterator[Pair]:
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with (
        nodes(db, 2, Faults(1)) as ((here, there), bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
    ):
        mine, theirs = await join(ones, topic), await join(twos, topic)
        yield Pair(here, there, bus, group, mine, theirs, await join(twos, f"user:{two}"))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gather for a moment only."""
    monkeypatch.setattr(regaining, "GATHER_S", 0.02)


async def test_what_a_person_missed_is_in_the_answer_to_sync_with_the_resyncs_cursor(db: Postgres) -> None:
    """After a gap the user topic gets `resync` with a cursor, and `sync {since}` tells of all that happened since."""
    async with a_pair(db) as pair:
        since = datetime.now(UTC)
        pair.bus.faults.cut = True
        await push(pair.mine, "send_message", {"text": "unheard"})
        await push(pair.mine, "mark_read", {"seq": 1})
        pair.bus.faults.cut = False
        pair.there.core.missed_changes(since)
        told = await expect(pair.their_own, "resync")
        synced = await push(pair.their_own, "sync", {"since": told["cursor"]})
        (conversation,) = synced["conversations"]
        assert conversation["conversation"]["id"] == pair.group
        assert [message["text"] for message in conversation["messages"]] == ["unheard"]
        read = {receipt["user_id"]: receipt["read_seq"] for receipt in conversation["receipts"]}
        assert read[pair.one] == 1
        again = await push(pair.their_own, "sync", {"since": synced["cursor"]})
        assert not again["has_more"]


@pytest.mark.parametrize("event", ["mark_read", "mark_delivered"])
async def test_watermarks_that_moved_unheard_are_told_again(db: Postgres, event: str) -> None:
    """Who has the conversation open learns how far the others are, though nothing else happens in it."""
    async with a_pair(db) as pair:
        for n in range(3):
            await push(pair.mine, "send_message", {"text": str(n)})
        since = datetime.now(UTC)
        pair.bus.faults.cut = True
        await push(pair.mine, event, {"seq": 2})
        pair.bus.faults.cut = False
        pair.there.core.missed_changes(since)
        name = "read_receipt" if event == "mark_read" else "delivery_status"
        receipt: Any = await expect(pair.theirs, name)
        assert (receipt["user_id"], receipt["seq"]) == (pair.one, 2)


async def test_a_topic_that_lost_something_is_made_good_alone(db: Postgres) -> None:
    """A reader that lagged on one topic asks for that: nobody else is sent to ask."""
    async with a_pair(db) as pair:
        await push(pair.mine, "send_message", {"text": "x"})
        since = datetime.now(UTC)
        pair.bus.faults.cut = True
        await push(pair.mine, "mark_read", {"seq": 1})
        pair.bus.faults.cut = False
        pair.there.core.missed(pair.mine.topic, since)
        assert (await expect(pair.theirs, "read_receipt"))["seq"] == 1
        pair.there.hub.broadcast(pair.their_own.topic, "after", {})
        heard = []
        with trio.fail_after(10):
            while "after" not in heard:
                heard.append((await pair.their_own.__anext__())[0])
        assert "resync" not in heard
        pair.there.core.missed(pair.their_own.topic, since)
        assert (await expect(pair.their_own, "resync"))["cursor"]


async def test_a_node_cut_off_from_the_bus_loses_nobody_anything(
    db: Postgres, bridge: Bridge, backends: Backends
) -> None:
    """NATS is taken from one of two nodes and given back: clients of both learn all they missed of each other."""
    assert backends.nats_url is not None
    async with trio.open_nursery() as nursery:
        link, through = linked(backends.nats_url, nursery)
        await link.join()
        group, (one, two) = await a_group(db)
        async with (
            open_bus(bridge, backends.nats_url) as whole,
            open_bus(bridge, through()) as cut,
            nodes(db, 2) as (pair, _bus),
            AsyncExitStack() as stack,
        ):
            for node, bus in zip(pair, (whole, cut), strict=True):
                peers = Peers(bus)
                node.hub.relay, node.hub.reach = peers.relay, peers
                await bus.wait_connected()
                await nursery.start(peers.listen, node.hub, node.core)
            channels, own = [], []
            for node, user_id in zip(pair, (one, two), strict=True):
                phoenix = await stack.enter_async_context(node.server.connect(user_id))
                channels.append(await join(phoenix, f"conversation:{group}"))
                own.append(await join(phoenix, f"user:{user_id}"))
            link.cut()
            while cut.connected:
                await wait_all_tasks_blocked(0.01)
            for number, channel in enumerate(channels, 1):
                await push(channel, "send_message", {"text": str(number)})
                await push(channel, "mark_read", {"seq": number})
            await link.join()
            for mine, (channel, theirs) in enumerate(zip(channels, own, strict=True)):
                other = (one, two)[1 - mine]
                seqs: list[int] = []
                read = 0
                with trio.fail_after(30):
                    while len(seqs) < 2 or read < 2 - mine:
                        heard: tuple[str, Any] = await channel.__anext__()
                        event, payload = heard
                        if event == "new_message":
                            seqs.append(payload["seq"])
                        elif event == "read_receipt" and payload["user_id"] == other:
                            read = max(read, payload["seq"])
                assert seqs == [1, 2]
                with trio.fail_after(30):
                    told = await expect(theirs, "resync")
                synced = await push(theirs, "sync", {"since": told["cursor"]})
                assert len(synced["conversations"][0]["messages"]) == 2
        nursery.cancel_scope.cancel(reason="the test is over")
