"""AuthService over real gRPC on real backends."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import pytest
import trio
from argon2 import PasswordHasher

from whispr import tokens
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError, unavailable
from whispr.identity import REVOKED_KEY, Identity, keys_from
from whispr.services.auth.keys import ServiceToken
from whispr.services.auth.passwords import Passwords
from whispr.services.auth.service import AuthLimits
from whispr.v1 import auth_pb2


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def refusal(call: Awaitable[Any]) -> WhisprError:
    with pytest.raises(WhisprError) as caught:
        await call
    return caught.value


async def outcomes(work: Callable[[], Awaitable[Any]], times: int) -> list[Any]:
    """Run `work` several times at once; return each answer or WhisprError."""
    results: list[Any] = []

    async def one() -> None:
        try:
            results.append(await work())
        except WhisprError as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(one)
    return results


async def user_info(auth: Any, token: str, user_id: str = "me") -> Any:
    request = auth_pb2.GetUserInfoRequest(user_id=user_id)
    return (await auth.stub.GetUserInfo(request, metadata=bearer(token))).user


async def logout(auth: Any, token: str) -> None:
    await auth.stub.Logout(auth_pb2.LogoutRequest(), metadata=bearer(token))


async def test_signing_up_signs_in(auth: Any) -> None:
    """Register returns the account and tokens that work at once."""
    grant = await auth.register("Ada", display_name="Ada L.", email="ada@example.org")
    assert (grant.user.username, grant.user.display_name, grant.user.role) == ("Ada", "Ada L.", "user")
    assert grant.expires_in == 900
    assert grant.user.HasField("created_at")
    me = await user_info(auth, grant.access_token)
    assert (me.id, me.email) == (grant.user.id, "ada@example.org")
    claims = await auth.identity.authenticate(grant.access_token, "messaging")
    assert (claims.user_id, claims.session_id) == (grant.user.id, grant.session_id)


async def test_the_display_name_defaults_to_the_username(auth: Any) -> None:
    """An account always has a name to show."""
    assert (await auth.register("ada")).user.display_name == "ada"


async def test_bad_fields_are_all_named_at_once(auth: Any) -> None:
    """A sign-up with four faults names four fields."""
    error = await refusal(auth.register("a!", "short", display_name="line\nbreak", email="not an address"))
    assert error.code is Code.INVALID_ARGUMENT
    assert set(error.fields) == {"username", "password", "display_name", "email"}
    assert "8 characters" in error.fields["password"]


async def test_a_taken_username_is_refused_whatever_its_case(auth: Any) -> None:
    """Usernames are compared without case."""
    await auth.register("Ada")
    error = await refusal(auth.register("aDA"))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "username_taken")


async def test_a_taken_email_is_refused(auth: Any) -> None:
    """One address, one account, whatever the case."""
    await auth.register("ada", email="ada@example.org")
    error = await refusal(auth.register("eva", email="ADA@example.org"))
    assert (error.code, error.reason) == (Code.ALREADY_EXISTS, "email_taken")


async def test_of_many_sign_ups_for_one_name_one_wins(auth: Any, db: Postgres) -> None:
    """Under a race for a name there is one account, and a clear refusal for everybody else."""
    results = await outcomes(lambda: auth.register("ada"), 5)
    errors = [result for result in results if isinstance(result, WhisprError)]
    assert len(errors) == 4
    assert {error.reason for error in errors} == {"username_taken"}
    assert await db.fetchval("SELECT count(*) FROM auth.accounts") == 1
    assert await db.fetchval("SELECT count(*) FROM auth.sessions") == 1


async def test_of_many_sign_ups_with_one_address_one_wins(auth: Any, db: Postgres) -> None:
    """One e-mail address, written differently, at the same moment: one account."""
    number = iter(range(9))
    results = await outcomes(
        lambda: auth.register(f"ada{(n := next(number))}", email=f"{'aA'[n % 2]}da@example.org"), 5
    )
    errors = [result for result in results if isinstance(result, WhisprError)]
    assert {error.reason for error in errors} == {"email_taken"}
    assert (len(errors), await db.fetchval("SELECT count(*) FROM auth.accounts")) == (4, 1)


async def test_people_are_published_to_other_services(auth: Any, db: Postgres) -> None:
    """The view holds active people and nothing secret."""
    grant = await auth.register("ada", display_name="Ada")
    row = await db.fetchrow("SELECT * FROM auth.people")
    assert row is not None
    assert (str(row["id"]), row["username"], row["display_name"]) == (grant.user.id, "ada", "Ada")
    assert set(row.keys()) == {"id", "username", "display_name", "created_at"}
    await db.execute("UPDATE auth.accounts SET is_active = false")
    assert await db.fetchval("SELECT count(*) FROM auth.people") == 0


async def test_secrets_are_stored_as_hashes(auth: Any, db: Postgres) -> None:
    """Neither the password nor the refresh token can be read from the database."""
    grant = await auth.register("ada", "correct horse")
    stored = await db.fetchval("SELECT password_hash FROM auth.accounts")
    assert stored.startswith("$argon2id$")
    token = await db.fetchval("SELECT token_sha256 FROM auth.refresh_tokens")
    assert len(token) == 32
    assert token != grant.refresh_token.encode()


async def test_login_opens_another_session(auth: Any, db: Postgres) -> None:
    """Each sign-in is a session of its own; the name's case does not matter; the time is kept."""
    first = await auth.register("Ada")
    second = await auth.login("ada")
    assert second.user.id == first.user.id
    assert second.session_id != first.session_id
    assert second.user.last_login_at.ToNanoseconds() > first.user.last_login_at.ToNanoseconds()


