"""Tokens verified here, with keys fetched when needed.

A token is verified locally, without a call, against the keys at hand, which are looked for again every
`KEYS_EVERY_S`: a key that was removed is trusted nowhere within a minute. A token under a key that is not known makes
the process look at once, but not more often than every few seconds, so that forged key ids cost nothing. Only what
cannot be decided here, a token under a secret that this process was not given, is asked of
AuthService.ValidateToken.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.errors import WhisprError, unauthenticated
from whispr.identity.revocations import OnRevoked, Revocation, Revocations
from whispr.tokens import (
    SHARED_ALGORITHM,
    Claims,
    Clock,
    PublicKey,
    UnknownKeyError,
    Verifier,
    VerifyingKey,
    check_service,
    check_times,
)
from whispr.v1 import auth_pb2

VERIFIED_MAX = 4096
"""Tokens whose signature need not be checked again: at about 100 µs each, the bulk of a small call."""

REFETCH_S = 10.0
"""A token under an unknown key makes us look for keys at most this often."""

KEYS_EVERY_S = 15.0
"""How often we look for keys anyway."""
KEYS_PATIENCE_S = 5.0

ASKING_MAX = 16
"""Tokens that AuthService is asked about at once."""

FetchKeys = Callable[[], Awaitable[Iterable[VerifyingKey]]]
Ask = Callable[[str], Awaitable[Claims]]
"""Asks AuthService about a token. Raises UNAUTHENTICATED when it is no good."""

log = structlog.get_logger("whispr.identity")


class JwksStub(Protocol):
    """The part of AuthServiceStub that gives keys."""

    @property
    def GetJwks(self) -> Callable[[auth_pb2.GetJwksRequest], Awaitable[auth_pb2.Jwks]]:  # noqa: N802 an RPC's name
        """Call AuthService.GetJwks."""
        ...


class ValidateStub(Protocol):
    """The part of AuthServiceStub that judges tokens."""

    @property
    def ValidateToken(  # noqa: N802 an RPC's name
        self,
    ) -> Callable[[auth_pb2.ValidateTokenRequest], Awaitable[auth_pb2.ValidateTokenResponse]]:
        """Call AuthService.ValidateToken."""
        ...


def keys_from(stub: JwksStub) -> FetchKeys:
    """Return a function that fetches the public keys from AuthService."""

    async def fetch() -> list[PublicKey]:
        answer = await stub.GetJwks(auth_pb2.GetJwksRequest())
        return [PublicKey.from_x(key.x) for key in answer.keys if (key.kty, key.crv) == ("OKP", "Ed25519")]

    return fetch


def answers_from(stub: ValidateStub) -> Ask:
    """Return a function that asks AuthService whose a token is."""

    async def ask(token: str) -> Claims:
        answer = await stub.ValidateToken(auth_pb2.ValidateTokenRequest(token=token))
        if not answer.valid:
            raise unauthenticated("the token is not valid", reason=answer.reason or "unauthorized")
        user = answer.user
        return Claims(
            user_id=user.user_id,
            session_id=user.session_id,
            username=user.username,
            role=user.role,
            services=tuple(user.services),
            permissions=tuple(user.permissions),
            issued_at=user.issued_at.seconds,
            expires_at=user.expires_at.seconds,
            token_id=user.token_id,
        )

    return ask


class Identity:
    """Verifies tokens for one process."""

    def __init__(
        self,
        cache: Cache,
        bus: Bus,
        *,
        keys: Iterable[VerifyingKey] = (),
        fetch_keys: FetchKeys | None = None,
        ask: Ask | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._verifier = Verifier(keys, clock)
        self._fetch_keys = fetch_keys
        self._fetching = trio.Lock()
        self._fetched_at = -math.inf
        self._fetches = 0
        self._clock = clock
        self._ask = ask
        self._asking = trio.CapacityLimiter(ASKING_MAX)
        self._verified: OrderedDict[str, Claims] = OrderedDict()
        self._vouched: OrderedDict[str, Claims] = OrderedDict()
        """What AuthService said, until we next look for keys: with it a secret that is withdrawn is forgotten."""
        self._revocations = Revocations(cache, bus, clock)

    def on_revoked(self, callback: OnRevoked) -> None:
        """Call `callback(session_id, reason)` whenever a session ends; it must not block or raise."""
        self._revocations.on_revoked(callback)

    async def validate_for_service(self, token: str, service: str) -> Claims:
        """Return who `token` proves its bearer to be, who may show it to `service` (such as "chat").

        Raises UNAUTHENTICATED (unauthorized, token_expired, session_revoked), PERMISSION_DENIED
        (service_not_granted), or UNAVAILABLE when its key is unknown and AuthService cannot be asked.
        """
        return await self.authenticate(token, service)

    async def authenticate(self, token: str, service: str | None = None) -> Claims:
        """Return who `token` proves its bearer to be; with `service`, it must grant that one too.

        Raises as `validate_for_service`.
        """
        await trio.lowlevel.checkpoint()
        try:
            claims = self._verify(token)
        except UnknownKeyError as unknown:
            claims = await self._decide(token, unknown)
        if self._revocations.cover(claims):
            raise unauthenticated("the session has been ended", reason="session_revoked")
        if service is not None:
            check_service(claims, service)
        return claims

    def _verify(self, token: str) -> Claims:
        claims = self._verified.get(token)
        if claims is not None:
            check_times(claims, self._clock())
            self._verified.move_to_end(token)
            return claims
        claims = self._verifier.verify(token)
        _remember(self._verified, token, claims)
        return claims

    async def _decide(self, token: str, unknown: UnknownKeyError) -> Claims:
        """Find out about a token whose key is not at hand."""
        if unknown.algorithm == SHARED_ALGORITHM:
            return await self._vouched_for(token, unknown)
        if not await self._refetch():
            raise unknown
        return self._verify(token)

    async def _vouched_for(self, token: str, unknown: UnknownKeyError) -> Claims:
        """Ask AuthService about a token under a secret that this process does not have."""
        claims = self._vouched.get(token)
        if claims is None:
            if self._ask is None:
                raise unknown
            async with self._asking:
                claims = await self._ask(token)
            _remember(self._vouched, token, claims)
        check_times(claims, self._clock())
        return claims

    async def _refetch(self) -> bool:
        """Fetch the keys anew, once for all who wait; False when that was done moments ago.

        Raises UNAVAILABLE when AuthService does not answer: then nobody can tell whether the token is good.
        """
        fetches = self._fetches
        async with self._fetching:
            if self._fetches != fetches:
                return True
            if self._fetch_keys is None or trio.current_time() < self._fetched_at + REFETCH_S:
                return False
            await self._renew(self._fetch_keys)
            self._fetched_at = trio.current_time()
            return True

    async def _renew(self, fetch_keys: FetchKeys) -> None:
        """Trust the keys there are now and no others."""
        if self._verifier.replace_keys(await fetch_keys()):
            self._verified.clear()
        self._vouched.clear()
        self._fetches += 1

    async def _renew_for_ever(self) -> None:
        """Look for keys now and then. While AuthService is away, the last ones stay."""
        if self._fetch_keys is None:
            return
        while True:
            await trio.sleep(KEYS_EVERY_S)
            try:
                with trio.fail_after(KEYS_PATIENCE_S):
                    await self._renew(self._fetch_keys)
            except (WhisprError, trio.TooSlowError) as error:
                log.warning("keys_not_renewed", error=str(error) or "no answer")

    def is_revoked(self, session_id: str) -> bool:
        """Whether a session has been ended, as far as this process knows."""
        return self._revocations.ended(session_id)

    def revoke(self, revocation: Revocation) -> None:
        """Refuse a session's tokens from now on, and tell those who hold its sockets."""
        self._revocations.add(revocation)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up with ended sessions and with keys, until cancelled. Ready once it hears of ended sessions."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._revocations.run)
            nursery.start_soon(self._renew_for_ever)
            task_status.started()


def _remember(memory: OrderedDict[str, Claims], token: str, claims: Claims) -> None:
    memory[token] = claims
    if len(memory) > VERIFIED_MAX:
        memory.popitem(last=False)
