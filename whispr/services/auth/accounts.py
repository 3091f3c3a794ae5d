"""SQL of what happens to an account after it was made: passwords, roles, names, closing, deleting, erasing.

Whatever might leave nobody to administer the product takes one lock first, so that two administrators who demote
each other at the same moment do so one after the other, and the second is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import WhisprError, conflict, not_found
from whispr.services.auth.domain import Account
from whispr.services.auth.store import COLUMNS, account_of, tell
from whispr.tokens import ROLE_PERMISSIONS, permits

ADMINS_LOCK = 0x61646D696E73
""""admins": the advisory lock of whatever may take an administrator away."""
ERASED_NAME = "Deleted account"


@dataclass(frozen=True, slots=True)
class Changed:
    """An account after a change, and its sessions that were ended for it."""

    account: Account
    ended: tuple[str, ...] = ()


class Accounts:
    """Changes accounts. `actor_id` is who does so; None is a service for nobody."""

    def __init__(self, db: Postgres) -> None:
        self._db = db

    async def change_password(
        self, account_id: str, verified_hash: str, new_hash: str, kept_session_id: str
    ) -> Changed | None:
        """Store a new password and end the other sessions; None when the password has changed meanwhile."""
        async with self._db.transaction() as tx:
            account = account_of(await tx.fetchrow(_CHANGE_PASSWORD, account_id, verified_hash, new_hash))
            if account is None:
                return None
            ended = await _end_sessions(tx, account_id, "password_changed", kept_session_id)
            await tell(tx, "password_changed", account_id, account_id, {"sessions_ended": list(ended)})
            return Changed(account, ended)

    async def set_role(self, account_id: str, role: str, actor_id: str | None) -> Changed:
        """Give a role, ending the sessions when it may less than before.

        Raises NOT_FOUND, FAILED_PRECONDITION (last_admin).
        """
        async with self._db.transaction() as tx:
            before = await _locked(tx, account_id)
            if before.role == role:
                return Changed(before)
            if before.role == "admin":
                await _check_another_admin(tx, account_id)
            account = account_of(await tx.fetchrow(_SET_ROLE, account_id, role))
            assert account is not None, "its row is locked"
            ended: tuple[str, ...] = ()
            if not all(permits(ROLE_PERMISSIONS[role], each) for each in ROLE_PERMISSIONS[before.role]):
                ended = await _end_sessions(tx, account_id, "role_changed")
            facts = {"role": role, "previous": before.role, "sessions_ended": list(ended)}
            await tell(tx, "role_changed", account_id, actor_id, facts)
            return Changed(account, ended)

    async def close(self, account_id: str, reason: str, actor_id: str | None) -> Changed:
        """Close an account and end its sessions. Raises NOT_FOUND, FAILED_PRECONDITION (last_admin)."""
        async with self._db.transaction() as tx:
            before = await _locked(tx, account_id)
            if not before.is_active:
                return Changed(before)
            if before.role == "admin":
                await _check_another_admin(tx, account_id)
            account = account_of(await tx.fetchrow(_CLOSE, account_id, reason))
            assert account is not None, "its row is locked"
            ended = await _end_sessions(tx, account_id, "account_inactive")
            facts = {"reason": reason, "sessions_ended": list(ended)}
            await tell(tx, "account_deactivated", account_id, actor_id, facts)
            return Changed(account, ended)

    async def reopen(self, account_id: str, actor_id: str | None) -> Changed:
        """Open a closed account. Raises NOT_FOUND, FAILED_PRECONDITION (account_deleted)."""
        async with self._db.transaction() as tx:
            before = await _locked(tx, account_id)
            if before.deleted_at is not None:
                raise conflict("its owner has deleted this account", "account_deleted")
            if before.is_active:
                return Changed(before)
            account = account_of(await tx.fetchrow(_REOPEN, account_id))
            assert account is not None, "its row is locked"
            await tell(tx, "account_reactivated", account_id, actor_id, {})
            return Changed(account)

    async def set_display_name(self, account_id: str, display_name: str) -> str | None:
        """Store the name others see; None when there is no such active account."""
        name: str | None = await self._db.fetchval(_SET_DISPLAY_NAME, account_id, display_name)
        return name

    async def delete(self, account_id: str, actor_id: str | None) -> Changed:
        """Delete an account as far as anybody can tell: its data are erased soon after.

        Raises NOT_FOUND when it was deleted already, FAILED_PRECONDITION (last_admin).
        """
        async with self._db.transaction() as tx:
            before = await _locked(tx, account_id)
            if before.deleted_at is not None:
                raise not_found("user", account_id)
            if before.role == "admin" and before.is_active:
                await _check_another_admin(tx, account_id)
            account = account_of(await tx.fetchrow(_DELETE, account_id))
            assert account is not None, "its row is locked"
            ended = await _end_sessions(tx, account_id, "account_deleted")
            await tell(tx, "account_deleted", account_id, actor_id, {})
            return Changed(account, ended)

    async def erase_deleted(self) -> int:
        """Overwrite the personal data of accounts that were deleted; return of how many.

        Their usernames are free from then on. The sessions stay until they are pruned, with nothing in them: they
        keep the last access tokens of the account refused.
        """
        async with self._db.transaction() as tx:
            rows = await tx.fetch(_ERASE, ERASED_NAME)
            ids = [row["id"] for row in rows]
            for statement in _ERASE_REST:
                await tx.execute(statement, ids)
        return len(ids)


async def _locked(tx: Transaction, account_id: str) -> Account:
    await tx.execute("SELECT pg_advisory_xact_lock($1)", ADMINS_LOCK)
    account = account_of(await tx.fetchrow(_LOCK, account_id))
    if account is None:
        raise not_found("user", account_id)
    return account


async def _check_another_admin(tx: Transaction, account_id: str) -> None:
    if not await tx.fetchval(_ANOTHER_ADMIN, account_id):
        raise last_admin()


def last_admin() -> WhisprError:
    """FAILED_PRECONDITION: there has to be somebody who administers."""
    return conflict("this is the only administrator: make another one first", "last_admin")


async def _end_sessions(tx: Transaction, account_id: str, reason: str, kept_id: str = "") -> tuple[str, ...]:
    rows = await tx.fetch(_END_SESSIONS, account_id, reason, kept_id or None)
    return tuple(str(row["id"]) for row in rows)


_LOCK = f"SELECT {COLUMNS} FROM auth.accounts a WHERE a.id = $1 FOR UPDATE"  # noqa: S608 our columns

_ANOTHER_ADMIN = "SELECT true FROM auth.accounts WHERE role = 'admin' AND is_active AND id <> $1 LIMIT 1"

_CHANGE_PASSWORD = f"""
UPDATE auth.accounts AS a SET password_hash = $3 WHERE a.id = $1 AND a.is_active AND a.password_hash = $2
RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_SET_ROLE = f"UPDATE auth.accounts AS a SET role = $2 WHERE a.id = $1 RETURNING {COLUMNS}"  # noqa: S608 our columns

