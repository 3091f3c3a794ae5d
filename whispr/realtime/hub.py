"""The hub of one process: its topics, the sockets that have joined them, and who is present on them.

What goes out on topics, and to and from other nodes, is `whispr.realtime.topics`. `presence` tells the other nodes
who is present here, and hears it from them (`whispr.realtime.roster`). What slow readers go without, and what is said
only so often, is one table: `whispr.realtime.policies`.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec
import trio

from whispr.realtime import metrics
from whispr.realtime.addresses import Addresses
from whispr.realtime.broadcast import Broadcast as Broadcast
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.frames import CloseCode
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.presence import State as PresenceState
from whispr.realtime.refusals import Refusals
from whispr.realtime.roster import Roster
from whispr.realtime.seats import Seats
from whispr.realtime.socket import Socket
from whispr.realtime.topics import Relay, Topics

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


class Hub(Topics):
    """The real-time hub of one process. `run` must be running while it serves (`serve_websocket` does that)."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        relay: Relay | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = limits or Limits()
        super().__init__(relay, self.limits.typing_s)
        self.sockets: set[Socket] = set()
        self.now = 0.0
        """Trio's clock in seconds, read once a second: good enough for idleness, and free."""
        self.draining = trio.Event()
        self.refusals = Refusals(self.limits.refused_join_s, self.limits.refused_joins_per_min)
        self.seats = Seats(self.limits.user_sockets)
        self.addresses = Addresses(self.limits.address_connections)
        self.presence = Roster(self.limits, self._fan_out)
        self._wall_clock = wall_clock
        self._factories: dict[str, ChannelFactory] = {}
        self._users: dict[str, list[Socket]] = {}
        self._outstanding: set[Link] = set()
        self._revoked: dict[str, tuple[str, float]] = {}
        """Session → why it ended, and until when a socket of it may still be in its handshake."""
        self._empty = trio.Event()

    # ── for services ──

    def mount(self, prefix: str, factory: ChannelFactory) -> None:
        """Serve the topics `<prefix>:<anything>`, and `<prefix>` itself, with channels of this factory."""
        prefix = prefix.removesuffix(":")
        assert prefix not in self._factories, f"{prefix} is mounted twice"
        assert prefix != "phoenix", "the topic phoenix belongs to the protocol"
        self._factories[prefix] = factory

    def census(self, topics_max: int) -> Census:
        """Count who is here, with the largest topics. A topic has a member for each socket that joined it."""
        largest = heapq.nlargest(
            topics_max, ((len(links), topic) for topic, links in self._audiences.items())
        )
        return Census(
            sockets=len(self.sockets),
            users=len(self._users),
            channels=sum(len(links) for links in self._audiences.values()),
            topics=len(self._audiences),
            largest=[(topic, members) for members, topic in largest],
        )

    def sockets_of(self, user_id: str) -> tuple[Socket, ...]:
        """Return the user's sockets on this node."""
        return tuple(self._users.get(user_id, ()))

    def disconnect(
        self, *, user_id: str | None = None, session_id: str | None = None, reason: str = "session_revoked"
    ) -> int:
        """Close the sockets of a user or of a session. Returns how many.

        Each joined channel first gets the event `session_revoked {reason}`; the close code is 1008.
        """
        assert user_id is not None or session_id is not None
        if session_id is not None:
            self._revoked[session_id] = reason, trio.current_time() + 2 * self.limits.handshake_s
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

    def catch_up(self, socket: Socket) -> None:
        """Close a socket that was let in, but still in its handshake, when its session ended or a drain began."""
        reason, _ = self._revoked.get(socket.session.session_id, ("", 0.0))
        if reason:
            socket.close(CloseCode.POLICY_VIOLATION, reason)
        elif self.draining.is_set():
            socket.drain()

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

    def watch_overdue(self, link: Link) -> None:
        """Fail this link's deferred replies when they are overdue."""
        self._outstanding.add(link)

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
            self._revoked = {
                session: ended for session, ended in self._revoked.items() if ended[1] > self.now
            }
            await trio.sleep(_SWEEP_S)
