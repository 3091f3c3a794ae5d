"""One run of several nodes over a faulty bus, from a seed: clients that send and read, nodes that die and come back.

What is real: each node's `Hub` with its order of broadcasts, presence and channels, and its `Peers` with the feed of
topics. What is simulated: the bus, which drops, doubles, delays, reorders and cuts nodes off; the database, which is
a list of messages for each room that takes its time; and the clients, which poll. Time is mocked, and the seed
decides everything that chance does.

`simulate` returns what the clients were told and what the nodes thought at the end, after the faults had stopped.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
import trio
import trio.testing

from whispr.adapters.bus_feed import Feed, Message
from whispr.bridge import Inbox
from whispr.errors import WhisprError
from whispr.peers import Peers
from whispr.realtime.channel import Channel, Joined
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.longpoll.session import PollSession
from whispr.realtime.ordering import Gap
from whispr.realtime.sequencer import Filled, Said

NODES = 3
ROOMS = 3
CLIENTS = 9
FAULTS_S = 20.0
"""How long things go wrong."""
SETTLE_S = 40.0
"""And how long they then do not: silent losses are found within 18 s, ghosts within 10."""
PATIENCE_S = 300.0
LIMITS = Limits(
    operations_per_min=0, chatter_per_min=0, user_sockets=0, poll_s=5, drain_s=1, close_s=0.2, leave_s=0.2
)


class Faults(NamedTuple):
    """What the bus does, by chance of a message, and how often nodes are in trouble, on average."""

    drop: float = 0.0
    double: float = 0.0
    delay_s: float = 0.0
    """At most; each message by itself, so that they overtake each other."""
    cut_every_s: float = 0.0
    """A node loses the bus for a few seconds; what it says meanwhile is queued, what others say it never hears."""
    kill_every_s: float = 0.0
    """A node dies without a word, and another is started in its place."""
    drain_every_s: float = 0.0


# The bus


class FakeClient:
    """A node's connection to the bus, as far as a feed needs one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_connected = True
        self.heard: dict[str, list[tuple[int, Callable[[str, bytes], None]]]] = {}
        self._numbers = 0

    def subscribe(self, subject: str, put: Callable[[str, bytes], None]) -> int:
        self._numbers += 1
        self.heard.setdefault(subject, []).append((self._numbers, put))
        return self._numbers

    async def hear(self, subjects: Iterable[str], sink: Any) -> dict[str, int]:
        await self.server.round_trip()

        def put(subject: str, payload: bytes) -> None:
            sink.put_nowait(Arrived(subject, payload))

        return {subject: self.subscribe(subject, put) for subject in subjects}

    async def unhear(self, numbers: Iterable[int]) -> None:
        gone = set(numbers)
        self.heard = {s: [each for each in puts if each[0] not in gone] for s, puts in self.heard.items()}

    async def flush(self, timeout: float) -> None:
        del timeout
        await self.server.round_trip()
        if not self.is_connected:
            raise OSError("cut off")


class Arrived(NamedTuple):
    """What nats-py hands to a subscription."""

    subject: str
    data: bytes


