"""The message log on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from tests.conversations.kit import NOBODY, Written, a_group, draft, running_log, sign_up
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import Bridge
from whispr.conversations.domain import Limits
from whispr.conversations.membership import Membership
from whispr.errors import Code, WhisprError, unavailable
from whispr.resilience.retry import BREAKER_OPEN


class Between:
    """A database with something in between: `before` and `after` run around each append statement."""

    def __init__(self, db: Postgres) -> None:
        self.db = db
        self.before: Callable[[], Any] | None = None
        self.after: Callable[[], Any] | None = None
        self.statements = 0

    async def fetch(self, sql: str, /, *args: Any) -> Sequence[Any]:
        self.statements += 1
        before, self.before = self.before, None
        if before is not None:
            await before()
        rows = await self.db.fetch(sql, *args)
        after, self.after = self.after, None
        if after is not None:
            await after()
        return rows


async def stored(db: Postgres, conversation_id: str) -> list[tuple[int, bytes]]:
    rows = await db.fetch(
        "SELECT seq, content FROM conversations.messages WHERE conversation_id = $1 ORDER BY seq",
        conversation_id,
    )
    return [(row["seq"], row["content"]) for row in rows]


async def test_appends_are_numbered_in_order_without_gaps(db: Postgres, written: Written) -> None:
    """Messages of one conversation get 1, 2, 3, … in the order of the appends, and are announced so."""
    conversation, (one, two) = await a_group(db)
    tickets = [written.log.append(draft(conversation, (one, two)[n % 2], str(n))) for n in range(600)]
    messages = [await ticket.wait() for ticket in tickets]
    assert [m.seq for m in messages] == list(range(1, 601))
    assert [m.content for m in messages] == [str(n).encode() for n in range(600)]
    assert written.committed == messages
    assert len(written.batches) < 10, "they were written one by one"
    assert await stored(db, conversation) == [(m.seq, m.content) for m in messages]


async def test_two_processes_number_one_conversation_together(
    db: Postgres, bridge: Bridge, postgres_url: str
) -> None:
    """Two logs on two pools appending to the same conversations leave no gap and no duplicate number."""
    groups = [await a_group(db) for _ in range(3)]
    sent: list[tuple[str, int]] = []

    async def send(written: Written, share: int) -> None:
        for n in range(100):
            conversation, people = groups[n % 3]
            message = await written.send(conversation, people[share])
            sent.append((conversation, message.seq))

    async with (
        open_postgres(bridge, postgres_url) as other_db,
        running_log(db) as here,
        running_log(other_db) as there,
        trio.open_nursery() as nursery,
    ):
        for written, share in ((here, 0), (there, 1)):
            for _ in range(3):
                nursery.start_soon(send, written, share)
    for conversation, _ in groups:
        seqs = sorted(seq for named, seq in sent if named == conversation)
        assert seqs == list(range(1, len(seqs) + 1))
    assert len(sent) == 600


async def test_times_do_not_run_backwards(db: Postgres, written: Written) -> None:
    """`sent_at` never decreases along seq, even when the clock was ahead before."""
    conversation, (one, _) = await a_group(db)
    await db.execute(
        "UPDATE conversations.conversations SET last_message_at = now() + interval '1 hour' WHERE id = $1",
        conversation,
    )
    first, second = await written.send(conversation, one), await written.send(conversation, one)
    assert first.sent_at <= second.sent_at
    assert second.sent_at == await db.fetchval("SELECT last_message_at FROM conversations.conversations")


async def test_everything_of_a_message_is_kept(db: Postgres, written: Written) -> None:
    """Every field comes back from a repeat as it was sent."""
    conversation, (one, _) = await a_group(db)
    first = await written.send(conversation, one)
    fields: dict[str, Any] = {
        "message_type": "media",
        "metadata": {"ключ": "värde"},
        "client_id": "c-1",
        "reply_to_id": first.id,
        "signature": b"\x00\xff",
        "sender_public_key": b"\x01",
    }
    sent = await written.send(conversation, one, "a\0b", **fields)
    again = written.log.append(draft(conversation, one, "a\0b", **fields))
    assert await again.wait() == sent
    assert not again.original


async def test_a_repeat_returns_the_original_and_is_not_announced(db: Postgres, written: Written) -> None:
    """The same client_id and body, later or at the same time, is one message, announced once."""
    conversation, (one, two) = await a_group(db)
    drafts = [draft(conversation, one, "hi", client_id="c") for _ in range(3)]
    together = [written.log.append(each) for each in drafts]
    messages = [await ticket.wait() for ticket in together]
    messages.append(await written.send(conversation, one, "hi", client_id="c"))
    assert {m.id for m in messages} == {drafts[0].id}
    assert [ticket.original for ticket in together] == [True, False, False]
    assert len(written.committed) == 1
    other = await written.send(conversation, two, "hi", client_id="c")
    assert other.seq == 2, "a client_id is its sender's own"


async def test_a_client_id_used_for_another_message_is_refused(db: Postgres, written: Written) -> None:
    """The same client_id with another body is ALREADY_EXISTS duplicate_mismatch, at once and later."""
    conversation, (one, _) = await a_group(db)
    first = written.log.append(draft(conversation, one, "this", client_id="c"))
    second = written.log.append(draft(conversation, one, "that", client_id="c"))
    await first.wait()
    for attempt in (second.wait, lambda: written.send(conversation, one, "that", client_id="c")):
        with pytest.raises(WhisprError) as refused:
            await attempt()
        assert refused.value.code is Code.ALREADY_EXISTS
        assert refused.value.reason == "duplicate_mismatch"
    assert len(await stored(db, conversation)) == 1


async def test_a_repeat_of_a_refused_send_is_judged_by_itself(db: Postgres, written: Written) -> None:
    """A client_id whose first use was refused is free: the later send of the same moment goes through."""
    conversation, (one, _) = await a_group(db)
    refused = written.log.append(draft(NOBODY, one, client_id="c"))
    follower = written.log.append(draft(conversation, one, client_id="c"))
    with pytest.raises(WhisprError, match="no such conversation"):
        await refused.wait()
    assert (await follower.wait()).seq == 1


async def test_two_processes_store_a_repeat_once(db: Postgres, bridge: Bridge, postgres_url: str) -> None:
    """The same client_id sent to two processes at once, to one conversation each, is one message."""
    one = (await sign_up(db, 1))[0]
    membership = Membership(db, Limits())
    groups = [await membership.open_group(one, [], str(n), {}) for n in range(2)]
    async with (
        open_postgres(bridge, postgres_url) as other_db,
        running_log(db) as here,
        running_log(other_db) as there,
    ):
        for n in range(20):
            drafts = [draft(group, one, client_id=f"c{n}") for group in groups]
            tickets = [here.log.append(drafts[0]), there.log.append(drafts[1])]
            outcomes = []
            for ticket in tickets:
                try:
                    outcomes.append(await ticket.wait())
                except WhisprError as error:
                    assert error.reason == "duplicate_mismatch"  # noqa: PT017  # one of the two, not known which
            assert len(outcomes) == 1
    assert await db.fetchval("SELECT count(*) FROM conversations.messages") == 20


async def test_strangers_and_the_removed_are_refused(db: Postgres, written: Written) -> None:
    """Only present members append; neighbours in the batch are not harmed, and no number is lost."""
    conversation, (one, two) = await a_group(db)
    stranger = (await sign_up(db, 1))[0]
    await Membership(db, Limits()).remove(conversation, one, two)
    senders = [one, stranger, one, two, one]
    tickets = [written.log.append(draft(conversation, sender)) for sender in senders]
    outcomes: list[object] = []
    for ticket in tickets:
        try:
            outcomes.append((await ticket.wait()).seq)
        except WhisprError as error:
            outcomes.append(error.reason)
    assert outcomes == [1, "not_a_member", 2, "not_a_member", 3]
    with pytest.raises(WhisprError) as unknown:
        await written.send(NOBODY, one)
    assert unknown.value.code is Code.NOT_FOUND


async def test_a_reply_is_to_a_message_of_the_same_conversation(db: Postgres, written: Written) -> None:
    """reply_to_id names a message of this conversation, or the send is INVALID_ARGUMENT."""
    here, (one, _) = await a_group(db)
    there = await Membership(db, Limits()).open_group(one, [], "", {})
    elsewhere = await written.send(there, one)
    for target in (elsewhere.id, NOBODY):
        with pytest.raises(WhisprError) as refused:
            await written.send(here, one, reply_to_id=target)
        assert "reply_to_id" in refused.value.fields


async def test_a_poison_message_fails_alone(db: Postgres, written: Written) -> None:
    """A message that PostgreSQL cannot take fails by itself; the rest of its batch is stored in order."""
    conversation, (one, _) = await a_group(db)
    drafts = [draft(conversation, one, str(n)) for n in range(20)]
    drafts[13] = draft(conversation, one, "poison", metadata={"k": "\0"})
    tickets = [written.log.append(each) for each in drafts]
    with pytest.raises(WhisprError) as refused:
        await tickets[13].wait()
    assert refused.value.code is Code.INTERNAL
    seqs = [(await ticket.wait()).seq for n, ticket in enumerate(tickets) if n != 13]
    assert seqs == list(range(1, 20))
    assert [m.seq for m in written.committed] == seqs


async def test_a_killed_connection_stores_and_announces_once(
    db: Postgres, bridge: Bridge, postgres_url: str
) -> None:
    """Connections killed under load: every append succeeds, exactly once, in order, announced once."""
    conversation, (one, _) = await a_group(db)
    async with open_postgres(bridge, postgres_url) as own_db, running_log(own_db) as written:
        kills = 0
        tickets = [written.log.append(draft(conversation, one, "first"))]
        await tickets[0].wait()
        while kills < 8:
            tickets += [written.log.append(draft(conversation, one, str(i))) for i in range(100)]
            kills += await db.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND query LIKE '%conversations.append%'"
            )
            await tickets[-50].wait()
        messages = [await ticket.wait() for ticket in tickets]
    assert len(messages) > 800
    assert [m.seq for m in messages] == list(range(1, len(messages) + 1))
    assert written.committed == messages
    assert await stored(db, conversation) == [(m.seq, m.content) for m in messages]


async def test_a_commit_whose_answer_was_lost_is_found(db: Postgres) -> None:
    """When the commit succeeded but its answer was lost, the retry finds it: stored and announced once."""
    conversation, (one, _) = await a_group(db)
    between = Between(db)

    async def lose() -> None:
        raise unavailable("the connection broke")

    async with running_log(between) as written:
        between.after = lose
        message = await written.send(conversation, one)
        assert between.statements == 2
    assert [m.id for m in written.committed] == [message.id]
    assert await stored(db, conversation) == [(1, b"hello")]


async def test_a_deadline_is_told_and_what_was_stored_is_still_announced(db: Postgres) -> None:
    """A sender whose deadline passes hears UNAVAILABLE; if the message was stored, listeners hear of it."""
    conversation, (one, _) = await a_group(db)
    between = Between(db)

    async with running_log(between) as written:
        between.after = trio.sleep_forever
        ticket = written.log.append(draft(conversation, one, "kept"), deadline=trio.current_time() + 0.1)
        with pytest.raises(WhisprError) as late:
            await ticket.wait()
        assert late.value.code is Code.UNAVAILABLE
        following = await written.send(conversation, one, "next")
    assert following.seq == 2
    assert [m.content for m in written.committed] == [b"kept", b"next"]


async def test_a_message_that_missed_its_deadline_is_not_stored_later(db: Postgres) -> None:
    """What was told UNAVAILABLE before it was stored is not stored by a later attempt."""
    conversation, (one, _) = await a_group(db)
    between = Between(db)

    async with running_log(between, lanes=1) as written:
        between.before = trio.sleep_forever
        blocked = written.log.append(draft(conversation, one, "in time?"), deadline=trio.current_time() + 0.1)
        queued = written.log.append(draft(conversation, one, "queued"), deadline=trio.current_time() + 0.1)
        for ticket in (blocked, queued):
            with pytest.raises(WhisprError, match="in time"):
                await ticket.wait()
        assert (await written.send(conversation, one, "later")).seq == 1
    assert await stored(db, conversation) == [(1, b"later")]


async def test_cancelling_the_wait_does_not_unsend(db: Postgres, written: Written) -> None:
    """A caller that goes away leaves its message: it is stored and announced."""
    conversation, (one, _) = await a_group(db)
    ticket = written.log.append(draft(conversation, one))
    with trio.CancelScope() as scope:
        scope.cancel(reason="the caller goes away")
        await ticket.wait()
    assert scope.cancelled_caught
    await written.log.drain()
    assert [m.seq for m in written.committed] == [1]


async def test_a_full_queue_says_so(db: Postgres) -> None:
    """Past its bounds, in messages or bytes, the log refuses with UNAVAILABLE and a time to retry."""
    conversation, (one, _) = await a_group(db)
    async with running_log(db, batch_len_max=2, queue_len_max=3, queue_bytes_max=1000) as written:
        tickets = [written.log.append(draft(conversation, one)) for _ in range(3)]
        with pytest.raises(WhisprError) as full:
            written.log.append(draft(conversation, one))
        assert full.value.code is Code.UNAVAILABLE
        assert full.value.retry_after_s
        assert [(await ticket.wait()).seq for ticket in tickets] == [1, 2, 3]
        with pytest.raises(WhisprError, match="too many"):
            written.log.append(draft(conversation, one, "x" * 1001))
        assert (await written.send(conversation, one)).seq == 4


async def test_a_stopped_log_fails_what_is_left(db: Postgres) -> None:
    """Cancelling the log fails the appends it still holds, and later ones."""
    conversation, (one, _) = await a_group(db)
    between = Between(db)
    between.before = trio.sleep_forever
    async with running_log(between) as written:
        ticket = written.log.append(draft(conversation, one))
        await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(WhisprError, match="stopping"):
        ticket.result()
    with pytest.raises(WhisprError, match="stopping"):
        written.log.append(draft(conversation, one))


async def test_a_failing_listener_does_not_fail_the_senders(db: Postgres, written: Written) -> None:
    """Once stored, a message is acknowledged, whatever becomes of its announcement."""
    conversation, (one, _) = await a_group(db)
    written.log._on_committed = lambda _: 1 / 0  # type: ignore[assignment]
    assert (await written.send(conversation, one)).seq == 1
    assert (await written.send(conversation, one)).seq == 2


@pytest.mark.parametrize("processed", ["no", "maybe"])
async def test_nobody_waits_for_a_postgres_that_is_away(db: Postgres, processed: str) -> None:
    """Once its breaker is open whoever waits, and whoever comes, is told so; then it goes on, nothing twice."""
    conversation, (one, _) = await a_group(db)
    between = Between(db)
    facts = {"dependency": "postgres", "processed": processed}

    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        raise unavailable("postgres keeps failing", facts=facts, reason=BREAKER_OPEN)

    async with running_log(between) as written:
        between.before = refuse
        tickets = [written.log.append(draft(conversation, one, str(n), client_id=str(n))) for n in range(3)]
        for ticket in tickets:
            with pytest.raises(WhisprError) as refused:
                await ticket.wait()
            assert refused.value.reason == BREAKER_OPEN
        with trio.fail_after(30):
            while True:
                try:
                    await written.send(conversation, one, "0", client_id="0")
                except WhisprError as error:
                    assert error.reason == BREAKER_OPEN  # noqa: PT017  # until what is unknown has been looked up
                    await trio.sleep(0.01)
                else:
                    break
    assert await stored(db, conversation) == [(1, b"0")]
