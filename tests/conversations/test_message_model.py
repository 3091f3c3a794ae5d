"""Unread counts, receipts and what people see, against a slow model, over edits, deletions, hiding and expiry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import cast

import pytest
import trio

from tests.conversations.kit import Silent, a_group, mark_delivered, running_log
from whispr.adapters.postgres import Postgres
from whispr.conversations.announcer import Announcer
from whispr.conversations.domain import Limits, NewContent, Role
from whispr.conversations.editing import Editing
from whispr.conversations.expiry import Expiry
from whispr.conversations.membership import Membership
from whispr.conversations.reactions import Reactions
from whispr.conversations.store import Store
from whispr.errors import WhisprError

PEOPLE = 3
WALKS = 12
STEPS = (
    ("send", 6), ("read", 4), ("erase", 3), ("hide", 3), ("expire", 2), ("edit", 2), ("react", 1), ("leave", 1),
    ("join", 2), ("deliver", 1),
)  # fmt: skip


class Model:
    """A conversation as a list."""

    def __init__(self) -> None:
        self.senders: list[int] = []
        self.texts: list[str] = []
        self.gone: set[int] = set()
        self.hidden: dict[int, set[int]] = defaultdict(set)
        self.present = set(range(PEOPLE))
        self.read: dict[int, int] = defaultdict(int)

    def unread(self, who: int) -> int:
        """Others' messages after the watermark that are neither erased nor hidden, counted one by one."""
        return sum(
            1
            for seq, sender in enumerate(self.senders, 1)
            if seq > self.read[who] and sender != who and seq not in self.gone | self.hidden[who]
        )

    def erase(self, seq: int) -> None:
        if seq not in self.gone:
            self.gone.add(seq)
            for hidden in self.hidden.values():
                hidden.discard(seq)

    def sees(self, who: int) -> list[tuple[int, str]]:
        return [
            (seq, "" if seq in self.gone else text)
            for seq, text in enumerate(self.texts, 1)
            if seq not in self.hidden[who]
        ]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 8))])
async def test_counts_and_histories_follow_the_model(db: Postgres, seed: int) -> None:
    """After any history of sends, edits, deletions, hiding, expiry, reads and leaving, each sees what is right."""
    random = Random(seed)
    for _ in range(WALKS):
        names, weights = zip(*STEPS, strict=True)
        steps = [
            (name, random.randrange(PEOPLE), random.randint(0, 9))
            for name in random.choices(names, weights, k=random.randint(5, 40))
        ]
        try:
            await walk(db, steps)
        except AssertionError as error:
            error.add_note(f"steps: {steps}")
            raise


async def walk(db: Postgres, steps: list[tuple[str, int, int]]) -> None:
    group, people = await a_group(db, PEOPLE)
    silent = cast("Announcer", Silent())
    store, membership = Store(db, Limits()), Membership(db, Limits())
    editing, reactions, expiry = (
        Editing(db, silent, Limits()),
        Reactions(db, silent, Limits()),
        Expiry(db, silent),
    )
    model = Model()
    ids: list[str] = []
    async with running_log(db) as written:
        for n, (step, who, number) in enumerate(steps):
            me = people[who]
            if step == "join":
                await membership.add(group, people[0], [me], Role.MEMBER)
                if who not in model.present:
                    model.present.add(who)
                    model.read[who] = len(ids)
            elif who not in model.present:
                continue
            elif step == "leave" and who:
                await membership.remove(group, people[0], me)
                model.present.discard(who)
            elif step == "send":
                ids.append((await written.send(group, me, f"{n}")).id)
                model.senders.append(who)
                model.texts.append(f"{n}")
            elif step == "read":
                mark = await store.mark_read(group, me, number)
                model.read[who] = max(model.read[who], min(number or len(ids), len(ids)))
                assert (mark.seq, mark.unread_count) == (model.read[who], model.unread(who))
            elif step == "deliver":
                await mark_delivered(db, group, me, number + 1)
            elif 0 < number <= len(ids):
                await change(
                    db, step, group, ids[number - 1], people, who, number, model, editing, reactions, expiry
                )
        for who in model.present:
            (listed,), _ = await store.conversations(people[who], 0, "")
            assert listed.unread_count == model.unread(who), f"person {who}"
            page = await store.messages(group, people[who], after_seq=0)
            assert [(m.seq, m.content.decode()) for m in page.messages] == model.sees(who)
        counters = await store.counters(group, people[0])
        assert counters.message_count == len(ids) - len(model.gone)


