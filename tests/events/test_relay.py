"""The relay: everything committed is in its stream once, in order, whatever happens between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs

from tests.events.kit import LIMITS, SUBJECT, delete_streams, empty_outbox, fetched, process, tell
from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream, Outgoing, Stored
from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import Code, WhisprError, unavailable
from whispr.events import Batch, Event, emit, emit_batch, metrics, relay
from whispr.events.envelope import decode
from whispr.events.relay import Relay
from whispr.events.streams import Streams
from whispr.resilience.retry import Backoff


async def stored(jetstream: JetStream, count: int, stream: str = "USER_EVENTS") -> list[Event]:
    """Read that many events of a stream, from its start."""
    subject = f"{stream.partition('_')[0].lower()}.events.>"
    async with jetstream.read(stream, "test", [subject], 1) as reader:
        with trio.fail_after(10):
            found: list[Stored] = [await anext(reader) for _ in range(count)]
    return [decode(each.payload) for each in found]


def numbers(events: Sequence[Event]) -> list[int]:
    return [event.data["n"] for event in events]


async def length(jetstream: JetStream, stream: str = "USER_EVENTS") -> int:
    state = await jetstream.state(stream)
    assert state is not None
    return state.last_seq


@asynccontextmanager
async def relaying(*relays: Relay) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for each in relays:
            await nursery.start(each.run)
        yield
        nursery.cancel_scope.cancel(reason="the test is over")


class Fragile(JetStream):
    """Loses the messages at some places of its first batches, on the way or on the way back."""

    def __init__(self, bus: Bus, lost: Sequence[int] = (), unanswered: Sequence[int] = ()) -> None:
        super().__init__(bus)
        self.lost, self.unanswered = list(lost), list(unanswered)

    async def publish(self, messages: Sequence[Outgoing]) -> list[WhisprError | None]:
        at = self.lost.pop() if self.lost else None
        sent = [m._replace(subject="nowhere") if n == at else m for n, m in enumerate(messages)]
        outcomes = await super().publish(sent)
        if self.unanswered and (quiet := self.unanswered.pop()) < len(outcomes):
            outcomes[quiet] = unavailable("no answer")
        return outcomes


async def test_what_is_committed_is_published_in_order_and_leaves_the_outbox(
    db: Postgres, jetstream: JetStream
) -> None:
    """Events of several streams, in each in the order emitted; soon, without waiting for the next poll."""
    async with process(db, jetstream):
        await tell(db, "a", 0)
        await empty_outbox(db)
        began = trio.current_time()
        for n in range(1, 30):
            await tell(db, "a", n)
            await tell(db, "c", n, "chat.events.room_created")
        await empty_outbox(db)
        assert trio.current_time() - began < relay.POLL_S
    assert numbers(await stored(jetstream, 30)) == list(range(30))
    assert numbers(await stored(jetstream, 29, "CHAT_EVENTS")) == list(range(1, 30))


async def test_what_others_committed_is_found_by_looking(db: Postgres, jetstream: JetStream) -> None:
    """An event that rings no bell here is published at the next poll."""
    async with process(db, jetstream):
        await empty_outbox(db)
        await db.execute("SELECT events.emit($1, 'a', NULL, '{\"n\": 1}')", SUBJECT)
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 1)) == [1]


@pytest.mark.parametrize(("lost", "unanswered"), [([0], []), ([5, 3], []), ([], [0, 9]), ([1, 2, 7], [4, 4])])
async def test_what_is_lost_on_the_way_is_sent_again_in_order(
    db: Postgres, bus: Bus, jetstream: JetStream, streams: Streams, lost: list[int], unanswered: list[int]
) -> None:
    """Messages lost before or after the server stored them: each is in the stream once, none out of order."""
    for n in range(12):
        await tell(db, "a", n)
    async with relaying(Relay(db, Fragile(bus, lost, unanswered), streams)):
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 12)) == list(range(12))
    assert await length(jetstream) == 12


async def test_any_number_of_relays_publish_each_event_once(
    db: Postgres, jetstream: JetStream, streams: Streams
) -> None:
    """Processes take turns; together they publish everything once, in order."""
    async with relaying(*(Relay(db, jetstream, streams) for _ in range(3))):
        for n in range(60):
            await tell(db, "a", n)
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 60)) == list(range(60))
    assert await length(jetstream) == 60


async def test_a_relay_that_dies_before_deleting_leaves_no_duplicates(
    db: Postgres, jetstream: JetStream, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published and not deleted: the next one publishes again, and JetStream knows the ids."""

    async def die(*_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise unavailable("the connection broke")

    for n in range(5):
        await tell(db, "a", n)
    with monkeypatch.context() as patched, pytest.raises(WhisprError):
        patched.setattr(Relay, "_delete", die)
        await streams.ensure()
        await Relay(db, jetstream, streams)._turn()
    assert await length(jetstream) == 5
    assert await db.fetchval("SELECT count(*) FROM events.outbox") == 5
    await tell(db, "a", 5)
    async with relaying(Relay(db, jetstream, streams)):
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 6)) == list(range(6))
    assert await length(jetstream) == 6


