"""Watermarks and unread counts against a simple model, races, and the plans of the request paths."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from random import Random

import pytest
import trio

from tests.conversations.kit import a_group, draft, mark_delivered, running_log, sign_up
from whispr.adapters.postgres import Postgres
from whispr.conversations import (
    attachments,
    deliveries,
    expander,
    expiry,
    history,
    reactions,
    reordering,
    schedule,
    search,
    search_index,
    snapshots,
    sync,
    targets,
)
from whispr.conversations import store as statements
from whispr.conversations.domain import Limits, Role
from whispr.conversations.membership import Membership
from whispr.conversations.store import Store
from whispr.ids import new_id

PEOPLE = 3
WALKS = 25


def random_steps(random: Random) -> list[tuple[str, int, int]]:
    """Make up what three people do, the first of whom stays."""
    kinds = random.choices(
        ("send", "read", "deliver", "leave", "join"), (5, 4, 2, 1, 2), k=random.randint(1, 30)
    )
    return [
        (kind, random.randrange(1 if kind in ("leave", "join") else 0, PEOPLE), random.randint(0, 12))
        for kind in kinds
    ]


class Model:
    """What the counts should be, the slow way."""

    def __init__(self) -> None:
        self.senders: list[int] = []
        self.present = set(range(PEOPLE))
        self.read: dict[int, int] = defaultdict(int)
        self.delivered: dict[int, int] = defaultdict(int)

    def unread(self, who: int) -> int:
        return sum(1 for sender in self.senders[self.read[who] :] if sender != who)

    def mark_read(self, who: int, seq: int) -> None:
        self.read[who] = max(self.read[who], min(seq or len(self.senders), len(self.senders)))
        self.delivered[who] = max(self.delivered[who], self.read[who])

    def join(self, who: int) -> None:
        if who not in self.present:
            self.present.add(who)
            self.read[who] = self.delivered[who] = len(self.senders)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 8))])
async def test_watermarks_and_unread_counts_follow_the_model(db: Postgres, seed: int) -> None:
    """After any history of sends, reads, leaves and joins: unread is others' messages after the watermark."""
    random = Random(seed)
    for _ in range(WALKS):
        steps = random_steps(random)
        model = Model()
        try:
            await follow(db, steps, model)
        except AssertionError as error:
            error.add_note(f"steps: {steps}")
            raise


async def follow(db: Postgres, steps: list[tuple[str, int, int]], model: Model) -> None:
    group, people = await a_group(db, PEOPLE)
    store, membership = Store(db, Limits()), Membership(db, Limits())
    async with running_log(db) as written:
        for step, who, n in steps:
            if step == "join":
                await membership.add(group, people[0], [people[who]], Role.MEMBER)
                model.join(who)
            elif who not in model.present:
                continue
            elif step == "leave":
                await membership.remove(group, people[0], people[who])
                model.present.discard(who)
            elif step == "send":
                await written.send(group, people[who])
                model.senders.append(who)
            elif step == "read":
                before = model.read[who]
                mark = await store.mark_read(group, people[who], n)
                model.mark_read(who, n)
                assert (mark.seq, mark.moved) == (model.read[who], model.read[who] > before)
                assert mark.unread_count == model.unread(who)
            else:
                mark = await mark_delivered(db, group, people[who], n + 1)
                model.delivered[who] = max(model.delivered[who], min(n + 1, len(model.senders)))
                assert mark.seq == model.delivered[who]
    for who in model.present:
        (listed,), _ = await store.conversations(people[who], 0, "")
        assert listed.unread_count == model.unread(who)
        assert listed.last_seq == len(model.senders)
        assert listed.member_count == len(model.present)


async def test_reading_while_sending_keeps_the_count_exact(db: Postgres, store: Store) -> None:
    """Reads from several devices racing with one's own and others' sends leave exactly the right count."""
    group, (one, two) = await a_group(db)
    async with running_log(db, batch_len_max=3, lanes=1) as written:

        async def send(sender: str) -> None:
            for _ in range(60):
                await written.send(group, sender)

        async def read() -> None:
            for seq in range(1, 60):
                await store.mark_read(group, one, seq)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            nursery.start_soon(send, two)
            nursery.start_soon(read)
            nursery.start_soon(read)
        mark = await store.mark_read(group, one, 1)
        tail = [m for m in written.committed if m.seq > mark.seq and m.sender_id != one]
    assert mark.unread_count == len(tail)
    own = "SELECT uncounted FROM conversations.members WHERE user_id = $1"
    assert await db.fetchval(own, one) == 120 - mark.seq - len(tail)
    assert (await store.mark_read(group, one, 0)).unread_count == 0
    assert await db.fetchval(own, one) == 0


async def test_a_removed_member_appends_nothing_after_the_removal(
    db: Postgres, membership: Membership
) -> None:
    """Whatever races: no message of the removed has a place after that of the removal."""
    group, (one, two) = await a_group(db)
    removed_after: list[int] = []

    async def send_all() -> None:
        tickets = [written.log.append(draft(group, two)) for _ in range(400)]
        tickets[0].on_settled(lambda _: first.set())
        for ticket in tickets:
            settled = trio.Event()
            ticket.on_settled(lambda _, settled=settled: settled.set())  # type: ignore[misc]
            await settled.wait()

    async with running_log(db, batch_len_max=10) as written, trio.open_nursery() as nursery:
        first = trio.Event()
        nursery.start_soon(send_all)
        await first.wait()
        await membership.remove(group, one, two)
        removed_after.append(
            await db.fetchval("SELECT last_seq FROM conversations.conversations WHERE id = $1", group)
        )
    assert 0 < removed_after[0] < 400
    assert len(written.committed) == removed_after[0]


