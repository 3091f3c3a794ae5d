"""SQL of the auth schema. Every statement that must not race decides in the database, not here."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from whispr.adapters.postgres import Conflict, Postgres, Transaction
from whispr.errors import WhisprError, exists
from whispr.events import emit
from whispr.ids import new_id
from whispr.services.auth.domain import Account, Registration, Session

COLUMNS = ", ".join(f"a.{field.name}" for field in dataclasses.fields(Account))

TOO_MANY = "too_many_sessions"
"""Why a session ended when another was opened."""

Facts = Mapping[str, Any]

# PostgreSQL's UUIDs come as a class of asyncpg's, which msgspec does not know.
_json = msgspec.json.Encoder(enc_hook=str).encode

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


@dataclass(frozen=True, slots=True)
class Opening:
    """What a new session is opened with. `sessions_max` 0 is no limit."""

    device: str
    address: str
    refresh_sha256: bytes
    refresh_s: float
    sessions_max: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session, and those that were ended to make room for it."""

    account: Account
    session_id: str
    ended: tuple[str, ...]


class AuthStore:
    """Accounts, sessions and refresh tokens."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def account_at(self, username: str, address: str) -> tuple[Account | None, bool]:
        """Find an account by its name, whatever the case, and whether it has been used from `address`."""
        row = await self._db.fetchrow(_BY_USERNAME_AT, username, address)
        return (None, False) if row is None else (account_of(row), row["known"])

    async def account_by_username(self, username: str) -> Account | None:
        """Find an account by its name, whatever the case."""
        return account_of(await self._db.fetchrow(_BY_USERNAME, username))

    async def account_by_id(self, account_id: str) -> Account | None:
        """Find an account by its id."""
        return account_of(await self._db.fetchrow(_BY_ID, account_id))

    async def sign_up(self, new: Registration, password_hash: str, opening: Opening) -> Opened:
        """Make an account with a first session, both or neither.

        Raises ALREADY_EXISTS (username_taken, email_taken).
        """
        try:
            async with self._db.transaction() as tx:
                row = await tx.fetchrow(
                    _INSERT_ACCOUNT, new_id(), new.username, new.email, new.display_name, password_hash
                )
                account = account_of(row)
                assert account is not None, "an INSERT … RETURNING returns its row"
                await tell(tx, "account_created", account.id, account.id, {})
                return Opened(account, *await _open_session(tx, account.id, opening))
        except Conflict as error:
            raise _taken(error) from None

    async def sign_in(
        self, verified: Account, opening: Opening, new_password_hash: str | None
    ) -> Opened | None:
        """Open a session, storing a renewed password hash if any.

        None when the account has been closed or its password changed since it was verified.
        """
        async with self._db.transaction() as tx:
            row = await tx.fetchrow(_SIGN_IN, verified.id, new_password_hash, verified.password_hash)
            account = account_of(row)
            if account is None:
                return None
            return Opened(account, *await _open_session(tx, account.id, opening))

    async def rotate(
        self, presented_sha256: bytes, successor_sha256: bytes, refresh_s: float, address: str
    ) -> Rotation:
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
            account = account_of(row)
            assert account is not None
            if not account.is_active:
                return Rotation(str(session_id), None, Refused.INACTIVE)
            await tx.execute(_ADD_REFRESH, successor_sha256, session_id, refresh_s)
            await tx.execute(_TOUCH_SESSION, session_id, refresh_s, address)
            return Rotation(str(session_id), account, None)

    async def revoke(self, session_id: str, reason: str, account_id: str | None = None) -> bool:
        """End a session, of this account if one is given; False when there is none such that is alive."""
        async with self._db.transaction() as tx:
            owner = await tx.fetchval(_REVOKE, session_id, reason, account_id)
            if owner is None:
                return False
            await tell_ended(tx, owner, session_id, reason)
            return True

    async def revoke_token(self, token_id: str, reason: str, expires_at: float) -> None:
        """Remember that a service's token is refused until it would have expired."""
        await self._db.execute(_REVOKE_ID, token_id, reason, expires_at)

    async def session_of_refresh(self, token_sha256: bytes) -> tuple[str, str] | None:
        """Return the session of a refresh token, used or not, and its account."""
        row = await self._db.fetchrow(_SESSION_OF_REFRESH, token_sha256)
        return (str(row["id"]), str(row["account_id"])) if row is not None else None

    async def sessions(self, account_id: str) -> list[Session]:
        """Return the sessions of an account that are alive, the latest seen first."""
        rows = await self._db.fetch(_SESSIONS, account_id)
        fields = [field.name for field in dataclasses.fields(Session)]
        return [Session(**{name: row[name] for name in fields} | {"id": str(row["id"])}) for row in rows]

    async def held(self, account_id: str) -> list[tuple[str, bytes]]:
        """Return all that is held about a person, secrets apart: what each thing is, and the thing as JSON."""
        found: list[tuple[str, bytes]] = []
        for kind, statement in _HELD.items():
            rows = await self._db.fetch(statement, account_id)
            found += [(kind, _json(dict(row))) for row in rows]
        return found

    async def is_revoked(self, token_id: str) -> bool:
        """Whether a service's token has been revoked."""
        return bool(await self._db.fetchval(_IS_REVOKED, token_id))

    async def session_is_live(self, session_id: str) -> bool:
        """Whether a session exists, unrevoked and unexpired, of an active account."""
        return bool(await self._db.fetchval(_IS_LIVE, session_id))

    async def revoked_within(self, seconds: float) -> list[tuple[str, str, float]]:
        """Return (id, reason, Unix time until which it matters) of what was revoked and might still be shown.

        Those are the sessions revoked in the last `seconds`, and tokens of services.
        """
        rows = await self._db.fetch(_REVOKED_WITHIN, seconds)
        return [(row["id"], row["reason"], row["until"]) for row in rows]

    async def prune(self) -> None:
        """Delete refresh tokens past their expiry and sessions that ended a day ago or more."""
        await self._db.execute(_PRUNE_REFRESHES)
        await self._db.execute(_PRUNE_TOKENS)
        await self._db.execute(_PRUNE_SESSIONS)


