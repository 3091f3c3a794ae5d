"""Who is present on each topic, as the hub tells it: to the subscribers here, and to the other nodes.

What changes is gathered for `Limits.presence_s` and then said once: one `presence_diff` per topic, one delta for the
other nodes. A topic with so many subscribers that this would cost more than `Limits.presence_per_s` deliveries a
second is told less often. On a topic with more people than `Limits.presence_people` clients are told how many there
are, by `presence_count {count}`, instead of who. A joiner's `presence_state` waits for the end of that interval too,
so that a thousand joins within it cost one encoding of the state and not a thousand.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, cast

import msgspec
import trio

from whispr.realtime import protocol
from whispr.realtime.limits import Limits
from whispr.realtime.presence import Diff, Meta, State
from whispr.realtime.replication import Timing, Tracker, pack, unpack
from whispr.realtime.sequencer import Said

if TYPE_CHECKING:
    from whispr.realtime.link import Link


class Roster:
    """The presences of one hub. `run` and, once a second, `tick` keep it going."""

    def __init__(self, limits: Limits, tell: Callable[[Said], int]) -> None:
        self._limits = limits
        self._tell = tell
        """Sends a broadcast to the subscribers here."""
        self.relay: Callable[[bytes], None] | None = None
        """Told what other nodes should know of who is present here."""
        self.watcher: Callable[[str, Diff], None] | None = None
        """Told what changed on each topic, subscribed to here or not; it must neither wait nor raise."""
        self._tracker = Tracker(secrets.token_urlsafe(6), Timing(linger_s=limits.presence_linger_s))
        self._changed = trio.Event()
        self._counted: set[str] = set()
        """Topics with so many people that they are counted."""
        self._resting: dict[str, float] = {}
        """Large topics that were told lately → when they may be told again."""
        self._asking: dict[Link, None] = {}
        """Links that are to get a `presence_state`."""

    def state(self, topic: str) -> State:
        """Return who is present on the topic, as `presence_state` says it; nobody where they are only counted."""
        return {} if self._is_crowded(topic) else self._tracker.view.state(topic)

    def count(self, topic: str) -> int:
        """Return how many people are present on the topic."""
        return self._tracker.view.count(topic)

    def is_present(self, topic: str, user_id: str) -> bool:
        """Tell whether the user is present on the topic, here or on another node."""
        return self._tracker.view.is_present(topic, user_id)

    def track(self, topic: str, key: str, meta: Meta) -> str:
        """Add a presence that no link owns; the caller untracks it. Returns its ref."""
        self._changed.set()
        return self._tracker.track(topic, key, meta)

    def update(self, topic: str, key: str, ref: str, meta: Meta) -> str:
        """Replace a presence's meta and return its new ref."""
        self._changed.set()
        return self._tracker.update(topic, key, ref, meta)

    def untrack(self, topic: str, key: str, ref: str, *, linger: bool = False) -> None:
        """Remove a presence; with `linger` only after some seconds in which its user does not come back."""
        self._changed.set()
        if linger and self._limits.presence_linger_s:
            self._tracker.linger(topic, key, ref, trio.current_time())
        else:
            self._tracker.untrack(topic, key, ref)

    def hear(self, data: bytes) -> None:
        """Take in what another node says of who is present there. Raises msgspec.DecodeError."""
        self._tracker.hear(unpack(data), trio.current_time())
        self._changed.set()

    def show(self, link: Link) -> None:
        """Send a link its topic's `presence_state` soon."""
        self._asking[link] = None
        self._changed.set()

    def tick(self, now: float) -> None:
        """Let time pass."""
        self._tracker.tick(now)
        self._changed.set()

    async def run(self) -> NoReturn:
        """Gather changes for `presence_s`, then tell everybody; for ever."""
        while True:
            await self._changed.wait()
            await trio.sleep(self._limits.presence_s)
            self._changed = trio.Event()
            self._tracker.flush()
            self._tell_nodes()
            self._tell_those_asking()
            self._tell_topics(trio.current_time())

    def stop(self) -> None:
        """Say goodbye to the other nodes."""
        self._tracker.flush()
        self._tracker.stop()
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        messages = self._tracker.take_output()
        if self.relay is not None:
            for message in messages:
                self.relay(pack(message))

    def _tell_topics(self, now: float) -> None:
        """Tell the topics whose turn it is; the others keep their changes until it is."""
        self._resting = {topic: until for topic, until in self._resting.items() if until > now}
        for topic, diff in self._tracker.view.take_diffs(self._resting.keys()).items():
            deliveries = self._tell_topic(topic, diff)
            if (
                self._limits.presence_per_s
                and deliveries > self._limits.presence_per_s * self._limits.presence_s
            ):
                self._resting[topic] = now + deliveries / self._limits.presence_per_s
        if self._tracker.view.changed:
            self._changed.set()

    def _tell_topic(self, topic: str, diff: Diff) -> int:
        """Tell the topic's subscribers here who came and went, or how many there are now; returns to how many."""
        if self.watcher is not None:
            self.watcher(topic, diff)
        was_crowded, crowded = topic in self._counted, self._is_crowded(topic)
        (self._counted.add if crowded else self._counted.discard)(topic)
        event, payload = "presence_diff", cast("object", diff)
        if crowded:
            event, payload = "presence_count", {"count": self.count(topic)}
        elif was_crowded:
            event, payload = "presence_state", self._tracker.view.state(topic)
        return self._tell(Said(topic, event, payload))

    def _tell_those_asking(self) -> None:
        """Send `presence_state`, encoded once per topic; where people are only counted an empty one and the count."""
        asking, self._asking = self._asking, {}
        states: dict[str, msgspec.Raw] = {}
        for link in asking:
            topic = link.topic
            if topic not in states:
                states[topic] = msgspec.Raw(protocol.encode_json(self.state(topic)))
            link.push("presence_state", states[topic])
            if self._is_crowded(topic):
                link.push("presence_count", {"count": self.count(topic)})

    def _is_crowded(self, topic: str) -> bool:
        limit = self._limits.presence_people
        return bool(limit) and self.count(topic) > limit
