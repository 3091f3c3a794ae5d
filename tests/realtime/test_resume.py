"""Joining a topic that is being broadcast to: whatever the timing, no gap and no duplicate."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from whispr.realtime.channel import Channel, Joined, LeaveReason
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.testing import Server, Wire, served


class Log:
    """A durable log of numbers: appended first, broadcast later, read by joins in between."""

    def __init__(self) -> None:
        self.written = 0
        self.joins: list[trio.Event] = []
        self.left: list[LeaveReason] = []

    def channel(self, link: Link) -> Channel:
        return Reader(link, self)


class Reader(Channel):
    def __init__(self, link: Link, log: Log) -> None:
        super().__init__(link)
        self.log = log

    async def join(self, payload: object) -> object:
        assert isinstance(payload, dict)
        gate, after = trio.Event(), trio.Event()
        self.log.joins += [gate, after]
        self.link.push("during_join", {})
        await gate.wait()
        seen = self.log.written
        await after.wait()
        missed = list(range(payload["since_seq"] + 1, seen + 1))
        return Joined({"seq": seen, "missed": missed}, seq=seen)

    async def leave(self, reason: LeaveReason) -> None:
        self.log.left.append(reason)


async def received(wire: Wire, last: int) -> list[int]:
    """Return every seq a client got: from its join's reply, then from broadcasts, up to `last`."""
    reply = await wire.receive()
    assert isinstance(reply, list)
    assert reply[3] == "phx_reply", "a broadcast came before the join reply"
    seqs: list[int] = reply[4]["response"]["missed"]
    assert await wire.receive() == ["1", None, "log:1", "during_join", {}]
    while not seqs or seqs[-1] < last:
        message = await wire.receive()
        assert isinstance(message, list)
        assert message[3] == "number"
        seqs.append(message[4])
    return seqs


def broadcast(server: Server, seqs: Sequence[int]) -> None:
    for seq in seqs:
        server.hub.broadcast("log:1", "number", seq, seq=seq)


@settings(max_examples=40, deadline=None)
@given(
    since=st.integers(0, 3),
    written=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    delays=st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_a_join_meets_the_live_topic_without_gap_or_duplicate(
    since: int, written: list[int], delays: list[int]
) -> None:
    """Numbers are written before, while and after a join reads, and broadcast up to four numbers late."""
    trio.run(_join_race, since, written, delays)


async def _join_race(since: int, written: list[int], delays: list[int]) -> None:
    log, told = Log(), 0
    log.written = since

    async with served({"log": log.channel}) as server, server.wire("alice") as wire:
        told = since
        await wire.send("1", "1", "log:1", "phx_join", {"since_seq": since})
        while not log.joins:
            await trio.lowlevel.checkpoint()
        for step in range(3):
            log.written += written[step]
            upto = max(told, log.written - delays[step])
            broadcast(server, range(told + 1, upto + 1))
            told = upto
            if step < 2:
                log.joins[step].set()
                await wait_all_tasks_blocked()
        broadcast(server, range(told + 1, log.written + 2))
        assert await received(wire, log.written + 1) == list(range(since + 1, log.written + 2))


async def test_broadcasts_without_a_seq_are_never_dropped() -> None:
    """Typing, receipts and the like have no number: those held during the join follow its reply in order."""
    log = Log()
    async with served({"log": log.channel}) as server, server.wire("alice") as wire:
        await wire.send("1", "1", "log:1", "phx_join", {"since_seq": 0})
        while not log.joins:
            await trio.lowlevel.checkpoint()
        server.hub.broadcast("log:1", "typing", "a")
        server.hub.broadcast("log:1", "number", 1, seq=1)
        server.hub.broadcast("log:1", "typing", "b")
        log.written = 1
        for event in log.joins:
            event.set()
        messages = [await wire.receive() for _ in range(4)]
        events = [message[3:] for message in messages if isinstance(message, list)]
        assert events[1:] == [["during_join", {}], ["typing", "a"], ["typing", "b"]]


async def test_a_topic_too_busy_to_join_refuses_and_leaves() -> None:
    """Held broadcasts are bounded: past the limit the join fails as unavailable, and the client tries again."""
    log = Log()
    async with served({"log": log.channel}, Limits(held_len=5)) as server, server.wire("alice") as wire:
        await wire.send("1", "1", "log:1", "phx_join", {"since_seq": 0})
        while not log.joins:
            await trio.lowlevel.checkpoint()
        broadcast(server, range(1, 7))
        for event in log.joins:
            event.set()
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4]["status"] == "error"
        assert reply[4]["response"]["reason"] == "unavailable"
        assert reply[4]["response"]["retry_after_ms"] == 1000
        await wait_all_tasks_blocked()
        assert log.left == ["crashed"]
        assert server.hub.broadcast("log:1", "number", 7) == 0
