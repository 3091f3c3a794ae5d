"""Topics and who hears them here: links of clients, followers, and taps.

A broadcast is encoded once, framed once, and offered to each subscriber with a non-blocking send
(`whispr.realtime.fanout`, `whispr.realtime.transport`). Everything here is synchronous and runs in the Trio thread,
so a broadcast reaches every subscriber before anything else happens: two broadcasts of one task arrive everywhere
in that order. Numbered ones of topics that `keep_order` covers wait until it is their turn
(`whispr.realtime.sequencer`), for taps as for links.

Other nodes: `relay`, when set, is given each local broadcast as a `Broadcast`; the composition root publishes
`Broadcast.pack()` on the bus and calls `deliver(Broadcast.unpack(data))` for what arrives. `reach`, when set, is
told which topics have somebody here, and joins wait until it hears them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

import msgspec
import trio

from whispr.realtime import metrics, protocol
from whispr.realtime.broadcast import Broadcast, Reach
from whispr.realtime.fanout import Audience, fan_out
from whispr.realtime.link import Link, State
from whispr.realtime.pacing import Pacer
from whispr.realtime.policies import POLICIES, key_of
from whispr.realtime.sequencer import Said, Sequencer, Source
from whispr.realtime.transport import Flusher

Relay = Callable[[Broadcast], None]
Follower = Callable[[Said | None], None]


class Tap(Protocol):
    """Who hears a topic without a socket. Neither may wait or raise."""

    def hear(self, event: str, payload: bytes, seq: int | None) -> None:
        """Take a broadcast: its payload is JSON."""

    def fell_behind(self) -> None:
        """The topic has fallen too far behind to be caught up with: nothing more comes."""


class Topics:
    """Those of one process."""

    def __init__(self, relay: Relay | None, typing_s: float) -> None:
        self.relay = relay
        self.reach: Reach | None = None
        self.watcher: Callable[[str, str | None], None] | None = None
        """Told (user, None) of a socket that came or went, (user, topic) of a channel joined or left."""
        self.flusher = Flusher()
        self.on_filled: Callable[[Broadcast], None] | None = None
        """Told of each broadcast that was read from the database because it had not arrived."""
        self._audiences: dict[str, Audience] = {}
        self._taps: dict[str, list[Tap]] = {}
        self._followers: dict[str, list[Follower]] = {}
        self._pacer: Pacer[Said] = Pacer(typing_s)
        self._paced = trio.Event()
        self._sequencer: Sequencer | None = None

    # ── for services ──

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

    def deliver(self, broadcast: Broadcast) -> int:
        """Send what another node broadcast to the subscribers here. Returns how many it was offered to."""
        if not self._is_wanted(broadcast.topic):
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
        return self._in_turn(said)

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Hold frames back inside the block, which must not wait, and send them coalesced at its end."""
        self.flusher.cork()
        try:
            yield
        finally:
            self.flusher.uncork()

    def keep_order(self, source: Source) -> None:
        """Keep numbered broadcasts of the topics that `source` covers in order, and read from it what is missing.

        Called before `run`. On those topics a channel's `join` returns `Joined` with both numbers.
        """
        self._sequencer = Sequencer(source, emit=self._emit, give_up=self._give_up)

    def place(self, topic: str) -> tuple[int, int]:
        """Return the seq and the change up to which everything has gone out here, (0, 0) where no order is kept."""
        return self._sequencer.place(topic) if self._sequencer is not None else (0, 0)

    def suspect(self, topic: str | None = None) -> None:
        """Look soon whether broadcasts of a topic, or of any, have been missed; such as when the bus was away."""
        if self._sequencer is not None:
            self._sequencer.suspect(topic)

    def follow(self, topic: str, follower: Follower) -> Callable[[], None]:
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

    def listen(self, topic: str, tap: Tap) -> Callable[[], None]:
        """Have `tap` hear every JSON broadcast of a topic, from here and elsewhere. Returns what ends it.

        Where order is kept numbered ones come once `begin` has returned.
        """
        self._wanted(topic)
        taps = self._taps.setdefault(topic, [])
        taps.append(tap)

        def stop() -> None:
            if tap in taps:
                taps.remove(tap)
            if not taps and self._taps.get(topic) is taps:
                del self._taps[topic]
                self._unwanted(topic)

        return stop

    async def begin(self, topic: str) -> None:
        """Wait until everything broadcast on a topic from now on comes, in order, to those who `listen`.

        What is read from the database after that has no gap to what is broadcast. Raises WhisprError when it cannot
        be asked where the topic is.
        """
        await self.in_force(topic)
        if self._sequencer is not None:
            await self._sequencer.begin(topic)

    async def in_force(self, topic: str) -> None:
        """Wait until what other nodes broadcast on a topic arrives here; somebody must have subscribed or listen.

        What is read from the database after that has no gap to what is broadcast.
        """
        if self.reach is not None:
            await self.reach.in_force(topic)

    def subscribers(self, topic: str) -> tuple[Link, ...]:
        """Return the joined links of a topic."""
        return tuple(link for link in self._audiences.get(topic, ()) if link.state is State.JOINED)

    def joined_topics(self) -> tuple[str, ...]:
        """Return the topics with links here."""
        return tuple(self._audiences)

    def kick(self, topic: str, user_id: str, event: str | None = None, payload: object = None) -> int:
        """Close the user's channels of a topic after an optional last event. Returns how many."""
        links = [link for link in self._audiences.get(topic, ()) if link.session.user_id == user_id]
        for link in links:
            link.close(event, payload)
        return len(links)

    def close(self, topic: str, event: str, payload: object) -> None:
        """Close all channels of a topic after a last event, those that are being joined too."""
        for link in tuple(self._audiences.get(topic, ())):
            link.close(event, payload)

    # ── for links ──

    def subscribe(self, link: Link) -> None:
        """Deliver the topic's broadcasts to this link."""
        self._wanted(link.topic)
        self._audiences.setdefault(link.topic, Audience()).add(link)
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
        links = self._audiences[link.topic]
        links.discard(link)
        metrics.CHANNELS.dec()
        if not links:
            del self._audiences[link.topic]
            for follower in self._followers.pop(link.topic, ()):
                follower(None)
            self._unwanted(link.topic)

    # ── who is here ──

    def _is_wanted(self, topic: str) -> bool:
        return topic in self._audiences or topic in self._taps

    def _wanted(self, topic: str) -> None:
        """Hear other nodes on a topic that is about to have somebody here, and keep its order."""
        if self._is_wanted(topic):
            return
        if self.reach is not None:
            self.reach.want(topic)
        if self._sequencer is not None:
            self._sequencer.subscribed(topic)

    def _unwanted(self, topic: str) -> None:
        """Hear them no more, once it has nobody."""
        if self._is_wanted(topic):
            return
        if self._sequencer is not None:
            self._sequencer.unsubscribed(topic)
        if self.reach is not None:
            self.reach.unwant(topic)

    def _watched(self, user_id: str, topic: str | None) -> None:
        if self.watcher is not None:
            self.watcher(user_id, topic)

    # ── sending ──

    def _broadcast(self, said: Said) -> int:
        if self.relay is not None:
            topic, event, payload, seq, change, about, _, unless_joined = said
            binary = isinstance(payload, bytes)
            body = payload if isinstance(payload, bytes) else protocol.encode_json(payload)
            self.relay(Broadcast(topic, event, body, binary, seq, unless_joined, change, about))
            said = said._replace(payload=body if binary else msgspec.Raw(body))
        return self._in_turn(said) if self._is_wanted(said.topic) else 0

    def _in_turn(self, said: Said) -> int:
        """Fan out now or, where an order is kept, when its turn comes."""
        numbered = said.seq is not None or said.change is not None
        if numbered and self._sequencer is not None and self._sequencer.covers(said.topic):
            self._sequencer.offer(said)
            return len(self._audiences.get(said.topic, ()))
        return self._emit_here(said)

    def _emit(self, said: Said, filled: bool) -> None:
        """Fan out a broadcast whose turn has come."""
        if filled and self.on_filled is not None and isinstance(said.payload, msgspec.Raw):
            body, seq = bytes(said.payload), said.seq
            self.on_filled(
                Broadcast(said.topic, said.event, body, seq=seq, change=said.change, about=said.about)
            )
        self._emit_here(said)

    def _emit_here(self, said: Said) -> int:
        if said.topic in self._taps:
            self._tell_taps(said)
        return self._fan_out(said)

    def _fan_out(self, said: Said) -> int:
        """Send to the links here."""
        links = self._audiences.get(said.topic)
        if links is None:
            return 0
        for follower in self._followers.get(said.topic, ()):
            follower(said)
        count = fan_out(links, said, self.flusher)
        metrics.BROADCASTS.inc()
        metrics.DELIVERIES.inc(count)
        return count

    def _tell_taps(self, said: Said) -> None:
        if isinstance(said.payload, bytes) or said.unless_joined == said.topic:
            return
        payload = protocol.encode_json(said.payload)
        for tap in tuple(self._taps[said.topic]):
            tap.hear(said.event, payload, said.seq)

    def _give_up(self, topic: str) -> None:
        """End a topic's channels so that their clients join anew, and its taps."""
        for link in tuple(self._audiences.get(topic, ())):
            link.restart()
        taps = self._taps.pop(topic, None)
        if taps is not None:
            for tap in taps:
                tap.fell_behind()
            self._unwanted(topic)

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