async def change(
    db: Postgres, step: str, group: str, message_id: str, people: list[str], who: int, seq: int, model: Model,
    editing: Editing, reactions: Reactions, expiry: Expiry,
) -> None:  # fmt: skip
    """Do one thing to a message; what is refused must be what the model would refuse."""
    me, there = people[who], seq not in model.gone
    visible, own = seq not in model.hidden[who], model.senders[seq - 1] == who
    if step == "erase":
        with allowed(visible and (own or who == 0 or not there)):
            await editing.delete(group, message_id, me, for_everyone=True)
            model.erase(seq)
    elif step == "hide":
        await editing.delete(group, message_id, me, for_everyone=False)
        model.hidden[who].add(seq)
    elif step == "expire":
        due = "UPDATE conversations.messages SET expires_at = now() WHERE id = $1 AND deleted_at IS NULL"
        await db.execute(due, message_id)
        await expiry.sweep()
        model.erase(seq)
    elif step == "edit":
        with allowed(visible and own and there):
            await editing.edit(group, message_id, me, NewContent(f"edited by {who}".encode(), {}))
            model.texts[seq - 1] = f"edited by {who}"
    else:
        with allowed(visible and there):
            await reactions.add(group, message_id, me, "🎉")


@contextmanager
def allowed(expected: bool) -> Iterator[None]:
    """The block must succeed, or must be refused."""
    if expected:
        yield
        return
    with pytest.raises(WhisprError) as refused:
        yield
    assert refused.value.reason in ("not_editable", "not_deletable", "not_found")


async def test_deleting_while_reading_and_hiding_keeps_the_count_exact(db: Postgres) -> None:
    """Deletions for everyone, hiding and reads of several devices at once leave exactly the right count."""
    group, (one, two) = await a_group(db)
    silent = cast("Announcer", Silent())
    store, editing = Store(db, Limits()), Editing(db, silent, Limits())
    async with running_log(db) as written:
        sent = [await written.send(group, sender) for sender in (one, two) * 30]

        async def erase() -> None:
            for message in sent[::3]:
                await editing.delete(group, message.id, message.sender_id, for_everyone=True)

        async def hide() -> None:
            for message in sent[1::2]:
                await editing.delete(group, message.id, one, for_everyone=False)

        async def read(until: int) -> None:
            for seq in range(1, until):
                await store.mark_read(group, one, seq)

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(erase)
                nursery.start_soon(hide)
                nursery.start_soon(read, 40)
        mark = await store.mark_read(group, one, 1)
        shown = (await store.messages(group, one, after_seq=mark.seq)).messages
    left = [m for m in shown if m.sender_id != one and m.deleted_at is None]
    assert mark.unread_count == len(left)
    assert (await store.mark_read(group, one, 0)).unread_count == 0
    seat = "SELECT uncounted FROM conversations.members WHERE conversation_id = $1 AND user_id = $2"
    assert await db.fetchval(seat, group, one) == 0


async def test_tombstones_are_counted_without_reading_them(db: Postgres) -> None:
    """Erased messages after any seq are counted right over the bounds of stretches."""
    group, (one, two) = await a_group(db)
    await db.execute(
        "INSERT INTO conversations.messages (conversation_id, seq, id, sender_id, message_type, content, sent_at)"
        " SELECT $1, n, gen_random_uuid(), $2, 'text', 'x', now() FROM generate_series(1, 10000) AS n",
        *(group, two),
    )
    await db.execute("UPDATE conversations.conversations SET last_seq = 10000 WHERE id = $1", group)
    await db.fetch(
        "SELECT * FROM conversations.erase($1, ARRAY(SELECT generate_series(1, 10000, 7)), $2)", group, two
    )
    for seq in (0, 1, 4095, 4096, 4097, 8191, 8192, 9999, 10000):
        counted = await db.fetchval("SELECT conversations.erased_after($1, $2)", group, seq)
        assert counted == len([n for n in range(1, 10001, 7) if n > seq]), seq
    assert (await Store(db, Limits()).mark_read(group, one, 5000)).unread_count == 5000 - len(
        [n for n in range(1, 10001, 7) if n > 5000]
    )