@pytest.mark.parametrize(
    ("username", "password"),
    [("ada", "wrong horse"), ("nobody", "correct horse"), ("a!", "x"), ("ada", "x" * 5000), ("", "")],
)
async def test_wrong_credentials_get_one_answer(auth: Any, username: str, password: str) -> None:
    """A wrong password and an unknown name cannot be told apart."""
    await auth.register("ada")
    error = await refusal(auth.login(username, password))
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "bad_credentials")
    assert error.message == "wrong username or password"


async def test_an_inactive_account_cannot_sign_in_or_refresh(auth: Any, db: Postgres) -> None:
    """Closing an account ends what it could do; its name is told only to who knows its password."""
    grant = await auth.register("ada")
    await db.execute("UPDATE auth.accounts SET is_active = false")
    assert (await refusal(auth.login("ada"))).reason == "account_inactive"
    assert (await refusal(auth.login("ada", "wrong horse"))).reason == "bad_credentials"
    assert (await refusal(auth.refresh(grant.refresh_token))).code is Code.UNAUTHENTICATED
    assert not (await auth.validate(grant.access_token)).valid


async def test_failed_logins_of_an_address_are_limited(auth: Any) -> None:
    """After so many failures an address waits, and is told for how long; another address does not."""
    await auth.register("ada", address="192.0.2.1")
    for number in range(5):
        assert (await refusal(auth.login(f"guess{number}"))).reason == "bad_credentials"
    error = await refusal(auth.login("ada"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "rate_limited")
    assert 0 < (error.retry_after_s or 0) <= 720
    assert (await auth.login("ada", address="192.0.2.2")).access_token


async def test_a_name_and_an_address_wait_longer_and_longer(auth: Any) -> None:
    """After three failures the next attempt at the name has to wait, elsewhere and for other names not."""
    await auth.register("grace")
    for _ in range(3):
        assert (await refusal(auth.login("grace", "wrong horse"))).reason == "bad_credentials"
    error = await refusal(auth.login("GRACE"))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "rate_limited")
    assert 0 < (error.retry_after_s or 0) <= 1
    assert (await refusal(auth.login("hopper"))).reason == "bad_credentials"
    assert (await auth.login("grace", address="192.0.2.77")).access_token


