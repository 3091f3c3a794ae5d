"""Topics, their subscribers, and the one encoded frame that goes to all of them.

A broadcast is encoded once, framed once, and offered to each subscriber with a non-blocking send
(`whispr.realtime.fanout`, `whispr.realtime.transport`). Everything here is synchronous and runs in the Trio thread,
so a broadcast reaches every subscriber before anything else happens: two broadcasts of one task arrive everywhere
in that order.

Other nodes: `relay`, when set, is given each local broadcast as a `Broadcast`; the composition root publishes
`Broadcast.pack()` on the bus and calls `deliver(Broadcast.unpack(data))` for what arrives. `reach`, when set, is
told which topics have somebody here, and joins wait until it hears them. `presence` tells the other nodes who is
present here, and hears it from them (`whispr.realtime.roster`). What slow readers go without, and what is said only
so often, is one table: `whispr.realtime.policies`.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import msgspec
import structlog
import trio

from whispr.realtime import metrics, protocol
from whispr.realtime.broadcast import Broadcast as Broadcast
from whispr.realtime.broadcast import Reach
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.fanout import Audience, fan_out
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link, State
from whispr.realtime.pacing import Pacer
from whispr.realtime.policies import POLICIES, key_of
from whispr.realtime.presence import State as PresenceState
from whispr.realtime.refusals import Refusals
from whispr.realtime.roster import Roster
from whispr.realtime.seats import Seats
from whispr.realtime.sequencer import Said, Sequencer, Source
from whispr.realtime.socket import Socket
from whispr.realtime.transport import Flusher

log = structlog.get_logger()

_SWEEP_S = 1.0


BATCH_PAUSE_S = 0.1
"""Between two batches of a drain, on average."""


def batches(sockets: list[Socket], size_min: int, spread_s: float) -> Iterator[list[Socket]]:
    """Split sockets at random into batches of which the last comes `spread_s` after the first, or sooner."""
    random.shuffle(sockets)
    count_max = max(1, math.floor(spread_s / BATCH_PAUSE_S))
    size = max(size_min, math.ceil(len(sockets) / count_max))
    for start in range(0, len(sockets), size):
        yield sockets[start : start + size]


class Census(msgspec.Struct, frozen=True):
    """Who is on one node."""

    sockets: int
    users: int
    channels: int
    topics: int
    largest: list[tuple[str, int]]
    """Topics with most members, and how many."""


Relay = Callable[[Broadcast], None]
Tap = Callable[[str, bytes, int | None], None]
"""Is given the event, its payload as JSON, and its seq, if it has one."""


class Hub:
    """The real-time hub of one process. `run` must be running while it serves (`serve_websocket` does that)."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        relay: Relay | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits or Limits()
        self.relay = relay
        self.reach: Reach | None = None
        self.watcher: Callable[[str, str | None], None] | None = None
        """Told (user, None) of a socket that came or went, (user, topic) of a channel joined or left."""
        self.flusher = Flusher()
        self.sockets: set[Socket] = set()
        self.now = 0.0
        """Trio's clock in seconds, read once a second: good enough for idleness, and free."""
        self.draining = trio.Event()
        self._wall_clock = wall_clock
        self._factories: dict[str, ChannelFactory] = {}
        self._topics: dict[str, Audience] = {}
        self._taps: dict[str, list[Tap]] = {}
        self.refusals = Refusals(self.limits.refused_join_s, self.limits.refused_joins_per_min)
        self.seats = Seats(self.limits.user_sockets)
        self._users: dict[str, list[Socket]] = {}
        self._outstanding: set[Link] = set()
        self.presence = Roster(self.limits, self._emit_here)
        self._pacer: Pacer[Said] = Pacer(self.limits.typing_s)
        self._paced = trio.Event()
        self._empty = trio.Event()
        self._sequencer: Sequencer | None = None
        self._followers: dict[str, list[Callable[[Said | None], None]]] = {}
        self.on_filled: Callable[[Broadcast], None] | None = None
        """Told of each broadcast that was read from the database because it had not arrived."""

    # ── for services ──

    def mount(self, prefix: str, factory: ChannelFactory) -> None:
        """Serve the topics `<prefix>:<anything>`, and `<prefix>` itself, with channels of this factory."""
        prefix = prefix.removesuffix(":")
        assert prefix not in self._factories, f"{prefix} is mounted twice"
        assert prefix != "phoenix", "the topic phoenix belongs to the protocol"
        self._factories[prefix] = factory

    def broadcast(
        self,
        topic: str,
        event: str,
        payload: object,
        *,
        seq: int | None = None,
        change: int | None = None,
        about: int = 0,
        exclude: Link | None = None,
        unless_joined: str | None = None,
    ) -> int:
        """Send to every subscriber of the topic, here and through the relay. Returns how many it was offered to here.

        `seq` and `change` number it: links that resumed past it skip it, and on a topic that `keep_order` covers it
        goes out when every earlier one has. `about` is the seq of the message that a change is of. `exclude` skips
        one link. `unless_joined` skips sockets that also joined that topic: the preview on `user:<id>` of what they
        get on `conversation:<id>` anyhow.
        """
        said = Said(topic, event, payload, seq, change, about, exclude, unless_joined)
        policy = POLICIES.get(event)
        if policy is not None and policy.paced:
            now = trio.current_time()
            if not self._pacer.admit(key_of(policy, topic, event, payload), said, now):
                self._paced.set()
                return 0
        return self._broadcast(said)

    def _broadcast(self, said: Said) -> int:
        topic, event, payload, seq, change, about, _, unless_joined = said
        if self.relay is not None:
            binary = isinstance(payload, bytes)
            body = payload if isinstance(payload, bytes) else protocol.encode_json(payload)
            self.relay(Broadcast(topic, event, body, binary, seq, unless_joined, change, about))
            said = said._replace(payload=body if binary else msgspec.Raw(body))
        if topic in self._taps and not isinstance(payload, bytes) and unless_joined != topic:
            self._tapped(topic, event, protocol.encode_json(said.payload), seq)
        links = self._topics.get(topic)
        return self._in_turn(links, said) if links else 0

    def deliver(self, broadcast: Broadcast) -> int:
        """Send what another node broadcast to the subscribers here. Returns how many it was offered to."""
        if (
            broadcast.topic in self._taps
            and not broadcast.binary
            and broadcast.unless_joined != broadcast.topic
        ):
            self._tapped(broadcast.topic, broadcast.event, broadcast.payload, broadcast.seq)
        links = self._topics.get(broadcast.topic)
        if not links:
            return 0
        payload = broadcast.payload if broadcast.binary else msgspec.Raw(broadcast.payload)
        said = Said(
            broadcast.topic,
            broadcast.event,
            payload,
            broadcast.seq,
            broadcast.change,
            broadcast.about,
            None,
            broadcast.unless_joined,
        )
        return self._in_turn(links, said)

    def keep_order(self, source: Source) -> None:
        """Keep numbered broadcasts of the topics that `source` covers in order, and read from it what is missing.

        Called before `run`. On those topics a channel's `join` returns `Joined` with both numbers.
        """
        self._sequencer = Sequencer(source, emit=self._emit, give_up=self._crash_all)

    def place(self, topic: str) -> tuple[int, int]:
        """Return the seq and the change up to which everything has gone out here, (0, 0) where no order is kept."""
        return self._sequencer.place(topic) if self._sequencer is not None else (0, 0)

    def follow(self, topic: str, follower: Callable[[Said | None], None]) -> Callable[[], None]:
        """Call `follower` with every broadcast of a topic as its links get it; it must neither wait nor raise.

        With its last link here the topic ends, which None tells. Returns what ends it before.
        """
        followers = self._followers.setdefault(topic, [])
        followers.append(follower)

        def stop() -> None:
            if follower in followers:
                followers.remove(follower)
            if not followers and self._followers.get(topic) is followers:
                del self._followers[topic]

        return stop

    def suspect(self, topic: str | None = None) -> None:
        """Look soon whether broadcasts of a topic, or of any, have been missed; such as when the bus was away."""
        if self._sequencer is not None:
            self._sequencer.suspect(topic)

    def listen(self, topic: str, tap: Tap) -> Callable[[], None]:
        """Call `tap` with every JSON broadcast of a topic, from here and elsewhere; it must neither wait nor raise.

        Returns what ends it.
        """
        self._wanted(topic)
        taps = self._taps.setdefault(topic, [])
        taps.append(tap)

        def stop() -> None:
            taps.remove(tap)
            if not taps and self._taps.get(topic) is taps:
                del self._taps[topic]
                self._unwanted(topic)

        return stop

    async def in_force(self, topic: str) -> None:
        """Wait until what other nodes broadcast on a topic arrives here; somebody must have subscribed or listen.

        What is read from the database after that has no gap to what is broadcast.
        """
        if self.reach is not None:
            await self.reach.in_force(topic)

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Hold frames back inside the block, which must not wait, and send them coalesced at its end."""
        self.flusher.cork()
        try:
            yield
        finally:
            self.flusher.uncork()

    def subscribers(self, topic: str) -> tuple[Link, ...]:
        """Return the joined links of a topic."""
        return tuple(link for link in self._topics.get(topic, ()) if link.state is State.JOINED)

    def census(self, topics_max: int) -> Census:
        """Count who is here, with the largest topics. A topic has a member for each socket that joined it."""
        largest = heapq.nlargest(topics_max, ((len(links), topic) for topic, links in self._topics.items()))
        return Census(
            sockets=len(self.sockets),
            users=len(self._users),
            channels=sum(len(links) for links in self._topics.values()),
            topics=len(self._topics),
            largest=[(topic, members) for members, topic in largest],
        )

    def sockets_of(self, user_id: str) -> tuple[Socket, ...]:
        """Return the user's sockets on this node."""
        return tuple(self._users.get(user_id, ()))

    def kick(self, topic: str, user_id: str, event: str | None = None, payload: object = None) -> int:
        """Close the user's channels of a topic after an optional last event. Returns how many."""
        links = [link for link in self._topics.get(topic, ()) if link.session.user_id == user_id]
        for link in links:
            link.close(event, payload)
        return len(links)

    def disconnect(
        self, *, user_id: str | None = None, session_id: str | None = None, reason: str = "session_revoked"
    ) -> int:
        """Close the sockets of a user or of a session. Returns how many.

        Each joined channel first gets the event `session_revoked {reason}`; the close code is 1008.
        """
        assert user_id is not None or session_id is not None
        among = self.sockets if user_id is None else self.sockets_of(user_id)
        found = [s for s in among if session_id is None or s.session.session_id == session_id]
        for socket in found:
            socket.dismiss("session_revoked", {"reason": reason}, reason)
        return len(found)

    def presence_state(self, topic: str) -> PresenceState:
        """Return who is present on the topic; nobody where they are only counted."""
        return self.presence.state(topic)

    def is_present(self, topic: str, user_id: str) -> bool:
        """Tell whether the user is present on the topic, here or on another node."""
        return self.presence.is_present(topic, user_id)

    def hear_presence(self, data: bytes) -> None:
        """Take in what another node says of who is present there. Raises msgspec.DecodeError."""
        self.presence.hear(data)

    # ── for the application ──

    async def run(self) -> None:
        """Flush, sweep and publish presence for ever."""
        self.now = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.flusher.run)
            nursery.start_soon(self._sweep)
            nursery.start_soon(self.presence.run)
            nursery.start_soon(self._say_paced)
            if self._sequencer is not None:
                nursery.start_soon(self._sequencer.run)

    async def drain(self) -> None:
        """Refuse new sockets, answer pushes in flight, close every socket with 1012; returns when all are gone.

        They go batch by batch, in an order of chance: their clients come back elsewhere, and should not all at once.
        Bounded by `drain_spread_s + drain_s + leave_s + close_s` of the limits, and by the caller's cancel scope.
        """
        self.draining.set()
        pause_s = 0.0
        for batch in batches(list(self.sockets), self.limits.drain_batch, self.limits.drain_spread_s):
            await trio.sleep(pause_s)
            pause_s = BATCH_PAUSE_S * random.uniform(0.5, 1.5)  # noqa: S311  # spreads load
            for socket in batch:
                socket.drain()
        while self.sockets:
            self._empty = trio.Event()
            for socket in tuple(self.sockets):
                socket.drain()
            await self._empty.wait()
        self.presence.stop()

    # ── for sockets and links ──

    def factory(self, topic: str) -> ChannelFactory | None:
        """Return what serves a topic, None for an unmatched one."""
        return self._factories.get(topic.partition(":")[0])

    def add(self, socket: Socket) -> None:
        """Register a socket that begins to run."""
        self.sockets.add(socket)
        self._users.setdefault(socket.session.user_id, []).append(socket)
        self._watched(socket.session.user_id, None)
        metrics.SOCKETS.inc()

    def remove(self, socket: Socket) -> None:
        """Unregister a socket whose channels have left."""
        self.sockets.discard(socket)
        beside = self._users[socket.session.user_id]
        beside.remove(socket)
        if not beside:
            del self._users[socket.session.user_id]
        self._watched(socket.session.user_id, None)
        metrics.SOCKETS.dec()
        if not self.sockets:
            self._empty.set()

    def subscribe(self, link: Link) -> None:
        """Deliver the topic's broadcasts to this link."""
        self._wanted(link.topic)
        self._topics.setdefault(link.topic, Audience()).add(link)
        if self._sequencer is not None:
            self._sequencer.subscribed(link.topic)
        metrics.CHANNELS.inc()

    def resumed(self, topic: str, seq: int, change: int) -> None:
        """Note that a link has joined with all there is up to these numbers."""
        if self._sequencer is not None:
            self._sequencer.joined(topic, seq, change)

    def went_live(self, link: Link) -> None:
        """Note that a link is joined now."""
        self._watched(link.session.user_id, link.topic)

    def unsubscribe(self, link: Link) -> None:
        """Deliver no more to this link."""
        self._watched(link.session.user_id, link.topic)
        links = self._topics[link.topic]
        links.discard(link)
        metrics.CHANNELS.dec()
        if not links:
            del self._topics[link.topic]
            if self._sequencer is not None:
                self._sequencer.unsubscribed(link.topic)
            for follower in self._followers.pop(link.topic, ()):
                follower(None)
            self._unwanted(link.topic)

    def watch_overdue(self, link: Link) -> None:
        """Fail this link's deferred replies when they are overdue."""
        self._outstanding.add(link)

    def _wanted(self, topic: str) -> None:
        """Hear other nodes on a topic that is about to have somebody here."""
        if self.reach is not None and topic not in self._topics and topic not in self._taps:
            self.reach.want(topic)

    def _unwanted(self, topic: str) -> None:
        """Hear them no more, once it has nobody."""
        if self.reach is not None and topic not in self._topics and topic not in self._taps:
            self.reach.unwant(topic)

    def _watched(self, user_id: str, topic: str | None) -> None:
        if self.watcher is not None:
            self.watcher(user_id, topic)

    def _tapped(self, topic: str, event: str, payload: bytes, seq: int | None) -> None:
        for tap in tuple(self._taps[topic]):
            tap(event, payload, seq)

    def _in_turn(self, links: Audience, said: Said) -> int:
        """Fan out now or, where an order is kept, when its turn comes."""
        numbered = said.seq is not None or said.change is not None
        if numbered and self._sequencer is not None and self._sequencer.covers(said.topic):
            self._sequencer.offer(said)
            return len(links)
        return self._fan_out(links, said)

    def _emit(self, said: Said, filled: bool) -> None:
        """Fan out a broadcast whose turn has come."""
        if filled and self.on_filled is not None and isinstance(said.payload, msgspec.Raw):
            body, seq = bytes(said.payload), said.seq
            self.on_filled(
                Broadcast(said.topic, said.event, body, seq=seq, change=said.change, about=said.about)
            )
        self._emit_here(said)

    def _crash_all(self, topic: str) -> None:
        """End a topic's channels so that their clients join anew."""
        for link in tuple(self._topics.get(topic, ())):
            link.restart()

    def _emit_here(self, said: Said) -> int:
        links = self._topics.get(said.topic)
        return self._fan_out(links, said) if links else 0

    def _fan_out(self, links: Audience, said: Said) -> int:
        for follower in self._followers.get(said.topic, ()):
            follower(said)
        count = fan_out(links, said, self.flusher)
        metrics.BROADCASTS.inc()
        metrics.DELIVERIES.inc(count)
        return count

    async def _sweep(self) -> NoReturn:
        """Once a second: tell the time, close idle sockets and expired sessions, fail overdue replies."""
        while True:
            self.now = trio.current_time()
            wall_s = self._wall_clock()
            for socket in tuple(self.sockets):
                socket.check(wall_s)
            for link in tuple(self._outstanding):
                if not link.fail_overdue(self.now):
                    self._outstanding.discard(link)
            self.presence.tick(self.now)
            await trio.sleep(_SWEEP_S)

    async def _say_paced(self) -> NoReturn:
        """Say what was held back when its interval ends."""
        while True:
            await self._paced.wait()
            due_at = self._pacer.next_due
            if due_at is None:
                self._paced = trio.Event()
                continue
            await trio.sleep_until(due_at)
            for said in self._pacer.take_due(trio.current_time()):
                self._broadcast(said)
