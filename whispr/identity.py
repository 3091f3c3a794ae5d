"""Who is calling: tokens verified here, keys fetched when needed, ended sessions refused.

Every process has one `Identity`. A token is verified locally, without a call, against the keys it holds, which
it looks for again every `KEYS_EVERY_S`: a key that was removed is trusted nowhere within a minute. A token under
a key it does not know makes it look at once, but not more often than every few seconds, so that forged key ids
cost nothing. Only what it cannot decide, a token under a secret that this process was not given, is asked of
AuthService.ValidateToken.

Sessions (and service tokens) that were ended before they expired are known from two places: a sorted set in
Redis, read at start and after the bus was away, and the bus, which brings news within milliseconds.

`AuthInterceptor` puts that in front of every RPC. The `(whispr.v1.access)` option of the method says who may
call; a method without one is refused to everybody. Handlers then ask `current_actor()`.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog
import trio
from google.protobuf import descriptor_pool

from whispr.adapters.bus import Bus, Subscription
from whispr.adapters.cache import Cache
from whispr.errors import WhisprError, denied, unauthenticated
from whispr.rpc.call import Call, Metadata, current_call
from whispr.rpc.interceptors import Proceed
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
from whispr.v1 import auth_pb2, options_pb2

REVOKED_KEY = "whispr:revoked"
"""Redis sorted set: the id of a session or of a service's token, scored by the Unix time until which it matters."""

REVOKED_SUBJECT = "whispr.sessions.revoked"

VERIFIED_MAX = 4096
"""Tokens whose signature need not be checked again: at about 100 µs each, the bulk of a small call."""

REFETCH_S = 10.0
"""A token under an unknown key makes us look for keys at most this often."""

KEYS_EVERY_S = 15.0
"""How often we look for keys anyway."""
KEYS_PATIENCE_S = 5.0

ASKING_MAX = 16
"""Tokens that AuthService is asked about at once."""

PRUNE_EVERY_S = 60.0
RELOAD_EVERY_S = 60.0
RELOAD_PAUSES_S = (0.1, 0.5, 1.0, 5.0)

FetchKeys = Callable[[], Awaitable[Iterable[VerifyingKey]]]
Ask = Callable[[str], Awaitable[Claims]]
"""Asks AuthService about a token. Raises UNAUTHENTICATED when it is no good."""
OnRevoked = Callable[[str, str], None]

log = structlog.get_logger("whispr.identity")


class Revocation(msgspec.Struct, frozen=True):
    """The news that a session has ended, as it travels on the bus."""

    session_id: str
    """Or the id of a service's token, which has no session."""
    reason: str
    expires_at: float
    """Unix time after which no token of the session can be alive."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a call is made for."""

    user_id: str
    """The person; empty when a service acts for nobody."""
    claims: Claims

    @property
    def person(self) -> str:
        """The person, of a call that must be made for one. Raises PERMISSION_DENIED."""
        if not self.user_id:
            raise denied("a service says for whom it acts, in x-whispr-actor")
        return self.user_id

    @property
    def is_service(self) -> bool:
        """Whether a service makes the call, possibly for a person."""
        return self.claims.is_service


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
        self._cache = cache
        self._bus = bus
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
        self._revoked: dict[str, float] = {}
        self._callbacks: list[OnRevoked] = []
        self._stale = trio.Event()

    def on_revoked(self, callback: OnRevoked) -> None:
        """Call `callback(session_id, reason)` whenever a session ends; it must not block or raise."""
        self._callbacks.append(callback)

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
        if claims.session_id in self._revoked or claims.token_id in self._revoked:
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

    def revoke(self, revocation: Revocation) -> None:
        """Refuse a session's tokens from now on, and tell those who hold its sockets."""
        if revocation.session_id in self._revoked:
            return
        self._revoked[revocation.session_id] = revocation.expires_at
        for callback in self._callbacks:
            callback(revocation.session_id, revocation.reason)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up with ended sessions, until cancelled. Ready once it listens to the bus."""
        forget = self._bus.on_up(lambda: self._stale.set())
        try:
            async with self._bus.subscribe(REVOKED_SUBJECT) as news, trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, news)
                nursery.start_soon(self._reload_after_every_gap)
                nursery.start_soon(self._prune_for_ever)
                nursery.start_soon(self._renew_for_ever)
                task_status.started()
        finally:
            forget()

    async def _follow(self, news: Subscription) -> None:
        async for message in news:
            try:
                self.revoke(msgspec.json.decode(message.payload, type=Revocation))
            except msgspec.MsgspecError as error:
                log.warning("revocation_unreadable", error=str(error))

    async def _reload_after_every_gap(self) -> None:
        """Read the sorted set now, and whenever the bus has been away: what it said meanwhile is lost.

        And now and then without a cause: the bus delivers at most once.
        """
        while True:
            self._stale = trio.Event()
            await self._reload()
            with trio.move_on_after(RELOAD_EVERY_S):
                await self._stale.wait()

    async def _reload(self) -> None:
        attempt = 0
        while True:
            try:
                found = await self._cache.command(
                    "ZRANGEBYSCORE", REVOKED_KEY, self._clock(), "+inf", "WITHSCORES"
                )
            except WhisprError as error:
                # Without Redis the bus still brings what happens from now on.
                log.warning("revocations_not_loaded", error=str(error), attempt=attempt)
                await trio.sleep(RELOAD_PAUSES_S[min(attempt, len(RELOAD_PAUSES_S) - 1)])
                attempt += 1
                continue
            for session_id, expires_at in zip(found[::2], found[1::2], strict=True):
                self.revoke(Revocation(session_id.decode(), "session_revoked", float(expires_at)))
            return

    async def _prune_for_ever(self) -> None:
        while True:
            await trio.sleep(PRUNE_EVERY_S)
            now = self._clock()
            self._revoked = {session: until for session, until in self._revoked.items() if until > now}


def _remember(memory: OrderedDict[str, Claims], token: str, claims: Claims) -> None:
    memory[token] = claims
    if len(memory) > VERIFIED_MAX:
        memory.popitem(last=False)


ACTOR_KEY = "x-whispr-actor"
"""Metadata in which a service names the person it acts for."""

CLIENT_ADDRESS_KEY = "x-whispr-client-address"
"""Metadata in which the gateway names the address of its client; believed beside a service's token only."""

