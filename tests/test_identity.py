"""Who is calling: local verification, fetched keys, ended sessions, and the interceptor's default of no."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whispr import tokens
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.errors import Code, WhisprError, unavailable
from whispr.identity import (
    REFETCH_S,
    REVOKED_KEY,
    REVOKED_SUBJECT,
    Actor,
    AuthInterceptor,
    Identity,
    Revocation,
    access,
    access_of,
    actor_of,
    bearer_of,
    host_of,
    revocations,
    service_of,
    verifying,
)
from whispr.rpc.call import Call, Metadata
from whispr.tokens import Claims, PublicKey, SharedSecret, Signer, Verifier
from whispr.v1 import auth_pb2, messaging_pb2, options_pb2, user_pb2

NOW = 1_800_000_000.0
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
BACKENDS = cast("tuple[Cache, Bus]", (None, None))
"""These tests verify tokens and follow no news; those that do use the real ones."""


def person(**changes: Any) -> Claims:
    claims = tokens.user_claims(
        user_id="u1", session_id="s1", username="ada", role="user", now=NOW, lifetime_s=900
    )
    return dataclasses.replace(claims, **changes)


def user_of(role: str) -> Claims:
    return person(role=role, permissions=tokens.ROLE_PERMISSIONS[role])


def service_token(**changes: Any) -> str:
    return SIGNER.sign(dataclasses.replace(tokens.service_claims("chat", now=NOW, lifetime_s=900), **changes))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def local(clock: Clock | None = None) -> Identity:
    return Identity(*BACKENDS, keys=[SIGNER.public_key], clock=clock or Clock())


async def refusal(call: Awaitable[Any]) -> WhisprError:
    with pytest.raises(WhisprError) as caught:
        await call
    return caught.value


async def test_a_token_is_verified_without_asking_anybody() -> None:
    """With the key at hand there is nobody to ask."""
    claims = person()
    assert await local().authenticate(SIGNER.sign(claims)) == claims


async def test_a_token_seen_before_still_expires() -> None:
    """A signature is checked once, the time every time."""
    clock = Clock()
    subject = local(clock)
    token = SIGNER.sign(person())
    await subject.authenticate(token)
    clock.now += 1000
    assert (await refusal(subject.authenticate(token))).reason == "token_expired"


async def test_the_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens are shown, only so many are remembered."""
    monkeypatch.setattr(verifying, "VERIFIED_MAX", 3)
    subject = local()
    for number in range(6):
        await subject.authenticate(SIGNER.sign(person(token_id=str(number))))
    assert len(subject._verified) == 3


async def test_a_service_must_be_granted() -> None:
    """A token that does not name the service is PERMISSION_DENIED there, the second time as well."""
    subject = local()
    token = SIGNER.sign(person(services=("user",)))
    for _ in range(2):
        assert (await refusal(subject.authenticate(token, "chat"))).reason == "service_not_granted"
    assert (await subject.authenticate(token, "user")).user_id == "u1"


class Jwks:
    """An AuthService that gives out keys, and counts."""

    def __init__(self, keys: Iterable[PublicKey] = ()) -> None:
        self.keys = list(keys)
        self.asked = 0
        self.away = False

    async def __call__(self) -> list[PublicKey]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise unavailable("nobody there")
        return self.keys


async def test_unknown_keys_are_fetched_once(autojump_clock: trio.testing.MockClock) -> None:
    """Many calls at once under a new key ask for it once, and all go through."""
    jwks = Jwks([SIGNER.public_key])
    subject = Identity(*BACKENDS, fetch_keys=jwks, clock=Clock())
    token = SIGNER.sign(person())
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(subject.authenticate, token)
    assert jwks.asked == 1


async def test_forged_key_ids_cost_little(autojump_clock: trio.testing.MockClock) -> None:
    """Keys are fetched at most every few seconds, whatever the tokens say; a new key is found after that."""
    jwks = Jwks([SIGNER.public_key])
    subject = Identity(*BACKENDS, fetch_keys=jwks, clock=Clock())
    other = Signer(Ed25519PrivateKey.generate())
    for _ in range(50):
        assert (await refusal(subject.authenticate(other.sign(person())))).reason == "unauthorized"
    assert jwks.asked == 1
    jwks.keys = [other.public_key]
    await trio.sleep(REFETCH_S + 1)
    assert (await subject.authenticate(other.sign(person()))).user_id == "u1"
    assert (await refusal(subject.authenticate(SIGNER.sign(person())))).reason == "unauthorized"


