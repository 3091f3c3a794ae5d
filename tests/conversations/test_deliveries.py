"""Delivery marks are written together, answered after the commit, and told to the sender."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.conversations.kit import NOBODY, Silent, Written, a_group, mark_delivered, sign_up
from tests.conversations.nodes import expect, join, nodes, push
from whispr.adapters.postgres import Postgres
from whispr.conversations.deliveries import Deliveries
from whispr.conversations.store import Watermark
from whispr.errors import WhisprError


class Noting(Silent):
    """An announcer that remembers how far everybody has received."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[str, int]] = []

    def delivered(self, conversation_id: str, user_id: str, mark: Watermark, members: Any = ()) -> None:
        del conversation_id, members
        self.marks.append((user_id, mark.seq))


async def test_marks_of_many_are_few_statements_and_only_the_highest_counts(
    db: Postgres, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message acknowledged by everybody: each hears where they are, all told in a handful of statements."""
    group, people = await a_group(db, 20)
    for _ in range(30):
        await written.send(group, people[0])
    statements = 0
    fetch = db.fetch

    async def counted(sql: str, *args: object) -> Any:
        nonlocal statements
        statements += 1
        return await fetch(sql, *args)

    monkeypatch.setattr(db, "fetch", counted)
    announcer = Noting()
    deliveries = Deliveries(db, announcer)  # type: ignore[arg-type]  # all that is asked of it
    outcomes: list[Watermark | WhisprError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliveries.run)
        for seq in range(1, 31):
            for user_id in people:
                deliveries.mark(group, user_id, seq, outcomes.append)
        with trio.fail_after(10):
            while len(outcomes) < 600:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(reason="marked")
    assert statements <= 3
    assert {outcome.seq for outcome in outcomes if isinstance(outcome, Watermark)} == {30}
    assert sorted(announcer.marks) == sorted((user_id, 30) for user_id in people)


async def test_a_mark_never_goes_back_nor_beyond_what_there_is(db: Postgres, written: Written) -> None:
    """Lower ones change nothing, higher ones stop at the last message; strangers and nothing are refused."""
    group, (one, two) = await a_group(db)
    (stranger,) = await sign_up(db, 1)
    for _ in range(3):
        await written.send(group, one)
    for seq, stands, moved in ((2, 2, True), (1, 2, False), (99, 3, True), (3, 3, False)):
        mark = await mark_delivered(db, group, two, seq)
        assert (mark.seq, mark.moved) == (stands, moved)
    for conversation_id, user_id, reason in ((group, stranger, "not_a_member"), (NOBODY, two, "not_found")):
        with pytest.raises(WhisprError) as refused:
            await mark_delivered(db, conversation_id, user_id, 1)
        assert refused.value.reason == reason


async def test_a_row_that_is_held_is_marked_later(db: Postgres, written: Written) -> None:
    """Marks do not wait for locks: the others are written, and the held one when its holder is done."""
    group, (one, two) = await a_group(db)
    await written.send(group, one)
    announcer = Noting()
    deliveries = Deliveries(db, announcer)  # type: ignore[arg-type]  # all that is asked of it
    free, held = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliveries.run)
        async with db.transaction() as tx:
            await tx.execute(
                "SELECT FROM conversations.members WHERE conversation_id = $1 AND user_id = $2 FOR UPDATE",
                *(group, two),
            )
            deliveries.mark(group, two, 1, lambda _: held.set())
            deliveries.mark(group, one, 1, lambda _: free.set())
            with trio.fail_after(10):
                await free.wait()
            assert not held.is_set()
        with trio.fail_after(10):
            await held.wait()
        nursery.cancel_scope.cancel(reason="marked")
    assert sorted(announcer.marks) == sorted([(one, 1), (two, 1)])


async def test_the_sender_sees_what_has_been_delivered_on_another_node(db: Postgres) -> None:
    """mark_delivered is answered, and becomes delivery_status at the sender, wherever both are."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with (
        nodes(db, 2) as ((here, there), _bus),
        here.server.connect(one) as ones,
        there.server.connect(two) as twos,
    ):
        mine, theirs = await join(ones, topic), await join(twos, topic)
        await push(mine, "send_message", {"text": "there?"})
        assert await push(theirs, "mark_delivered", {"seq": 1}) == {"seq": 1}
        assert await expect(mine, "delivery_status") == {"user_id": two, "seq": 1}
