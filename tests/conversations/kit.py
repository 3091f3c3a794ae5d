"""People, conversations and a running log for tests on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import trio

from whispr.adapters.postgres import Postgres
from whispr.conversations.appending import Database
from whispr.conversations.changes import Change
from whispr.conversations.deliveries import Deliveries
from whispr.conversations.domain import Draft, Kind, Limits, Message
from whispr.conversations.log import MessageLog
from whispr.conversations.membership import Membership
from whispr.conversations.store import Watermark
from whispr.errors import WhisprError
from whispr.ids import new_id

NOBODY = "00000000-0000-7000-8000-000000000000"
"""An id that is nobody's and nothing's."""


async def sign_up(db: Postgres, count: int) -> list[str]:
    """Make accounts, as the auth service would, and return their ids."""
    ids = [new_id() for _ in range(count)]
    await db.execute(
        "INSERT INTO auth.accounts (id, username, display_name, password_hash)"
        " SELECT id, 'u' || right(replace(id::text, '-', ''), 20), 'Somebody', 'x' FROM unnest($1::uuid[]) AS id",
        ids,
    )
    return ids


async def a_group(db: Postgres, size: int = 2) -> tuple[str, list[str]]:
    """Make a group and its people; the first is the owner."""
    people = await sign_up(db, size)
    return await Membership(db, Limits()).open_group(people[0], people[1:], "a group", {}), people


def draft(conversation_id: str, sender_id: str, text: str = "hello", **fields: Any) -> Draft:
    """Write a message that is not sent yet."""
    return Draft(
        id=new_id(), conversation_id=conversation_id, sender_id=sender_id, content=text.encode(), **fields
    )


class Silent:
    """An announcer that tells nobody, and remembers what it was to tell."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.told: list[tuple[str, str, Any]] = []

    def changed(self, change: Change, **more: object) -> None:
        del more
        self.changes.append(change)

    def removed(self, changes: Sequence[Change], reason: str = "") -> None:
        del reason
        self.changes.extend(changes)

    def hid(self, kind: Kind, conversation_id: str, user_id: str, seq: int) -> None:
        """Leave a message out of tails: there are none."""

    def delivered(
        self, conversation_id: str, user_id: str, mark: Watermark, members: Sequence[str] = ()
    ) -> None:
        """Tell how far somebody has received: nobody wants to know."""

    def tell(self, user_id: str, event: str, payload: object) -> None:
        self.told.append((user_id, event, payload))


async def mark_delivered(db: Postgres, conversation_id: str, user_id: str, seq: int) -> Watermark:
    """Move a delivered watermark. Raises WhisprError."""
    deliveries, settled = Deliveries(db, cast("Any", Silent())), trio.Event()
    outcomes: list[Watermark | WhisprError] = []

    def done(outcome: Watermark | WhisprError) -> None:
        outcomes.append(outcome)
        settled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliveries.run)
        deliveries.mark(conversation_id, user_id, seq, done)
        await settled.wait()
        nursery.cancel_scope.cancel(reason="marked")
    if isinstance(outcomes[0], WhisprError):
        raise outcomes[0]
    return outcomes[0]


@dataclass
class Written:
    """A running log, and what it announced."""

    log: MessageLog
    committed: list[Message] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    async def send(self, conversation_id: str, sender_id: str, text: str = "hello", **fields: Any) -> Message:
        """Append one message and wait for it."""
        return await self.log.append(draft(conversation_id, sender_id, text, **fields)).wait()


@asynccontextmanager
async def running_log(db: Database, **options: Any) -> AsyncIterator[Written]:
    """Run a log for the length of the block."""
    committed: list[Message] = []
    batches: list[int] = []

    def heard(messages: Sequence[Message]) -> None:
        committed.extend(messages)
        batches.append(len(messages))

    log = MessageLog(db, on_committed=heard, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(log.run)
        yield Written(log, committed, batches)
        nursery.cancel_scope.cancel(reason="the test is over")
