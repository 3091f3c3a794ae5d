"""One consumer on a clock of its own: attempts, deadlines, dead letters, and what waits for what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import trio

from whispr.adapters.jetstream import Stored, StreamState
from whispr.errors import unavailable
from whispr.events import Consumer, Event
from whispr.events.envelope import encode
from whispr.events.ledger import Kept
from whispr.events.pace import Pace
from whispr.events.position import Position
from whispr.events.runner import WINDOW_LEN, Runner

SUBJECT = "user.events.counted"


class MemoryStream:
    """A stream, its server, and the streams' keeper, all in memory."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.grown = trio.Event()

    def put(self, about: str, number: int, payload: bytes | None = None) -> None:
        seq = len(self.messages) + 1
        event = Event(
            id=f"id-{seq}",
            type="counted",
            time=datetime.now(UTC),
            source="user",
            subject=about,
            data={"n": number},
        )
        self.messages.append(Stored(SUBJECT, payload or encode(event), event.id, seq, 0))
        self.grown.set()
        self.grown = trio.Event()

    async def ensure(self) -> None:
        await trio.lowlevel.checkpoint()

    def forget(self) -> None:
        """Nothing to forget."""

    async def state(self, name: str) -> StreamState:
        await trio.lowlevel.checkpoint()
        return StreamState("created", 1, len(self.messages), 0)

    @asynccontextmanager
    async def read(
        self, stream: str, name: str, subjects: object, from_seq: int
    ) -> AsyncIterator[MemoryReader]:
        yield MemoryReader(self, from_seq)


@dataclass
class MemoryReader:
    stream: MemoryStream
    at: int

    def __aiter__(self) -> MemoryReader:
        return self

    async def __anext__(self) -> Stored:
        await trio.lowlevel.checkpoint()
        while self.at > len(self.stream.messages):
            await self.stream.grown.wait()
        self.at += 1
        return self.stream.messages[self.at - 2]

    async def gathered(self) -> list[Stored]:
        return [await anext(self)]

    async def pending(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.stream.messages) - self.at + 1


