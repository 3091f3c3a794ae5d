"""Is everything there, once? What was acknowledged, against the history, what readers were told, and the events."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import trio

from tests.chaos.load import Crowd, Group, asked
from tests.chaos.rig import Rig
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.errors import WhisprError

CATCH_UP_S = 15.0
"""How long readers and events may take to catch up, before what they lack counts as lost."""
STREAM, SENT = "MESSAGING_EVENTS", "messaging.events.message_sent"


@dataclass
class Found:
    """What does not add up."""

    lost: int = 0
    duplicated: int = 0
    messages: int = 0
    told: str = ""

    def add(self, what: str, lost: int, duplicated: int) -> None:
        """Enter something."""
        self.lost += lost
        self.duplicated += duplicated
        if lost or duplicated:
            self.told += f"{what}: {lost} lost, {duplicated} twice; "


class Books:
    """Made by `open_books`: connected to PostgreSQL and NATS past all roads."""

    def __init__(self, crowd: Crowd, db: Postgres, bus: Bus) -> None:
        self._crowd = crowd
        self._db = db
        self._jetstream = JetStream(bus)
        self._bus = bus
        self._events_read = 0
        self._client_ids: set[str] = set()

    async def check(self) -> Found:
        """Look at everything since the last time; nobody may be talking."""
        found = Found()
        stored: dict[str, list[str]] = {}
        for group in self._crowd.groups:
            messages = await self._history(group)
            self._compare(group, messages, found)
            with trio.move_on_after(CATCH_UP_S):
                for reader in group.readers:
                    await reader.until(group.checked + len(messages))
            wanted = [message["seq"] for message in messages]
            for reader in group.readers:
                told = Counter(seq for seq in reader.seqs if seq > group.checked)
                found.add("told", len(set(wanted) - told.keys()), sum(told.values()) - len(told))
                if sorted(reader.seqs) != reader.seqs:
                    found.add("out of order", 1, 0)
                del reader.seqs[:-1], reader.client_ids[:]
            group.checked += len(messages)
            stored[group.conversation_id] = [message["id"] for message in messages]
            found.messages += len(messages)
        await self._check_events(stored, found)
        return found

    def _compare(self, group: Group, messages: list[Any], found: Found) -> None:
        """Acknowledged messages against the history."""
        seqs = [message["seq"] for message in messages]
        expected = list(range(group.checked + 1, group.checked + len(messages) + 1))
        found.add("gaps", len(set(expected) - set(seqs)), 0)
        at = {message["client_id"]: message["seq"] for message in messages}
        again = self._client_ids & at.keys()
        found.add("history", 0, len(messages) - len(at) + len(again))
        self._client_ids |= at.keys()
        for talker in group.talkers:
            wrong = [
                name for name, seq in talker.acked.items() if seq > group.checked and at.get(name) != seq
            ]
            found.add(f"acknowledged to {talker.name}", len(wrong), 0)
            talker.acked.clear()

    async def _history(self, group: Group) -> list[Any]:
        """Read what is new, by REST."""
        headers = {"authorization": f"Bearer {group.readers[0].token}"}
        messages: list[Any] = []
        async with httpx.AsyncClient(
            base_url=self._crowd.rig.gateway_url, headers=headers, timeout=20
        ) as client:
            while True:
                after = group.checked + len(messages)
                path = f"/v1/conversations/{group.conversation_id}/messages?after_seq={after}&page_size=100"
                page = await asked(client, "GET", path)
                messages += page["messages"]
                if not page["has_more"]:
                    return messages

    async def _check_events(self, stored: dict[str, list[str]], found: Found) -> None:
        """One event for each message, in the order of seq, and no other."""
        told: dict[str, list[str]] = {name: [] for name in stored}
        stage = "the outbox is not empty"
        with trio.move_on_after(CATCH_UP_S) as patience:
            while await self._db.fetchval("SELECT EXISTS (SELECT FROM events.outbox)"):  # noqa: ASYNC110
                await trio.sleep(0.05)  # the product is at work; there is no event of ours
            while True:
                try:
                    await self._read_events(told)
                    break
                except WhisprError as error:
                    stage = f"events cannot be read: {error}"
                    await trio.sleep(0.1)  # NATS is only just back, for us too
        if patience.cancelled_caught:
            found.told += f"{stage}; "
        for name, ids in stored.items():
            found.add("events", len(set(ids) - set(told[name])), len(told[name]) - len(set(told[name])))
            if not set(ids) - set(told[name]) and list(dict.fromkeys(told[name])) != ids:
                found.add("events out of order", 1, 0)

    async def _read_events(self, told: dict[str, list[str]]) -> None:
        await self._bus.wait_connected()
        count = await self._jetstream.count(STREAM, [SENT], self._events_read)
        async with self._jetstream.read(STREAM, "chaos", [SENT], self._events_read + 1) as reader:
            for _ in range(count):
                event = await anext(reader)
                self._events_read = event.seq
                envelope = msgspec.json.decode(event.payload)
                told[envelope["subject"]].append(envelope["id"])


@asynccontextmanager
async def open_books(rig: Rig, crowd: Crowd) -> AsyncIterator[Books]:
    """Open the books of a crowd."""
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, rig.urls["postgres"], pool_size=1) as db,
        open_bus(bridge, rig.urls["nats"]) as bus,
    ):
        yield Books(crowd, db, bus)
