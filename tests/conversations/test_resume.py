"""Whoever comes back has what a client that never left has: a simulation of clients, nodes, and a faulty bus."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
import trio

from tests.conversations.follower import Follower
from tests.conversations.kit import a_group
from tests.conversations.nodes import UNLIMITED, Faults, Node, nodes
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Draft, NewContent
from whispr.errors import WhisprError
from whispr.ids import new_id

EMOJI = ("👍", "🎉")


async def stored(db: Postgres, group: str, user_id: str) -> dict[str, object]:
    """Read what somebody should know of a conversation from its tables."""
    hidden = {
        row["seq"]
        for row in await db.fetch(
            "SELECT seq FROM conversations.hidden WHERE conversation_id = $1 AND user_id = $2", group, user_id
        )
    }
    messages = await db.fetch(
        "SELECT seq, content, deleted_at FROM conversations.messages WHERE conversation_id = $1 ORDER BY seq",
        group,
    )
    reactions = await db.fetch(
        "SELECT seq, emoji, user_id::text FROM conversations.reactions WHERE conversation_id = $1", group
    )
    pins = await db.fetch("SELECT seq FROM conversations.pins WHERE conversation_id = $1", group)
    seats = await db.fetch(
        "SELECT user_id::text AS id, delivered_seq, read_seq FROM conversations.members WHERE conversation_id = $1"
        " ORDER BY 1",
        group,
    )
    return {
        "hidden": hidden,
        "messages": {
            row["seq"]: (row["content"].decode(), row["deleted_at"] is not None)
            for row in messages
            if row["seq"] not in hidden
        },
        "reactions": sorted(tuple(row) for row in reactions if row["seq"] not in hidden),
        "pins": sorted(row["seq"] for row in pins if row["seq"] not in hidden),
        "delivered": {row["id"]: row["delivered_seq"] for row in seats if row["delivered_seq"]},
        "read": {row["id"]: row["read_seq"] for row in seats if row["read_seq"]},
    }


class Simulation:
    """People of one group, their clients, and what happens to them, by the dice."""

    def __init__(
        self, seed: int, db: Postgres, group: str, people: Sequence[str], running: Sequence[Node]
    ) -> None:
        self.dice = random.Random(seed)  # a test's dice
        self.db, self.group, self.people, self.nodes = db, group, people, running
        self.messages: list[str] = []
        self.followers = [Follower(user_id, group) for user_id in people for _ in range(2)]

    async def run(self, steps: int, nursery: trio.Nursery) -> None:
        """Do so many things, one after another or at once."""
        for _ in range(steps):
            if self.dice.random() < 0.25:
                await self._come_or_go(nursery)
                continue
            doing = [self._pick() for _ in range(self.dice.randint(1, 4))]
            async with trio.open_nursery() as together:
                for act in doing:
                    together.start_soon(self._attempt, act)

    async def _come_or_go(self, nursery: trio.Nursery) -> None:
        follower = self.dice.choice(self.followers)
        if follower.channel is not None:
            await follower.cut()
        else:
            await nursery.start(follower.live, self.dice.choice(self.nodes))

    async def everybody_here(self, nursery: trio.Nursery) -> None:
        for follower in self.followers:
            if follower.channel is None:
                await nursery.start(follower.live, self.dice.choice(self.nodes))

    async def _attempt(self, act: Callable[[], Awaitable[object]]) -> None:
        try:
            await act()
        except WhisprError:
            return  # such as an edit of what is deleted meanwhile

    def _pick(self) -> Callable[[], Awaitable[object]]:
        dice, group = self.dice, self.group
        do = dice.choice(self.nodes).core.operations
        who = dice.choice(self.people)
        if not self.messages or dice.random() < 0.35:
            return lambda: self._send(do, who)
        message, emoji, seq = (
            dice.choice(self.messages[-30:]),
            dice.choice(EMOJI),
            dice.randint(1, len(self.messages)),
        )
        return dice.choice(
            [
                lambda: do.edit(group, message, who, NewContent(f"edited {dice.random()}".encode(), {})),
                lambda: do.editing.delete(group, message, who, for_everyone=True),
                lambda: do.editing.delete(group, message, who, for_everyone=False),
                lambda: do.react(group, message, who, emoji),
                lambda: do.react(group, message, who, emoji),
                lambda: do.reactions.remove(group, message, who, emoji),
                lambda: do.reactions.pin(group, message, who),
                lambda: do.reactions.unpin(group, message, who),
                lambda: do.mark_read(group, who, seq),
                lambda: do.mark_delivered(group, who, seq),
            ]
        )

    async def _send(self, do: Any, who: str) -> None:
        draft = Draft(id=new_id(), conversation_id=self.group, sender_id=who, content=b"said")
        self.messages.append((await (await do.send(draft)).wait()).id)

    async def settled(self) -> None:
        """Wait until every client has every message and every change."""
        row = cast(
            "Any",
            await self.db.fetchrow(
                "SELECT last_seq, last_change FROM conversations.conversations WHERE id = $1", self.group
            ),
        )
        for node in self.nodes:
            node.hub.suspect()
        with trio.fail_after(20):
            for follower in self.followers:
                await follower.reach(row["last_seq"], row["last_change"])

    async def compare(self, *parts: str) -> None:
        for follower in self.followers:
            should = await stored(self.db, self.group, follower.user_id)
            if parts:
                follower.copy.hidden = set(cast("Any", should["hidden"]))
            shown = follower.copy.shown()
            for part in parts or shown:
                assert shown[part] == should[part], (part, follower.copy.seq, follower.copy.change)


async def simulate(db: Postgres, seed: int, steps: int, faults: Faults, resume_len: int) -> int:
    """Simulate, compare with the database, and return how many replays did not fit into one join."""
    group, people = await a_group(db, 3)
    limits = type(UNLIMITED)(user_messages_per_min=0, conversation_messages_per_min=0, resume_len=resume_len)
    async with nodes(db, 2, faults, limits) as (running, bus), trio.open_nursery() as nursery:
        simulation = Simulation(seed, db, group, people, running)
        await simulation.run(steps, nursery)
        await simulation.everybody_here(nursery)
        bus.catch_up()
        await simulation.settled()
        await simulation.compare("messages", "pins", "reactions")
        # Watermarks, and what one has hidden on another device, have no numbers: what of them the bus lost comes
        # with the next join.
        for follower in simulation.followers:
            await follower.cut()
        await simulation.everybody_here(nursery)
        await simulation.compare()
        nursery.cancel_scope.cancel(reason="compared")
    return sum(follower.resyncs for follower in simulation.followers)


@pytest.mark.parametrize("seed", [1])
async def test_clients_that_come_and_go_have_what_the_database_has(db: Postgres, seed: int) -> None:
    """Sends, edits, deletes, reactions, pins and receipts on two nodes, over a bus that loses and crosses."""
    await simulate(db, seed, 30, Faults(seed, lost=0.2, repeated=0.1, late=0.2), 1000)


async def test_what_does_not_fit_into_a_join_is_paged_by_its_cursor(db: Postgres) -> None:
    """With a replay of five, resync and get_history {cursor} rebuild the same."""
    assert await simulate(db, 2, 30, Faults(2), 5) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
async def test_many_simulations(db: Postgres, seed: int) -> None:
    """The same with other dice, longer, and with replays of any length."""
    faults = Faults(seed, lost=0.1 * (seed % 3), repeated=0.1, late=0.1 * (seed % 4))
    await simulate(db, seed, 200, faults, (3, 20, 1000)[seed % 3])
