"""Consumers: at least once, in order, with patience, over any number of processes; on real PostgreSQL and NATS."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import pytest
import trio

from tests.events.kit import (
    LIMITS,
    SUBJECT,
    Noting,
    delete_streams,
    empty_outbox,
    fetched,
    process,
    tell,
)
from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream, Outgoing, StreamLimits
from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import unavailable
from whispr.events import Event, consumers, emit, ledger, metrics, once, runner
from whispr.events.consumers import Consumers
from whispr.events.envelope import encode
from whispr.events.streams import Streams


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases short enough for a test to wait for their end."""
    monkeypatch.setattr(consumers, "LEASE_S", 1.0)
    monkeypatch.setattr(consumers, "RENEW_S", 0.1)
    monkeypatch.setattr(consumers, "MARGIN_S", 0.2)


@pytest.fixture
def quick_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What operators ask for is seen sooner than once a second."""
    monkeypatch.setattr(consumers, "RENEW_S", 0.05)


async def test_events_arrive_in_order_per_subject(db: Postgres, jetstream: JetStream) -> None:
    """What is emitted is handled, once, with its envelope, in the order emitted about each thing."""
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        for n in range(100):
            await tell(db, f"about-{n % 5}", n)
        await noting.until(100)
        for k in range(5):
            assert noting.numbers(f"about-{k}") == list(range(k, 100, 5))
        event = noting.handled[0]
        assert (event.source, event.type, event.version) == ("user", "counted", 1)
        assert event.time.tzinfo is not None
        await fetched(db, "SELECT floor FROM events.positions", 100)


async def test_a_consumer_of_several_streams_hears_its_subjects_alone(
    db: Postgres, jetstream: JetStream
) -> None:
    """Subjects of different streams and wildcards reach one handler; others do not."""
    noting = Noting(subjects=("user.events.counted", "chat.events.*"))
    async with process(db, jetstream, noting.consumer):
        await tell(db, "a", 1)
        await tell(db, "a", 2, "user.events.profile_updated")
        await tell(db, "a", 3, "chat.events.room_created")
        await tell(db, "a", 4, "messaging.events.message_sent")
        await tell(db, "a", 5)
        await noting.until(3)
        await empty_outbox(db)
    assert sorted(noting.numbers()) == [1, 3, 5]


async def test_with_once_an_event_that_comes_twice_has_one_effect(db: Postgres, jetstream: JetStream) -> None:
    """A duplicate that got past JetStream changes nothing."""
    await db.execute("CREATE TABLE sums (n integer)")

    async def add(event: Event) -> None:
        async with db.transaction() as tx:
            if await once(tx, "adding", event.id):
                await tx.execute("INSERT INTO sums VALUES ($1)", event.data["n"])

    noting = Noting("adding", first=add)
    async with process(db, jetstream, noting.consumer):
        await tell(db, "a", 7)
        (event,) = await noting.until(1)
        again = Outgoing("USER_EVENTS", SUBJECT, "another-id", encode(event))
        assert await jetstream.publish([again]) == [None]
        await noting.until(2)
    assert await db.fetchval("SELECT array_agg(n) FROM sums") == [7]


async def test_a_restarted_consumer_goes_on_where_it_was(db: Postgres, jetstream: JetStream) -> None:
    """Positions are kept: what was handled before a restart does not come again."""
    first, second = Noting(), Noting()
    async with process(db, jetstream, first.consumer):
        for n in range(10):
            await tell(db, "a", n)
        await first.until(10)
    async with process(db, jetstream, second.consumer):
        await tell(db, "a", 10)
        await second.until(1)
    assert second.numbers() == [10]


async def test_a_new_consumer_begins_at_the_start_or_with_what_comes(
    db: Postgres, jetstream: JetStream
) -> None:
    """`from_start` says whether what the streams hold already is for it."""
    async with process(db, jetstream):
        await tell(db, "a", 1)
        await empty_outbox(db)
    all_, later = Noting("all"), Noting("later", options={"from_start": False})
    async with process(db, jetstream, all_.consumer, later.consumer):
        await fetched(db, "SELECT count(*) FROM events.positions", 2)
        await tell(db, "a", 2)
        await all_.until(2)
        await later.until(1)
    assert (all_.numbers(), later.numbers()) == ([1, 2], [2])


async def test_processes_that_share_a_consumer_handle_each_event_in_one(
    db: Postgres, jetstream: JetStream
) -> None:
    """One process at a time holds a consumer; when it stops another goes on at once, in order."""
    notings = [Noting(), Noting()]
    async with trio.open_nursery() as nursery:
        async with process(db, jetstream, notings[0].consumer):
            await fetched(db, "SELECT count(*) FROM events.positions", 1)

            async def second(task_status: trio.TaskStatus[Consumers]) -> None:
                async with process(db, jetstream, notings[1].consumer) as running:
                    task_status.started(running)
                    await trio.sleep_forever()

            other = await nursery.start(second)
            for n in range(20):
                await tell(db, "a", n)
            await notings[0].until(20)
            assert other.held == []
            stopped_at = trio.current_time()
        await tell(db, "a", 20)
        await notings[1].until(1)
        assert trio.current_time() - stopped_at < consumers.LEASE_S - 1
        nursery.cancel_scope.cancel(reason="the test is over")
    assert notings[0].numbers() + notings[1].numbers() == list(range(21))


async def test_a_holder_that_cannot_renew_stops_before_another_may_begin(
    db: Postgres, jetstream: JetStream, short_leases: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process cut off from PostgreSQL ends its handlers by the end of its lease; its successor handles all."""
    log: list[str] = []

    async def hang(event: Event) -> None:
        log.append("first begins")
        try:
            await trio.sleep_forever()
        finally:
            log.append("first stopped")

    async def second(event: Event) -> None:
        log.append(f"second handles {event.data['n']}")
        await trio.lowlevel.checkpoint()

    cut_off = Noting(first=hang)
    async with trio.open_nursery() as nursery:
        streams = Streams(jetstream, LIMITS)
        holder = Consumers(db, jetstream, streams, [cut_off.consumer])
        await nursery.start(holder.run)
        async with process(db, jetstream):  # its relay publishes; it has no consumers
            await tell(db, "a", 1)
            with trio.fail_after(20):
                while not log:  # noqa: ASYNC110
                    await trio.sleep(0.01)  # the holder's handler begins
        async with process(db, jetstream, Noting(first=second).consumer):

            async def away(*_: object) -> None:
                await trio.lowlevel.checkpoint()
                raise unavailable("cut off")

            monkeypatch.setattr(holder._ledger, "lease", away)
            monkeypatch.setattr(holder._ledger, "release", away)
            with trio.fail_after(20):
                while len(log) < 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)  # as above
        nursery.cancel_scope.cancel(reason="the test is over")
    assert log == ["first begins", "first stopped", "second handles 1"]


