"""Sessions of many devices, revocation of every kind of token, and changes of password."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.services.auth.test_service import bearer, outcomes, refusal, user_info
from whispr import tokens
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.identity import REVOKED_KEY, Identity
from whispr.services.auth.keys import ServiceToken, mint_service_token
from whispr.services.auth.service import AuthLimits
from whispr.v1 import auth_pb2

NOBODY = "0190163d-8694-739b-aea5-966c26f8ad91"


async def sessions(auth: Any, token: str) -> list[auth_pb2.Session]:
    reply = await auth.stub.ListSessions(auth_pb2.ListSessionsRequest(), metadata=bearer(token))
    return list(reply.sessions)


async def revoke_session(auth: Any, token: str, session_id: str) -> None:
    request = auth_pb2.RevokeSessionRequest(session_id=session_id)
    await auth.stub.RevokeSession(request, metadata=bearer(token))


async def revoke_token(auth: Any, caller: str, token: str, reason: str = "") -> None:
    request = auth_pb2.RevokeTokenRequest(token=token, reason=reason)
    await auth.stub.RevokeToken(request, metadata=bearer(caller))


async def login_from(auth: Any, username: str, device: str, address: str = "") -> Any:
    request = auth_pb2.LoginRequest(username=username, password="correct horse", device=device)
    return await auth.stub.Login(request, metadata=auth.from_address(address))


async def change(auth: Any, token: str, current: str, new: str) -> int:
    request = auth_pb2.ChangePasswordRequest(current_password=current, new_password=new)
    reply = await auth.stub.ChangePassword(request, metadata=bearer(token))
    return int(reply.sessions_ended)


async def events(db: Postgres, about: str) -> list[tuple[str, dict[str, Any]]]:
    rows = await db.fetch(
        "SELECT stream_subject, data FROM events.outbox WHERE about = $1 ORDER BY position", about
    )
    return [(row["stream_subject"].removeprefix("user.events."), json.loads(row["data"])) for row in rows]


async def test_sessions_are_listed_by_device(auth: Any) -> None:
    """Each with its name, address and times, the latest seen first, the caller's own marked."""
    first = await auth.register("ada")
    second = await login_from(auth, "ada", "Firefox\non Linux", "192.0.2.7")
    listed = await sessions(auth, second.access_token)
    assert [each.session_id for each in listed] == [second.session_id, first.session_id]
    assert (listed[0].device, listed[0].address) == ("Firefox on Linux", "192.0.2.7")
    assert listed[1].address.endswith("::/64")
    assert [each.current for each in listed] == [True, False]
    assert listed[0].expires_at.seconds > listed[0].created_at.seconds
    await auth.refresh(first.refresh_token)
    assert [each.current for each in await sessions(auth, first.access_token)] == [True, False]


async def test_a_session_is_ended_from_another_device(auth: Any, db: Postgres) -> None:
    """Its tokens fail, it is no longer listed, and an event says so; ending it twice is NOT_FOUND."""
    first = await auth.register("ada")
    second = await auth.login("ada")
    await revoke_session(auth, first.access_token, second.session_id)
    assert (await refusal(user_info(auth, second.access_token))).reason == "session_revoked"
    assert (await refusal(auth.refresh(second.refresh_token))).reason == "session_revoked"
    assert [each.session_id for each in await sessions(auth, first.access_token)] == [first.session_id]
    again = await refusal(revoke_session(auth, first.access_token, second.session_id))
    assert again.code is Code.NOT_FOUND
    told = await events(db, first.user.id)
    assert [kind for kind, _ in told] == ["account_created", "session_revoked"]
    assert told[1][1]["session_id"] == second.session_id


async def test_a_session_of_somebody_else_is_not_there(auth: Any) -> None:
    """One cannot tell a stranger's session from none, nor end it."""
    ada, eva = await auth.register("ada"), await auth.register("eva")
    for session_id in (eva.session_id, NOBODY):
        error = await refusal(revoke_session(auth, ada.access_token, session_id))
        assert error.code is Code.NOT_FOUND
    assert (await refusal(revoke_session(auth, ada.access_token, "x"))).fields.keys() == {"session_id"}
    assert (await user_info(auth, eva.access_token)).username == "eva"


