"""SQL of the auth schema. Every statement that must not race decides in the database, not here."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from whispr.adapters.postgres import Conflict, Postgres, Transaction
from whispr.conversations.ids import new_id
from whispr.errors import WhisprError, exists
from whispr.services.auth.domain import Account, Registration

_COLUMNS = ", ".join(f"a.{field.name}" for field in dataclasses.fields(Account))

_TAKEN = {
    "accounts_username_key": ("that username is taken", "username_taken"),
    "accounts_email_key": ("that e-mail address is in use", "email_taken"),
}


class Refused(enum.Enum):
    """Why a refresh token was not exchanged."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REUSED = "reused"
    REVOKED = "revoked"
    INACTIVE = "inactive"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of a refresh token: a session and its account, or a refusal."""

    session_id: str
    account: Account | None
    refused: Refused | None


class AuthStore:
    """Accounts, sessions and refresh tokens."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def account_by_username(self, username: str) -> Account | None:
        """Find an account by its name, whatever the case."""
        return _account(await self._db.fetchrow(_BY_USERNAME, username))

    async def account_by_id(self, account_id: str) -> Account | None:
        """Find an account by its id."""
        return _account(await self._db.fetchrow(_BY_ID, account_id))

    async def sign_up(
        self, new: Registration, password_hash: str, refresh_sha256: bytes, refresh_s: float
    ) -> tuple[Account, str]:
        """Make an account with a first session, both or neither; return it and the session's id.

        Raises ALREADY_EXISTS (username_taken, email_taken).
        """
        try:
            async with self._db.transaction() as tx:
                row = await tx.fetchrow(
                    _INSERT_ACCOUNT, new_id(), new.username, new.email, new.display_name, password_hash
                )
                account = _account(row)
                assert account is not None, "an INSERT … RETURNING returns its row"
                session_id = await _open_session(tx, account.id, "", refresh_sha256, refresh_s)
        except Conflict as error:
            raise _taken(error) from None
        return account, session_id

    async def sign_in(
        self,
        account_id: UUID,
        device: str,
        refresh_sha256: bytes,
        refresh_s: float,
        new_password_hash: str | None,
    ) -> tuple[Account, str] | None:
        """Open a session, storing a renewed password hash if any; None when the account is inactive."""
        async with self._db.transaction() as tx:
            account = _account(await tx.fetchrow(_SIGN_IN, account_id, new_password_hash))
            if account is None:
                return None
            return account, await _open_session(tx, account.id, device, refresh_sha256, refresh_s)

    async def rotate(self, presented_sha256: bytes, successor_sha256: bytes, refresh_s: float) -> Rotation:
        """Exchange a refresh token. Of several at once with the same token exactly one succeeds.

        A token that was used before revokes its session: either its thief or its owner has shown it twice.
        """
        async with self._db.transaction() as tx:
            session_id = await tx.fetchval(_USE_REFRESH, presented_sha256)
            if session_id is None:
                return await _why_not(tx, presented_sha256)
            row = await tx.fetchrow(_SESSION_ACCOUNT, session_id)
            assert row is not None, "a token's session exists while the token does"
            if row["revoked_at"] is not None:
                return Rotation(str(session_id), None, Refused.REVOKED)
            account = _account(row)
            assert account is not None
            if not account.is_active:
                return Rotation(str(session_id), None, Refused.INACTIVE)
            await tx.execute(_ADD_REFRESH, successor_sha256, session_id, refresh_s)
            await tx.execute(_TOUCH_SESSION, session_id, refresh_s)
            return Rotation(str(session_id), account, None)

    async def revoke(self, session_id: str, reason: str) -> bool:
        """End a session; False when it had ended already."""
        return await self._db.fetchval(_REVOKE, session_id, reason) is not None

    async def session_is_live(self, session_id: str) -> bool:
        """Whether a session exists, unrevoked and unexpired, of an active account."""
        return bool(await self._db.fetchval(_IS_LIVE, session_id))

    async def revoked_within(self, seconds: float) -> list[tuple[str, str, float]]:
        """Return (session id, reason, Unix time) of the sessions revoked in the last `seconds`."""
        rows = await self._db.fetch(_REVOKED_WITHIN, seconds)
        return [(str(row["id"]), row["revoked_reason"] or "", row["at"]) for row in rows]

    async def prune(self) -> None:
        """Delete refresh tokens past their expiry and sessions that ended a day ago or more."""
        await self._db.execute(_PRUNE_REFRESHES)
        await self._db.execute(_PRUNE_SESSIONS)


