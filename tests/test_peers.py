"""What nodes tell each other goes to those who have somebody for it, and what is lost is noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr import peers as peers_module
from whispr import peers_metrics as metrics
from whispr.adapters import bus as bus_module
from whispr.adapters import bus_feed
from whispr.adapters.bus import Bus, open_bus
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.peers import Peers, subject_of
from whispr.realtime.hub import Broadcast, Hub


class Conversations:
    """Notes what conversations are told."""

    def __init__(self) -> None:
        self.announcer = self.resuming = self
        self.hears: object = None
        self.changes: list[Broadcast] = []
        self.previews: list[tuple[str, Sequence[bytes]]] = []
        self.lost: list[str] = []
        self.since: list[datetime] = []

    def relay_previews(self, relay: object) -> None:
        """Not needed."""

    def missed_changes(self, since: datetime) -> None:
        self.since.append(since)

    def missed(self, topic: str, since: datetime) -> None:
        assert since < datetime.now(UTC)
        self.lost.append(topic)

    def heard(self, broadcast: Broadcast) -> None:
        self.changes.append(broadcast)

    def preview(self, topic: str, conversation_id: str, messages: Sequence[bytes]) -> None:
        del conversation_id
        self.previews.append((topic, messages))


class Heard:
    """Notes the events of a topic."""

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._topic = topic

    def hear(self, event: str, payload: bytes, seq: int | None) -> None:
        del payload, seq
        self._node.got.setdefault(self._topic, []).append(event)
        self._node.more.set()

    def fell_behind(self) -> None:
        raise AssertionError("no order is kept here")


class Node:
    """A node's hub and its end of the bus."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.peers = Peers(bus)
        self.hub = Hub(relay=self.peers.relay)
        self.hub.reach = self.peers
        self.conversations = Conversations()
        self.got: dict[str, list[str]] = {}
        self.more = trio.Event()

    def listen(self, topic: str) -> Any:
        """Follow a topic; returns what ends it."""
        return self.hub.listen(topic, Heard(self, topic))

    async def until(self, topic: str, event: str) -> list[str]:
        """Wait for an event; return all there were."""
        with trio.fail_after(10):
            while event not in self.got.get(topic, ()):
                self.more = trio.Event()
                await self.more.wait()
        return self.got[topic]


@asynccontextmanager
async def nodes(bridge: Bridge, backends: Backends) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes that hear each other."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as one, open_bus(bridge, backends.nats_url) as two:
        pair = Node(one), Node(two)
        async with trio.open_nursery() as nursery:
            for node in pair:
                await node.bus.wait_connected()
                await nursery.start(node.peers.listen, node.hub, cast("Any", node.conversations))
            yield pair
            nursery.cancel_scope.cancel(reason="the test is over")


def heard_unwanted() -> float:
    """Broadcasts that came to a node without anybody for them."""
    return float(metrics.HEARD.labels("unwanted")._value.get())


async def test_a_node_hears_the_topics_it_has_somebody_on(bridge: Bridge, backends: Backends) -> None:
    """From the moment `in_force` returns, and nothing of topics that nobody there has joined, odd names included."""
    before = heard_unwanted()
    odd = "room: * > \r\nPUB x 0\r\n"
    async with nodes(bridge, backends) as (one, two):
        for topic in ("room:1", odd):
            two.listen(topic)
            await two.hub.in_force(topic)
        for n in range(20):
            for topic in ("room:1", "room:2", odd):
                one.hub.broadcast(topic, f"event{n}", {})
        one.hub.broadcast("room:1", "last", {})
        one.hub.broadcast(odd, "last", {})
        events = [f"event{n}" for n in range(20)] + ["last"]
        assert await two.until("room:1", "last") == events
        assert await two.until(odd, "last") == events
    assert heard_unwanted() == before