async def test_without_keys_nothing_is_decided(autojump_clock: trio.testing.MockClock) -> None:
    """A good token is not called bad because AuthService is away: the answer is UNAVAILABLE."""
    jwks = Jwks([SIGNER.public_key])
    jwks.away = True
    subject = Identity(*BACKENDS, fetch_keys=jwks, clock=Clock())
    token = SIGNER.sign(person())
    assert (await refusal(subject.authenticate(token))).code is Code.UNAVAILABLE
    jwks.away = False
    assert (await subject.authenticate(token)).user_id == "u1"


async def test_a_removed_key_is_trusted_nowhere_within_a_minute(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Keys are looked for again and again, also when every token shown is of a known key."""
    other = Signer(Ed25519PrivateKey.generate())
    jwks = Jwks([SIGNER.public_key, other.public_key])
    subject = Identity(*BACKENDS, keys=jwks.keys, fetch_keys=jwks, clock=Clock())
    old, new = SIGNER.sign(person()), other.sign(person())
    jwks.keys = [other.public_key]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject._renew_for_ever)
        assert (await subject.authenticate(old)).user_id == "u1"
        await trio.sleep(60)
        assert (await refusal(subject.authenticate(old))).reason == "unauthorized"
        assert (await subject.authenticate(new)).user_id == "u1"
        jwks.away = True
        await trio.sleep(60)
        assert (await subject.authenticate(new)).user_id == "u1"
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_what_cannot_be_decided_here_is_asked(autojump_clock: trio.testing.MockClock) -> None:
    """A token under a secret that was not given to this process is judged by AuthService, once for a while."""
    claims = person()
    signer = Signer(SharedSecret(b"s" * 32))
    asked: list[str] = []

    async def ask(token: str) -> Claims:
        asked.append(token)
        await trio.lowlevel.checkpoint()
        return Verifier([signer.verifying_key], clock=Clock()).verify(token)

    subject = Identity(*BACKENDS, keys=[SIGNER.public_key], ask=ask, clock=Clock())
    token = signer.sign(claims)
    for _ in range(3):
        assert await subject.validate_for_service(token, "chat") == claims
    assert asked == [token]
    subject.revoke(Revocation("s1", "logged_out", NOW + 900))
    assert (await refusal(subject.authenticate(token))).reason == "session_revoked"
    forged = Signer(SharedSecret(b"f" * 32)).sign(person())
    assert (await refusal(subject.authenticate(forged))).reason == "unauthorized"
    assert (await refusal(local().authenticate(token))).reason == "unauthorized"
    narrow = signer.sign(person(services=("user",), session_id="s3"))
    assert (await refusal(subject.validate_for_service(narrow, "chat"))).reason == "service_not_granted"


async def test_a_revoked_service_token_is_refused() -> None:
    """Services have no sessions: their tokens are revoked by id."""
    subject = local()
    subject.revoke(Revocation("t1", "leaked", NOW + 900))
    assert (await refusal(subject.authenticate(service_token(token_id="t1")))).reason == "session_revoked"
    assert (await subject.authenticate(service_token(token_id="t2"))).is_service


async def test_an_ended_session_is_refused_and_told_of_once() -> None:
    """Its tokens fail, those of others do not; callbacks hear of it one time."""
    subject = local()
    told: list[tuple[str, str]] = []
    subject.on_revoked(lambda *news: told.append(news))
    token = SIGNER.sign(person())
    await subject.authenticate(token)
    for _ in range(2):
        subject.revoke(Revocation("s1", "logged_out", NOW + 900))
    error = await refusal(subject.authenticate(token))
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "session_revoked")
    assert (await subject.authenticate(SIGNER.sign(person(session_id="s2")))).session_id == "s2"
    assert told == [("s1", "logged_out")]


async def test_news_comes_by_bus_and_from_redis(cache: Cache, bus: Bus) -> None:
    """Sessions ended before the start are read from Redis, forgotten ones left; unreadable news is survived."""
    await cache.command("ZADD", REVOKED_KEY, NOW + 900, "s1", NOW - 1, "long-gone")
    subject = Identity(cache, bus, keys=[SIGNER.public_key], clock=Clock())
    told = trio.open_memory_channel[str](10)
    subject.on_revoked(lambda session, _: told[0].send_nowait(session))
    async with trio.open_nursery() as nursery:
        await nursery.start(subject.run)
        with trio.fail_after(5):
            heard = {await told[1].receive()}
            while "s1" not in heard:
                heard.add(await told[1].receive())
        assert "long-gone" not in heard
        await subject._revocations._follow(
            cast(
                "Any",
                _news(
                    b"garbage",
                    json.dumps({"session_id": "s9", "reason": "test", "expires_at": NOW + 9}).encode(),
                ),
            )
        )
        assert "s9" in subject._revocations._until
        nursery.cancel_scope.cancel(reason="seen enough")
    told[0].close()
    told[1].close()
    await cache.command("ZREM", REVOKED_KEY, "s1", "long-gone")


async def _news(*payloads: bytes) -> Any:
    for payload in payloads:
        yield SimpleNamespace(subject=REVOKED_SUBJECT, payload=payload)


async def test_without_redis_it_keeps_trying(autojump_clock: trio.testing.MockClock) -> None:
    """While Redis is away an identity starts all the same, and reads the set when it is back."""

    class Flaky:
        failures = 3

        async def command(self, *_: object) -> list[bytes]:
            await trio.lowlevel.checkpoint()
            self.failures -= 1
            if self.failures >= 0:
                raise unavailable("away")
            return [b"s1", b"1800000900"]

    subject = Identity(cast(Cache, Flaky()), BACKENDS[1], keys=[SIGNER.public_key], clock=Clock())
    with trio.fail_after(60):
        await subject._revocations._reload()
    assert "s1" in subject._revocations._until


async def test_lost_news_is_caught_up_with(autojump_clock: trio.testing.MockClock) -> None:
    """What the bus failed to bring is read from Redis within a minute or so."""

    class Forgetful:
        reads = 0

        async def command(self, *_: object) -> list[bytes]:
            await trio.lowlevel.checkpoint()
            self.reads += 1
            return [] if self.reads == 1 else [b"s1", b"1800000900"]

    subject = Identity(cast(Cache, Forgetful()), BACKENDS[1], keys=[SIGNER.public_key], clock=Clock())
    with trio.move_on_after(revocations.RELOAD_EVERY_S + 1):
        await subject._revocations._reload_after_every_gap()
    assert "s1" in subject._revocations._until


async def test_the_past_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """A session is remembered until its last token has expired, no longer."""
    clock = Clock()
    subject = local(clock)
    subject.revoke(Revocation("s1", "logged_out", NOW + 10))
    subject.revoke(Revocation("s2", "logged_out", NOW + 1000))
    clock.now += 100
    with trio.move_on_after(revocations.PRUNE_EVERY_S + 1):
        await subject._revocations._prune_for_ever()
    assert list(subject._revocations._until) == ["s2"]


# The interceptor.

LOGIN = "/whispr.v1.AuthService/Login"
LOGOUT = "/whispr.v1.AuthService/Logout"


def call_of(method: str, *pairs: tuple[str, str]) -> Call:
    return Call(method, Metadata(pairs), "tcp:127.0.0.1:1", float("inf"))


async def let_through(call: Call, identity: Identity | None = None) -> Actor | None:
    """Send a call through the interceptor; return the actor that the handler would see."""
    reached = False

    async def handler() -> str:
        nonlocal reached
        reached = True
        await trio.lowlevel.checkpoint()
        return "answer"

    try:
        assert await AuthInterceptor(identity or local())(call, handler) == "answer"
    finally:
        assert reached or "actor" not in call.state
    return call.state.get("actor")


def bearer(token: str, *more: tuple[str, str]) -> Sequence[tuple[str, str]]:
    return [("authorization", f"Bearer {token}"), *more]


def test_every_method_of_ours_says_who_may_call() -> None:
    """No RPC was forgotten: each has the access option."""
    modules: tuple[Any, ...] = (auth_pb2, user_pb2, messaging_pb2)
    for proto in modules:
        for service in proto.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                assert access_of(path) != options_pb2.ACCESS_UNSPECIFIED, path


@pytest.mark.parametrize(
    "method",
    ["/whispr.v1.AuthService/Nothing", "/nowhere.Service/Method", "/", "", "//", "/google.protobuf.Any/x"],
)
async def test_a_method_without_the_option_is_refused_to_everybody(method: str) -> None:
    """Not even a service may call what does not say who may."""
    for pairs in ([], bearer(SIGNER.sign(person())), bearer(service_token())):
        error = await refusal(let_through(call_of(method, *pairs)))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "access_unspecified")


async def test_public_methods_need_no_token_and_read_none() -> None:
    """Signing in works without a token, and with a stale one in the client's headers."""
    assert await let_through(call_of(LOGIN)) is None
    assert await let_through(call_of(LOGIN, *bearer("stale"))) is None
    assert await let_through(call_of("/grpc.health.v1.Health/Check")) is None


async def test_a_person_is_let_through() -> None:
    """With a token the handler learns who calls."""
    actor = await let_through(call_of(LOGOUT, *bearer(SIGNER.sign(person()))))
    assert actor is not None
    assert (actor.user_id, actor.is_service, actor.claims.session_id) == ("u1", False, "s1")


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Basic dTpw")],
        [("authorization", "Bearer nonsense")],
        [("authorization", "Bearer a"), ("authorization", "Bearer b")],
    ],
)
async def test_anything_but_one_bearer_token_is_refused(pairs: list[tuple[str, str]]) -> None:
    """None, two, another scheme or nonsense is UNAUTHENTICATED."""
    error = await refusal(let_through(call_of(LOGOUT, *pairs)))
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "unauthorized")


