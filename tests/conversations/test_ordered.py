"""One order on every node: what the bus loses, repeats or crosses is put right from the database."""

from __future__ import annotations

import msgspec
import pytest
import trio

from tests.conversations.kit import a_group
from tests.conversations.nodes import Faults, expect, join, nodes, push
from whispr.adapters.postgres import Postgres
from whispr.realtime.client import ChannelClosed, ClientChannel


@pytest.mark.parametrize("fault", ["lost", "repeated", "late"])
async def test_messages_of_two_nodes_come_once_and_in_order_everywhere(db: Postgres, fault: str) -> None:
    """Two people on two nodes send at once over a faulty bus; each sees every message."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    faults = Faults(7, **{fault: 0.4})
    async with (
        nodes(db, 2, faults) as ((here, there), bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
    ):
        channels = [await join(ones, topic), await join(twos, topic)]
        seen: list[list[int]] = [[], []]

        async def watch(who: int) -> None:
            while len(seen[who]) < 80:
                seen[who].append((await expect(channels[who], "new_message"))["seq"])

        async with trio.open_nursery() as nursery:
            for who in (0, 1):
                nursery.start_soon(watch, who)
            receipts = []
            for _ in range(40):
                receipts += [channel.push_nowait("send_message", {"text": "x"}) for channel in channels]
                await trio.lowlevel.checkpoint()
            for receipt in receipts:
                await receipt.wait()
            bus.catch_up()
            for node in (here, there):
                node.hub.suspect()  # nothing follows the last message, so its loss shows in no gap
        assert seen == [list(range(1, 81))] * 2


async def test_the_last_broadcast_before_a_silence_is_found_when_the_bus_is_back(db: Postgres) -> None:
    """Nothing follows a lost message, edit and reaction; asked to look, the node reads what it lacks, once."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    faults = Faults(1)
    async with (
        nodes(db, 2, faults) as ((here, there), _bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
        there.server.connect(two) as again,
    ):
        mine, theirs, beside = await join(ones, topic), await join(twos, topic), await join(again, topic)
        faults.cut = True
        sent = await push(mine, "send_message", {"text": "before"})
        await push(mine, "edit_message", {"message_id": sent["message_id"], "text": "after"})
        await push(mine, "add_reaction", {"message_id": sent["message_id"], "emoji": "👍"})
        faults.cut = False
        there.hub.suspect()
        for channel in (theirs, beside):
            assert (await expect(channel, "new_message"))["seq"] == 1
            edited = await expect(channel, "message_edited")
            assert (edited["change"], edited["message"]["text"]) == (2, "after")
            assert (await expect(channel, "reaction_added"))["change"] == 3
        await push(mine, "send_message", {"text": "next"})
        assert (await expect(theirs, "new_message"))["text"] == "next"


async def test_a_topic_that_fell_far_behind_crashes_and_its_clients_resume(db: Postgres) -> None:
    """Past a bound the channel ends with phx_error, upon which a client joins again with what it has."""
    group, (_, two) = await a_group(db)
    async with nodes(db, 1) as ((node,), _bus), node.server.connect(two) as twos:
        theirs = await join(twos, f"conversation:{group}")
        await db.execute("UPDATE conversations.conversations SET last_seq = 5000 WHERE id = $1", group)
        node.hub.suspect()
        with trio.fail_after(10), pytest.raises(ChannelClosed) as closed:
            while True:
                await theirs.__anext__()
        assert closed.value.crashed


async def test_a_ban_that_the_bus_lost_closes_the_channel_all_the_same(db: Postgres) -> None:
    """A removed member's channel on another node ends with the reason, as soon as the gap is seen."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    faults = Faults(1)
    async with (
        nodes(db, 2, faults) as ((here, there), _bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
    ):
        mine, theirs = await join(ones, topic), await join(twos, topic)
        faults.cut = True
        await here.core.operations.remove(group, one, two)
        faults.cut = False
        await here.core.operations.update(group, one, "a new name", {})
        assert await expect(theirs, "user_kicked") == {"user_id": two, "reason": "removed"}
        with trio.fail_after(5), pytest.raises(StopAsyncIteration):
            await theirs.__anext__()
        assert (await expect(mine, "settings_changed"))["change"] == 3


class Tap:
    """Notes what a reader without a socket is told: the seq of a message, the name and change of anything else."""

    def __init__(self, stop_at: int) -> None:
        self.seqs: list[int] = []
        self.changes: list[int] = []
        self.all_there = trio.Event()
        self.behind = trio.Event()
        self._stop_at = stop_at

    def hear(self, event: str, payload: bytes, seq: int | None) -> None:
        if seq is not None:
            self.seqs.append(seq)
        elif (change := msgspec.json.decode(payload).get("change")) is not None:
            assert event == "reaction_added"
            self.changes.append(change)
        if len(self.seqs) + len(self.changes) >= self._stop_at:
            self.all_there.set()

    def fell_behind(self) -> None:
        self.behind.set()


@pytest.mark.parametrize("fault", ["lost", "repeated", "late"])
async def test_taps_hear_both_nodes_in_one_order(db: Postgres, fault: str) -> None:
    """Who reads without a socket has each message and change once and in order, also where nobody has joined."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    faults = Faults(5, **{fault: 0.4})
    async with (
        nodes(db, 3, faults) as ((here, there, beyond), bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
    ):
        channels = [await join(ones, topic), await join(twos, topic)]
        taps = []
        for node in (here, beyond):
            taps.append(Tap(60))
            node.hub.listen(topic, taps[-1])
            await node.hub.begin(topic)

        async def send(channel: ClientChannel) -> None:
            for _ in range(20):
                sent = await push(channel, "send_message", {"text": "x"})
                if sent["seq"] % 2 == 0:
                    await push(channel, "add_reaction", {"message_id": sent["message_id"], "emoji": "👍"})

        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(send, channel)
        bus.catch_up()
        for node in (here, beyond):
            node.hub.suspect()
        with trio.fail_after(10):
            for tap in taps:
                await tap.all_there.wait()
        assert [tap.seqs for tap in taps] == [list(range(1, 41))] * 2
        assert [tap.changes for tap in taps] == [list(range(2, 22))] * 2


async def test_a_tap_of_a_topic_that_fell_far_behind_is_told(db: Postgres) -> None:
    """Past the bound it hears no more, and knows; the topic begins anew with the next that listens."""
    group, _ = await a_group(db)
    topic = f"conversation:{group}"
    async with nodes(db, 1) as ((node,), _bus):
        tap = Tap(1)
        stop = node.hub.listen(topic, tap)
        await node.hub.begin(topic)
        await db.execute("UPDATE conversations.conversations SET last_seq = 5000 WHERE id = $1", group)
        node.hub.suspect()
        with trio.fail_after(10):
            await tap.behind.wait()
        stop()
        again = Tap(1)
        node.hub.listen(topic, again)
        await node.hub.begin(topic)
        assert node.hub.place(topic)[0] == 5000
        node.hub.broadcast(topic, "new_message", {}, seq=5001)
        assert again.seqs == [5001]