class FakeBridge:
    """Calls what would run on the other side of the bridge."""

    async def call(self, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        return await fn(*args)


class SimBus:
    """One node's end of the bus: what `Peers` uses of `whispr.adapters.bus.Bus`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.client = FakeClient(server)
        self._outbox: list[tuple[str, bytes]] = []
        self._on_up: list[Callable[[], None]] = []
        self.dead = False
        self.dropped = 0
        server.ends.append(self)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    def publish(self, subject: str, payload: bytes) -> None:
        if self.dead:
            return
        if self.connected:
            self._server.carry(self, subject, payload)
        else:
            self._outbox.append((subject, payload))

    def on_up(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._on_up.append(callback)
        return lambda: self._on_up.remove(callback)

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Inbox[Message]]:
        inbox: Inbox[Message] = Inbox(10_000)

        def put(subject: str, payload: bytes) -> None:
            inbox.put(Message(subject, payload))

        self.client.subscribe(subject, put)
        yield inbox

    @asynccontextmanager
    async def feed(self) -> AsyncIterator[Feed]:
        feed = Feed(cast("Any", FakeBridge()))
        async with trio.open_nursery() as nursery:
            await feed.attach(cast("Any", self.client))
            nursery.start_soon(feed.run)
            yield feed

    def cut(self) -> None:
        """Lose the server."""
        self.client.is_connected = False

    def heal(self) -> None:
        """Have it back."""
        self.client.is_connected = True
        outbox, self._outbox = self._outbox, []
        for subject, payload in outbox:
            self.publish(subject, payload)
        for callback in list(self._on_up):
            callback()


class Server:
    """Carries messages between nodes, badly."""

    def __init__(self, dice: random.Random, faults: Faults, nursery: trio.Nursery) -> None:
        self.dice, self.faults = dice, faults
        self.ends: list[SimBus] = []
        self.unwanted = 0
        self._nursery = nursery

    async def round_trip(self) -> None:
        await trio.sleep(self.dice.uniform(0, 0.01))

    def carry(self, by: SimBus, subject: str, payload: bytes) -> None:
        for end in self.ends:
            if end is by or not end.connected or end.dead or self.dice.random() < self.faults.drop:
                continue
            for _ in range(1 + (self.dice.random() < self.faults.double)):
                late_s = self.dice.uniform(0, self.faults.delay_s)
                self._nursery.start_soon(self._deliver, end, subject, payload, late_s)

    async def _deliver(self, end: SimBus, subject: str, payload: bytes, late_s: float) -> None:
        await trio.sleep(0.001 + late_s)
        if end.connected and not end.dead:
            for _, put in list(end.client.heard.get(subject, ())):
                put(subject, payload)


# The database and the nodes


class Database:
    """Messages by room. It has rooms, and that is all; reads and writes take their time."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.rooms: dict[str, list[dict[str, Any]]] = {f"room:{n}": [] for n in range(ROOMS)}
        self._known: dict[str, int] = {}

    async def append(self, topic: str, text: str, committed: Callable[[dict[str, Any]], None]) -> int:
        """Write a message, once; `committed` is told of a new one in the order of seq. Returns its seq."""
        await trio.sleep(self._dice.uniform(0, 0.02))
        if text not in self._known:
            room = self.rooms[topic]
            self._known[text] = len(room) + 1
            room.append({"seq": len(room) + 1, "text": text})
            committed(room[-1])
        return self._known[text]

    async def after(self, topic: str, seq: int) -> list[dict[str, Any]]:
        await trio.sleep(self._dice.uniform(0, 0.02))
        found = self.rooms[topic][seq:]
        await trio.sleep(self._dice.uniform(0, 0.02))  # the answer is as old as that when it arrives
        return found

    # `whispr.realtime.sequencer.Source`

    def covers(self, topic: str) -> bool:
        return topic in self.rooms

    async def heads(self, topics: Collection[str]) -> dict[str, tuple[int, int]]:
        await trio.sleep(self._dice.uniform(0, 0.02))
        return {topic: (len(self.rooms[topic]), 0) for topic in topics}

    async def fill(self, topic: str, gap: Gap) -> Filled:
        found = await self.after(topic, gap.seq_after)
        said = [Said(topic, "new_message", message, message["seq"]) for message in found]
        return Filled(said, gap.seq_after + len(found), gap.change_upto)


class Room(Channel):
    """A room without rules."""

    database: Database

    async def join(self, payload: object) -> object:
        since = cast("dict[str, int]", payload)["since_seq"]
        missed = await self.database.after(self.link.topic, since)
        self.link.track({"at": "the room"})
        seq = since + len(missed)
        return Joined({"messages": missed}, seq=seq, change=0)

    async def handle(self, event: str, payload: object) -> object:
        text = cast("dict[str, str]", payload)["text"]
        hub, topic = self.link.hub, self.link.topic

        def committed(message: dict[str, Any]) -> None:
            hub.broadcast(topic, "new_message", message, seq=message["seq"])

        return {"seq": await self.database.append(topic, text, committed)}


class NoConversations:
    """What `Peers` tells conversations, of which there are none here."""

    def __init__(self) -> None:
        self.announcer = self.resuming = self
        self.hears: Callable[[], bool] = lambda: True

    def relay_previews(self, relay: object) -> None:
        """There are none."""

    def missed(self, topic: str, since: object) -> None:
        """Nothing is remembered."""

    def missed_changes(self, since: object = None) -> None:
        """Nothing is remembered."""

    def people_changed(self, one: str, other: str) -> None:
        """Nothing is remembered."""

    def heard(self, broadcast: Broadcast) -> None:
        """The hub has delivered it."""


class Node:
    """One process of the product, as far as real time goes."""

    def __init__(self, server: Server, database: Database) -> None:
        self.bus = SimBus(server)
        peers = Peers(cast("Any", self.bus))
        self.hub = Hub(LIMITS, relay=peers.relay)
        self.hub.reach = peers
        self.hub.presence.relay = peers.relay_presence
        self.hub.keep_order(database)
        self.hub.mount("room", partial(_room, database))
        self.peers = peers
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    @property
    def takes_clients(self) -> bool:
        return self._nursery is not None and not self.bus.dead and not self.hub.draining.is_set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.peers.listen, self.hub, cast("Any", NoConversations()))
                nursery.start_soon(self.hub.run)
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        self._nursery = None

    def connect(self, user: str) -> PollSession:
        assert self._nursery is not None
        session = PollSession(self.hub, cast("Any", Visitor(user)))
        self._nursery.start_soon(session.run)
        return session

    def kill(self) -> None:
        """End it without a word to anybody."""
        self.bus.dead = True
        self._scope.cancel(reason="killed")

    async def drain(self) -> None:
        """End it in order."""
        await self.hub.drain()
        await trio.sleep(0.1)
        self.kill()