async def test_changes_of_membership_reach_nodes_without_the_topic(
    bridge: Bridge, backends: Backends
) -> None:
    """A node that remembers who is a member hears of a change though nobody there has joined."""
    async with nodes(bridge, backends) as (one, two):
        two.listen("room:2")
        await two.hub.in_force("room:2")
        one.hub.broadcast("conversation:1", "member_removed", {"user_id": "u"})
        one.hub.broadcast("room:2", "last", {})
        await two.until("room:2", "last")
        assert [each.event for each in two.conversations.changes] == ["member_removed", "last"]


@pytest.mark.parametrize("members", [2, peers_module.ADDRESSED_MAX + 1])
async def test_previews_reach_members_elsewhere(bridge: Bridge, backends: Backends, members: int) -> None:
    """On their own topics in a small conversation; in a large one every node shows them to whom it has."""
    async with nodes(bridge, backends) as (one, two):
        two.listen("user:1")
        await two.hub.in_force("user:1")
        people = [str(n) for n in range(members)]
        one.peers.relay_previews("conversation:9", "9", [b'{"seq":1}', b'{"seq":2}'], people)
        one.hub.broadcast("user:1", "last", {})
        small = members <= peers_module.ADDRESSED_MAX
        assert await two.until("user:1", "last") == [*["new_message"] * 2 * small, "last"]
        assert two.conversations.previews == (
            [] if small else [("conversation:9", [b'{"seq":1}', b'{"seq":2}'])]
        )


async def test_a_topic_that_brings_too_much_is_looked_after_and_harms_no_other(
    bridge: Bridge, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is told to look for what that one topic has lost; another topic's broadcasts all arrive."""
    monkeypatch.setattr(bus_feed, "SUBJECT_LEN_MAX", 5)
    async with nodes(bridge, backends) as (one, two):
        suspected: list[str | None] = []
        monkeypatch.setattr(two.hub, "suspect", suspected.append)
        for topic in ("room:loud", "room:quiet"):
            two.listen(topic)
        await two.hub.in_force("room:quiet")
        for _ in range(500):
            one.hub.broadcast("room:loud", "noise", {})
        for event in ("one", "two"):
            one.hub.broadcast("room:quiet", event, {})
        assert await two.until("room:quiet", "two") == ["one", "two"]
        assert len(two.got["room:loud"]) < 500
        assert set(suspected) == {"room:loud"} == set(two.conversations.lost)


def test_subjects_are_safe_and_apart() -> None:
    """Whatever a topic is called, its subject is one token of letters and digits under ours."""
    topics = ["room:1", "room:2", "room:>", "room:\r\n", "room: ", "ROOM:1", ""]
    subjects = {subject_of(topic) for topic in topics}
    assert len(subjects) == len(topics)
    assert all(s.removeprefix(peers_module.TOPICS).isalnum() for s in subjects)


async def test_a_node_that_could_not_send_says_since_when(
    bridge: Bridge, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than its queue holds is lost on the way out: the others, who cannot notice, are told."""
    monkeypatch.setattr(peers_module, "LOOK_S", 0.02)
    monkeypatch.setattr(bus_module, "OUTBOX_LEN_MAX", 10)
    async with nodes(bridge, backends) as (one, two):
        two.conversations.since.clear()
        before = datetime.now(UTC)
        for n in range(50):
            one.hub.broadcast("user:1", "event", n)
        with trio.fail_after(10):
            while not two.conversations.since:
                await wait_all_tasks_blocked(0.01)
        assert two.conversations.since[0] < before
        assert not one.conversations.since[1:], "a node does not hear itself"


async def test_a_bus_that_was_away_is_made_good_on_both_sides(
    bridge: Bridge, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was cut off looks again itself, and has those look whom it may have had something to tell."""
    monkeypatch.setattr(peers_module, "NOTICED_S", 0.0)
    async with nodes(bridge, backends) as (one, two):
        for node in (one, two):
            node.conversations.since.clear()
        last = one.peers._whole_at
        one.hub.broadcast("user:1", "event", {})
        one.peers._is_back(one.hub, cast("Any", one.conversations))
        assert [each.timestamp() for each in one.conversations.since] == [pytest.approx(last)]
        with trio.fail_after(10):
            while not two.conversations.since:
                await wait_all_tasks_blocked(0.01)
        assert two.conversations.since == one.conversations.since
