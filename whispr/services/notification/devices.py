"""Devices: who is pushed to, and where."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec

from whispr.conversations.database import Database, Queries
from whispr.conversations.rows import Row
from whispr.errors import exhausted, not_found
from whispr.ids import new_id
from whispr.services.notification.domain import Platform
from whispr.services.notification.senders.port import Target

REFUSALS_MAX = 25
"""A device that refused this often in a row is removed."""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('notifications.devices:' || $1, 0))"
_REGISTER = """
    INSERT INTO notifications.devices AS d (
        id, user_id, platform, token, token_sha256, p256dh, auth, secret, name, session_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (platform, token_sha256) DO UPDATE SET
        -- A device that moves is another one: what waits for it was meant for somebody else.
        id = CASE WHEN d.user_id = excluded.user_id THEN d.id ELSE excluded.id END,
        created_at = CASE WHEN d.user_id = excluded.user_id THEN d.created_at ELSE now() END,
        user_id = excluded.user_id, p256dh = excluded.p256dh, auth = excluded.auth, secret = excluded.secret,
        name = excluded.name, session_id = excluded.session_id, refusals = 0
    RETURNING d.*
"""


class NewDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a person registers, checked."""

    platform: Platform
    token: str
    p256dh: bytes = b""
    auth: bytes = b""
    name: str = ""
    session_id: str = ""
    """The sign-in that it ends with; empty for none."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A registered device, as its owner sees it."""

    id: str
    user_id: str
    platform: Platform
    name: str
    created_at: datetime
    last_delivered_at: datetime | None


class Devices:
    """The devices of everybody."""

    def __init__(self, db: Database, user_devices: int) -> None:
        self._db = db
        self._user_devices = user_devices

    async def register(self, user_id: str, new: NewDevice) -> tuple[Device, str]:
        """Register a device, or update and move the one of that token; return it with its new secret.

        Raises RESOURCE_EXHAUSTED (too_many_devices).
        """
        secret = secrets.token_urlsafe(32) if new.platform is Platform.WEBHOOK else ""
        digest = hashlib.sha256(new.token.encode()).digest()
        async with self._db.transaction() as tx:
            await tx.execute(_LOCK, user_id)
            row: Any = await tx.fetchrow(
                _REGISTER, new_id(), user_id, new.platform.value, new.token, digest,
                new.p256dh or None, new.auth or None, secret or None, new.name, new.session_id or None,
            )  # fmt: skip
            count = await tx.fetchval(
                "SELECT count(*) FROM notifications.devices WHERE user_id = $1", user_id
            )
            if self._user_devices and count > self._user_devices:
                raise exhausted(f"at most {self._user_devices} devices", reason="too_many_devices")
        return device_of(row), secret

    async def unregister(self, user_id: str, device_id: str) -> None:
        """Remove a device of the user's. Raises NOT_FOUND."""
        found = await self._db.fetchval(
            "DELETE FROM notifications.devices WHERE id = $2 AND user_id = $1 RETURNING true",
            user_id,
            device_id,
        )
        if not found:
            raise not_found("device", device_id)

    async def end_session(self, tx: Queries, user_id: str, session_id: str) -> None:
        """Remove the devices that were registered in a sign-in that has ended."""
        await tx.execute(
            "DELETE FROM notifications.devices WHERE session_id = $2 AND user_id = $1", user_id, session_id
        )

    async def of(self, user_id: str) -> list[Device]:
        """Return the user's devices, the oldest first."""
        rows = await self._db.fetch(
            "SELECT * FROM notifications.devices WHERE user_id = $1 ORDER BY created_at, id", user_id
        )
        return [device_of(row) for row in rows]

    async def ids_of(self, user_ids: Collection[str], on: Queries | None = None) -> list[tuple[str, str]]:
        """Return (user, device) of several people."""
        rows = await (on or self._db).fetch(
            "SELECT user_id, id FROM notifications.devices WHERE user_id = ANY ($1::uuid[]) ORDER BY user_id, id",
            list(user_ids),
        )
        return [(str(row["user_id"]), str(row["id"])) for row in rows]


def device_of(row: Row) -> Device:
    """Build a device from its row."""
    return Device(
        id=str(row["id"]),
        user_id=str(row["user_id"]),
        platform=Platform(row["platform"]),
        name=row["name"],
        created_at=row["created_at"],
        last_delivered_at=row["last_delivered_at"],
    )


def target_of(row: Row) -> Target:
    """Build what a sender needs from the columns of a device."""
    return Target(
        id=str(row["device_id"]),
        platform=Platform(row["platform"]),
        token=row["token"],
        p256dh=row["p256dh"] or b"",
        auth=row["auth"] or b"",
        secret=row["secret"] or "",
    )


TARGET_COLUMNS: Sequence[str] = ("platform", "token", "p256dh", "auth", "secret")