async def test_a_token_for_other_services_is_refused() -> None:
    """The token must grant the service that the method belongs to."""
    token = SIGNER.sign(person(services=("messaging",)))
    assert (await refusal(let_through(call_of(LOGOUT, *bearer(token))))).reason == "service_not_granted"


async def test_service_only_methods_refuse_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's token does not open what is for services."""
    monkeypatch.setattr(access, "access_of", lambda _: options_pb2.SERVICE_ONLY)
    error = await refusal(let_through(call_of(LOGOUT, *bearer(SIGNER.sign(person())))))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "service_only")
    actor = await let_through(call_of(LOGOUT, *bearer(service_token())))
    assert actor is not None
    assert actor.is_service


async def test_channelz_is_for_administrators_and_services() -> None:
    """Addresses and errors of everybody's connections are nothing for people, nor for services not granted it."""
    asked = "/grpc.channelz.v1.Channelz/GetServers"
    assert (await refusal(let_through(call_of(asked)))).code is Code.UNAUTHENTICATED
    for role in ("user", "premium", "moderator"):
        error = await refusal(let_through(call_of(asked, *bearer(SIGNER.sign(user_of(role))))))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "operators_only")
    other = service_token(services=("messaging",))
    assert (await refusal(let_through(call_of(asked, *bearer(other))))).reason == "service_not_granted"
    for token in (SIGNER.sign(user_of("admin")), service_token(), service_token(services=("channelz",))):
        assert await let_through(call_of(asked, *bearer(token))) is not None


