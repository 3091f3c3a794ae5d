"""AuthService: signing up, in and out, and the tokens that say so.

An access token lives minutes and is verified anywhere without asking; a refresh token lives weeks, works
once, and is asked for here. What ties them is the session, one per device (see `revocation` for its end).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
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
from whispr.identity import Identity
from whispr.services.auth import domain
from whispr.services.auth.domain import Account
from whispr.services.auth.keys import KeyRing, Keys
from whispr.services.auth.passwords import Passwords
from whispr.services.auth.revocation import Revoker
from whispr.services.auth.store import AuthStore, Refused
from whispr.tokens import LEEWAY_S, Claims, Clock, PublicKey, check_service, user_claims

MIGRATIONS = Path(__file__).parent / "migrations"

HOUR_S = 3600.0
PRUNE_EVERY_S = HOUR_S
REFRESH_TOKEN_BYTES = 32
GIVE_BACK_S = 0.5

log = structlog.get_logger("whispr.auth")


@dataclass(frozen=True, slots=True)
class AuthLimits:
    """Lives of tokens in seconds, and attempts per hour (0 lifts the limit)."""

    access_token_s: int = 15 * 60
    refresh_token_s: int = 30 * 24 * 3600
    attempts_per_hour: int = 20

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
    """Listens to no events."""

    def __init__(
        self,
        db: Postgres,
        cache: Cache,
        bus: Bus,
        identity: Identity,
        keys: Keys | KeyRing,
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
        self._store = AuthStore(db)
        self._limiter = RateLimiter(cache)
        self._passwords = passwords or Passwords()
        self._revoker = Revoker(self._store, cache, bus, identity, self._limits.revocation_s, clock)
        self.servicer = AuthServicer(self)

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The keys that verify our tokens."""
        return self._keys.public_keys

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do the work in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._passwords.prepare)
            nursery.start_soon(self._revoker.run)
            nursery.start_soon(self._prune_for_ever)
            task_status.started()

    async def _prune_for_ever(self) -> None:
        while True:
            try:
                await self._store.prune()
            except WhisprError as error:
                log.warning("prune_failed", error=str(error))
            await trio.sleep(PRUNE_EVERY_S)

    async def register(
        self, username: str, password: str, display_name: str, email: str, address: str
    ) -> Grant:
        """Make an account and sign it in.

        Raises INVALID_ARGUMENT naming every field at fault, ALREADY_EXISTS (username_taken, email_taken), and
        RESOURCE_EXHAUSTED past the sign-ups of an address.
        """
        new = domain.registration(username, password, display_name, email)
        await self._limiter.take(
            f"auth:sign-up:{domain.address_key(address)}", self._limits.attempts_per_hour, HOUR_S
        )
        password_hash = await self._passwords.hash(password)
        refresh_token = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        account, session_id = await self._store.sign_up(
            new, password_hash, _sha256(refresh_token), self._limits.refresh_token_s
        )
        return self._grant(account, session_id, refresh_token)

    async def login(self, username: str, password: str, device: str, address: str) -> Grant:
        """Sign in.

        Raises UNAUTHENTICATED (bad_credentials), after the same time and in the same words whether or not
        there is such an account, and RESOURCE_EXHAUSTED past the failures of an address or an account.
        """
        account = await self._proven_account(username, password, address)
        if not account.is_active:
            raise denied("this account has been closed", reason="account_inactive")
        new_hash = None
        if self._passwords.is_outdated(account.password_hash):
            new_hash = await self._passwords.hash(password)
        refresh_token = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        opened = await self._store.sign_in(
            account.id,
            domain.device_name(device),
            _sha256(refresh_token),
            self._limits.refresh_token_s,
            new_hash,
        )
        if opened is None:
            raise denied("this account has been closed", reason="account_inactive")
        return self._grant(*opened, refresh_token)

    async def _proven_account(self, username: str, password: str, address: str) -> Account:
        """Return the account that name and password belong to, counting the attempt only if it is wrong.

        Counted before and given back after, so that many attempts at once are no way round the limit.
        """
        keys = (f"auth:login:{domain.address_key(address)}", f"auth:account:{username.lower()[:64]}")
        for key in keys:
            await self._limiter.take(key, self._limits.attempts_per_hour, HOUR_S)
        wrong = False
        try:
            account = await self._matching_account(username, password)
            wrong = account is None
        finally:
            if not wrong:
                await self._give_back(keys)
        if account is None:
            raise unauthenticated("wrong username or password", reason="bad_credentials")
        return account

    async def _matching_account(self, username: str, password: str) -> Account | None:
        if len(password.encode()) > domain.PASSWORD_BYTES_MAX:
            return None
        account = None
        if domain.username_fault(username) is None:
            account = await self._store.account_by_username(username)
        good = await self._passwords.verify(account.password_hash if account else None, password)
        return account if good else None

    async def _give_back(self, keys: Iterable[str]) -> None:
        with trio.move_on_after(GIVE_BACK_S, shield=True):
            for key in keys:
                await self._limiter.give_back(key, self._limits.attempts_per_hour, HOUR_S)

    async def refresh(self, refresh_token: str) -> Grant:
        """Exchange a refresh token for new tokens; each works once.

        Raises UNAUTHENTICATED: refresh_reused (the session has been ended for it), session_revoked,
        token_expired, or unauthorized for a token that never was.
        """
        successor = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        rotation = await self._store.rotate(
            _sha256(refresh_token), _sha256(successor), self._limits.refresh_token_s
        )
        if rotation.refused is Refused.REUSED:
            log.warning("refresh_token_reused", session=rotation.session_id)
            await self._revoker.spread(rotation.session_id, "refresh_reused")
        if rotation.refused is not None:
            raise _REFUSALS[rotation.refused]()
        assert rotation.account is not None, "a rotation is refused or has an account"
        return self._grant(rotation.account, rotation.session_id, successor)

    async def logout(self, session_id: str) -> None:
        """End a session, everywhere within a second."""
        await self._revoker.revoke(session_id, "logged_out")

    async def validate(self, token: str, service: str) -> tuple[Claims, Account | None]:
        """Return what a token says, and its account unless it is a service's.

        Asks the database too, so that the answer holds even where the news of a revocation has not arrived.
        Raises UNAUTHENTICATED (unauthorized, token_expired, session_revoked) or PERMISSION_DENIED
        (service_not_granted).
        """
        claims = await self.identity.authenticate(token)
        account = None
        if not claims.is_service:
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

    def _grant(self, account: Account, session_id: str, refresh_token: str) -> Grant:
        claims = user_claims(
            user_id=str(account.id),
            session_id=session_id,
            username=account.username,
            role=account.role,
            now=self._clock(),
            lifetime_s=self._limits.access_token_s,
        )
        access_token = self._keys.signer.sign(claims)
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
