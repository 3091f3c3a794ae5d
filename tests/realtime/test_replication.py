"""Presence over several nodes: whatever the bus loses, doubles or reorders, all agree soon after it stops."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.realtime.test_presence import by_ref, phoenix_sync_diff
from whispr.realtime.presence import State
from whispr.realtime.replication import ENTRIES_MAX, Ask, Beat, Delta, Part, Timing, Tracker, pack, unpack

TIMING = Timing()
TOPICS = ("a", "b")
Place = tuple[str, str, str]


class Net:
    """Nodes and the messages between them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes: dict[str, Tracker] = {}
        self.flying: list[tuple[str, bytes]] = []
        self.started = 0

    def start(self) -> Tracker:
        self.started += 1
        node = Tracker(f"n{self.started}-", TIMING)
        self.nodes[node.node] = node
        return node

    def collect(self) -> None:
        """Put what the nodes have to say on its way to all others."""
        for name, node in self.nodes.items():
            for message in node.take_output():
                self.flying += [(to, pack(message)) for to in self.nodes if to != name]

    def deliver(self, index: int) -> None:
        to, data = self.flying.pop(index)
        if to in self.nodes:
            self.nodes[to].hear(unpack(data), self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes.values():
            node.tick(self.now)
        self.collect()

    def settle(self, rounds: int) -> None:
        """Let time pass on a bus that works."""
        for _ in range(rounds):
            self.tick(1.0)
            while self.flying:
                self.deliver(0)
                self.collect()


def everybody(net: Net) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
    """What all nodes should see: the union of what each has of its own."""
    seen: dict[str, dict[str, dict[str, dict[str, object]]]] = {topic: {} for topic in TOPICS}
    for node in net.nodes.values():
        for (topic, key, ref), meta in node.own().items():
            seen[topic].setdefault(key, {})[ref] = dict(meta)
    return seen


class Replication(RuleBasedStateMachine):
    """Three nodes at first, a bus without any manners, and a client of each node that follows its diffs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.places: dict[str, list[Place]] = {}
        self.followers: dict[tuple[str, str], State] = {}

    @initialize()
    def three(self) -> None:
        for _ in range(3):
            self.start()

    @precondition(lambda self: len(self.net.nodes) < 4)
    @rule()
    def start(self) -> None:
        node = self.net.start()
        self.places[node.node] = []
        self.followers |= {(node.node, topic): {} for topic in TOPICS}

    @precondition(lambda self: len(self.net.nodes) > 1)
    @rule(data=st.data(), politely=st.booleans())
    def stop(self, data: st.DataObject, politely: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.net.nodes)))
        if politely:
            self.net.nodes[name].stop()
            self.net.collect()
        del self.net.nodes[name], self.places[name]

    @rule(data=st.data(), topic=st.sampled_from(TOPICS), key=st.sampled_from(["u1", "u2"]))
    def track(self, data: st.DataObject, topic: str, key: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.net.nodes)))
        ref = self.net.nodes[name].track(topic, key, {"on": name})
        self.places[name].append((topic, key, ref))

    @rule(data=st.data(), how=st.sampled_from(["untrack", "linger", "update"]))
    def change(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.net.nodes)))
        node = self.net.nodes[name]
        alive = [place for place in self.places[name] if place in node.own()]
        if not alive:
            return
        place = data.draw(st.sampled_from(alive))
        if how == "untrack":
            node.untrack(*place)
        elif how == "linger":
            node.linger(*place, self.net.now)
        else:
            self.places[name].append((*place[:2], node.update(*place, {"on": name, "new": True})))

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 8.0]))
    def wait(self, seconds: float) -> None:
        self.net.tick(seconds)

    @precondition(lambda self: self.net.flying)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "deliver", "deliver", "drop", "double"]))
    def happen(self, data: st.DataObject, fate: str) -> None:
        index = data.draw(st.integers(0, len(self.net.flying) - 1))
        if fate == "double":
            self.net.flying.append(self.net.flying[index])
        elif fate == "drop":
            self.net.flying.pop(index)
        else:
            self.net.deliver(index)
        self.net.collect()

    @rule()
    def follow(self) -> None:
        for name, node in self.net.nodes.items():
            for topic, diff in node.view.take_diffs().items():
                phoenix_sync_diff(self.followers[name, topic], diff)

    @invariant()
    def a_node_always_sees_its_own(self) -> None:
        for node in self.net.nodes.values():
            for topic, key, ref in node.own():
                assert ref in node.view.refs(topic, key)

    def teardown(self) -> None:
        """The bus mends: within the time it takes to notice the dead, all agree, and so do their clients."""
        self.net.flying.clear()
        self.net.settle(12)
        self.follow()
        wanted = everybody(self.net)
        for name, node in self.net.nodes.items():
            assert node.nodes == self.net.nodes.keys() - {name}
            for topic in TOPICS:
                assert by_ref(node.view.state(topic)) == wanted[topic]
                assert by_ref(self.followers[name, topic]) == wanted[topic]


TestReplication = Replication.TestCase
TestReplication.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.fixture
def net() -> Net:
    net = Net()
    for _ in range(2):
        net.start()
    net.settle(2)
    return net


def pair(net: Net) -> tuple[Tracker, Tracker]:
    one, two = net.nodes.values()
    return one, two


def test_a_dead_node_disappears_within_ten_seconds(net: Net) -> None:
    """Nobody stays a ghost: what a killed node said last is gone before ten seconds have passed."""
    one, two = pair(net)
    two.track("a", "u", {})
    net.settle(1)
    assert one.view.is_present("a", "u")
    del net.nodes[two.node]
    net.settle(9)
    assert not one.view.is_present("a", "u")


def test_people_of_a_node_that_stops_have_time_to_come_back(net: Net) -> None:
    """A deploy shows nobody leave who is back within five seconds, and no ghosts after them."""
    one, two = pair(net)
    for key in ("u", "v"):
        two.track("a", key, {})
    net.settle(1)
    two.flush()
    two.stop()
    net.collect()
    del net.nodes[two.node]
    net.settle(3)
    one.track("a", "u", {})
    assert one.view.is_present("a", "v")
    net.settle(3)
    assert one.view.is_present("a", "u")
    assert not one.view.is_present("a", "v")


def test_a_partition_heals(net: Net) -> None:
    """Each side buries the other, and finds it again when the bus is back."""
    one, two = pair(net)
    two.track("a", "u", {})
    net.settle(1)
    for _ in range(10):
        net.tick(1.0)
        net.flying.clear()
    assert not one.view.is_present("a", "u")
    net.settle(3)
    assert one.view.is_present("a", "u")


def test_who_comes_back_in_time_never_left(net: Net) -> None:
    """A socket breaks and comes back on the other node: a client sees the user all along."""
    one, two = pair(net)
    ref = one.track("a", "u", {})
    net.settle(1)
    seen: State = {}
    for node in (one, two):
        node.view.take_diffs()
    phoenix_sync_diff(seen, {"joins": one.view.state("a"), "leaves": {}})
    one.linger("a", "u", ref, net.now)
    two.track("a", "u", {})
    for _ in range(8):
        net.settle(1)
        for topic, diff in one.view.take_diffs().items():
            assert topic == "a"
            phoenix_sync_diff(seen, diff)
        assert seen["u"]["metas"]
    assert len(seen["u"]["metas"]) == 1


def test_who_does_not_come_back_leaves_after_a_while(net: Net) -> None:
    """A broken socket's user stays for five seconds, and no longer."""
    one, _ = pair(net)
    one.linger("a", "u", one.track("a", "u", {}), net.now)
    net.settle(4)
    assert one.view.is_present("a", "u")
    net.settle(2)
    assert not one.view.is_present("a", "u")


def test_everything_is_said_in_messages_that_fit(net: Net) -> None:
    """Thousands of presences at once travel in parts, by change and by question."""
    one, two = pair(net)
    for n in range(3 * ENTRIES_MAX + 1):
        one.track("a", f"u{n}", {})
    one.flush()
    deltas = one.take_output()
    assert [len(delta.joins) for delta in deltas if isinstance(delta, Delta)] == [ENTRIES_MAX] * 3 + [1]
    two.hear(Beat(one.node, 4), net.now)
    (ask,) = two.take_output()
    assert isinstance(ask, Ask)
    one.hear(ask, net.now)
    parts = one.take_output()
    assert len(parts) == 4
    for part in reversed(parts):
        assert isinstance(part, Part)
        assert not two.view.count("a")
        two.hear(part, net.now)
    assert two.view.count("a") == 3 * ENTRIES_MAX + 1


def test_a_silent_answer_is_asked_for_once_a_second(net: Net) -> None:
    """A burst of news that does not fit costs one question, not one each."""
    one, two = pair(net)
    for version in range(5, 50):
        two.hear(Delta(one.node, version, version + 1, [], []), net.now)
    assert [type(message) for message in two.take_output()] == [Ask]