async def test_a_stranger_does_not_lock_an_owner_out(auth: Any) -> None:
    """A name that is guessed at from everywhere is limited where it was never used, and open where it was."""
    await auth.register("linus")
    for number in range(10):
        error = await refusal(auth.login("linus", "wrong horse", f"192.0.2.{number + 10}"))
        assert error.reason == "bad_credentials"
    assert (await refusal(auth.login("linus", address="192.0.2.99"))).reason == "rate_limited"
    assert (await auth.login("LINUS")).access_token
    assert (await refusal(auth.login("linus", "wrong horse"))).reason == "bad_credentials"


async def test_good_logins_are_not_counted(auth: Any) -> None:
    """Who knows the password signs in as often as they like."""
    await auth.register("kay")
    for _ in range(8):
        await auth.login("kay")


async def test_many_guesses_at_once_are_no_way_round_the_limit(auth: Any) -> None:
    """Of twenty guesses at the same moment, no more than the limit are tried."""
    results = await outcomes(lambda: auth.login("nobody", "guess guess"), 20)
    assert sorted({error.reason for error in results}) == ["bad_credentials", "rate_limited"]
    assert sum(error.reason == "bad_credentials" for error in results) <= 5


async def test_sign_ups_of_an_address_are_limited(auth: Any) -> None:
    """An address makes so many accounts an hour; addresses of one IPv6 /64 are one."""
    for number in range(5):
        await auth.register(f"user{number}", address=f"2001:db8:9:{auth.address[9:13]}::{number}")
    error = await refusal(auth.register("onemore", address=f"2001:db8:9:{auth.address[9:13]}::ffff"))
    assert error.reason == "rate_limited"


async def test_a_claimed_address_needs_a_voucher(auth: Any) -> None:
    """A client that names its own address is counted under the one it has."""
    user = await auth.register("mallory")
    for number in range(6):
        metadata = [
            ("x-whispr-client-address", f"192.0.2.{number}"),
            ("x-whispr-voucher", user.access_token),
        ]
        request = auth_pb2.LoginRequest(username=f"guess{number}{auth.address[9:13]}", password="x")
        error = await refusal(auth.stub.Login(request, metadata=metadata))
    assert error.reason == "rate_limited"


async def test_refresh_gives_new_tokens_for_the_same_session(auth: Any) -> None:
    """A refresh token is exchanged for a new pair; the session stays."""
    grant = await auth.register("ada")
    renewed = await auth.refresh(grant.refresh_token)
    assert renewed.session_id == grant.session_id
    assert renewed.refresh_token != grant.refresh_token
    assert renewed.access_token != grant.access_token
    assert (await auth.refresh(renewed.refresh_token)).user.id == grant.user.id


async def test_a_used_refresh_token_ends_the_session(auth: Any) -> None:
    """Showing a refresh token twice revokes everything of its session, the newest tokens too."""
    grant = await auth.register("ada")
    renewed = await auth.refresh(grant.refresh_token)
    other = await auth.login("ada")
    assert (await refusal(auth.refresh(grant.refresh_token))).reason == "refresh_reused"
    assert (await refusal(auth.refresh(renewed.refresh_token))).reason == "session_revoked"
    assert (await refusal(user_info(auth, renewed.access_token))).reason == "session_revoked"
    assert (await auth.refresh(other.refresh_token)).access_token


async def test_of_many_refreshes_at_once_one_wins(auth: Any, db: Postgres) -> None:
    """The same refresh token at the same moment: exactly one exchange, and the session is ended."""
    grant = await auth.register("ada")
    results = await outcomes(lambda: auth.refresh(grant.refresh_token), 8)
    errors = [result for result in results if isinstance(result, WhisprError)]
    assert len(errors) == 7
    assert {error.reason for error in errors} == {"refresh_reused"}
    assert await db.fetchval("SELECT count(*) FROM auth.refresh_tokens") == 2
    winner = next(result for result in results if not isinstance(result, WhisprError))
    assert (await refusal(auth.refresh(winner.refresh_token))).reason == "session_revoked"