async def test_one_session_too_many_ends_the_one_not_seen_for_longest(auth: Any, db: Postgres) -> None:
    """The number of sessions of an account is bounded, also when many sign in at once."""
    first = await auth.register("ada")
    second = await auth.login("ada")
    await auth.refresh(first.refresh_token)
    results = await outcomes(lambda: auth.login("ada"), 3)
    assert not [each for each in results if isinstance(each, WhisprError)]
    assert (await refusal(user_info(auth, second.access_token))).reason == "session_revoked"
    assert len(await sessions(auth, first.access_token)) == 4
    await auth.login("ada")
    assert (await refusal(user_info(auth, first.access_token))).reason == "session_revoked"
    reasons = [data["reason"] for kind, data in await events(db, first.user.id) if kind == "session_revoked"]
    assert reasons == ["too_many_sessions"] * 2
    auth.service._limits = AuthLimits(account_sessions=0)
    for _ in range(6):
        last = await auth.login("ada")
    assert len(await sessions(auth, last.access_token)) == 10


async def test_a_token_of_ones_own_is_revoked(auth: Any) -> None:
    """An access or a refresh token ends its session, with the reason; what is no good already is no error."""
    ada = await auth.register("ada")
    second, third = await auth.login("ada"), await auth.login("ada")
    told: list[tuple[str, str]] = []
    auth.identity.on_revoked(lambda *news: told.append(news))
    await revoke_token(auth, ada.access_token, second.access_token, "lost my phone")
    await revoke_token(auth, ada.access_token, third.refresh_token)
    assert told == [(second.session_id, "lost my phone"), (third.session_id, "revoked")]
    for each in (second, third):
        assert (await refusal(user_info(auth, each.access_token))).reason == "session_revoked"
    for junk in ("", "junk", "a.b.c", second.access_token, second.access_token[:-4] + "AAAA"):
        await revoke_token(auth, ada.access_token, junk)
    assert len(told) == 2
    await revoke_token(auth, ada.access_token, ada.access_token)
    assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"


@pytest.mark.parametrize("reason", ["x" * 129, "a\nb"])
async def test_a_reason_is_bounded(auth: Any, reason: str) -> None:
    """It is shown to people: short, and on one line."""
    ada = await auth.register("ada")
    error = await refusal(revoke_token(auth, ada.access_token, ada.access_token, reason))
    assert error.fields.keys() == {"reason"}


async def test_tokens_of_others_are_for_administrators_and_services(auth: Any, db: Postgres) -> None:
    """A stranger may not revoke what they got hold of; an administrator and a service may."""
    ada, eva = await auth.register("ada"), await auth.register("eva")
    other = await auth.login("ada")
    service = ServiceToken(auth.keys.signer, "billing")()
    for token in (ada.access_token, ada.refresh_token, service):
        error = await refusal(revoke_token(auth, eva.access_token, token))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "forbidden")
    await revoke_token(auth, service, ada.access_token)
    assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"
    await db.execute("UPDATE auth.accounts SET role = 'admin' WHERE username = 'eva'")
    admin = await auth.login("eva")
    await revoke_token(auth, admin.access_token, other.refresh_token)
    assert (await refusal(user_info(auth, other.access_token))).reason == "session_revoked"


