"""What administrators may do, what nobody else may, and that there always is one."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
import trio

from tests.services.auth.test_service import bearer, outcomes, refusal, user_info
from whispr import tokens
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.services.auth.keys import mint_service_token
from whispr.services.auth.neighbours import Standing
from whispr.tokens import ROLE_PERMISSIONS
from whispr.v1 import auth_pb2

NOBODY = "0190163d-8694-739b-aea5-966c26f8ad91"
ROOM = "0190163d-8694-739b-aea5-966c26f8ad92"


async def admin(auth: Any, db: Postgres, username: str = "root") -> Any:
    """Make an administrator, and sign in as them."""
    await auth.register(username)
    await db.execute("UPDATE auth.accounts SET role = 'admin' WHERE username = $1", username)
    return await auth.login(username)


async def set_role(auth: Any, token: str, user_id: str, role: str) -> Any:
    request = auth_pb2.SetRoleRequest(user_id=user_id, role=role)
    return (await auth.stub.SetRole(request, metadata=bearer(token))).user


async def deactivate(auth: Any, token: str, user_id: str, reason: str = "") -> Any:
    request = auth_pb2.DeactivateUserRequest(user_id=user_id, reason=reason)
    return (await auth.stub.DeactivateUser(request, metadata=bearer(token))).user


async def reactivate(auth: Any, token: str, user_id: str) -> Any:
    request = auth_pb2.ReactivateUserRequest(user_id=user_id)
    return (await auth.stub.ReactivateUser(request, metadata=bearer(token))).user


async def delete(auth: Any, token: str, password: str = "", user_id: str = "") -> None:
    request = auth_pb2.DeleteAccountRequest(password=password, user_id=user_id)
    await auth.stub.DeleteAccount(request, metadata=bearer(token))


async def issue(auth: Any, token: str, **fields: Any) -> Any:
    request = auth_pb2.IssueServiceTokenRequest(**{"service": "billing"} | fields)
    return await auth.stub.IssueServiceToken(request, metadata=bearer(token))


async def check(auth: Any, token: str, permission: str, resource_id: str = "", user_id: str = "") -> bool:
    resource, _, action = permission.partition(":")
    request = auth_pb2.CheckPermissionsRequest(
        user_id=user_id, resource=resource, action=action, resource_id=resource_id
    )
    return bool((await auth.stub.CheckPermissions(request, metadata=bearer(token))).allowed)


async def told(db: Postgres, kind: str) -> list[dict[str, Any]]:
    rows = await db.fetch(
        "SELECT data FROM events.outbox WHERE stream_subject = $1 ORDER BY position", f"user.events.{kind}"
    )
    return [json.loads(row["data"]) for row in rows]


# Roles


async def test_a_role_that_may_more_comes_with_the_next_token(auth: Any, db: Postgres) -> None:
    """The session stays; a refresh brings the new permissions."""
    root, ada = await admin(auth, db), await auth.register("ada")
    assert (await set_role(auth, root.access_token, ada.user.id, "moderator")).role == "moderator"
    assert (await user_info(auth, ada.access_token)).role == "moderator"
    renewed = await auth.refresh(ada.refresh_token)
    assert (await auth.identity.authenticate(renewed.access_token)).allows("room:moderate")
    assert await told(db, "role_changed") == [
        {"user_id": ada.user.id, "role": "moderator", "previous": "user", "sessions_ended": []}
    ]
    await set_role(auth, root.access_token, ada.user.id, "moderator")
    assert len(await told(db, "role_changed")) == 1


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        ("moderator", "user", True),
        ("premium", "moderator", True),
        ("admin", "moderator", True),
        ("user", "premium", False),
        ("moderator", "admin", False),
    ],
)
async def test_a_role_that_may_less_holds_at_once(
    auth: Any, db: Postgres, before: str, after: str, ends: bool
) -> None:
    """What may no longer be done cannot be done with a token from before."""
    root = await admin(auth, db)
    await auth.register("ada")
    await db.execute("UPDATE auth.accounts SET role = $1 WHERE username = 'ada'", before)
    ada = await auth.login("ada")
    await set_role(auth, root.access_token, ada.user.id, after)
    if ends:
        assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"
    else:
        assert (await user_info(auth, ada.access_token)).role == after


async def test_there_is_always_an_administrator(auth: Any, db: Postgres) -> None:
    """The last one can neither be demoted nor closed nor deleted, not even by themselves."""
    root = await admin(auth, db)
    for attempt in (
        set_role(auth, root.access_token, root.user.id, "user"),
        deactivate(auth, root.access_token, root.user.id),
        delete(auth, root.access_token, "correct horse"),
    ):
        error = await refusal(attempt)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "last_admin")
    assert (await user_info(auth, root.access_token)).role == "admin"


async def test_administrators_who_demote_each_other_at_once_leave_one(auth: Any, db: Postgres) -> None:
    """Two at the same moment do so one after the other, and the second is refused."""
    pairs = [await admin(auth, db, name) for name in ("one", "two")]
    results: list[WhisprError | None] = []

    async def demote(by: Any, of: Any) -> None:
        try:
            await set_role(auth, by.access_token, of.user.id, "user")
        except WhisprError as error:
            results.append(error)
        else:
            results.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(demote, pairs[0], pairs[1])
        nursery.start_soon(demote, pairs[1], pairs[0])
    assert results.count(None) == 1
    assert await db.fetchval("SELECT count(*) FROM auth.accounts WHERE role = 'admin'") == 1


# Sessions


async def test_administrators_see_and_end_the_sessions_of_others(auth: Any, db: Postgres) -> None:
    """With the account named; nobody else may name one, and a session is ended with its own account alone."""
    root, ada, eve = await admin(auth, db), await auth.register("ada"), await auth.register("eve")

    async def listed(token: str, user_id: str) -> list[str]:
        request = auth_pb2.ListSessionsRequest(user_id=user_id)
        reply = await auth.stub.ListSessions(request, metadata=bearer(token))
        return [session.session_id for session in reply.sessions]

    async def end(token: str, user_id: str, session_id: str) -> None:
        request = auth_pb2.RevokeSessionRequest(session_id=session_id, user_id=user_id)
        await auth.stub.RevokeSession(request, metadata=bearer(token))

    [session_id] = await listed(root.access_token, ada.user.id)
    assert session_id == ada.session_id
    assert await listed(ada.access_token, ada.user.id) == [session_id]
    for attempt in (listed(eve.access_token, ada.user.id), end(eve.access_token, ada.user.id, session_id)):
        assert (await refusal(attempt)).code is Code.PERMISSION_DENIED
    assert (await refusal(end(root.access_token, eve.user.id, session_id))).code is Code.NOT_FOUND
    await end(root.access_token, ada.user.id, session_id)
    assert await listed(root.access_token, ada.user.id) == []
    assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"


# Closing and opening


async def test_a_closed_account_is_shut_at_once_and_can_be_opened(auth: Any, db: Postgres) -> None:
    """Its tokens fail, nobody signs in, nothing is deleted; opened again it is as it was."""
    root, ada = await admin(auth, db), await auth.register("ada")
    assert not (await deactivate(auth, root.access_token, ada.user.id, "spam")).is_active
    assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"
    assert (await refusal(auth.login("ada"))).reason == "account_inactive"
    assert not await check(auth, root.access_token, "chat:read", user_id=ada.user.id)
    await deactivate(auth, root.access_token, ada.user.id)
    for _ in range(2):
        assert (await reactivate(auth, root.access_token, ada.user.id)).is_active
    assert (await auth.login("ada")).access_token
    assert (await refusal(user_info(auth, ada.access_token))).reason == "session_revoked"
    assert [each["reason"] for each in await told(db, "account_deactivated")] == ["spam"]
    assert len(await told(db, "account_reactivated")) == 1


async def test_administration_is_for_administrators(auth: Any, db: Postgres) -> None:
    """People and services without the permission are refused everything here, about others and themselves."""
    await admin(auth, db)
    ada, eva = await auth.register("ada"), await auth.register("eva")
    plain = mint_service_token(auth.keys.signer, "billing")
    for token in (ada.access_token, plain):
        attempts: Sequence[Awaitable[Any]] = (
            set_role(auth, token, ada.user.id, "admin"),
            set_role(auth, token, eva.user.id, "user"),
            deactivate(auth, token, eva.user.id),
            reactivate(auth, token, eva.user.id),
            delete(auth, token, "correct horse", eva.user.id),
            issue(auth, token),
        )
        for attempt in attempts:
            error = await refusal(attempt)
            assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "forbidden")
    named = auth_pb2.GetUserInfoRequest(username="eva")
    assert (
        await refusal(auth.stub.GetUserInfo(named, metadata=bearer(ada.access_token)))
    ).reason == "forbidden"
    found = await auth.stub.GetUserInfo(named, metadata=bearer(plain))
    assert found.user.id == eva.user.id
    for nobody in ("nobody", "no\0body", "x" * 1000):
        named = auth_pb2.GetUserInfoRequest(username=nobody)
        assert (await refusal(auth.stub.GetUserInfo(named, metadata=bearer(plain)))).code is Code.NOT_FOUND
    both = auth_pb2.GetUserInfoRequest(username="eva", user_id=eva.user.id)
    assert (await refusal(auth.stub.GetUserInfo(both, metadata=bearer(plain)))).fields.keys() == {"username"}


async def test_unknown_accounts_and_roles_are_named(auth: Any, db: Postgres) -> None:
    """NOT_FOUND for nobody, INVALID_ARGUMENT for what is no id, no role, no reason."""
    root = (await admin(auth, db)).access_token
    for call in (
        set_role(auth, root, NOBODY, "user"),
        deactivate(auth, root, NOBODY),
        reactivate(auth, root, NOBODY),
    ):
        assert (await refusal(call)).code is Code.NOT_FOUND
    assert (await refusal(set_role(auth, root, "x", "user"))).fields.keys() == {"user_id"}
    assert (await refusal(set_role(auth, root, NOBODY, "emperor"))).fields.keys() == {"role"}
    assert (await refusal(deactivate(auth, root, NOBODY, "x" * 129))).fields.keys() == {"reason"}


# Service tokens


async def test_a_service_token_does_what_it_was_issued_for(auth: Any, db: Postgres) -> None:
    """It names the service, grants the services and permissions asked for, and expires when asked to."""
    root = await admin(auth, db)
    issued = await issue(
        auth, root.access_token, services=["user", "chat"], permissions=["chat:moderate"], lifetime_seconds=60
    )
    claims = await auth.identity.validate_for_service(issued.token, "chat")
    assert (claims.user_id, claims.services, claims.permissions) == (
        "service:billing",
        ("user", "chat"),
        ("chat:moderate",),
    )
    assert claims.token_id == issued.token_id
    assert claims.expires_at - claims.issued_at == pytest.approx(60, abs=2)
    assert issued.expires_at.seconds == pytest.approx(claims.expires_at, abs=2)
    error = await refusal(auth.identity.validate_for_service(issued.token, "messaging"))
    assert error.reason == "service_not_granted"
    nothing = await issue(auth, root.access_token)
    for service in tokens.USER_SERVICES:
        assert not (await auth.validate(nothing.token, service)).valid
    everything = await issue(auth, root.access_token, services=["*"])
    assert (await auth.validate(everything.token, "stream")).valid


BAD_TOKENS: Sequence[tuple[dict[str, Any], str]] = [
    ({"service": ""}, "service"),
    ({"service": "Billing!"}, "service"),
    ({"services": ["nonsense"]}, "services"),
    ({"permissions": ["everything"]}, "permissions"),
    ({"permissions": ["chat:"]}, "permissions"),
    ({"permissions": ["a:b"] * 65}, "permissions"),
    ({"lifetime_seconds": -1}, "lifetime_seconds"),
    ({"lifetime_seconds": 30 * 24 * 3600 + 1}, "lifetime_seconds"),
]


async def test_a_bad_service_token_is_refused(auth: Any, db: Postgres) -> None:
    """Each fault by its field."""
    root = await admin(auth, db)
    for fields, fault in BAD_TOKENS:
        assert (await refusal(issue(auth, root.access_token, **fields))).fields.keys() == {fault}, fields


async def test_nobody_grants_what_they_do_not_have(auth: Any, db: Postgres) -> None:
    """A service that may administer makes no token, and no administrator, mightier than itself."""
    ada = await auth.register("ada")
    clerk = mint_service_token(
        auth.keys.signer, "clerk", services=("auth", "user"), permissions=("auth:admin", "chat:*")
    )
    issued = await issue(auth, clerk, services=["user"], permissions=["chat:moderate"])
    assert (await auth.identity.authenticate(issued.token)).permissions == ("chat:moderate",)
    for attempt in (
        issue(auth, clerk, permissions=["room:moderate"]),
        issue(auth, clerk, permissions=["*:*"]),
        issue(auth, clerk, services=["chat"]),
        issue(auth, clerk, services=["*"]),
        set_role(auth, clerk, ada.user.id, "admin"),
    ):
        assert (await refusal(attempt)).reason == "forbidden"


# Permissions


@pytest.mark.parametrize("role", list(ROLE_PERMISSIONS))
async def test_roles_permit_what_the_api_says(auth: Any, db: Postgres, role: str) -> None:
    """Every permission of every role, asked about oneself; by the role as it is now, not as in the token."""
    ada = await auth.register("ada")
    await db.execute("UPDATE auth.accounts SET role = $1 WHERE username = 'ada'", role)
    every = {each for permissions in ROLE_PERMISSIONS.values() for each in permissions if "*" not in each}
    for permission in sorted(every | {"room:create_private", "nonsense:read"}):
        expected = role == "admin" or permission in ROLE_PERMISSIONS[role]
        assert await check(auth, ada.access_token, permission) is expected, permission


MEMBER = {"read": True, "write": True}


STANDINGS: Sequence[tuple[str, Standing | None, set[str]]] = [
    ("user", None, set()),
    ("user", Standing("", {}), set()),
    ("user", Standing("member", MEMBER), {"read", "write"}),
    ("user", Standing("member", {"read": True, "write": False}), {"read"}),
    ("user", Standing("moderator", MEMBER), {"read", "write", "moderate"}),
    ("user", Standing("admin", MEMBER), {"read", "write", "moderate", "manage"}),
    ("user", Standing("owner", MEMBER), {"read", "write", "moderate", "manage", "own"}),
    ("moderator", Standing("", {}), {"moderate"}),
    ("moderator", None, set()),
    ("admin", Standing("", {}), {"read", "write", "moderate", "manage", "own", "burn"}),
    ("admin", None, set()),
]


async def test_permissions_reach_down_to_a_room(auth: Any, db: Postgres) -> None:
    """By the role of the account and the place in the room; in a room that is not there nobody may anything."""
    ada = await auth.register("ada")
    for role, standing, allowed in STANDINGS:
        await db.execute("UPDATE auth.accounts SET role = $1 WHERE username = 'ada'", role)
        auth.others.standings = {(ada.user.id, ROOM): standing}
        for resource in ("room", "chat", "conversation"):
            found = {
                action
                for action in ("read", "write", "moderate", "manage", "own", "burn")
                if await check(auth, ada.access_token, f"{resource}:{action}", ROOM)
            }
            assert found == allowed, (resource, role, standing)


async def test_permissions_of_others_are_for_services_and_administrators(auth: Any, db: Postgres) -> None:
    """A person asks about themselves; nonsense is named; nobody is NOT_FOUND."""
    root = (await admin(auth, db)).access_token
    ada, eva = await auth.register("ada"), await auth.register("eva")
    assert (
        await refusal(check(auth, ada.access_token, "chat:read", user_id=eva.user.id))
    ).reason == "forbidden"
    service = mint_service_token(auth.keys.signer, "chat")
    for token in (root, service):
        assert await check(auth, token, "chat:read", user_id=eva.user.id)
        assert (await refusal(check(auth, token, "chat:read", user_id=NOBODY))).code is Code.NOT_FOUND
    assert (await refusal(check(auth, ada.access_token, "chat:read", "x"))).fields.keys() == {"resource_id"}
    assert (await refusal(check(auth, ada.access_token, "CHAT:"))).fields.keys() == {"resource", "action"}


# Deletion


async def test_a_deleted_account_is_gone_at_once_and_erased_soon(auth: Any, db: Postgres) -> None:
    """Its tokens fail, the event is told in the same transaction, nothing personal stays, the name is free."""
    ada = await auth.register("ada", email="ada@example.org", display_name="Ada L.")
    other = await auth.login("ada")
    assert (await refusal(delete(auth, ada.access_token, "wrong horse"))).reason == "bad_credentials"
    assert (await user_info(auth, ada.access_token)).username == "ada"
    await delete(auth, ada.access_token, "correct horse")
    for grant in (ada, other):
        assert (await refusal(user_info(auth, grant.access_token))).reason == "session_revoked"
        assert (await refusal(auth.refresh(grant.refresh_token))).code is Code.UNAUTHENTICATED
    assert await told(db, "account_deleted") == [{"user_id": ada.user.id}]
    assert not await db.fetchval("SELECT count(*) FROM auth.people")
    with trio.fail_after(5):
        while await db.fetchval("SELECT erased_at IS NULL FROM auth.accounts"):
            await trio.lowlevel.checkpoint()
    row = await db.fetchrow("SELECT * FROM auth.accounts")
    assert row is not None
    kept = " ".join(str(value) for value in row.values())
    assert not any(word in kept for word in ("ada@", "Ada L.", "argon2"))
    assert row["username"].startswith("deleted-")
    assert {each["device"] + each["address"] for each in await db.fetch("SELECT * FROM auth.sessions")} == {
        ""
    }
    again = await auth.register("ada", email="ada@example.org")
    assert again.user.id != ada.user.id
    root = (await admin(auth, db)).access_token
    error = await refusal(reactivate(auth, root, ada.user.id))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "account_deleted")
    assert (await refusal(delete(auth, root, user_id=ada.user.id))).code is Code.NOT_FOUND


async def test_of_many_deletions_at_once_one_counts(auth: Any, db: Postgres) -> None:
    """There is one event; whoever comes later finds no account."""
    root = (await admin(auth, db)).access_token
    ada = await auth.register("ada")
    results = await outcomes(lambda: delete(auth, root, user_id=ada.user.id), 5)
    assert sum(isinstance(each, WhisprError) for each in results) == 4
    assert len(await told(db, "account_deleted")) == 1


async def test_a_name_that_others_see_is_changed_for_the_user_service(auth: Any) -> None:
    """SetDisplayName is for services; an empty name is the username; bad and unknown ones are refused."""
    ada = await auth.register("ada")
    service = mint_service_token(auth.keys.signer, "user")

    async def rename(token: str, user_id: str, name: str) -> str:
        request = auth_pb2.SetDisplayNameRequest(user_id=user_id, display_name=name)
        return str((await auth.stub.SetDisplayName(request, metadata=bearer(token))).display_name)

    assert await rename(service, ada.user.id, "  Ada L. ") == "Ada L."
    assert (await user_info(auth, ada.access_token)).display_name == "Ada L."
    assert await rename(service, ada.user.id, "") == "ada"
    assert (await refusal(rename(service, ada.user.id, "x" * 65))).fields.keys() == {"display_name"}
    assert (await refusal(rename(service, NOBODY, "x"))).code is Code.NOT_FOUND
    assert (await refusal(rename(ada.access_token, ada.user.id, "x"))).reason == "service_only"
