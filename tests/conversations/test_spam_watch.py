"""Several processes that watch the same room agree, through Redis, on who spreads spam over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import trio
import trio.testing

from whispr.adapters.cache import Cache
from whispr.conversations.domain import Kind, Message
from whispr.conversations.sanctions import Sanctioned
from whispr.conversations.spam import Signal, SpamRules
from whispr.conversations.spam_watch import SpamWatch
from whispr.errors import WhisprError, unavailable
from whispr.ids import new_id

ROOM, SENDER = new_id(), new_id()


class Judge:
    """Stands for the sanctions and for telling of them."""

    def __init__(self) -> None:
        self.judged: list[tuple[str, str, Signal]] = []
        self.told: list[str] = []
        self.error: WhisprError | None = None
        self.tried = trio.Event()
        self.noticed = trio.Event()

    async def by_machine(
        self, room_id: str, user_id: str, signal: Signal, *, bans: bool
    ) -> Sanctioned | None:
        assert bans
        self.tried.set()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.judged.append((room_id, user_id, signal))
        return Sanctioned(None, warning="spam")

    def sanctioned(self, room_id: str, user_id: str, done: Sanctioned) -> None:
        assert (room_id, done.warning) == (ROOM, "spam")
        self.told.append(user_id)
        self.noticed.set()


def messages(count: int, first: int = 0, kind: Kind = Kind.ROOM, message_type: str = "text") -> list[Message]:
    return [
        Message(
            id=new_id(),
            conversation_id=ROOM,
            sender_id=SENDER,
            content=f"message {first + n}".encode(),
            message_type=message_type,
            kind=kind,
            seq=first + n + 1,
            sent_at=datetime.now(UTC),
        )
        for n in range(count)
    ]


@asynccontextmanager
async def watching(cache: Cache, judge: Judge, count: int = 1) -> AsyncIterator[list[SpamWatch]]:
    """Run so many watches, as of so many processes."""
    async with trio.open_nursery() as nursery:
        watches = [
            SpamWatch(judge, judge, cache, SpamRules(), bans=True)  # type: ignore[arg-type]  # stands for both
            for _ in range(count)
        ]
        for watch in watches:
            await nursery.start(watch.run)
        yield watches
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_spam_spread_over_processes_is_found(cache: Cache) -> None:
    """Seventy-five messages over three processes, none of which sees enough by itself, are a sanction."""
    judge = Judge()
    async with watching(cache, judge, 3) as watches:
        for place, watch in enumerate(watches):
            watch.observe(messages(25, 1000 * place))
        with trio.fail_after(20):
            await judge.noticed.wait()
    assert set(judge.told) == {SENDER}


async def test_one_process_finds_a_burst_by_itself(cache: Cache) -> None:
    """A burst in one process is sanctioned; what services say and what is no room is not even looked at."""
    judge = Judge()
    async with watching(cache, judge) as [watch]:
        watch.observe(messages(200, kind=Kind.GROUP))
        watch.observe(messages(200, message_type="system"))
        await trio.testing.wait_all_tasks_blocked()
        assert judge.judged == []
        watch.observe(messages(35))
        with trio.fail_after(20):
            await judge.noticed.wait()
    assert judge.judged == [(ROOM, SENDER, Signal.RATE)]


async def test_a_failed_sanction_does_not_end_the_watch(cache: Cache) -> None:
    """With PostgreSQL away nothing is sanctioned; once it is back, the next burst is."""
    judge = Judge()
    judge.error = unavailable("away")
    async with watching(cache, judge) as [watch]:
        watch.observe(messages(35))
        with trio.fail_after(20):
            await judge.tried.wait()
        judge.error = None
        watch.observe(messages(35, 100))
        with trio.fail_after(20):
            await judge.noticed.wait()
    assert judge.told == [SENDER]


async def test_watching_costs_little(cache: Cache) -> None:
    """Ten thousand messages of a room are scored in well under a second."""
    batch = messages(100)
    async with watching(cache, Judge()) as [watch]:
        began = trio.current_time()
        for _ in range(100):
            watch.observe(batch)
        assert trio.current_time() - began < 1.0