async def test_nats_that_lost_its_data_is_filled_again(db: Postgres, bus: Bus, jetstream: JetStream) -> None:
    """Streams come back by themselves, and consumers read the new ones from their start."""
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        for n in range(5):
            await tell(db, "a", n)
        await noting.until(5)
        await delete_streams(bus)
        for n in range(5, 8):
            await tell(db, "a", n)
        await noting.until(8)
        await fetched(db, "SELECT floor FROM events.positions", 3)
    assert noting.numbers() == list(range(8))


async def test_a_replay_rebuilds_derived_state(
    db: Postgres, jetstream: JetStream, quick_renewals: None
) -> None:
    """Asked to, a consumer empties what it derived and handles its streams again from the start."""
    await db.execute("CREATE TABLE sums (n integer)")

    async def add(event: Event) -> None:
        async with db.transaction() as tx:
            if await once(tx, "summing", event.id):
                await tx.execute("INSERT INTO sums VALUES ($1)", event.data["n"])

    async def reset(tx: Transaction) -> None:
        await tx.execute("DELETE FROM sums")

    noting = Noting("summing", first=add, options={"reset": reset})
    async with process(db, jetstream, noting.consumer):
        for n in range(10):
            await tell(db, f"a{n % 2}", n)
        await noting.until(10)
        await db.execute("UPDATE sums SET n = 1000")
        await db.execute("INSERT INTO sums VALUES (5000)")
        await db.execute("UPDATE events.consumers SET replay_at = now()")
        await noting.until(20)
        assert await db.fetchval("SELECT array_agg(n ORDER BY n) FROM sums") == list(range(10))
        assert await db.fetchval("SELECT replay_at FROM events.consumers") is None
        await tell(db, "a0", 10)
        await noting.until(21)


async def test_a_dead_letter_is_kept_and_can_be_tried_again(
    db: Postgres, jetstream: JetStream, quick_renewals: None
) -> None:
    """What was given up is kept with its error; replayed, it is handled and leaves the dead letters."""
    broken = True

    async def fail(event: Event) -> None:
        await trio.lowlevel.checkpoint()
        if broken and event.data["n"] == 1:
            raise ValueError("the handler has a bug")

    noting = Noting(first=fail, options={"attempts_max": 3})
    async with process(db, jetstream, noting.consumer):
        for n in range(3):
            await tell(db, "a", n)
        await noting.until(2)
        assert noting.numbers() == [0, 2]
        letter = await db.fetchrow("SELECT * FROM events.dead_letters")
        assert letter is not None
        assert (letter["consumer"], letter["attempts"], letter["about"]) == ("noting", 3, "a")
        assert letter["error"] == "ValueError('the handler has a bug')"
        await db.execute("UPDATE events.dead_letters SET replay_at = now()")
        await fetched(db, "SELECT replay_at FROM events.dead_letters", None)
        assert await db.fetchval("SELECT count(*) FROM events.dead_letters") == 1, "it failed again"
        broken = False
        await db.execute("UPDATE events.dead_letters SET replay_at = now()")
        await noting.until(3)
        await fetched(db, "SELECT count(*) FROM events.dead_letters", 0)
    assert noting.numbers() == [0, 2, 1]