def test_a_service_may_act_for_a_person_and_a_person_for_nobody_else() -> None:
    """Naming another actor is for services; a person may at most name themselves."""
    robot = tokens.service_claims("chat", now=NOW, lifetime_s=9)
    assert actor_of(robot, "u7").user_id == "u7"
    assert actor_of(robot, None).user_id == ""
    assert actor_of(person(), None).user_id == "u1"
    assert actor_of(person(), "u1").user_id == "u1"
    with pytest.raises(WhisprError) as caught:
        actor_of(person(), "u7")
    assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "actor_mismatch")


async def test_made_up_methods_do_not_fill_the_memory() -> None:
    """Only methods that exist are remembered."""
    interceptor = AuthInterceptor(local())
    for number in range(10):
        with pytest.raises(WhisprError):
            await interceptor(call_of(f"/made.up/{number}"), trio.sleep_forever)
    assert interceptor._access == {}


def test_small_readings() -> None:
    """The scheme's case does not matter; names of services and addresses are read from what gRPC gives."""
    assert bearer_of(Metadata([("authorization", "bEARER  abc ")])) == "abc"
    assert service_of("/whispr.v1.MessagingService/SendMessage") == "messaging"
    assert host_of("tcp:127.0.0.1:50312") == "127.0.0.1"
    assert host_of("tcp:[::1]:50312") == "::1"
    assert host_of("unix:/run/whispr") == "unix:/run/whispr"
