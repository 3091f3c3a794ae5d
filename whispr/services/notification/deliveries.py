"""Deliveries: pushes on their way to devices, and what became of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec

from whispr.conversations.database import Database, Queries
from whispr.conversations.rows import Row
from whispr.ids import new_id
from whispr.services.notification.devices import REFUSALS_MAX, target_of
from whispr.services.notification.senders.port import Delivered, Gone, Later, Outcome, Push, Refused, Target
from whispr.telemetry.tracing import current_traceparent

LEASE_S = 60.0
"""After so many seconds a delivery that was claimed and not settled counts as lost on the way."""
KEPT_S = 3 * 24 * 3600.0
"""How long a settled delivery is remembered, so that what it told is not told again."""
PRUNED_MAX = 5_000
"""Rows removed at once."""

_ADD = """
    INSERT INTO notifications.deliveries (
        id, device_id, user_id, notification_id, about, collapse_key, push, state, due_at, expires_at)
    SELECT d.id, d.device_id, d.user_id, d.notification_id, $1, $2, d.push::jsonb, 'pending',
        -- What matters overtakes what has waited for less than this.
        now() - CASE (d.push::jsonb ->> 'priority')::integer
            WHEN 4 THEN interval '60 s' WHEN 3 THEN interval '10 s' ELSE interval '0 s' END,
        now() + make_interval(secs => $3)
    FROM unnest($4::uuid[], $5::uuid[], $6::uuid[], $7::uuid[], $8::text[])
        AS d (id, device_id, user_id, notification_id, push)
    ON CONFLICT (device_id, about) DO NOTHING
"""
_SUPERSEDE = """
    UPDATE notifications.deliveries SET state = 'superseded', finished_at = now()
    WHERE device_id = ANY ($1::uuid[]) AND collapse_key = $2 AND state = 'pending' AND about <> $3
"""
_CLAIM = """
    WITH due AS (
        SELECT id FROM notifications.deliveries WHERE state = 'pending' AND due_at <= now()
        ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE notifications.deliveries d
        SET state = 'sending', attempts = d.attempts + 1, lease_until = now() + make_interval(secs => $2)
        FROM due WHERE d.id = due.id RETURNING d.*
    )
    SELECT c.id, c.device_id, c.user_id, c.notification_id, c.push, c.attempts,
        extract(epoch FROM c.expires_at - now())::float8 AS ttl_s,
        v.platform, v.token, v.p256dh, v.auth, v.secret
    FROM claimed c LEFT JOIN notifications.devices v ON v.id = c.device_id AND v.user_id = c.user_id
"""
_FINISH = """
    UPDATE notifications.deliveries SET state = $2, error = $3, finished_at = now(), lease_until = NULL
    WHERE id = $1 AND state = 'sending'
"""
_AGAIN = """
    UPDATE notifications.deliveries
    SET state = 'pending', error = $2, due_at = now() + make_interval(secs => $3), lease_until = NULL
    WHERE id = $1 AND state = 'sending'
"""
_PUT_BACK = """
    UPDATE notifications.deliveries SET state = 'pending', attempts = attempts - 1, lease_until = NULL,
        due_at = now() + make_interval(secs => $2)
    WHERE id = ANY ($1::uuid[]) AND state = 'sending'
"""
_PRUNE = """
    DELETE FROM notifications.deliveries WHERE id IN (
        SELECT id FROM notifications.deliveries
        WHERE finished_at < now() - make_interval(secs => $1) ORDER BY finished_at LIMIT $2)
"""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that this process is to attempt."""

    id: str
    device_id: str
    push: Push
    attempts: int
    """Including this one."""
    ttl_s: float
    target: Target | None
    """None when the device is no more, or is somebody else's now."""


class Status(msgspec.Struct, frozen=True):
    """What became of one delivery so far."""

    user_id: str
    device_id: str
    state: str
    attempts: int
    error: str
    at: datetime | None

    @property
    def tried(self) -> bool:
        """Whether at least one attempt is over, or none will be made."""
        return self.state != "sending" and (self.state != "pending" or self.attempts > 0)


class Shown(msgspec.Struct, frozen=True):
    """Where notifications of one collapse key are on a screen."""

    device_ids: set[str]
    notification_ids: set[str]