async def tell(tx: Transaction, what: str, about: UUID | str, actor: UUID | str | None, data: Facts) -> None:
    """Emit `user.events.<what>` about an account, whose row the transaction has locked."""
    by = str(actor) if actor is not None else None
    await emit(tx, f"user.events.{what}", about=str(about), actor=by, data={"user_id": str(about), **data})


async def tell_ended(tx: Transaction, account_id: UUID | str, session_id: str, reason: str) -> None:
    """Emit that a session has ended."""
    await tell(tx, "session_revoked", account_id, None, {"session_id": session_id, "reason": reason})


async def _open_session(tx: Transaction, account_id: UUID, opening: Opening) -> tuple[str, tuple[str, ...]]:
    """Open a session; return it and those ended for it. The account's row is locked: sign-ins take turns."""
    session_id = new_id()
    await tx.execute(_ADD_SESSION, session_id, account_id, opening.device, opening.refresh_s, opening.address)
    await tx.execute(_ADD_REFRESH, opening.refresh_sha256, session_id, opening.refresh_s)
    if not opening.sessions_max:
        return session_id, ()
    rows = await tx.fetch(_REVOKE_BEYOND, account_id, opening.sessions_max, session_id)
    ended = tuple(str(row["id"]) for row in rows)
    for each in ended:
        await tell_ended(tx, account_id, each, TOO_MANY)
    return session_id, ended


async def _why_not(tx: Transaction, presented_sha256: bytes) -> Rotation:
    row = await tx.fetchrow(_REFRESH_STATE, presented_sha256)
    if row is None:
        return Rotation("", None, Refused.UNKNOWN)
    session_id = str(row["session_id"])
    if row["used_at"] is None:
        return Rotation(session_id, None, Refused.EXPIRED)
    owner = await tx.fetchval(_REVOKE, session_id, "refresh_reused", None)
    if owner is not None:
        await tell_ended(tx, owner, session_id, "refresh_reused")
    return Rotation(session_id, None, Refused.REUSED)


def account_of(row: Any) -> Account | None:
    """Read a row that has COLUMNS."""
    if row is None:
        return None
    return Account(**{field.name: row[field.name] for field in dataclasses.fields(Account)})


def _taken(error: Conflict) -> WhisprError:
    if error.constraint in _TAKEN:
        return exists(*_TAKEN[error.constraint])
    return error


_BY_USERNAME = f"SELECT {COLUMNS} FROM auth.accounts a WHERE lower(a.username) = lower($1)"  # noqa: S608 our columns
_BY_ID = f"SELECT {COLUMNS} FROM auth.accounts a WHERE a.id = $1"  # noqa: S608 our columns

