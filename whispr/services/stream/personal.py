"""What the stream service holds about one person: exported on request, erased when the account is deleted.

The streams of somebody whose account is closed, or whose role may no longer stream, end: their keys are good without
a sign-in.

A deleted streamer's streams end and go with their recordings; the files are deleted by whoever finds them without a
row. What others listened to of them goes too; what the person listened to of others stays, as of nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres
from whispr.events import Consumer, Event
from whispr.services.stream.control import Control
from whispr.services.stream.domain import WRITE
from whispr.services.stream.notices import PUT_OUT, Notice, Notices
from whispr.tokens import ROLE_PERMISSIONS, permits

PAGE_LEN: Final = 500

# Each kind of record: its rows after a key, in the order of the key.
_RECORDS: Final[Mapping[str, str]] = {
    "stream": """
        SELECT id::text AS key, id AS stream_id, title, description, category, visibility, status, config, metadata,
            created_at, started_at, ended_at, end_reason
        FROM streams.streams WHERE streamer_id = $1 AND id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "recording": """
        SELECT id::text AS key, id AS recording_id, stream_id, title, status, quality, codec, bytes, duration_s,
            created_at, ended_at
        FROM streams.recordings WHERE streamer_id = $1 AND id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "listening": """
        SELECT id::text AS key, stream_id, transport, country, joined_at, left_at, reason, qualities, rebuffers,
            bytes_sent
        FROM streams.sessions WHERE user_id = $1 AND id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "stream_invitation": """
        SELECT stream_id::text AS key, stream_id, invited_at
        FROM streams.invitations WHERE user_id = $1 AND stream_id::text > $2 ORDER BY 1 LIMIT $3
    """,
    "stream_removal": """
        SELECT stream_id::text AS key, stream_id, removed_at
        FROM streams.removals WHERE user_id = $1 AND stream_id::text > $2 ORDER BY 1 LIMIT $3
    """,
}
_JSON_COLUMNS: Final = ("config", "metadata", "qualities")
_ERASE: Final = (
    "UPDATE streams.sessions SET user_id = NULL, country = '' WHERE user_id = $1",
    "DELETE FROM streams.invitations WHERE user_id = $1",
    "DELETE FROM streams.removals WHERE user_id = $1",
    "DELETE FROM streams.streams WHERE streamer_id = $1",
)

_json = msgspec.json.Encoder().encode


class PersonalData:
    """Exports and erases."""

    def __init__(self, db: Postgres, control: Control, notices: Notices) -> None:
        self._db = db
        self._control = control
        self._notices = notices

    @property
    def consumer(self) -> Consumer:
        """What listens to accounts that are deleted or closed, and to roles."""
        kinds = ("account_deleted", "account_deactivated", "role_changed")
        subjects = tuple(f"user.events.{kind}" for kind in kinds)
        return Consumer("stream-accounts", subjects, self._changed, deadline_s=300)

    async def _changed(self, event: Event) -> None:
        if event.type == "account_deleted":
            await self.account_deleted(event)
        elif event.type == "account_deactivated":
            await self._end_streams(event, "account_inactive")
        elif not permits(ROLE_PERMISSIONS.get(str(event.data.get("role")), ()), WRITE):
            await self._end_streams(event, "role_changed")

    async def _end_streams(self, event: Event, reason: str) -> None:
        """End what a person streams; again changes nothing. What they began since, as they may again, goes on."""
        rows = await self._db.fetch(
            "SELECT id FROM streams.streams WHERE streamer_id = $1 AND status IN ('LIVE', 'PAUSED')"
            " AND started_at <= $2 ORDER BY id",
            event.subject, event.time,
        )  # fmt: skip
        for row in rows:
            await self._control.stop(str(row["id"]), event.subject, reason)

    async def export(self, user_id: str) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield the kind and the JSON of everything held about a person."""
        for kind, sql in _RECORDS.items():
            last = ""
            while rows := await self._db.fetch(sql, user_id, last, PAGE_LEN):
                for row in rows:
                    record: dict[str, Any] = dict(row)
                    last = record.pop("key")
                    for name in _JSON_COLUMNS:
                        if record.get(name):
                            record[name] = msgspec.Raw(record[name].encode())
                    yield kind, _json(record)

    async def account_deleted(self, event: Event) -> None:
        """End a person's streams and listening, and forget the rest; again changes nothing."""
        user_id = event.subject
        rows = await self._db.fetch(
            "SELECT id FROM streams.streams WHERE streamer_id = $1 ORDER BY id", user_id
        )
        for row in rows:
            await self._control.stop(str(row["id"]), user_id, "account_deleted")
        listened = await self._db.fetch(
            "SELECT DISTINCT stream_id FROM streams.sessions WHERE user_id = $1 AND left_at IS NULL", user_id
        )
        for row in listened:
            data = {"user_id": user_id, "reason": "account_deleted"}
            self._notices.tell(Notice(str(row["stream_id"]), PUT_OUT, data))
        async with self._db.transaction() as tx:
            for sql in _ERASE:
                await tx.execute(sql, user_id)
