"""AuthService: signing up, in and out, and the tokens that say so.

An access token lives minutes and is verified anywhere without asking; a refresh token lives weeks, works
once, and is asked for here. What ties them is the session, one per device (see `revocation` for its end).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.errors import WhisprError, denied, not_found, unauthenticated
from whispr.events import Consumer
from whispr.households import household
from whispr.identity import Identity
from whispr.services.auth import domain
from whispr.services.auth.accounts import Accounts, Changed
from whispr.services.auth.attempts import HOUR_S, Attempts
from whispr.services.auth.domain import Account, Session
from whispr.services.auth.exports import Exports
from whispr.services.auth.keys import KeyRing, Keys
from whispr.services.auth.neighbours import Neighbours
from whispr.services.auth.passwords import Passwords
from whispr.services.auth.revocation import Revoker
from whispr.services.auth.store import TOO_MANY, AuthStore, Opened, Opening, Refused
from whispr.tokens import LEEWAY_S, Claims, Clock, PublicKey, check_service, user_claims

MIGRATIONS = Path(__file__).parent / "migrations"

PRUNE_EVERY_S = HOUR_S
ERASE_EVERY_S = 30.0
REFRESH_TOKEN_BYTES = 32

log = structlog.get_logger("whispr.auth")


@dataclass(frozen=True, slots=True)
class AuthLimits:
    """Lives of tokens in seconds, and attempts per hour (0 lifts the limit)."""

    access_token_s: int = 15 * 60
    refresh_token_s: int = 30 * 24 * 3600
    attempts_per_hour: int = 20
    account_attempts_per_hour: int = 100
    account_sessions: int = 100
    data_exports_per_day: int = 3

    @property
    def revocation_s(self) -> float:
        """How long an ended session has to be refused: until its last access token has surely expired."""
        return self.access_token_s + LEEWAY_S + 60.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What signing in gives."""

    account: Account
    session_id: str
    access_token: str
    refresh_token: str
    expires_in_s: int


