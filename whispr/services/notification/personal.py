"""What is held about a person: handing it over, erasing it, and letting what is old go."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime

import msgspec

from whispr.conversations.database import Database, Queries
from whispr.services.notification.inbox import Inbox
from whispr.services.notification.wishes import Wishes

PAGE = 100
FORMER = "Somebody"
"""How a person is called whose account is gone."""
PRUNED_MAX = 5_000
"""Entries removed in one statement."""

_json = msgspec.json.Encoder().encode


async def export(
    db: Database, wishes: Wishes, inbox: Inbox, user_id: str
) -> AsyncGenerator[tuple[str, bytes], None]:
    """Yield (kind, JSON) of everything held about a person: preferences, devices, inbox."""
    yield "preferences", _json(await wishes.of(user_id))
    for conversation_id, wish in (await wishes.conversations_of(user_id)).items():
        yield (
            "conversation_preference",
            _json(
                {
                    "conversation_id": conversation_id,
                    "level": wish.level,
                    "muted_until": wish.muted_until,
                }
            ),
        )
    rows = await db.fetch(
        "SELECT * FROM notifications.devices WHERE user_id = $1 ORDER BY created_at, id", user_id
    )
    for row in rows:
        shown = ("platform", "token", "name", "created_at", "last_delivered_at")
        yield "device", _json({"id": str(row["id"]), **{name: row[name] for name in shown}})
    token = ""
    while True:
        entries, token = await inbox.page(user_id, PAGE, token, unread_only=False, conversation_id="")
        for entry in entries:
            yield "notification", _json(entry)
        if not token:
            return


async def erase(tx: Queries, user_id: str) -> None:
    """Erase everything about a person, and what they said from the inboxes of others."""
    for table in ("deliveries", "devices", "inbox", "preferences", "conversation_preferences"):
        await tx.execute(f"DELETE FROM notifications.{table} WHERE user_id = $1", user_id)  # noqa: S608  # ours
    # No index leads here: an account ends so rarely that looking through everything is cheaper than keeping one.
    await tx.execute(
        "UPDATE notifications.inbox SET actor_id = NULL, title = $2, body = '' WHERE actor_id = $1",
        user_id, FORMER,
    )  # fmt: skip
    await tx.execute("DELETE FROM notifications.messages WHERE sender_id = $1", user_id)


async def prune(db: Database, before: datetime) -> int:
    """Remove entries that nobody changed since; return how many."""
    tag: str = await db.execute(
        "DELETE FROM notifications.inbox WHERE (user_id, id) IN ("
        " SELECT user_id, id FROM notifications.inbox WHERE at < $1 ORDER BY at LIMIT $2)",
        before, PRUNED_MAX,
    )  # fmt: skip
    return int(tag.split()[-1])