class Deliveries:
    """The deliveries of everybody."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(
        self,
        tx: Queries,
        about: str,
        collapse_key: str,
        ttl_s: float,
        pushes: Sequence[tuple[str, str, Push]],
    ) -> None:
        """Write pushes to be sent, as (user, device, push); what was told to a device already is left out.

        A push takes the place of those of the same collapse key that still wait.
        """
        if not pushes:
            return
        if trace := current_traceparent():
            pushes = [
                (user, device, msgspec.structs.replace(push, trace=trace)) for user, device, push in pushes
            ]
        devices = [device for _, device, _ in pushes]
        if collapse_key:
            await tx.execute(_SUPERSEDE, devices, collapse_key, about)
        await tx.execute(
            _ADD, about, collapse_key, ttl_s, [new_id() for _ in pushes], devices,
            [user for user, _, _ in pushes], [push.notification_id for *_, push in pushes],
            [msgspec.json.encode(push).decode() for *_, push in pushes],
        )  # fmt: skip

    async def claim(self, count_max: int) -> list[Claim]:
        """Take deliveries that are due, the longest waiting first. No other process takes them."""
        return [_claim(row) for row in await self._db.fetch(_CLAIM, count_max, LEASE_S)]

    async def settle(self, claim: Claim, outcome: Outcome, again_after_s: float | None) -> None:
        """Record the outcome of an attempt; `again_after_s` None when there will not be another."""
        match outcome:
            case Delivered():
                await self._finish(claim, "delivered", "")
                await self._db.execute(
                    "UPDATE notifications.devices SET last_delivered_at = now(), refusals = 0 WHERE id = $1",
                    claim.device_id,
                )
            case Gone(reason):
                await self._db.execute("DELETE FROM notifications.devices WHERE id = $1", claim.device_id)
                await self._finish(claim, "gone", reason)
            case Refused(reason):
                await self._finish(claim, "refused", reason)
                await self._count_refusal(claim.device_id)
            case Later(reason) if again_after_s is not None:
                await self._db.execute(_AGAIN, claim.id, reason[:200], again_after_s)
            case Later(reason):
                await self._finish(claim, "expired", reason)
                await self._count_refusal(claim.device_id)

    async def put_back(self, claims: Sequence[Claim], after_s: float) -> None:
        """Let claims go that were not attempted, for some seconds."""
        await self._db.execute(_PUT_BACK, [claim.id for claim in claims], after_s)

    async def expire(self, claim: Claim) -> None:
        """Give up a delivery that is of no use any more."""
        await self._finish(claim, "expired", "expired")

    async def _finish(self, claim: Claim, state: str, error: str) -> None:
        await self._db.execute(_FINISH, claim.id, state, error[:200])

    async def _count_refusal(self, device_id: str) -> None:
        refusals = await self._db.fetchval(
            "UPDATE notifications.devices SET refusals = refusals + 1 WHERE id = $1 RETURNING refusals",
            device_id,
        )
        if refusals is not None and refusals >= REFUSALS_MAX:
            await self._db.execute("DELETE FROM notifications.devices WHERE id = $1", device_id)

    async def statuses(self, about: str, device_ids: Collection[str]) -> list[Status]:
        """Say what became of what devices were told."""
        rows = await self._db.fetch(
            "SELECT user_id, device_id, state, attempts, error, finished_at FROM notifications.deliveries"
            " WHERE device_id = ANY ($1::uuid[]) AND about = $2",
            list(device_ids), about,
        )  # fmt: skip
        return [
            Status(
                str(row["user_id"]), str(row["device_id"]), row["state"], row["attempts"], row["error"],
                row["finished_at"],
            )
            for row in rows
        ]  # fmt: skip

    async def read(self, tx: Queries, user_id: str, ids: Collection[str]) -> dict[str, Shown]:
        """Drop what still waits of these notifications, and return by collapse key where they are shown."""
        await tx.execute(
            "UPDATE notifications.deliveries SET state = 'read', finished_at = now()"
            " WHERE user_id = $1 AND notification_id = ANY ($2::uuid[]) AND state = 'pending'",
            user_id, list(ids),
        )  # fmt: skip
        rows = await tx.fetch(
            "SELECT DISTINCT collapse_key, device_id, notification_id FROM notifications.deliveries"
            " WHERE user_id = $1 AND notification_id = ANY ($2::uuid[])"
            " AND state IN ('delivered', 'sending', 'unknown') AND push ->> 'type' <> 'clear'",
            user_id, list(ids),
        )  # fmt: skip
        found: dict[str, Shown] = {}
        for row in rows:
            shown = found.setdefault(row["collapse_key"], Shown(set(), set()))
            shown.device_ids.add(str(row["device_id"]))
            shown.notification_ids.add(str(row["notification_id"]))
        return found

    async def seconds_to_next(self) -> float | None:
        """Return when the next delivery is due, in seconds from now, None when there is none."""
        seconds: float | None = await self._db.fetchval(
            "SELECT extract(epoch FROM due_at - now())::float8 FROM notifications.deliveries"
            " WHERE state = 'pending' ORDER BY due_at LIMIT 1"
        )
        return seconds

    async def sweep(self) -> int:
        """Record those whose process died as lost, and forget what was settled long ago; return how many of both."""
        lost = await self._db.fetch(
            "UPDATE notifications.deliveries SET state = 'unknown', finished_at = now(),"
            " error = 'the process died while sending' WHERE state = 'sending' AND lease_until < now() RETURNING id"
        )
        tag: str = await self._db.execute(_PRUNE, KEPT_S, PRUNED_MAX)
        return len(lost) + int(tag.split()[-1])


def _claim(row: Row) -> Claim:
    return Claim(
        id=str(row["id"]),
        device_id=str(row["device_id"]),
        push=msgspec.json.decode(row["push"], type=Push),
        attempts=row["attempts"],
        ttl_s=row["ttl_s"],
        target=None if row["platform"] is None else target_of(row),
    )