async def test_an_expired_refresh_token_is_refused(auth: Any, db: Postgres) -> None:
    """A refresh token past its time signs nobody in, and that is not taken for theft."""
    grant = await auth.register("ada")
    await db.execute("UPDATE auth.refresh_tokens SET expires_at = now() - interval '1 s'")
    assert (await refusal(auth.refresh(grant.refresh_token))).reason == "token_expired"
    assert await db.fetchval("SELECT count(*) FROM auth.sessions WHERE revoked_at IS NOT NULL") == 0


@pytest.mark.parametrize("token", ["", "made up", "x" * 10_000])
async def test_an_unknown_refresh_token_is_refused(auth: Any, token: str) -> None:
    """What never was a refresh token is UNAUTHENTICATED."""
    assert (await refusal(auth.refresh(token))).reason == "unauthorized"


async def test_logout_ends_the_session_everywhere(
    auth: Any, db: Postgres, cache: Cache, other_bus: Bus
) -> None:
    """After a logout the tokens fail here, in another process within a second, and in one started later."""
    grant = await auth.register("ada")
    elsewhere = Identity(cache, other_bus, keys=auth.keys.public_keys)
    told: list[tuple[str, str]] = []
    seen = trio.Event()

    def noted(session_id: str, reason: str) -> None:
        told.append((session_id, reason))
        seen.set()

    elsewhere.on_revoked(noted)
    async with trio.open_nursery() as nursery:
        await nursery.start(elsewhere.run)
        assert (await elsewhere.authenticate(grant.access_token)).user_id == grant.user.id
        await logout(auth, grant.access_token)
        with trio.fail_after(5):
            await seen.wait()
        nursery.cancel_scope.cancel(reason="seen enough")
    assert told == [(grant.session_id, "logged_out")]
    later = Identity(cache, other_bus, keys=auth.keys.public_keys)
    for identity in (auth.identity, elsewhere):
        assert (await refusal(identity.authenticate(grant.access_token))).reason == "session_revoked"
    await revoked_seen_by(later, grant.session_id)
    assert (await refusal(later.authenticate(grant.access_token))).reason == "session_revoked"
    assert (await refusal(auth.refresh(grant.refresh_token))).reason == "session_revoked"
    assert await db.fetchval("SELECT revoked_reason FROM auth.sessions") == "logged_out"
    assert await cache.command("ZSCORE", REVOKED_KEY, grant.session_id) is not None


async def revoked_seen_by(identity: Identity, session_id: str) -> None:
    """Start an identity and wait until it has read which sessions ended before."""
    seen = trio.Event()
    identity.on_revoked(lambda session, _: seen.set() if session == session_id else None)
    async with trio.open_nursery() as nursery:
        await nursery.start(identity.run)
        with trio.fail_after(5):
            await seen.wait()
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_logout_leaves_other_sessions_alone(auth: Any) -> None:
    """Signing out on one device is signing out on that device."""
    first = await auth.register("ada")
    second = await auth.login("ada")
    await logout(auth, first.access_token)
    assert (await user_info(auth, second.access_token)).username == "ada"
    assert (await refusal(user_info(auth, first.access_token))).reason == "session_revoked"


async def test_a_revocation_forgotten_by_redis_is_repeated(
    auth: Any, db: Postgres, cache: Cache, bus: Bus
) -> None:
    """What Redis lost is written again from the database when the auth service starts."""
    grant = await auth.register("ada")
    await logout(auth, grant.access_token)
    await cache.delete(REVOKED_KEY)
    async with trio.open_nursery() as nursery:
        await nursery.start(auth.service.run)
        with trio.fail_after(5):
            while await cache.command("ZSCORE", REVOKED_KEY, grant.session_id) is None:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_service_cannot_log_out(auth: Any) -> None:
    """A service's token has no session to end."""
    token = ServiceToken(auth.keys.signer, "messaging")()
    assert (await refusal(logout(auth, token))).reason == "no_session"