async def _open_session(
    tx: Transaction, account_id: UUID, device: str, refresh_sha256: bytes, refresh_s: float
) -> str:
    session_id = new_id()
    await tx.execute(_ADD_SESSION, session_id, account_id, device, refresh_s)
    await tx.execute(_ADD_REFRESH, refresh_sha256, session_id, refresh_s)
    return session_id


async def _why_not(tx: Transaction, presented_sha256: bytes) -> Rotation:
    row = await tx.fetchrow(_REFRESH_STATE, presented_sha256)
    if row is None:
        return Rotation("", None, Refused.UNKNOWN)
    session_id = str(row["session_id"])
    if row["used_at"] is None:
        return Rotation(session_id, None, Refused.EXPIRED)
    await tx.fetchval(_REVOKE, session_id, "refresh_reused")
    return Rotation(session_id, None, Refused.REUSED)


def _account(row: Any) -> Account | None:
    if row is None:
        return None
    return Account(**{field.name: row[field.name] for field in dataclasses.fields(Account)})


def _taken(error: Conflict) -> WhisprError:
    if error.constraint in _TAKEN:
        return exists(*_TAKEN[error.constraint])
    return error


_BY_USERNAME = f"SELECT {_COLUMNS} FROM auth.accounts a WHERE lower(a.username) = lower($1)"  # noqa: S608 our columns
_BY_ID = f"SELECT {_COLUMNS} FROM auth.accounts a WHERE a.id = $1"  # noqa: S608 our columns

_INSERT_ACCOUNT = f"""
INSERT INTO auth.accounts AS a (id, username, email, display_name, password_hash, last_login_at)
VALUES ($1, $2, $3, $4, $5, now())
RETURNING {_COLUMNS}
"""  # noqa: S608 our columns

_SIGN_IN = f"""
UPDATE auth.accounts AS a
SET last_login_at = now(), password_hash = coalesce($2, a.password_hash)
WHERE a.id = $1 AND a.is_active
RETURNING {_COLUMNS}
"""  # noqa: S608 our columns

_ADD_SESSION = """
INSERT INTO auth.sessions (id, account_id, device, expires_at)
VALUES ($1, $2, $3, now() + make_interval(secs => $4))
"""

_ADD_REFRESH = """
INSERT INTO auth.refresh_tokens (token_sha256, session_id, expires_at)
VALUES ($1, $2, now() + make_interval(secs => $3))
"""

# Under READ COMMITTED a second UPDATE waits for the first and then finds used_at set: one of them wins.
_USE_REFRESH = """
UPDATE auth.refresh_tokens SET used_at = now()
WHERE token_sha256 = $1 AND used_at IS NULL AND expires_at > now()
RETURNING session_id
"""

_REFRESH_STATE = "SELECT session_id, used_at FROM auth.refresh_tokens WHERE token_sha256 = $1"

# The lock puts an exchange and a revocation of the same session in one order.
_SESSION_ACCOUNT = f"""
SELECT s.revoked_at, {_COLUMNS}
FROM auth.sessions s JOIN auth.accounts a ON a.id = s.account_id
WHERE s.id = $1
FOR UPDATE OF s
"""  # noqa: S608 our columns

_TOUCH_SESSION = """
UPDATE auth.sessions SET last_seen_at = now(), expires_at = now() + make_interval(secs => $2) WHERE id = $1
"""

_REVOKE = """
UPDATE auth.sessions SET revoked_at = now(), revoked_reason = $2
WHERE id = $1 AND revoked_at IS NULL
RETURNING id
"""

_IS_LIVE = """
SELECT true FROM auth.sessions s JOIN auth.accounts a ON a.id = s.account_id
WHERE s.id = $1 AND s.revoked_at IS NULL AND s.expires_at > now() AND a.is_active
"""

_REVOKED_WITHIN = """
SELECT id, revoked_reason, extract(epoch FROM revoked_at)::float8 AS at FROM auth.sessions
WHERE revoked_at > now() - make_interval(secs => $1)
"""

_PRUNE_REFRESHES = "DELETE FROM auth.refresh_tokens WHERE expires_at < now()"

_PRUNE_SESSIONS = """
DELETE FROM auth.sessions
WHERE expires_at < now() - interval '1 day' OR revoked_at < now() - interval '1 day'
"""