async def expand(tx: Transaction, batches: Sequence[Batch]) -> list[list[Event]]:
    """Make an event for each number of a batch."""
    base = await tx.fetchval("SELECT 100")
    return [
        [
            Event(
                id=f"{batch.id}-{n}", type="counted", time=batch.time, source="user",
                subject=f"a{n % 2}", trace=batch.trace, data={"n": base + n},
            )
            for n in batch.data["numbers"]
        ]
        for batch in batches
    ]  # fmt: skip


async def test_a_batch_becomes_its_events_in_its_place(db: Postgres, jetstream: JetStream) -> None:
    """A row that stands for many is expanded when it is published, between what was before and after it."""
    await tell(db, "a0", 1)
    async with db.transaction() as tx:
        await emit_batch(tx, "numbers", data={"numbers": [1, 2, 3]})
    await tell(db, "a0", 2)
    async with process(db, jetstream, expanders={"numbers": expand}):
        await empty_outbox(db)
    events = await stored(jetstream, 5)
    assert numbers(events) == [1, 101, 102, 103, 2]
    assert [event.subject for event in events] == ["a0", "a1", "a0", "a1", "a0"]


async def test_a_batch_larger_than_a_turn_goes_whole(db: Postgres, jetstream: JetStream) -> None:
    """However many events a row stands for, they are published and it leaves the outbox."""
    many = list(range(2 * relay.EVENTS_MAX))
    async with db.transaction() as tx:
        await emit_batch(tx, "numbers", data={"numbers": many})
    async with process(db, jetstream, expanders={"numbers": expand}):
        await empty_outbox(db)
    assert numbers(await stored(jetstream, len(many))) == [100 + n for n in many]


async def test_an_unknown_expander_is_left_to_a_process_that_knows_it(
    db: Postgres, jetstream: JetStream
) -> None:
    """During an upgrade the older process publishes up to the row it does not understand, and no further."""
    await tell(db, "a", 1)
    async with db.transaction() as tx:
        await emit_batch(tx, "numbers", data={"numbers": [1]})
    await tell(db, "a", 2)
    async with process(db, jetstream):
        await fetched(db, "SELECT count(*) FROM events.outbox", 2)
        async with process(db, jetstream, expanders={"numbers": expand}):
            await empty_outbox(db)
    assert numbers(await stored(jetstream, 3)) == [1, 101, 2]