async def test_validate_says_who_a_token_is(auth: Any) -> None:
    """A good token's claims are those of the API."""
    grant = await auth.register("ada", email="ada@example.org")
    answer = await auth.validate(grant.access_token, "messaging")
    assert answer.valid
    user = answer.user
    assert (user.user_id, user.username, user.email) == (grant.user.id, "ada", "ada@example.org")
    assert (user.role, user.is_active) == ("user", True)
    assert list(user.permissions) == list(tokens.ROLE_PERMISSIONS["user"])
    assert user.expires_at.seconds - user.issued_at.seconds in (900, 901)


async def test_validate_says_why_a_token_is_bad(auth: Any) -> None:
    """A bad token is an answer with a reason, not an error."""
    grant = await auth.register("ada")
    claims = await auth.identity.authenticate(grant.access_token)
    now = claims.issued_at
    signer = auth.keys.signer
    old = tokens.user_claims(
        user_id=grant.user.id,
        session_id=grant.session_id,
        username="ada",
        role="user",
        now=now - 1000,
        lifetime_s=900,
    )
    narrow = tokens.service_claims("robot", now=now, lifetime_s=60, services=["user"])
    expected = {
        "": "unauthorized",
        "garbage": "unauthorized",
        grant.access_token[:-4] + "AAAA": "unauthorized",
        signer.sign(old): "token_expired",
        signer.sign(narrow): "service_not_granted",
    }
    for token, reason in expected.items():
        answer = await auth.validate(token, "messaging")
        assert (answer.valid, answer.reason) == (False, reason)
    await logout(auth, grant.access_token)
    assert (await auth.validate(grant.access_token)).reason == "session_revoked"


async def test_validate_asks_the_database(auth: Any, db: Postgres) -> None:
    """A session ended behind everybody's back is found out."""
    grant = await auth.register("ada")
    await db.execute("UPDATE auth.sessions SET revoked_at = now()")
    assert (await auth.validate(grant.access_token)).reason == "session_revoked"


async def test_validate_knows_services(auth: Any) -> None:
    """A service's token is valid without an account."""
    answer = await auth.validate(ServiceToken(auth.keys.signer, "messaging")(), "user")
    assert answer.valid
    assert (answer.user.user_id, answer.user.role) == ("service:messaging", "service")


async def test_an_email_address_is_shown_to_its_owner_and_to_services(auth: Any) -> None:
    """Other people see the account without it."""
    ada = await auth.register("ada", email="ada@example.org")
    eva = await auth.register("eva")
    service = ServiceToken(auth.keys.signer, "notification")()
    assert (await user_info(auth, ada.access_token, ada.user.id)).email == "ada@example.org"
    assert (await user_info(auth, service, ada.user.id)).email == "ada@example.org"
    seen = await user_info(auth, eva.access_token, ada.user.id)
    assert (seen.username, seen.email, seen.HasField("last_login_at")) == ("ada", "", False)


async def test_an_unknown_user_is_not_found(auth: Any) -> None:
    """Ids of nobody are NOT_FOUND, what is no id is INVALID_ARGUMENT."""
    token = (await auth.register("ada")).access_token
    unknown = "0190163d-8694-739b-aea5-966c26f8ad91"
    assert (await refusal(user_info(auth, token, unknown))).code is Code.NOT_FOUND
    assert (await refusal(user_info(auth, token, "x"))).fields.keys() == {"user_id"}


async def test_keys_are_published(auth: Any, cache: Cache, bus: Bus) -> None:
    """Another process verifies tokens with the keys it fetches, and needs no secret for it."""
    grant = await auth.register("ada")
    elsewhere = Identity(cache, bus, fetch_keys=keys_from(auth.stub))
    assert (await elsewhere.authenticate(grant.access_token)).username == "ada"
    jwks = await auth.stub.GetJwks(auth_pb2.GetJwksRequest())
    assert [(key.kty, key.crv, key.alg, key.use) for key in jwks.keys] == [("OKP", "Ed25519", "EdDSA", "sig")]