def _present(node: Node, topic: str) -> list[str]:
    state = node.hub.presence.state(topic)
    return sorted(user for user, entry in state.items() for _ in entry["metas"])


def _room(database: Database, link: Link) -> Room:
    room = Room(link)
    room.database = database
    return room


class Visitor(NamedTuple):
    """Whose socket it is."""

    user_id: str
    session_id: str = "session"
    expires_at: float | None = None


# The clients


@dataclass
class Reader:
    """A client of one room: reads, sends, and comes back elsewhere when its node is gone."""

    user: str
    topic: str
    dice: random.Random
    pick: Callable[[], Node | None]
    seqs: list[int] = field(default_factory=list)
    acked: dict[str, int] = field(default_factory=dict)
    quiet: bool = False
    """Whether it sends no more."""
    joins: int = 0
    _sent: int = 0
    _ref: int = 0
    _pending: str = ""
    """The message that has not been acknowledged; it is sent again."""

    async def run(self) -> None:
        while True:
            node = self.pick()
            if node is not None:
                await self._on(node)
            await trio.sleep(self.dice.uniform(0.01, 0.5))

    async def _on(self, node: Node) -> None:
        session = node.connect(self.user)
        last = self.seqs[-1] if self.seqs else 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, session, nursery.cancel_scope)
            await session.post([_encoded("1", "1", self.topic, "phx_join", {"since_seq": last})])
            while (said := await session.poll()) is not None and not node.bus.dead:
                for text in said:
                    if not self._take(*msgspec.json.decode(text)):
                        session.close(1000, "the channel has ended")
            nursery.cancel_scope.cancel(reason="disconnected")

    async def _send(self, session: PollSession, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(self.dice.uniform(0.05, 0.6))
            if not self._pending and not self.quiet:
                self._sent += 1
                self._pending = f"{self.user}-{self._sent}"
            if self._pending:
                self._ref += 1
                ref = f"s{self._ref}"
                try:
                    await session.post([_encoded("1", ref, self.topic, "send", {"text": self._pending})])
                except WhisprError:
                    scope.cancel(reason="too many at once")

    def _take(self, join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any) -> bool:
        """Take a message in; False when the channel is no more."""
        del join_ref, topic
        if event == "new_message":
            self.seqs.append(payload["seq"])
        elif event == "phx_reply" and ref == "1":
            if payload["status"] != "ok":
                return False
            self.joins += 1
            self.seqs += [message["seq"] for message in payload["response"]["messages"]]
        elif event == "phx_reply" and payload["status"] == "ok" and self._pending:
            self.acked[self._pending] = payload["response"]["seq"]
            self._pending = ""
        return event not in ("phx_error", "phx_close")


def _encoded(*message: object) -> str:
    return msgspec.json.encode(message).decode()


# A run


@dataclass
class Outcome:
    """What came of it."""

    rooms: dict[str, list[str]]
    """Topic → what was written, by seq."""
    readers: list[Reader]
    present: list[dict[str, list[str]]]
    """What each node thinks who is in each room: a user for each of their connections."""
    expected: dict[str, list[str]]
    """Who is."""
    connected: list[bool]
    deaths: int


def simulate(seed: int, faults: Faults) -> Outcome:
    """Run a seed."""
    runner: Any = trio._core._run
    random.seed(seed)
    runner._r.seed(seed)
    try:
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(_run, random.Random(seed), faults, clock=clock)
    finally:
        runner._r.seed()
        random.seed()


async def _run(dice: random.Random, faults: Faults) -> Outcome:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            world = _World(dice, faults, nursery)
            for _ in range(NODES):
                await world.start()
            for reader in world.readers:
                nursery.start_soon(reader.run)
            async with trio.open_nursery() as trouble:
                for every_s, what in (
                    (faults.cut_every_s, world.cut),
                    (faults.kill_every_s, world.kill),
                    (faults.drain_every_s, world.drain),
                ):
                    if every_s:
                        trouble.start_soon(world.now_and_then, every_s, what)
                await trio.sleep(FAULTS_S)
                trouble.cancel_scope.cancel(reason="enough")
            world.calm()
            await trio.sleep(SETTLE_S)
            outcome = world.outcome()
            nursery.cancel_scope.cancel(reason="over")
    return outcome


class _World:
    def __init__(self, dice: random.Random, faults: Faults, nursery: trio.Nursery) -> None:
        self._dice = dice
        self._nursery = nursery
        self._server = Server(dice, faults, nursery)
        self._database = Database(dice)
        self._nodes: list[Node] = []
        self._deaths = 0
        topics = list(self._database.rooms)
        self.readers = [Reader(f"user{n}", topics[n % len(topics)], dice, self._pick) for n in range(CLIENTS)]

    async def start(self) -> None:
        node = Node(self._server, self._database)
        await self._nursery.start(node.run)
        self._nodes.append(node)

    async def now_and_then(self, every_s: float, do: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
        while True:
            await trio.sleep(self._dice.uniform(0.2, 1.8) * every_s)
            await do(self._dice.choice(self._nodes))

    async def cut(self, node: Node) -> None:
        node.bus.cut()
        try:
            await trio.sleep(self._dice.uniform(0.1, 10))
        finally:
            node.bus.heal()

    async def kill(self, node: Node) -> None:
        node.kill()
        await self._replace(node)

    async def drain(self, node: Node) -> None:
        with trio.CancelScope(shield=True):
            await node.drain()
            await self._replace(node)

    async def _replace(self, node: Node) -> None:
        if node in self._nodes:
            self._nodes.remove(node)
            self._server.ends.remove(node.bus)
            self._deaths += 1
            with trio.CancelScope(shield=True):
                await self.start()

    def calm(self) -> None:
        """Nothing goes wrong any more, and nobody has anything new to say."""
        self._server.faults = Faults()
        for reader in self.readers:
            reader.quiet = True

    def outcome(self) -> Outcome:
        rooms = self._database.rooms
        expected: dict[str, list[str]] = {topic: [] for topic in rooms}
        for reader in self.readers:
            expected[reader.topic].append(reader.user)
        return Outcome(
            {topic: [message["text"] for message in room] for topic, room in rooms.items()},
            self.readers,
            [{topic: _present(node, topic) for topic in rooms} for node in self._nodes],
            expected,
            [node.bus.connected for node in self._nodes],
            self._deaths,
        )

    def _pick(self) -> Node | None:
        among = [node for node in self._nodes if node.takes_clients]
        return self._dice.choice(among) if among else None