_BY_USERNAME_AT = f"""
SELECT {COLUMNS}, EXISTS (
    SELECT FROM auth.sessions s
    WHERE s.account_id = a.id AND s.address = $2 AND s.address <> ''
        AND (s.revoked_at IS NULL OR s.revoked_reason = 'logged_out')
) AS known
FROM auth.accounts a WHERE lower(a.username) = lower($1)
"""  # noqa: S608 our columns

_INSERT_ACCOUNT = f"""
INSERT INTO auth.accounts AS a (id, username, email, display_name, password_hash, last_login_at)
VALUES ($1, $2, $3, $4, $5, now())
RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_SIGN_IN = f"""
UPDATE auth.accounts AS a
SET last_login_at = now(), password_hash = coalesce($2, a.password_hash)
WHERE a.id = $1 AND a.is_active AND a.password_hash = $3
RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_ADD_SESSION = """
INSERT INTO auth.sessions (id, account_id, device, expires_at, address)
VALUES ($1, $2, $3, now() + make_interval(secs => $4), $5)
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
SELECT s.revoked_at, {COLUMNS}
FROM auth.sessions s JOIN auth.accounts a ON a.id = s.account_id
WHERE s.id = $1
FOR UPDATE OF s
"""  # noqa: S608 our columns

_TOUCH_SESSION = """
UPDATE auth.sessions
SET last_seen_at = now(), expires_at = now() + make_interval(secs => $2), address = $3
WHERE id = $1
"""

_REVOKE = """
UPDATE auth.sessions SET revoked_at = now(), revoked_reason = $2
WHERE id = $1 AND revoked_at IS NULL AND ($3::uuid IS NULL OR account_id = $3)
RETURNING account_id
"""

# The new session is never among those that make room for it, whatever the clock says.
_REVOKE_BEYOND = f"""
UPDATE auth.sessions SET revoked_at = now(), revoked_reason = '{TOO_MANY}'
WHERE id IN (
    SELECT id FROM auth.sessions
    WHERE account_id = $1 AND revoked_at IS NULL AND expires_at > now()
    ORDER BY id = $3 DESC, last_seen_at DESC, id DESC OFFSET $2
)
RETURNING id
"""  # noqa: S608 our constant

_SESSIONS = """
SELECT id, device, address, created_at, last_seen_at, expires_at FROM auth.sessions
WHERE account_id = $1 AND revoked_at IS NULL AND expires_at > now()
ORDER BY last_seen_at DESC, id DESC
"""

_SESSION_OF_REFRESH = """
SELECT s.id, s.account_id FROM auth.refresh_tokens t JOIN auth.sessions s ON s.id = t.session_id
WHERE t.token_sha256 = $1
"""

_HELD = {
    "account": "SELECT id, username, email, display_name, role, is_active, is_verified, created_at,"
    " last_login_at, closed_reason, deleted_at FROM auth.accounts WHERE id = $1 AND erased_at IS NULL",
    "session": "SELECT id, device, address, created_at, last_seen_at, expires_at, revoked_at, revoked_reason"
    " FROM auth.sessions WHERE account_id = $1 ORDER BY created_at",
    "export": "SELECT id, state, requested_by, requested_at, finished_at FROM auth.exports"
    " WHERE account_id = $1 ORDER BY requested_at",
}

_REVOKE_ID = """
INSERT INTO auth.revoked_tokens (token_id, reason, expires_at) VALUES ($1, $2, to_timestamp($3))
ON CONFLICT DO NOTHING
"""

_IS_REVOKED = "SELECT true FROM auth.revoked_tokens WHERE token_id = $1"

_IS_LIVE = """
SELECT true FROM auth.sessions s JOIN auth.accounts a ON a.id = s.account_id
WHERE s.id = $1 AND s.revoked_at IS NULL AND s.expires_at > now() AND a.is_active
"""

_REVOKED_WITHIN = """
SELECT id::text, coalesce(revoked_reason, '') AS reason,
    extract(epoch FROM revoked_at)::float8 + $1 AS until
FROM auth.sessions WHERE revoked_at > now() - make_interval(secs => $1)
UNION ALL
SELECT token_id, reason, extract(epoch FROM expires_at)::float8 FROM auth.revoked_tokens
WHERE expires_at > now()
"""

_PRUNE_REFRESHES = "DELETE FROM auth.refresh_tokens WHERE expires_at < now()"
_PRUNE_TOKENS = "DELETE FROM auth.revoked_tokens WHERE expires_at < now() - interval '1 hour'"

_PRUNE_SESSIONS = """
DELETE FROM auth.sessions
WHERE expires_at < now() - interval '1 day' OR revoked_at < now() - interval '1 day'
"""
