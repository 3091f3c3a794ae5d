"""UserService over gRPC: who may do what, blocks, profiles, search."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import World, as_, as_service
from whispr.conversations.domain import Limits, Role
from whispr.conversations.membership import Membership
from whispr.errors import Code, WhisprError
from whispr.v1 import user_pb2 as pb


async def refusal(call: Awaitable[Any]) -> tuple[Code, str]:
    with pytest.raises(WhisprError) as refused:
        await call
    return refused.value.code, refused.value.reason


async def test_members_may_send_and_strangers_may_not(services: World) -> None:
    """ValidateMessagePermissions grants members, names the recipients, and tells strangers nothing."""
    group, (one, two, three) = await a_group(services.db, 3)
    stranger = (await sign_up(services.db, 1))[0]
    ask = services.users.ValidateMessagePermissions
    request = pb.ValidateMessagePermissionsRequest(conversation_id=group, message_type="text")
    granted = await ask(request, metadata=as_(one))
    assert granted.permission_granted
    assert sorted(granted.allowed_recipients) == sorted([two, three])
    some = pb.ValidateMessagePermissionsRequest(conversation_id=group, participant_ids=[two, stranger])
    assert list((await ask(some, metadata=as_(one))).allowed_recipients) == [two]
    refused = await ask(request, metadata=as_(stranger))
    assert (refused.permission_granted, refused.reason) == (False, "not_a_member")
    assert not refused.allowed_recipients
    request.message_type = "system"
    assert (await ask(request, metadata=as_(one))).reason == "forbidden"
    assert (await ask(request, metadata=as_service(one))).permission_granted


async def test_a_block_stops_direct_messages_both_ways_and_is_reported_in_groups(services: World) -> None:
    """In a direct conversation either block denies sending; in a group the blocked are named, not silenced."""
    group, (one, two) = await a_group(services.db)
    direct, _ = await Membership(services.db, Limits()).open_direct(one, two)
    await services.users.BlockUser(pb.BlockUserRequest(user_id=two), metadata=as_(one))
    for sender in (one, two):
        ask = pb.ValidateMessagePermissionsRequest(conversation_id=direct)
        answer = await services.users.ValidateMessagePermissions(ask, metadata=as_(sender))
        assert (answer.permission_granted, answer.reason) == (False, "blocked")
        ask.conversation_id = group
        answer = await services.users.ValidateMessagePermissions(ask, metadata=as_(sender))
        assert answer.permission_granted
        assert list(answer.blocked_recipients) == [two if sender == one else one]
        assert not answer.allowed_recipients
    access = pb.ValidateConversationAccessRequest(conversation_id=direct, action="write")
    answer_for_action = await services.users.ValidateConversationAccess(access, metadata=as_(two))
    assert (answer_for_action.access_granted, answer_for_action.reason) == (False, "blocked")
    await services.users.UnblockUser(pb.UnblockUserRequest(user_id=two), metadata=as_(one))
    assert (await services.users.ValidateConversationAccess(access, metadata=as_(two))).access_granted


async def test_access_is_answered_for_each_action(services: World) -> None:
    """ValidateConversationAccess answers the action asked for, and all of them beside it."""
    group, (one, two) = await a_group(services.db)
    direct, _ = await Membership(services.db, Limits()).open_direct(one, two)
    stranger = (await sign_up(services.db, 1))[0]
    ask = services.users.ValidateConversationAccess

    async def answer(conversation: str, user: str, action: str) -> tuple[bool, str, dict[str, bool]]:
        request = pb.ValidateConversationAccessRequest(conversation_id=conversation, action=action)
        reply = await ask(request, metadata=as_(user))
        return reply.access_granted, reply.reason, dict(reply.permissions)

    everything = {"join": True, "leave": True, "read": True, "write": True}
    assert await answer(group, one, "write") == (True, "", everything)
    assert await answer(direct, one, "leave") == (False, "forbidden", everything | {"leave": False})
    assert await answer(group, stranger, "read") == (False, "not_a_member", dict.fromkeys(everything, False))
    assert await refusal(answer(NOBODY, one, "read")) == (Code.NOT_FOUND, "not_found")
    assert await refusal(answer(group, one, "burn")) == (Code.INVALID_ARGUMENT, "invalid_payload")


async def test_participants_are_told_to_members_and_services(services: World) -> None:
    """GetConversationParticipants lists those present, on request those who left, to members and services."""
    group, (one, two, three) = await a_group(services.db, 3)
    await Membership(services.db, Limits()).remove(group, one, three)
    ask = services.users.GetConversationParticipants
    present = await ask(pb.GetConversationParticipantsRequest(conversation_id=group), metadata=as_(two))
    assert {(p.user_id, p.role, p.is_active) for p in present.participants} == {
        (one, Role.OWNER, True),
        (two, Role.MEMBER, True),
    }
    assert present.total_count == 2
    assert not present.participants[0].HasField("last_seen")
    everyone = pb.GetConversationParticipantsRequest(conversation_id=group, include_inactive=True)
    assert (await ask(everyone, metadata=as_service())).total_count == 3
    assert await refusal(ask(everyone, metadata=as_(three))) == (Code.PERMISSION_DENIED, "not_a_member")


async def test_people_ask_about_themselves_only(services: World) -> None:
    """A person who asks about somebody else is refused; a service is answered."""
    group, (one, two) = await a_group(services.db)
    calls: list[Callable[..., Awaitable[Any]]] = [
        services.users.ValidateMessagePermissions,
        services.users.ValidateConversationAccess,
        services.users.CheckUserBlocks,
    ]
    requests = [
        pb.ValidateMessagePermissionsRequest(conversation_id=group, sender_id=two),
        pb.ValidateConversationAccessRequest(conversation_id=group, user_id=two, action="read"),
        pb.CheckUserBlocksRequest(user_id=two, target_user_ids=[one]),
    ]
    for call, request in zip(calls, requests, strict=True):
        assert await refusal(call(request, metadata=as_(one))) == (Code.PERMISSION_DENIED, "forbidden")
        await call(request, metadata=as_service())
        assert (await refusal(call(request)))[0] is Code.UNAUTHENTICATED


async def test_a_service_names_whom_it_acts_for(services: World) -> None:
    """What is done for a person by a service that names nobody, or nonsense, is refused."""
    one, two = await sign_up(services.db, 2)
    block = services.users.BlockUser
    request = pb.BlockUserRequest(user_id=two)
    assert await refusal(block(request, metadata=as_service())) == (Code.PERMISSION_DENIED, "forbidden")
    assert (await refusal(block(request, metadata=as_service("me!"))))[0] is Code.INVALID_ARGUMENT
    await block(request, metadata=as_service(one))
    listed = await services.users.ListBlocks(pb.ListBlocksRequest(), metadata=as_(one))
    assert [each.user_id for each in listed.blocks] == [two]


async def test_blocks_are_known_to_who_made_them(services: World) -> None:
    """A person learns whom they blocked, not who blocked them; services learn both."""
    one, two = await sign_up(services.db, 2)
    for _ in range(2):
        await services.users.BlockUser(pb.BlockUserRequest(user_id=two), metadata=as_(one))
    check = services.users.CheckUserBlocks
    mine = await check(pb.CheckUserBlocksRequest(target_user_ids=[two]), metadata=as_(one))
    assert (dict(mine.is_blocked), dict(mine.has_blocked)) == ({two: True}, {})
    theirs = await check(pb.CheckUserBlocksRequest(target_user_ids=[one]), metadata=as_(two))
    assert (dict(theirs.is_blocked), dict(theirs.has_blocked)) == ({one: False}, {})
    request = pb.CheckUserBlocksRequest(user_id=two, target_user_ids=[one])
    assert dict((await check(request, metadata=as_service())).has_blocked) == {one: True}


async def test_blocks_are_listed_latest_first_by_page(services: World) -> None:
    """ListBlocks pages through all of the caller's blocks without loss or repeat."""
    one, *others = await sign_up(services.db, 6)
    for other in others:
        await services.users.BlockUser(pb.BlockUserRequest(user_id=other), metadata=as_(one))
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListBlocksRequest(page_size=2, page_token=token)
        page = await services.users.ListBlocks(request, metadata=as_(one))
        seen += [each.user_id for each in page.blocks]
        token = page.next_page_token
        if not token:
            break
    assert seen == others[::-1]
    for bad in ("nonsense", "WyJ4Il0=", "e30="):
        call = services.users.ListBlocks(pb.ListBlocksRequest(page_token=bad), metadata=as_(one))
        assert (await refusal(call))[0] is Code.INVALID_ARGUMENT