@dataclass
class MemoryLedger:
    """What a consumer keeps; away when PostgreSQL is."""

    away: bool = False
    kept: Kept | None = None
    buried: dict[str, str] = field(default_factory=dict)

    async def position(self, consumer: str, stream: str) -> Kept | None:
        await trio.lowlevel.checkpoint()
        return self.kept

    async def begin(self, consumer: str, stream: str, position: Position) -> None:
        await trio.lowlevel.checkpoint()

    async def listens(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def keep(self, consumer: str, positions: Iterable[tuple[str, Position, Mapping[str, Any]]]) -> bool:
        await trio.lowlevel.checkpoint()
        for _, at, attempts in positions:
            counts = {seq: int(count) for seq, count in attempts.items()}
            self.kept = Kept(Position(at.incarnation, at.floor, at.done_above), counts)
        return True

    async def bury(self, consumer: str, event_id: str, *what: Any) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise unavailable("PostgreSQL is away")
        self.buried[event_id] = what[3]


@asynccontextmanager
async def running(
    stream: MemoryStream,
    handle: Callable[[Event], Awaitable[None]],
    ledger: MemoryLedger | None = None,
    **options: Any,
) -> AsyncIterator[Runner]:
    consumer = Consumer("noting", (SUBJECT,), handle, **options)
    memory = cast(Any, stream)
    runner = Runner(consumer, cast(Any, ledger or MemoryLedger()), memory, memory, Pace(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        yield runner
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_failed_event_is_tried_again_with_growing_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Pauses double up to the longest, less at most half of them at random."""
    stream, at = MemoryStream(), list[float]()

    async def handle(event: Event) -> None:
        at.append(trio.current_time())
        raise unavailable("not now")

    stream.put("a", 1)
    ledger = MemoryLedger()
    async with running(stream, handle, ledger, attempts_max=6, retry_min_s=1, retry_max_s=4):
        await trio.sleep(60)
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert len(at) == 6
    for pause, most in zip(pauses, [1, 2, 4, 4, 4], strict=True):
        assert most / 2 <= pause <= most + 0.001
    assert ledger.buried == {"id-1": "UNAVAILABLE: not now"}
    assert ledger.kept is not None
    assert ledger.kept.position.floor == 1


async def test_only_what_is_about_the_same_waits_for_a_failed_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While one is being tried again, its followers wait and everybody else goes on."""
    stream, handled = MemoryStream(), list[tuple[str, int, float]]()
    failures = 3

    async def handle(event: Event) -> None:
        nonlocal failures
        if event.subject == "a" and event.data["n"] == 1 and failures:
            failures -= 1
            raise ValueError("not yet")
        handled.append((event.subject, event.data["n"], trio.current_time()))

    began = trio.current_time()
    for n in (1, 2, 3):
        stream.put("a", n)
        stream.put("b", n)
    async with running(stream, handle, retry_min_s=10):
        await trio.sleep(1)
        assert [what[:2] for what in handled] == [("b", 1), ("b", 2), ("b", 3)]
        await trio.sleep(100)
    assert [what[:2] for what in handled[3:]] == [("a", 1), ("a", 2), ("a", 3)]
    assert handled[3][2] - began >= 5 + 10 + 20


async def test_a_handler_past_its_deadline_has_failed(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that hangs is cancelled at its deadline, tried again, and given up like any failure."""
    stream, cancelled = MemoryStream(), list[float]()

    async def handle(event: Event) -> None:
        began = trio.current_time()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time() - began)

    stream.put("a", 1)
    ledger = MemoryLedger()
    async with running(stream, handle, ledger, attempts_max=2, deadline_s=3):
        await trio.sleep(30)
    assert [round(each, 6) for each in cancelled] == [3, 3]
    assert ledger.buried == {"id-1": "not handled within 3 s"}


async def test_what_waits_is_handled_together_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """A consumer of many gets what has gathered, about each thing in order, and all of it is then done."""
    stream, batches, ledger = MemoryStream(), list[list[tuple[str, int]]](), MemoryLedger()

    async def handle(event: Event) -> None:
        batches.append([(event.subject, event.data["n"])])

    async def handle_many(events: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        batches.append([(event.subject, event.data["n"]) for event in events])

    async with running(stream, handle, ledger, handle_many=handle_many, gather_s=1.0):
        for n in range(10):
            stream.put("ab"[n % 2], n)
            await trio.sleep(0.25)
        await trio.sleep(3)
    assert max(len(batch) for batch in batches) == 4
    assert len(batches) <= 4
    for about, wanted in (("a", [0, 2, 4, 6, 8]), ("b", [1, 3, 5, 7, 9])):
        assert [n for batch in batches for subject, n in batch if subject == about] == wanted
    assert ledger.kept is not None
    assert ledger.kept.position.floor == 10


async def test_when_many_fail_each_has_attempts_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    """One event that cannot be handled becomes a dead letter alone; those beside it are handled, in order."""
    stream, handled, ledger = MemoryStream(), list[int](), MemoryLedger()

    async def handle(event: Event) -> None:
        await trio.lowlevel.checkpoint()
        if event.data["n"] == 3:
            raise ValueError("three")
        handled.append(event.data["n"])

    async def handle_many(events: Sequence[Event]) -> None:
        await trio.lowlevel.checkpoint()
        if any(event.data["n"] == 3 for event in events):
            raise ValueError("three among them")
        handled.extend(event.data["n"] for event in events)

    for n in range(6):
        stream.put("a", n)
    options: dict[str, Any] = {"handle_many": handle_many, "gather_s": 0.1, "attempts_max": 2}
    async with running(stream, handle, ledger, **options):
        await trio.sleep(30)
    assert handled == [0, 1, 2, 4, 5]
    assert ledger.buried == {"id-4": "ValueError('three')"}
    assert ledger.kept is not None
    assert ledger.kept.position.floor == 6


async def test_what_is_no_envelope_becomes_a_dead_letter_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Poison is kept for an operator and does not stop what follows."""
    stream, handled = MemoryStream(), list[int]()

    async def handle(event: Event) -> None:
        handled.append(event.data["n"])

    stream.put("a", 1, payload=b"{not json")
    stream.put("a", 2)
    ledger = MemoryLedger()
    async with running(stream, handle, ledger):
        await trio.sleep(1)
    assert handled == [2]
    assert ledger.buried == {"id-1": "not an event's envelope"}


async def test_no_event_dies_while_postgresql_is_away(autojump_clock: trio.testing.MockClock) -> None:
    """An event that fails because nothing can be written is tried until something can."""
    stream, ledger, handled = MemoryStream(), MemoryLedger(away=True), list[int]()

    async def handle(event: Event) -> None:
        if ledger.away:
            raise unavailable("PostgreSQL is away")
        handled.append(event.data["n"])

    stream.put("a", 1)
    async with running(stream, handle, ledger, attempts_max=3):
        await trio.sleep(600)
        ledger.away = False
        await trio.sleep(10)
    assert handled == [1]
    assert not ledger.buried


async def test_failed_attempts_count_over_a_failover(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever takes over goes on counting: an event that ends its process cannot do so for ever."""
    stream, ledger, attempts = MemoryStream(), MemoryLedger(), 0

    async def handle(event: Event) -> None:
        nonlocal attempts
        attempts += 1
        raise ValueError("no")

    stream.put("a", 1)
    for _ in range(6):
        async with running(stream, handle, ledger, attempts_max=3, retry_min_s=50):
            await trio.sleep(1)
    assert attempts == 3
    assert ledger.buried == {"id-1": "ValueError('no')"}


async def test_concurrency_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """No more handlers run at once than the consumer says."""
    stream, now, most = MemoryStream(), 0, 0

    async def handle(event: Event) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.sleep(1)
        now -= 1

    for n in range(20):
        stream.put(f"a{n}", n)
    async with running(stream, handle, concurrency=4):
        await trio.sleep(4.5)
        assert most == 4
        await trio.sleep(1)
    assert now == 0


async def test_the_window_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """What waits behind a failed event stays in the stream when there is no more room; then it comes."""
    stream, fail, handled = MemoryStream(), True, list[int]()

    async def handle(event: Event) -> None:
        if fail:
            raise ValueError("no")
        handled.append(event.data["n"])

    for n in range(2 * WINDOW_LEN):
        stream.put("a", n)
    async with running(stream, handle, retry_max_s=5, attempts_max=100) as runner:
        await trio.sleep(10)
        assert len(runner._schedule) == WINDOW_LEN
        fail = False
        await trio.sleep(10)
    assert handled == list(range(2 * WINDOW_LEN))


async def test_draining_waits_for_what_runs_and_takes_up_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A stopping process finishes the events in its hands."""
    stream, ended = MemoryStream(), list[int]()

    async def handle(event: Event) -> None:
        await trio.sleep(2)
        ended.append(event.data["n"])

    stream.put("a", 1)
    stream.put("a", 2)
    async with running(stream, handle) as runner:
        await trio.sleep(1)
        await runner.drain()
        assert ended == [1]