class AuthService:
    """The use cases of accounts and sessions. `servicer` answers RPCs with them."""

    channels: Mapping[str, Any] = {}
    """No WebSocket topics."""
    consumers: Sequence[Consumer] = ()
    """It hears of nothing: what it erases, it erases because its own tables say so."""

    def __init__(
        self,
        db: Postgres,
        cache: Cache,
        bus: Bus,
        identity: Identity,
        keys: Keys | KeyRing,
        neighbours: Neighbours,
        *,
        limits: AuthLimits | None = None,
        passwords: Passwords | None = None,
        clock: Clock = time.time,
    ) -> None:
        from whispr.services.auth.handlers import AuthServicer

        self.identity = identity
        self._limits = limits or AuthLimits()
        self._keys = keys
        self._clock = clock
        self.neighbours = neighbours
        self._store = AuthStore(db)
        self.accounts = Accounts(db)
        self.exports = Exports(db, cache, neighbours, self._limits.data_exports_per_day)
        self._limiter = RateLimiter(cache)
        self._attempts = Attempts(cache)
        self._passwords = passwords or Passwords()
        self.revoker = Revoker(self._store, cache, bus, identity, self._limits.revocation_s, clock)
        self._deleted = trio.Event()
        self.servicer = AuthServicer(self)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The keys that verify our tokens."""
        return self._keys.public_keys

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the work in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._passwords.prepare)
            nursery.start_soon(self.revoker.run)
            nursery.start_soon(self._prune_for_ever)
            nursery.start_soon(self._erase_for_ever)
            nursery.start_soon(self.exports.run)
            task_status.started()

    async def _prune_for_ever(self) -> None:
        while True:
            try:
                await self._store.prune()
                await self.exports.prune()
            except WhisprError as error:
                log.warning("prune_failed", error=str(error))
            await trio.sleep(PRUNE_EVERY_S)

    async def _erase_for_ever(self) -> None:
        """Erase deleted accounts: at once those deleted here, now and then those of a process that died."""
        while True:
            self._deleted = trio.Event()
            try:
                if erased := await self.accounts.erase_deleted():
                    log.info("accounts_erased", count=erased)
            except WhisprError as error:
                log.warning("erasure_failed", error=str(error))
            with trio.move_on_after(ERASE_EVERY_S):
                await self._deleted.wait()

    async def register(
        self, username: str, password: str, display_name: str, email: str, address: str
    ) -> Grant:
        """Make an account and sign it in.

        Raises INVALID_ARGUMENT naming every field at fault, ALREADY_EXISTS (username_taken, email_taken), and
        RESOURCE_EXHAUSTED past the sign-ups of an address.
        """
        new = domain.registration(username, password, display_name, email)
        await self._limiter.take(f"auth:sign-up:{household(address)}", self._limits.attempts_per_hour, HOUR_S)
        password_hash = await self._passwords.hash(password)
        refresh_token = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        opened = await self._store.sign_up(new, password_hash, self._opening(refresh_token, "", address))
        return self._grant(opened.account, opened.session_id, refresh_token)

    async def login(self, username: str, password: str, device: str, address: str) -> Grant:
        """Sign in.

        Raises UNAUTHENTICATED (bad_credentials), after the same time and in the same words whether or not
        there is such an account, and RESOURCE_EXHAUSTED after failures (see `attempts`).
        """
        refresh_token = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        opening = self._opening(refresh_token, device, address)
        opened = None
        while opened is None:
            account = await self.proven(username, password, address)
            if not account.is_active:
                raise denied("this account has been closed", reason="account_inactive")
            # None when it was closed or its password changed just now: then it is asked again.
            opened = await self._open(account, password, opening)
        await self.revoker.spread(*opened.ended, reason=TOO_MANY)
        return self._grant(opened.account, opened.session_id, refresh_token)

    async def _open(self, account: Account, password: str, opening: Opening) -> Opened | None:
        new_hash = None
        if self._passwords.is_outdated(account.password_hash):
            new_hash = await self._passwords.hash(password)
        return await self._store.sign_in(account, opening, new_hash)

    def _opening(self, refresh_token: str, device: str, address: str) -> Opening:
        return Opening(
            domain.device_name(device),
            household(address),
            _sha256(refresh_token),
            self._limits.refresh_token_s,
            self._limits.account_sessions,
        )

    async def proven(self, username: str, password: str, address: str) -> Account:
        """Return the account that name and password belong to, counting the attempt only if it is wrong.

        Counted before and given back after, so that many attempts at once are no way round the limits.
        """
        limits = self._limits.attempts_per_hour, self._limits.account_attempts_per_hour
        key = household(address)
        account, known = await self._account_at(username, key)
        await self._attempts.take(username, key, limits, known=known)
        good = wrong = False
        try:
            good = await self._matches(account, password)
            wrong = not good
        finally:
            if not wrong:
                await self._attempts.give_back(username, key, limits, known=known, good=good)
        if account is None or not good:
            raise unauthenticated("wrong username or password", reason="bad_credentials")
        return account

    async def _account_at(self, username: str, address: str) -> tuple[Account | None, bool]:
        if domain.username_fault(username) is not None:
            await trio.lowlevel.checkpoint()
            return None, False
        return await self._store.account_at(username, address)

    async def _matches(self, account: Account | None, password: str) -> bool:
        """Whether it is the account's password; for no account the same work is done for nothing."""
        if len(password.encode()) > domain.PASSWORD_BYTES_MAX:
            await trio.lowlevel.checkpoint()
            return False
        return await self._passwords.verify(account.password_hash if account else None, password)

    async def refresh(self, refresh_token: str, address: str) -> Grant:
        """Exchange a refresh token for new tokens; each works once.

        Raises UNAUTHENTICATED: refresh_reused (the session has been ended for it), session_revoked,
        token_expired, or unauthorized for a token that never was.
        """
        successor = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        rotation = await self._store.rotate(
            _sha256(refresh_token),
            _sha256(successor),
            self._limits.refresh_token_s,
            household(address),
        )
        if rotation.refused is Refused.REUSED:
            log.warning("refresh_token_reused", session=rotation.session_id)
            await self.revoker.spread(rotation.session_id, reason="refresh_reused")
        if rotation.refused is not None:
            raise _REFUSALS[rotation.refused]()
        assert rotation.account is not None, "a rotation is refused or has an account"
        return self._grant(rotation.account, rotation.session_id, successor)

    async def logout(self, session_id: str) -> None:
        """End a session, everywhere within a second."""
        await self.revoker.revoke(session_id, "logged_out")

    async def sessions(self, account_id: str) -> list[Session]:
        """Return the sessions of an account, the latest seen first."""
        return await self._store.sessions(account_id)

    async def revoke_session(self, account_id: str, session_id: str) -> None:
        """End a session of this account. Raises NOT_FOUND."""
        if not await self._store.revoke(session_id, "revoked", account_id):
            raise not_found("session", session_id)
        await self.revoker.spread(session_id, reason="revoked")

    async def session_of_refresh(self, refresh_token: str) -> tuple[str, str] | None:
        """Return the session that a refresh token belongs to, and its account."""
        return await self._store.session_of_refresh(_sha256(refresh_token))

    async def change_password(self, session: Claims, current: str, new: str, address: str) -> int:
        """Replace a password and end the other sessions; return how many. Raises as the proto says."""
        new = domain.new_password(new)
        changed = None
        while changed is None:
            account = await self._proven_owner(session, current, address)
            new_hash = await self._passwords.hash(new)
            # None when it was closed or its password changed just now: then it is asked again.
            changed = await self.accounts.change_password(
                session.user_id, account.password_hash, new_hash, session.session_id
            )
        await self.tell_ended(changed, "password_changed")
        return len(changed.ended)

    async def delete_own_account(self, session: Claims, password: str, address: str) -> None:
        """Delete the account of a session, which the password confirms. Raises as the proto says."""
        await self._proven_owner(session, password, address)
        await self.delete_account(session.user_id, session.user_id)

    async def delete_account(self, account_id: str, actor_id: str | None) -> None:
        """Delete an account: for everybody at once, its data soon after. Raises as the proto says."""
        deleted = await self.accounts.delete(account_id, actor_id)
        self._deleted.set()
        await self.tell_ended(deleted, "account_deleted")

    async def _proven_owner(self, session: Claims, password: str, address: str) -> Account:
        """Return the account of a session whose password this is."""
        account = await self.proven(session.username, password, address)
        if str(account.id) != session.user_id:
            raise unauthenticated("this account is gone", reason="session_revoked")
        return account

    async def tell_ended(self, changed: Changed, reason: str) -> None:
        """Have the sessions that were ended by a change refused everywhere."""
        await self.revoker.spread(*changed.ended, reason=reason)

    async def validate(self, token: str, service: str) -> tuple[Claims, Account | None]:
        """Return what a token says, and its account unless it is a service's.

        Asks the database too, so that the answer holds even where the news of a revocation has not arrived.
        Raises UNAUTHENTICATED (unauthorized, token_expired, session_revoked) or PERMISSION_DENIED
        (service_not_granted).
        """
        claims = await self.identity.authenticate(token)
        account = None
        if claims.is_service:
            if await self._store.is_revoked(claims.token_id):
                raise unauthenticated("the token has been revoked", reason="session_revoked")
        else:
            if not await self._store.session_is_live(claims.session_id):
                raise unauthenticated("the session has been ended", reason="session_revoked")
            account = await self.account(claims.user_id)
        if service:
            check_service(claims, service)
        return claims, account

    async def account(self, account_id: str) -> Account:
        """Return an account. Raises NOT_FOUND."""
        account = await self._store.account_by_id(account_id)
        if account is None:
            raise not_found("user", account_id)
        return account

    async def account_named(self, username: str) -> Account:
        """Return the account of this name, whatever the case. Raises NOT_FOUND."""
        account = None
        if domain.username_fault(username) is None:
            account = await self._store.account_by_username(username)
        if account is None:
            raise not_found("user", username)
        return account

    async def set_display_name(self, account_id: str, display_name: str) -> str:
        """Change the name others see; return it. Raises INVALID_ARGUMENT, NOT_FOUND."""
        name = await self.accounts.set_display_name(account_id, domain.display_name(display_name, ""))
        if name is None:
            raise not_found("user", account_id)
        return name

    async def held(self, account_id: str) -> list[tuple[str, bytes]]:
        """Return all that auth holds about a person: what each thing is, and the thing as JSON."""
        return await self._store.held(account_id)

    def now(self) -> float:
        """Unix time."""
        return self._clock()

    def issue(self, claims: Claims) -> str:
        """Sign claims."""
        return self._keys.signer.sign(claims)

    def _grant(self, account: Account, session_id: str, refresh_token: str) -> Grant:
        claims = user_claims(
            user_id=str(account.id),
            session_id=session_id,
            username=account.username,
            role=account.role,
            now=self._clock(),
            lifetime_s=self._limits.access_token_s,
        )
        access_token = self.issue(claims)
        return Grant(account, session_id, access_token, refresh_token, self._limits.access_token_s)


def _sha256(refresh_token: str) -> bytes:
    return hashlib.sha256(refresh_token.encode()).digest()


_REFUSALS = {
    Refused.UNKNOWN: lambda: unauthenticated("no such refresh token"),
    Refused.EXPIRED: lambda: unauthenticated("the refresh token has expired", reason="token_expired"),
    Refused.REUSED: lambda: unauthenticated(
        "the refresh token was used before; its session has been ended", reason="refresh_reused"
    ),
    Refused.REVOKED: lambda: unauthenticated("the session has been ended", reason="session_revoked"),
    Refused.INACTIVE: lambda: unauthenticated("this account has been closed", reason="session_revoked"),
}
