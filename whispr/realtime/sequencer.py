"""Keeps the numbered broadcasts of this node's topics in order, and reads from the database what is missing.

`whispr.realtime.ordering` decides what may go out; this keeps one `Order` per topic with subscribers here, and
the time. Only topics that the `Source` covers are ordered. A gap gets `PATIENCE_S` to close by itself, for a
broadcast of another node that is only late; then it is read, once per topic however many broadcasts wait, and at
most `FILLS_MAX` topics at a time. While the database is away it is tried again with growing pauses.

A lost broadcast that nothing follows shows no gap. So the heads of all topics are compared with the database every
`CHECK_S`, and at once when `suspect` says that something may have been missed: the bus was away, or a topic was
subscribed to only after its snapshot was read.

A topic that has fallen behind by more than `GAP_MAX` is given up on: its channels crash, so that clients join
again and resume from where each of them is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import structlog
import trio

from whispr.errors import WhisprError
from whispr.realtime import metrics
from whispr.realtime.ordering import Gap, Numbered, Order
from whispr.resilience.retry import Backoff

PATIENCE_S = 0.05
"""How long a gap may close by itself."""
CHECK_S = 15.0
"""How often the heads of all topics are compared with the database."""
FILLS_MAX = 4
"""Topics read at a time."""
GAP_MAX = 2000
"""Numbers missing on one topic, of both counters, past which its channels crash and resume."""
HEADS_MAX = 1000
"""Topics in one question after heads."""
_FILL_AGAIN = Backoff(0.05, 2.0, low=0.5)

log = structlog.get_logger("whispr.realtime")


class Said(NamedTuple):
    """A broadcast as it goes to links: `payload` is a bytes object for a binary one."""

    topic: str
    event: str
    payload: object
    seq: int | None = None
    change: int | None = None
    about: int = 0
    exclude: object = None
    unless_joined: str | None = None


class Filled(NamedTuple):
    """All broadcasts there are of a topic after some numbers and up to these."""

    found: Collection[Said]
    seq_upto: int
    change_upto: int


class Source(Protocol):
    """Where missing broadcasts are read."""

    def covers(self, topic: str) -> bool:
        """Tell whether the topic's broadcasts are numbered and can be read."""

    async def heads(self, topics: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """Return the last seq and the last change of each topic that exists. Raises WhisprError."""

    async def fill(self, topic: str, gap: Gap) -> Filled:
        """Read what is missing, as far as it fits. Raises WhisprError."""


class Sequencer:
    """The orders of one hub's topics. `run` must be running."""

    def __init__(
        self,
        source: Source,
        *,
        emit: Callable[[Said, bool], None],
        give_up: Callable[[str], None],
        check_s: float = CHECK_S,
    ) -> None:
        self._source = source
        self._emit = emit
        """Sends a broadcast to the links here; told whether it was read rather than heard."""
        self._give_up = give_up
        self._check_s = check_s
        self._orders: dict[str, Order[Said]] = {}
        self._due: dict[str, float] = {}
        """Topics with a gap → when it is read."""
        self._filling: set[str] = set()
        self._suspects: set[str] = set()
        self._stirred = trio.Event()
        self._slots = trio.Semaphore(FILLS_MAX)
        self.fills = 0
        """Reads so far."""

    def covers(self, topic: str) -> bool:
        """Tell whether a topic is ordered here."""
        return self._source.covers(topic)

    def subscribed(self, topic: str) -> None:
        """Begin to keep a topic's order: it has a subscriber now."""
        if topic not in self._orders and self._source.covers(topic):
            self._orders[topic] = Order()

    def unsubscribed(self, topic: str) -> None:
        """Forget a topic without subscribers."""
        self._orders.pop(topic, None)
        self._due.pop(topic, None)
        self._suspects.discard(topic)

    def joined(self, topic: str, seq: int, change: int) -> None:
        """Take note of a snapshot that a joiner has seen: the first one says where the topic stands."""
        order = self._orders.get(topic)
        if order is None:
            return
        if order.based:
            order.known(seq, change)
        else:
            self._send(order.base(seq, change), filled=False)
        self._look(topic, order)

    async def begin(self, topic: str) -> None:
        """Have a topic with a subscriber begin where the database is, if it has not begun. Raises WhisprError."""
        order = self._orders.get(topic)
        if order is None or order.based:
            await trio.lowlevel.checkpoint()
            return
        heads = await self._source.heads([topic])
        if self._orders.get(topic) is order and not order.based:
            self.joined(topic, *heads.get(topic, (0, 0)))

    def offer(self, said: Said) -> None:
        """Send a broadcast when its turn comes."""
        order = self._orders.get(said.topic)
        if order is None:
            return  # nobody here has joined
        ready = order.offer(Numbered(said, said.seq, said.change, said.about))
        for each in ready:
            self._emit(each, False)
        if order.based and (not ready or self._due):
            self._look(said.topic, order)

    def place(self, topic: str) -> tuple[int, int]:
        """Return the seq and the change up to which everything is out; (0, 0) for a topic without subscribers."""
        order = self._orders.get(topic)
        return order.place if order is not None else (0, 0)

    def suspect(self, topic: str | None = None) -> None:
        """Compare a topic's heads with the database soon, or those of all topics."""
        self._suspects.update(self._orders if topic is None else {topic} & self._orders.keys())
        if self._suspects:
            self._stirred.set()

    async def run(self) -> None:
        """Fill gaps until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_now_and_then)
            while True:
                self._stirred = trio.Event()
                if self._suspects:
                    suspects, self._suspects = self._suspects, set()
                    nursery.start_soon(self._check, suspects)
                now = trio.current_time()
                for topic in [topic for topic, due in self._due.items() if due <= now]:
                    del self._due[topic]
                    if topic not in self._filling:
                        self._filling.add(topic)
                        nursery.start_soon(self._fill, topic)
                with trio.move_on_at(min(self._due.values(), default=math.inf)):
                    await self._stirred.wait()

    def _send(self, ready: Collection[Said], *, filled: bool) -> None:
        for each in ready:
            self._emit(each, filled)

    def _look(self, topic: str, order: Order[Said]) -> None:
        """Note whether a topic has a gap now."""
        if order.gap is None:
            self._due.pop(topic, None)
        elif topic not in self._due and topic not in self._filling:
            self._due[topic] = trio.current_time() + PATIENCE_S
            self._stirred.set()

    async def _check_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._check_s * random.uniform(0.8, 1.2))  # noqa: S311  # spreads load
            self.suspect()

    async def _check(self, topics: set[str]) -> None:
        """Learn from the database what exists."""
        asked = [topic for topic in topics if topic in self._orders]
        for at in range(0, len(asked), HEADS_MAX):
            try:
                heads = await self._source.heads(asked[at : at + HEADS_MAX])
            except WhisprError as error:
                log.info("heads_unknown", error=str(error))
                continue  # the next check asks again
            for topic, (seq, change) in heads.items():
                order = self._orders.get(topic)
                if order is not None:
                    order.known(seq, change)
                    self._look(topic, order)

    async def _fill(self, topic: str) -> None:
        """Read what a topic misses until it misses nothing."""
        failures = 0
        try:
            async with self._slots:
                while (order := self._orders.get(topic)) is not None and (gap := order.gap) is not None:
                    if gap.size > GAP_MAX:
                        log.warning("topic_fell_behind", topic=topic, missing=gap.size)
                        self._give_up(topic)
                        return
                    try:
                        filled = await self._source.fill(topic, gap)
                    except WhisprError as error:
                        log.info("gap_not_filled", topic=topic, error=str(error))
                        failures += 1
                        await trio.sleep(_FILL_AGAIN.pause_s(failures))
                        continue
                    self.fills += 1
                    metrics.FILLS.inc()
                    if self._orders.get(topic) is order:
                        numbered = [
                            Numbered(each, each.seq, each.change, each.about) for each in filled.found
                        ]
                        self._send(order.fill(numbered, filled.seq_upto, filled.change_upto), filled=True)
        finally:
            self._filling.discard(topic)