VOUCHER_KEY = "x-whispr-voucher"
"""Metadata with the service token that vouches for `x-whispr-client-address`. It is not `authorization`,
where the client's own token travels."""

PUBLIC_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
"""Services of gRPC itself that anybody may ask; their protos cannot carry our option."""

OPERATOR_SERVICES = frozenset({"grpc.channelz.v1.Channelz"})
"""Services of gRPC itself for those who run the product: administrators, and services whose token grants them."""

OPERATORS = -1
"""Who may call these, beside what the option has to say of others."""

OPERATOR_PERMISSION = "system:read"

_STATE = "actor"


def access_of(method: str) -> int:
    """Return the `(whispr.v1.access)` option of "/package.Service/Method"; unspecified when it has none."""
    service_name, _, method_name = method.removeprefix("/").rpartition("/")
    if service_name in PUBLIC_SERVICES:
        return int(options_pb2.PUBLIC)
    if service_name in OPERATOR_SERVICES:
        return OPERATORS
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        options = service.methods_by_name[method_name].GetOptions()
    except KeyError:
        return int(options_pb2.ACCESS_UNSPECIFIED)
    return int(options.Extensions[options_pb2.access])  # type: ignore[index]  # the .pyi says FieldDescriptor


def service_of(method: str) -> str:
    """`/whispr.v1.MessagingService/SendMessage` → `messaging`, as the `services` claim names it."""
    return method.removeprefix("/").partition("/")[0].rpartition(".")[2].removesuffix("Service").lower()


def bearer_of(metadata: Metadata) -> str:
    """Return the token in `authorization: Bearer …`. Raises UNAUTHENTICATED when there is not exactly one."""
    values = metadata.get_all("authorization")
    if not values:
        raise unauthenticated("no access token: send `authorization: Bearer <token>`")
    if len(values) > 1 or not isinstance(values[0], str):
        raise unauthenticated("more than one authorization")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("the authorization is not `Bearer <token>`")
    return token.strip()


def actor_of(claims: Claims, named: str | None) -> Actor:
    """Return who a call is made for. A service may name a person; a person may name nobody else.

    Raises PERMISSION_DENIED (actor_mismatch).
    """
    if claims.is_service:
        return Actor(named or "", claims)
    if named and named != claims.user_id:
        raise denied("a person acts for nobody else", reason="actor_mismatch")
    return Actor(claims.user_id, claims)


def current_actor() -> Actor:
    """Return who the call in progress is made for. Raises UNAUTHENTICATED in a method that anybody may call."""
    actor: Actor | None = current_call().state.get(_STATE)
    if actor is None:
        raise unauthenticated("this call has not been authenticated")
    return actor


def actor_on(call: Call) -> Actor | None:
    """Return who a call is made for, once it has been authorised; None in a method that anybody may call."""
    actor: Actor | None = call.state.get(_STATE)
    return actor


class AuthInterceptor:
    """Lets a call through when its method's option and its token agree; refuses it otherwise."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._access: dict[str, int] = {}

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Authorise one call."""
        access = self._access_of(call.method)
        if access != options_pb2.PUBLIC:
            call.state[_STATE] = await self._actor(call, access)
        return await proceed()

    async def _actor(self, call: Call, access: int) -> Actor:
        if access == OPERATORS:
            return await self._operator(call)
        if access not in (options_pb2.AUTHENTICATED, options_pb2.SERVICE_ONLY):
            raise denied(f"{call.method} is open to nobody", reason="access_unspecified")
        claims = await self._identity.authenticate(bearer_of(call.metadata), service_of(call.method))
        if access == options_pb2.SERVICE_ONLY and not claims.is_service:
            raise denied(f"{call.method} is for services", reason="service_only")
        return actor_of(claims, call.metadata.text(ACTOR_KEY))

    async def _operator(self, call: Call) -> Actor:
        claims = await self._identity.authenticate(bearer_of(call.metadata))
        if claims.is_service:
            check_service(claims, service_of(call.method))
        elif not claims.allows(OPERATOR_PERMISSION):
            raise denied(f"{call.method} is for administrators and services", reason="operators_only")
        return actor_of(claims, call.metadata.text(ACTOR_KEY))

    def _access_of(self, method: str) -> int:
        access = self._access.get(method)
        if access is None:
            access = access_of(method)
            if access != options_pb2.ACCESS_UNSPECIFIED:  # Made-up names must not fill the memory.
                self._access[method] = access
        return access


async def client_address(identity: Identity) -> str:
    """Return the address of who makes the call in progress: what our gateway says, else the other end."""
    call = current_call()
    named, voucher = call.metadata.text(CLIENT_ADDRESS_KEY), call.metadata.text(VOUCHER_KEY)
    if named and voucher:
        claims = await identity.authenticate(voucher)
        if claims.is_service:
            return named
    return host_of(call.peer)


def host_of(peer: str) -> str:
    """`tcp:127.0.0.1:50312` and `tcp:[::1]:50312` → the address; anything else (a Unix socket) as it is."""
    host = peer.removeprefix("tcp:").rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return peer