async def test_a_service_token_is_revoked_everywhere(
    auth: Any, cache: Cache, other_bus: Bus, db: Postgres
) -> None:
    """Here, in another process within a second, in one started later, and by ValidateToken; others stay good."""
    leaked, good = (mint_service_token(auth.keys.signer, name) for name in ("leaked", "good"))
    elsewhere = Identity(cache, other_bus, keys=auth.keys.public_keys)
    seen = trio.Event()
    elsewhere.on_revoked(lambda *_: seen.set())
    async with trio.open_nursery() as nursery:
        await nursery.start(elsewhere.run)
        assert (await elsewhere.authenticate(leaked)).is_service
        await revoke_token(auth, good, leaked, "found in a log")
        with trio.fail_after(5):
            await seen.wait()
        nursery.cancel_scope.cancel(reason="seen enough")
    for identity in (auth.identity, elsewhere):
        assert (await refusal(identity.authenticate(leaked))).reason == "session_revoked"
        assert (await identity.authenticate(good)).is_service
    auth.identity._revocations._until.clear()  # as if the news had not come
    assert (await auth.validate(leaked)).reason == "session_revoked"
    assert (await auth.validate(good)).valid
    claims = tokens.Verifier(auth.keys.public_keys).verify(leaked)
    assert await cache.command("ZSCORE", REVOKED_KEY, claims.token_id) is not None
    await cache.delete(REVOKED_KEY)
    async with trio.open_nursery() as nursery:
        await nursery.start(auth.service.run)
        with trio.fail_after(5):
            while await cache.command("ZSCORE", REVOKED_KEY, claims.token_id) is None:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_new_password_ends_the_other_sessions(auth: Any, db: Postgres) -> None:
    """The old one no longer works, the session that changed it does, the others are refused at once."""
    first = await auth.register("ada")
    second = await auth.login("ada")
    assert await change(auth, first.access_token, "correct horse", "battery staple") == 1
    assert (await user_info(auth, first.access_token)).username == "ada"
    assert (await auth.refresh(first.refresh_token)).access_token
    assert (await refusal(user_info(auth, second.access_token))).reason == "session_revoked"
    assert (await refusal(auth.refresh(second.refresh_token))).reason == "session_revoked"
    assert (await refusal(auth.login("ada"))).reason == "bad_credentials"
    assert (await auth.login("ada", "battery staple")).access_token
    told = [(kind, data) for kind, data in await events(db, first.user.id) if kind == "password_changed"]
    assert [data["sessions_ended"] for _, data in told] == [[second.session_id]]


async def test_a_password_is_changed_by_who_knows_it(auth: Any) -> None:
    """A stolen session is not enough; guesses wait as at sign-in; a bad new one is named; services have none."""
    ada = await auth.register("ada")
    short = await refusal(change(auth, ada.access_token, "correct horse", "short"))
    assert short.fields.keys() == {"new_password"}
    for _ in range(3):
        error = await refusal(change(auth, ada.access_token, "guess guess", "battery staple"))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "bad_credentials")
    error = await refusal(change(auth, ada.access_token, "correct horse", "battery staple"))
    assert error.reason == "rate_limited"
    service = ServiceToken(auth.keys.signer, "x")()
    assert (await refusal(change(auth, service, "correct horse", "battery staple"))).reason == "no_session"


async def test_of_many_changes_at_once_each_knows_the_password(auth: Any) -> None:
    """Changes of one password at the same moment: one wins, and the others have become wrong."""
    ada = await auth.register("ada")
    number = iter(range(9))
    results = await outcomes(
        lambda: change(auth, ada.access_token, "correct horse", f"battery staple {next(number)}"), 3
    )
    failed = [each.reason for each in results if isinstance(each, WhisprError)]
    assert len(failed) == 2
    assert set(failed) <= {"bad_credentials", "rate_limited"}


async def test_a_sign_in_with_the_old_password_does_not_slip_through(
    auth: Any, db: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sign-in whose password was changed after it was checked opens no session."""
    ada = await auth.register("ada")
    check: Callable[..., Any] = auth.service._passwords.verify
    raced = False

    async def verify(password_hash: str | None, password: str) -> bool:
        nonlocal raced
        good = await check(password_hash, password)
        if not raced:
            raced = True
            await change(auth, ada.access_token, "correct horse", "battery staple")
        return bool(good)

    monkeypatch.setattr(auth.service._passwords, "verify", verify)
    assert (await refusal(auth.login("ada"))).reason == "bad_credentials"
    assert await db.fetchval("SELECT count(*) FROM auth.sessions WHERE revoked_at IS NULL") == 1


async def test_unknown_names_take_the_same_work(auth: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an account or without, one password is verified and one account looked up."""
    await auth.register("ada")
    verified: list[bool] = []
    looked_up: list[str] = []
    verify, look_up = auth.service._passwords.verify, auth.service._store.account_at

    async def counting_verify(password_hash: str | None, password: str) -> bool:
        verified.append(password_hash is not None)
        return bool(await verify(password_hash, password))

    async def counting_look_up(username: str, address: str) -> Any:
        looked_up.append(username)
        return await look_up(username, address)

    monkeypatch.setattr(auth.service._passwords, "verify", counting_verify)
    monkeypatch.setattr(auth.service._store, "account_at", counting_look_up)
    for username in ("ada", "nobody"):
        assert (await refusal(auth.login(username, "wrong horse"))).reason == "bad_credentials"
    assert verified == [True, False]
    assert looked_up == ["ada", "nobody"]