async def test_an_expander_that_keeps_failing_blocks_nothing_for_ever(
    db: Postgres, jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some attempts the row is a dead letter, and what is behind it goes on."""
    monkeypatch.setattr(relay, "RETRY", Backoff(0.001, 0.001))

    async def fail(tx: Transaction, batches: Sequence[Batch]) -> list[list[Event]]:
        if any(batch.data["numbers"] == [1] for batch in batches):
            raise KeyError("bug")
        return await expand(tx, batches)

    async with db.transaction() as tx:
        for n in (0, 1, 3):
            await emit_batch(tx, "numbers", data={"numbers": [n]})
    await tell(db, "a", 2)
    async with process(db, jetstream, expanders={"numbers": fail}):
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 3)) == [100, 103, 2]
    letter = await db.fetchrow("SELECT * FROM events.dead_letters")
    assert letter is not None
    assert (letter["consumer"], letter["attempts"]) == ("relay", relay.EXPAND_ATTEMPTS_MAX)
    assert "bug" in letter["error"]


async def test_an_event_too_large_for_nats_is_a_dead_letter(db: Postgres, jetstream: JetStream) -> None:
    """What no attempt will publish is kept for an operator; the events around it are published."""
    await tell(db, "a", 1)
    async with db.transaction() as tx:
        large = await emit(tx, SUBJECT, about="a", data={"n": 2, "filler": "x" * (2 << 20)})
    await tell(db, "a", 3)
    async with process(db, jetstream):
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 2)) == [1, 3]
    letters = await db.fetch("SELECT consumer, event_id, about FROM events.dead_letters")
    assert [tuple(letter) for letter in letters] == [("relay", large, "a")]


async def test_streams_that_vanish_are_made_again(db: Postgres, bus: Bus, jetstream: JetStream) -> None:
    """NATS that lost its data gets its streams back, and what was in the outbox is published."""
    async with process(db, jetstream):
        await tell(db, "a", 1)
        await empty_outbox(db)
        await delete_streams(bus)
        for n in (2, 3, 4):
            await tell(db, "a", n)
        await empty_outbox(db)
    assert numbers(await stored(jetstream, 3)) == [2, 3, 4]


async def test_nats_away_the_outbox_holds_and_says_how_far_behind_it_is(db: Postgres, bus: Bus) -> None:
    """Emitting goes on without NATS; the gauges tell an operator; nothing is given up."""

    class Away(JetStream):
        async def publish(self, messages: Sequence[Outgoing]) -> list[WhisprError | None]:
            await trio.lowlevel.checkpoint()
            raise unavailable("NATS is away")

    await tell(db, "a", 1)
    await db.execute("UPDATE events.outbox SET emitted_at = emitted_at - interval '1 minute'")
    away = Away(bus)
    streams = Streams(away, LIMITS)
    with pytest.raises(WhisprError) as error:
        await Relay(db, away, streams)._bounded_turn()
    assert error.value.code is Code.UNAVAILABLE
    assert await db.fetchval("SELECT count(*) FROM events.outbox") == 1
    async with relaying(Relay(db, away, streams)):
        with trio.fail_after(5):
            while not 60 <= metrics.OUTBOX_LAG._value.get() < 120:  # noqa: ASYNC110
                await trio.sleep(0.01)  # the gauges are set now and then
    assert metrics.OUTBOX_ROWS._value.get() == 1


async def test_a_long_outage_does_not_fill_the_log(
    db: Postgres, jetstream: JetStream, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures in a row are told of ever more seldom, with how many there were; so is their end."""
    monkeypatch.setattr(relay, "RETRY", Backoff(0.0001, 0.0001))
    own = Relay(db, jetstream, streams)
    outcomes: Iterator[WhisprError | int] = iter([*[unavailable("NATS is away")] * 9, 1])

    async def turn() -> int:
        await trio.lowlevel.checkpoint()
        outcome = next(outcomes)
        if isinstance(outcome, WhisprError):
            raise outcome
        return outcome

    monkeypatch.setattr(own, "_bounded_turn", turn)
    with capture_logs() as logs:
        for _ in range(10):
            await own._once()
    assert [entry["times"] for entry in logs if entry["event"] == "relay_waits"] == [1, 2, 4, 8]
    assert [entry["after_failures"] for entry in logs if entry["event"] == "relay_goes_on"] == [9]