@pytest.mark.parametrize("size", [5, 5000])
async def test_request_paths_use_indexes(db: Postgres, size: int) -> None:
    """No statement of a request path scans a table: not a large one, nor a small one that will have grown."""
    one, two = await sign_up(db, 2)
    groups = [new_id() for _ in range(size)]
    await db.execute(
        "INSERT INTO conversations.conversations (id, kind, created_by, last_seq, member_count)"
        " SELECT id, 'group', $2, 5, 1 FROM unnest($1::uuid[]) AS id",
        *(groups, one),
    )
    await db.execute(
        "INSERT INTO conversations.members (conversation_id, user_id, role)"
        " SELECT id, CASE WHEN n <= 3 THEN $2::uuid ELSE gen_random_uuid() END, 'owner'"
        " FROM unnest($1::uuid[]) WITH ORDINALITY AS g (id, n)",
        *(groups, one),
    )
    await db.execute(
        "INSERT INTO conversations.messages (conversation_id, seq, id, sender_id, message_type, content, sent_at)"
        " SELECT g, n, gen_random_uuid(), $2, 'text', 'x', now()"
        " FROM unnest($1::uuid[]) AS g, generate_series(1, 5) AS n",
        *(groups, two),
    )
    await db.execute(
        "INSERT INTO conversations.changes SELECT g, n, 'x', 1, NULL, '{}', now()"
        " FROM unnest($1::uuid[]) AS g, generate_series(1, 5) AS n",
        groups,
    )
    for table, columns in {
        "hidden": "SELECT g, $2::uuid, 1, now()",
        "reactions": "SELECT g, 1, 'x', $2::uuid, now()",
        "pins": "SELECT g, 1, $2::uuid, now()",
        "tombstones": "SELECT g, 0, 1",
        "drafts": "SELECT $2::uuid, g, 'x', NULL, now()",
        "search": "SELECT g, 1, ARRAY[1, 2]",
        "search_progress": "SELECT g, 1",
        "attachments": "SELECT gen_random_uuid(), g, 1, gen_random_uuid(), 'image', NULL, 'linked', $2, now()",
        "scheduled": "SELECT gen_random_uuid(), g, $2::uuid, g::text, 'text', 'x', NULL, NULL, NULL, NULL, 0, now(),"
        " now()",
    }.items():
        statement = f"INSERT INTO conversations.{table} {columns} FROM unnest($1::uuid[]) AS g"  # constants
        await db.execute(statement, *((groups, one) if "$2" in columns else (groups,)))
    await db.execute("ANALYZE")
    now = datetime.now(UTC)
    for module, name, args in (
        (history, "_HISTORY_AFTER", (groups[0], one, 5, 50)),
        (history, "_HISTORY_BEFORE", (groups[0], one, 50, 50)),
        (history, "_ONE_MESSAGE", (groups[0], one, new_id())),
        (statements, "_LIST_FIRST", (one, 51, False)),
        (statements, "_ONE", (one, groups[0])),
        (statements, "SEVERAL", (one, groups[:3])),
        (statements, "_MEMBERS", (groups[0],)),
        (statements, "_MEMBERS_PAGE", (groups[0], one, now, one, 51)),
        (deliveries, "_MARK", (groups[:2], [one, one], [7, 8])),
        (reordering, "_HEADS", (groups[:3],)),
        (snapshots, "_SNAPSHOT", (groups[:2], [one], [5, 5], [0, 0], 100, sync.MARGIN, [9, 9])),
        (statements, "_WATERMARKS", (groups[0], one)),
        (statements, "_UNREAD_OF", (one, None)),
        (targets, "_TARGET", (groups[0], new_id(), one)),
        (reactions, "_DISTINCT", (groups[0], 1, "x")),
        (reactions, "_PINS", (groups[0], one)),
        (schedule, "_CLAIM", ()),
        (schedule, "_NEXT", ()),
        (schedule, "_MINE", (one, None, 10, now, one)),
        (expiry, "_DUE", ()),
        (attachments, "_PENDING", ()),
        (search, "_CANDIDATES", (one, None, ["x"], None, None, 51)),
        (search_index, "_NEXT", (groups[:3], [0, 0, 0], 500)),
        (sync, "_WHICH", (one, now, one, 51)),
        (sync, "_LEFT", (one, now)),
        (sync, "_MESSAGES", (one, groups[:3], now)),
        (sync, "_CHANGES", (groups[:3], now)),
        (sync, "_CHANGED", (one, groups[:3], [1, 1, 1])),
        (sync, "_RECEIPTS", (groups[:3], now)),
        (sync, "_HIDDEN", (one, groups[:3], now)),
        (expander, "_MESSAGES", (groups[:1], ["group"], [1], [5])),
    ):
        rows = await db.fetch(f"EXPLAIN {getattr(module, name)}", *args)
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan on " not in plan.replace("Seq Scan on person", ""), f"{name}: {plan}"