async def test_what_the_stream_discarded_is_counted(db: Postgres, bus: Bus) -> None:
    """A consumer that comes too late goes on with what there is, and says how much it may have missed."""
    await delete_streams(bus)
    jetstream = JetStream(bus)
    noting = Noting()
    async with process(db, jetstream, noting.consumer):
        await tell(db, "a", 0)
        await noting.until(1)
    before = metrics.MISSED.labels("noting")._value.get()
    async with process(db, jetstream):
        for n in range(1, 5):
            await tell(db, "a", n)
        await empty_outbox(db)
    purge = b'{"seq": 4}'
    await bus.bridge.call(bus.client.request, "$JS.API.STREAM.PURGE.USER_EVENTS", purge, timeout=5)
    async with process(db, jetstream, noting.consumer):
        await noting.until(3)
    assert noting.numbers() == [0, 3, 4]
    assert metrics.MISSED.labels("noting")._value.get() - before == 2
    await delete_streams(bus)


async def test_what_a_handler_emits_carries_the_trace_of_its_event(
    db: Postgres, jetstream: JetStream
) -> None:
    """A trace goes from call to event to event."""
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def pass_on(event: Event) -> None:
        async with db.transaction() as tx:
            await emit(tx, "chat.events.counted", about=event.subject, data=event.data)

    first, second = Noting("first", first=pass_on), Noting("second", ("chat.events.counted",))
    async with process(db, jetstream, first.consumer, second.consumer):
        await db.execute("SELECT events.emit($1, 'a', NULL, '{\"n\": 1}', $2)", SUBJECT, trace)
        (event,) = await second.until(1)
    assert event.trace == trace


async def test_lag_and_outcomes_are_measured(
    db: Postgres, jetstream: JetStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator sees how far behind a consumer is, and what became of its events."""
    monkeypatch.setattr(runner, "LAG_S", 0.02)
    release = trio.Event()

    async def wait(event: Event) -> None:
        await release.wait()

    noting = Noting("measured", first=wait, options={"concurrency": 1})
    for n in range(7):
        await tell(db, "a", n)
    async with process(db, jetstream):
        await empty_outbox(db)
    async with process(db, jetstream, noting.consumer) as running:
        with trio.fail_after(5):
            while metrics.LAG.labels("measured")._value.get() != 7:  # noqa: ASYNC110
                await trio.sleep(0.01)  # the gauge is set now and then
        assert running.held == ["measured"]
        assert metrics.HELD.labels("measured")._value.get() == 1
        release.set()
        await noting.until(7)
        await fetched(db, "SELECT floor FROM events.positions", 7)
        assert metrics.HANDLED.labels("measured", "ok")._value.get() == 7
    assert metrics.HELD.labels("measured")._value.get() == 0


async def test_limits_reach_the_streams(db: Postgres, jetstream: JetStream, bus: Bus) -> None:
    """What is set is what the server keeps."""
    await Streams(jetstream, StreamLimits(120, 1 << 20, 60)).ensure()
    for name in ("CHAT_EVENTS", "STREAM_EVENTS", "USER_EVENTS", "MESSAGING_EVENTS"):
        answer = await bus.bridge.call(bus.client.request, f"$JS.API.STREAM.INFO.{name}", b"", timeout=5)
        kept = msgspec.json.decode(answer.data)["config"]
        assert (kept["max_age"], kept["max_bytes"], kept["duplicate_window"]) == (
            120 * 10**9,
            1 << 20,
            60 * 10**9,
        )
        assert (kept["discard"], kept["storage"]) == ("old", "file")


async def test_what_was_handled_long_ago_is_forgotten(db: Postgres) -> None:
    """Marks of `once` do not pile up: the old ones go, however many there are, the others stay."""
    await db.execute(
        "INSERT INTO events.handled SELECT 'c', n::text, now() - make_interval(secs => $1)"
        " FROM generate_series(1, $2) AS n",
        float(ledger.HANDLED_KEPT_S + 60), 2 * ledger.PRUNE_LEN + 5,
    )  # fmt: skip
    await db.execute("INSERT INTO events.handled VALUES ('c', 'young')")
    own = ledger.Ledger(db, str(uuid4()))
    assert [await own.prune() for _ in range(3)] == [True, True, False]
    assert await db.fetchval("SELECT array_agg(event_id) FROM events.handled") == ["young"]