_CLOSE = f"""
UPDATE auth.accounts AS a SET is_active = false, closed_reason = $2 WHERE a.id = $1 RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_REOPEN = f"""
UPDATE auth.accounts AS a SET is_active = true, closed_reason = NULL WHERE a.id = $1 RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_DELETE = f"""
UPDATE auth.accounts AS a SET is_active = false, deleted_at = now() WHERE a.id = $1 RETURNING {COLUMNS}
"""  # noqa: S608 our columns

_SET_DISPLAY_NAME = """
UPDATE auth.accounts SET display_name = coalesce(nullif($2, ''), username) WHERE id = $1 AND is_active
RETURNING display_name
"""

_END_SESSIONS = """
UPDATE auth.sessions SET revoked_at = now(), revoked_reason = $2
WHERE account_id = $1 AND revoked_at IS NULL AND ($3::uuid IS NULL OR id <> $3)
RETURNING id
"""

# The new name is as unique as the id it is made of: its last 24 digits hold 74 random bits and part of the time.
_ERASE = """
UPDATE auth.accounts SET
    username = 'deleted-' || right(replace(id::text, '-', ''), 24), display_name = $1, email = NULL,
    is_verified = false, password_hash = '', last_login_at = NULL, closed_reason = NULL, role = 'user',
    erased_at = now()
WHERE deleted_at IS NOT NULL AND erased_at IS NULL
RETURNING id
"""

_ERASE_REST = (
    "DELETE FROM auth.exports WHERE account_id = ANY ($1::uuid[])",
    "DELETE FROM auth.refresh_tokens t USING auth.sessions s"
    " WHERE s.id = t.session_id AND s.account_id = ANY ($1::uuid[])",
    "UPDATE auth.sessions SET device = '', address = '' WHERE account_id = ANY ($1::uuid[])",
)