async def test_impossible_blocks_are_refused(services: World) -> None:
    """Nobody blocks themselves, nobody or nonsense."""
    one = (await sign_up(services.db, 1))[0]
    for target, code in (
        (one, Code.INVALID_ARGUMENT),
        (NOBODY, Code.NOT_FOUND),
        ("x", Code.INVALID_ARGUMENT),
    ):
        call = services.users.BlockUser(pb.BlockUserRequest(user_id=target), metadata=as_(one))
        assert (await refusal(call))[0] is code


async def test_profiles(services: World) -> None:
    """GetProfile shows oneself for "me" and nothing, others by id, and NOT_FOUND for nobody."""
    one, two = await sign_up(services.db, 2)
    get = services.users.GetProfile
    for asked, found in (("", one), ("me", one), (two, two), (two.upper(), two)):
        profile = (await get(pb.GetProfileRequest(user_id=asked), metadata=as_(one))).profile
        assert profile.id == found
        assert profile.display_name == "Somebody"
    nobody = get(pb.GetProfileRequest(user_id=NOBODY), metadata=as_(one))
    assert (await refusal(nobody))[0] is Code.NOT_FOUND


async def test_search_finds_prefixes_of_names_by_page(services: World) -> None:
    """SearchUsers finds by prefix of either name without case, takes wildcards literally, and pages."""
    one, *others = await sign_up(services.db, 5)
    names = [("Anna_b", "Zoe"), ("anNa", "Anna"), ("annaXb", "Q%"), ("zed", "ANNA z")]
    for user_id, (username, display_name) in zip(others, names, strict=True):
        await services.db.execute(
            "UPDATE auth.accounts SET username = $2, display_name = $3 WHERE id = $1",
            *(user_id, username, display_name),
        )

    async def search(query: str, size: int = 50, token: str = "") -> tuple[list[str], str]:
        request = pb.SearchUsersRequest(query=query, page_size=size, page_token=token)
        reply = await services.users.SearchUsers(request, metadata=as_(one))
        return [user.username for user in reply.users], reply.next_page_token

    everyone = ["anNa", "Anna_b", "annaXb", "zed"]
    assert sorted((await search("ANNA"))[0]) == sorted(everyone)
    assert await search("anna_") == (["Anna_b"], "")
    assert await search("q%") == (["annaXb"], "")
    assert await search("%") == ([], "")
    paged: list[str] = []
    token = ""
    for _ in range(4):
        page, token = await search("anna", 1, token)
        paged += page
    assert sorted(paged) == sorted(everyone)
    assert token == ""
    for bad in ("", "   ", "x" * 65):
        assert (await refusal(search(bad)))[0] is Code.INVALID_ARGUMENT