async def test_old_sessions_and_tokens_are_pruned(auth: Any, db: Postgres) -> None:
    """What ended long ago is deleted; what is alive stays."""
    await auth.register("ada")
    await auth.login("ada")
    await db.execute(
        "UPDATE auth.sessions SET expires_at = now() - interval '2 days' "
        "WHERE id = (SELECT id FROM auth.sessions ORDER BY created_at LIMIT 1)"
    )
    await auth.service._store.prune()
    assert await db.fetchval("SELECT count(*) FROM auth.sessions") == 1
    assert await db.fetchval("SELECT count(*) FROM auth.refresh_tokens") == 1


async def test_an_outdated_hash_is_renewed_at_login(auth: Any, db: Postgres) -> None:
    """When the parameters change, the next login with the right password stores a new hash."""
    await auth.register("ada")
    before = await db.fetchval("SELECT password_hash FROM auth.accounts")
    auth.service._passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=16, parallelism=1))
    await refusal(auth.login("ada", "wrong horse"))
    assert await db.fetchval("SELECT password_hash FROM auth.accounts") == before
    await auth.login("ada")
    renewed = await db.fetchval("SELECT password_hash FROM auth.accounts")
    assert "m=16," in renewed
    await auth.login("ada")
    assert await db.fetchval("SELECT password_hash FROM auth.accounts") == renewed


async def test_a_limit_of_zero_is_no_limit(auth: Any) -> None:
    """An operator can lift the limit on attempts."""
    auth.service._limits = AuthLimits(attempts_per_hour=0)
    for _ in range(12):
        assert (await refusal(auth.login("nobody"))).reason == "bad_credentials"


async def test_bad_tokens_are_refused_on_the_wire(auth: Any) -> None:
    """Expired, tampered, wrong-audience and `alg: none` tokens each get UNAUTHENTICATED and its reason."""
    grant = await auth.register("ada")
    claims = await auth.identity.authenticate(grant.access_token)
    head, payload, signature = grant.access_token.split(".")
    old = dataclasses.replace(claims, issued_at=claims.issued_at - 2000, expires_at=claims.expires_at - 2000)
    foreign = jwt.encode(
        jwt.decode(grant.access_token, options={"verify_signature": False}) | {"aud": "another-product"},
        auth.keys.signer._key,
        "EdDSA",
        headers={"kid": auth.keys.signer.kid, "typ": "at+jwt"},
    )
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode()
    other_payload = payload[:-6] + ("AAAAAA" if payload[-6:] != "AAAAAA" else "BBBBBB")
    expected = {
        auth.keys.signer.sign(old): "token_expired",
        f"{head}.{other_payload}.{signature}": "unauthorized",
        foreign: "unauthorized",
        f"{unsigned}.{payload}.": "unauthorized",
    }
    for token, reason in expected.items():
        error = await refusal(user_info(auth, token))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, reason)


class FlakyCache:
    """The cache, as long as it is not away."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.away = True

    async def command(self, *words: Any) -> Any:
        if self.away:
            await trio.lowlevel.checkpoint()
            raise unavailable("the cache is away")
        return await self._cache.command(*words)


async def test_a_logout_works_while_redis_is_away(auth: Any, cache: Cache) -> None:
    """The session ends all the same, and Redis learns of it when it is back."""
    flaky = FlakyCache(cache)
    auth.service.revoker._cache = flaky
    grant = await auth.register("ada")
    await logout(auth, grant.access_token)
    assert (await refusal(user_info(auth, grant.access_token))).reason == "session_revoked"
    flaky.away = False
    with trio.fail_after(5):
        while await cache.command("ZSCORE", REVOKED_KEY, grant.session_id) is None:
            await trio.lowlevel.checkpoint()
