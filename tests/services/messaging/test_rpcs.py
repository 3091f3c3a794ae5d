"""MessagingService over gRPC."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from google.protobuf.timestamp_pb2 import Timestamp

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import UNLIMITED, World, as_, as_service, world
from tests.services.messaging.kit import refusal, send
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Limits
from whispr.errors import Code, WhisprError
from whispr.v1 import messaging_pb2 as pb
from whispr.v1 import user_pb2


async def direct(services: World, one: str, two: str) -> pb.CreateConversationResponse:
    request = pb.CreateConversationRequest(kind="direct", member_ids=[two])
    return await services.messaging.CreateConversation(request, metadata=as_(one))


async def test_a_pair_has_one_direct_conversation(services: World) -> None:
    """Whoever asks, and however often at once, gets the same conversation; one of them made it."""
    one, two = await sign_up(services.db, 2)
    replies: list[pb.CreateConversationResponse] = []

    async def ask(asker: str, other: str) -> None:
        replies.append(await direct(services, asker, other))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(ask, one, two)
            nursery.start_soon(ask, two, one)
    assert len({reply.conversation.id for reply in replies}) == 1
    assert [reply.created for reply in replies].count(True) == 1
    conversation = replies[0].conversation
    assert (conversation.kind, conversation.member_count) == ("direct", 2)
    assert sorted(member.user_id for member in conversation.members) == sorted([one, two])
    assert {reply.conversation.peer.user_id for reply in replies} == {one, two}


async def test_impossible_conversations_are_refused(services: World) -> None:
    """Each bad CreateConversation gets the error that names what is wrong."""
    one, two = await sign_up(services.db, 2)
    create = services.messaging.CreateConversation
    for request, code in (
        (pb.CreateConversationRequest(kind="room"), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="direct"), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="direct", member_ids=[one]), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="direct", member_ids=[two], name="x"), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="direct", member_ids=["x"]), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="direct", member_ids=[NOBODY]), Code.NOT_FOUND),
        (pb.CreateConversationRequest(kind="group", member_ids=[NOBODY]), Code.NOT_FOUND),
        (pb.CreateConversationRequest(kind="group", name="x" * 101), Code.INVALID_ARGUMENT),
        (pb.CreateConversationRequest(kind="group", settings={"": "x"}), Code.INVALID_ARGUMENT),
    ):
        assert (await refusal(create(request, metadata=as_(one))))[0] is code, request


async def test_a_block_stops_new_and_existing_direct_conversations(services: World) -> None:
    """Neither side of a block opens a direct conversation or writes to one; unblocking mends both at once."""
    one, two, three = await sign_up(services.db, 3)
    talk = (await direct(services, one, two)).conversation.id
    await send(services, talk, two)
    for blocked in (two, three):
        request = user_pb2.BlockUserRequest(user_id=blocked)
        await services.users.BlockUser(request, metadata=as_(one))
    assert await refusal(direct(services, one, three)) == (Code.PERMISSION_DENIED, "blocked")
    assert await refusal(direct(services, three, one)) == (Code.PERMISSION_DENIED, "forbidden")
    for sender in (one, two):
        assert await refusal(send(services, talk, sender)) == (Code.PERMISSION_DENIED, "blocked")
    assert (await direct(services, two, one)).conversation.id == talk
    await services.users.UnblockUser(user_pb2.UnblockUserRequest(user_id=two), metadata=as_(one))
    assert (await send(services, talk, two)).seq == 2


async def test_a_message_comes_back_as_it_was_sent(services: World) -> None:
    """SendMessage returns the stored message; GetMessages, the list and a repeat return the same."""
    group, (one, two) = await a_group(services.db)
    first = await send(services, group, two, "question")
    fields: dict[str, Any] = {
        "client_id": "c",
        "metadata": {"a": "b"},
        "message_type": "media",
        "signature": b"\xff",
        "sender_public_key": b"\x00",
        "reply_to_id": first.id,
    }
    sent = await send(services, group, one, "hé", **fields)
    assert (sent.seq, sent.sender_id, sent.content, sent.reply_to_id) == (2, one, "hé".encode(), first.id)
    assert await send(services, group, one, "hé", **fields) == sent
    page = await services.messaging.GetMessages(
        pb.GetMessagesRequest(conversation_id=group), metadata=as_(two)
    )
    assert list(page.messages) == [first, sent]
    listed = await services.messaging.ListConversations(pb.ListConversationsRequest(), metadata=as_(two))
    assert listed.conversations[0].last_message == sent
    assert await refusal(send(services, group, one, "other", client_id="c")) == (
        Code.ALREADY_EXISTS,
        "duplicate_mismatch",
    )


async def test_bad_messages_are_refused_by_name(services: World) -> None:
    """Each bad SendMessage gets the reason and the field."""
    group, (one, _) = await a_group(services.db)
    too_large = send(services, group, one, "x" * 65537)
    assert await refusal(too_large) == (Code.INVALID_ARGUMENT, "message_too_large")
    await send(services, group, one, "x" * 65536)
    for field, fields in {
        "content": {"text": ""},
        "message_type": {"message_type": "song"},
        "client_id": {"client_id": "x" * 129},
        "metadata": {"metadata": {"k": "v" * 9000}},
        "reply_to_id": {"reply_to_id": "x"},
        "signature": {"signature": b"x" * 1025},
        "sender_public_key": {"sender_public_key": b"x" * 1025},
    }.items():
        with pytest.raises(WhisprError) as refused:
            await send(services, group, one, **fields)  # type: ignore[arg-type]  # of all kinds
        assert refused.value.code is Code.INVALID_ARGUMENT
        assert list(refused.value.fields) == [field]
    system = send(services, group, one, message_type="system")
    assert await refusal(system) == (Code.PERMISSION_DENIED, "forbidden")
    request = pb.SendMessageRequest(conversation_id=group, content=b"x", message_type="system")
    reply = await services.messaging.SendMessage(request, metadata=as_service(one))
    assert reply.message.message_type == "system"


async def test_history_pages_both_ways(services: World) -> None:
    """before_seq, after_seq and neither give ascending pages, and has_more tells of the rest."""
    group, (one, two) = await a_group(services.db)
    for n in range(7):
        await send(services, group, one, str(n))

    async def page(**fields: Any) -> tuple[list[int], bool]:
        request = pb.GetMessagesRequest(conversation_id=group, **fields)
        reply = await services.messaging.GetMessages(request, metadata=as_(two))
        return [message.seq for message in reply.messages], reply.has_more

    assert await page(page_size=3) == ([5, 6, 7], True)
    assert await page(page_size=7) == ([1, 2, 3, 4, 5, 6, 7], False)
    assert await page(before_seq=5, page_size=3) == ([2, 3, 4], True)
    assert await page(before_seq=3, page_size=3) == ([1, 2], False)
    assert await page(after_seq=0, page_size=2) == ([1, 2], True)
    assert await page(after_seq=5, page_size=2) == ([6, 7], False)
    assert await page(after_seq=7) == ([], False)
    for bad in ({"page_size": -1}, {"before_seq": 3, "after_seq": 3}):
        assert (await refusal(page(**bad)))[0] is Code.INVALID_ARGUMENT


async def test_a_page_of_large_messages_ends_early(services: World) -> None:
    """Pages stay well below a gRPC message whatever the bodies, and can still be walked through."""
    group, (one, _) = await a_group(services.db)
    for _ in range(20):
        await send(services, group, one, "x" * 65536)
    seen: list[int] = []
    more = True
    while more:
        request = pb.GetMessagesRequest(
            conversation_id=group, after_seq=seen[-1] if seen else 0, page_size=100
        )
        reply = await services.messaging.GetMessages(request, metadata=as_(one))
        assert 0 < len(reply.messages) < 20
        seen += [message.seq for message in reply.messages]
        more = reply.has_more
    assert seen == list(range(1, 21))


async def test_unread_counts_are_of_others_after_the_watermark(services: World) -> None:
    """Own messages are never unread, sending does not read, reading never goes back."""
    group, (one, two) = await a_group(services.db)

    async def unread(user: str) -> int:
        request = pb.GetConversationStatsRequest(conversation_id=group)
        reply = await services.messaging.GetConversationStats(request, metadata=as_(user))
        listed = await services.messaging.ListConversations(pb.ListConversationsRequest(), metadata=as_(user))
        assert listed.conversations[0].unread_count == reply.stats["unread_count"]
        return reply.stats["unread_count"]

    async def read(user: str, seq: int) -> tuple[int, int]:
        request = pb.MarkReadRequest(conversation_id=group, seq=seq)
        reply = await services.messaging.MarkRead(request, metadata=as_(user))
        return reply.read_seq, reply.unread_count

    for sender in (one, one, two, one, two):
        await send(services, group, sender)
    assert (await unread(one), await unread(two)) == (2, 3)
    assert await read(two, 1) == (1, 2)
    assert await read(two, 3) == (3, 1)
    assert await read(two, 2) == (3, 1)
    await send(services, group, two)
    assert await unread(two) == 1
    assert await read(two, 0) == (6, 0)
    assert await read(two, 99) == (6, 0)
    delivered = pb.MarkDeliveredRequest(conversation_id=group, seq=99)
    assert (await services.messaging.MarkDelivered(delivered, metadata=as_(one))).delivered_seq == 6
    delivered.seq = 3
    assert (await services.messaging.MarkDelivered(delivered, metadata=as_(one))).delivered_seq == 6


async def test_unread_begins_where_a_member_joins(services: World) -> None:
    """A newcomer, also one who comes back, reads the history but has nothing unread in it."""
    group, (one, two) = await a_group(services.db)
    newcomer = (await sign_up(services.db, 1))[0]
    await send(services, group, one)
    add = pb.AddMemberRequest(conversation_id=group, user_ids=[newcomer])
    for expected in (1, 2):
        added = await services.messaging.AddMember(add, metadata=as_(one))
        assert added.members[0].read_seq == expected
        got = await services.messaging.GetConversation(
            pb.GetConversationRequest(conversation_id=group), metadata=as_(newcomer)
        )
        assert got.conversation.unread_count == 0
        await send(services, group, two)
        remove = pb.RemoveMemberRequest(conversation_id=group, user_id=newcomer)
        await services.messaging.RemoveMember(remove, metadata=as_(one))
    await services.messaging.AddMember(add, metadata=as_(one))
    history = await services.messaging.GetMessages(
        pb.GetMessagesRequest(conversation_id=group), metadata=as_(newcomer)
    )
    assert len(history.messages) == 3


async def test_conversations_are_listed_by_activity_and_page(services: World) -> None:
    """ListConversations gives the most recently active first, each once, over any number of pages."""
    one, two = await sign_up(services.db, 2)
    groups = [(await _group(services, one, [two])).id for _ in range(5)]
    await send(services, groups[1], two)
    await send(services, groups[0], two)
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListConversationsRequest(page_size=2, page_token=token)
        page = await services.messaging.ListConversations(request, metadata=as_(one))
        seen += [each.id for each in page.conversations]
        assert all(each.unread_count == (each.id in groups[:2]) for each in page.conversations)
        token = page.next_page_token
        if not token:
            break
    assert seen == [groups[0], groups[1], groups[4], groups[3], groups[2]]


async def _group(services: World, owner: str, others: list[str], **fields: Any) -> pb.Conversation:
    request = pb.CreateConversationRequest(kind="group", member_ids=others, **fields)
    return (await services.messaging.CreateConversation(request, metadata=as_(owner))).conversation


async def test_groups_are_renamed_and_set_by_admins(services: World) -> None:
    """UpdateConversation merges settings, an empty value removing its key, for admins and the owner only."""
    one, two = await sign_up(services.db, 2)
    group = await _group(services, one, [two], name=" Tea ", settings={"a": "1", "b": "2"})
    assert (group.name, dict(group.settings)) == ("Tea", {"a": "1", "b": "2"})
    update = pb.UpdateConversationRequest(conversation_id=group.id, settings={"a": "", "c": "3"})
    assert await refusal(services.messaging.UpdateConversation(update, metadata=as_(two))) == (
        Code.PERMISSION_DENIED,
        "forbidden",
    )
    changed = (await services.messaging.UpdateConversation(update, metadata=as_(one))).conversation
    assert (changed.name, dict(changed.settings)) == ("Tea", {"b": "2", "c": "3"})
    role = pb.SetMemberRoleRequest(conversation_id=group.id, user_id=two, role="admin")
    await services.messaging.SetMemberRole(role, metadata=as_(one))
    rename = pb.UpdateConversationRequest(conversation_id=group.id, name="Coffee")
    assert (
        await services.messaging.UpdateConversation(rename, metadata=as_(two))
    ).conversation.name == "Coffee"


async def test_roles_bound_what_members_do_to_each_other(services: World) -> None:
    """Adding, removing and promoting need a role above the one touched; ownership is handed over whole."""
    group, (owner, admin, mod, plain) = await a_group(services.db, 4)
    outsider = (await sign_up(services.db, 1))[0]

    async def set_role(actor: str, user: str, role: str) -> str:
        request = pb.SetMemberRoleRequest(conversation_id=group, user_id=user, role=role)
        return (await services.messaging.SetMemberRole(request, metadata=as_(actor))).member.role

    async def remove(actor: str, user: str) -> None:
        request = pb.RemoveMemberRequest(conversation_id=group, user_id=user)
        await services.messaging.RemoveMember(request, metadata=as_(actor))

    async def add(actor: str, user: str, role: str = "") -> None:
        request = pb.AddMemberRequest(conversation_id=group, user_ids=[user], role=role)
        await services.messaging.AddMember(request, metadata=as_(actor))

    denied = (Code.PERMISSION_DENIED, "forbidden")
    assert await set_role(owner, admin, "admin") == "admin"
    assert await set_role(admin, mod, "moderator") == "moderator"
    assert await refusal(set_role(admin, plain, "admin")) == denied
    assert await refusal(set_role(mod, plain, "moderator")) == denied
    assert await refusal(set_role(mod, admin, "member")) == denied
    assert await refusal(set_role(owner, owner, "admin")) == denied
    assert (await refusal(set_role(owner, plain, "king")))[0] is Code.INVALID_ARGUMENT
    assert (await refusal(set_role(owner, outsider, "admin")))[0] is Code.NOT_FOUND
    assert await refusal(add(plain, outsider)) == denied
    assert await refusal(add(mod, outsider, "moderator")) == denied
    await add(mod, outsider)
    await add(mod, outsider)
    assert await refusal(remove(plain, outsider)) == denied
    assert await refusal(remove(mod, admin)) == denied
    await remove(mod, outsider)
    await remove(mod, outsider)
    assert await set_role(owner, plain, "owner") == "owner"
    assert await refusal(set_role(owner, plain, "member")) == denied
    assert await _roles(services, group, plain) == {
        owner: "admin",
        admin: "admin",
        mod: "moderator",
        plain: "owner",
    }


async def _roles(services: World, group: str, viewer: str) -> dict[str, str]:
    reply = await services.messaging.ListMembers(
        pb.ListMembersRequest(conversation_id=group), metadata=as_(viewer)
    )
    return {member.user_id: member.role for member in reply.members}


async def test_a_group_whose_owner_leaves_has_another(services: World) -> None:
    """The highest role, then the longest present, becomes owner; the last one out just leaves."""
    group, (owner, first, second) = await a_group(services.db, 3)
    role = pb.SetMemberRoleRequest(conversation_id=group, user_id=second, role="moderator")
    await services.messaging.SetMemberRole(role, metadata=as_(owner))
    leave = pb.RemoveMemberRequest(conversation_id=group, user_id="me")
    for _ in range(2):
        await services.messaging.RemoveMember(leave, metadata=as_(owner))
    assert await _roles(services, group, first) == {first: "member", second: "owner"}
    await services.messaging.RemoveMember(leave, metadata=as_(second))
    assert await _roles(services, group, first) == {first: "owner"}
    await services.messaging.RemoveMember(leave, metadata=as_(first))
    assert await refusal(_roles(services, group, first)) == (Code.PERMISSION_DENIED, "not_a_member")


async def test_a_direct_conversation_keeps_its_two(services: World) -> None:
    """Nobody is added to a direct conversation, leaves it, is promoted in it or renames it."""
    one, two, three = await sign_up(services.db, 3)
    talk = (await direct(services, one, two)).conversation.id
    rpc = services.messaging
    for call, request in (
        (rpc.AddMember, pb.AddMemberRequest(conversation_id=talk, user_ids=[three])),
        (rpc.RemoveMember, pb.RemoveMemberRequest(conversation_id=talk, user_id="me")),
        (rpc.RemoveMember, pb.RemoveMemberRequest(conversation_id=talk, user_id=two)),
        (rpc.SetMemberRole, pb.SetMemberRoleRequest(conversation_id=talk, user_id=two, role="owner")),
        (rpc.UpdateConversation, pb.UpdateConversationRequest(conversation_id=talk, name="x")),
    ):
        refused = await refusal(call(request, metadata=as_(one)))  # type: ignore[arg-type]  # of all kinds
        assert refused == (Code.PERMISSION_DENIED, "forbidden")


async def test_the_member_limit_holds_in_a_race(db: Postgres) -> None:
    """Adds that race for the last seats fill them exactly and refuse the rest."""
    async with world(db, Limits(group_members=10, user_messages_per_min=0)) as services:
        group, (owner, *_) = await a_group(db, 6)
        others = await sign_up(db, 8)
        outcomes: list[object] = []

        async def add(user: str) -> None:
            request = pb.AddMemberRequest(conversation_id=group, user_ids=[user])
            try:
                await services.messaging.AddMember(request, metadata=as_(owner))
            except WhisprError as error:
                outcomes.append(error.code)
            else:
                outcomes.append("added")

        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(add, other)
        assert outcomes.count("added") == 4
        assert outcomes.count(Code.INVALID_ARGUMENT) == 4
        members = await _roles(services, group, owner)
        assert len(members) == 10
        got = await services.messaging.GetConversation(
            pb.GetConversationRequest(conversation_id=group), metadata=as_(owner)
        )
        assert got.conversation.member_count == 10
        eleven = pb.CreateConversationRequest(kind="group", member_ids=await sign_up(db, 10))
        refused = await refusal(services.messaging.CreateConversation(eleven, metadata=as_(owner)))
        assert refused[0] is Code.INVALID_ARGUMENT


async def test_the_message_rate_is_limited(db: Postgres) -> None:
    """Past the limit a send is RESOURCE_EXHAUSTED with a time; 0 lifts it without asking the limiter."""
    group, (one, _) = await a_group(db)
    async with world(db, Limits(user_messages_per_min=2)) as services:
        await send(services, group, one)
        await send(services, group, one)
        with pytest.raises(WhisprError) as refused:
            await send(services, group, one)
        assert (refused.value.reason, refused.value.retry_after_s) == ("rate_limited", 1.5)
        assert set(services.limiter.taken) == {f"messages:{one}"}
    async with world(db, UNLIMITED) as services:
        await send(services, group, one)
        assert services.limiter.taken == []


async def test_statistics(services: World) -> None:
    """The counters asked for; another person's unread only for services; unknown metrics are refused."""
    group, (one, two) = await a_group(services.db)
    last = await send(services, group, one)
    ask = services.messaging.GetConversationStats
    request = pb.GetConversationStatsRequest(conversation_id=group)
    assert dict((await ask(request, metadata=as_(two))).stats) == {
        "message_count": 1,
        "unread_count": 1,
        "last_activity": last.sent_at.seconds,
    }
    assert set((await ask(request, metadata=as_service())).stats) == {"message_count", "last_activity"}
    request.user_id = two
    request.metrics.append("unread_count")
    assert dict((await ask(request, metadata=as_service())).stats) == {"unread_count": 1}
    assert await refusal(ask(request, metadata=as_(one))) == (Code.PERMISSION_DENIED, "forbidden")
    request.metrics.append("mood")
    assert (await refusal(ask(request, metadata=as_(two))))[0] is Code.INVALID_ARGUMENT


SOON = int(time.time()) + 3600
REQUESTS: dict[str, Any] = {
    "GetConversation": pb.GetConversationRequest(),
    "UpdateConversation": pb.UpdateConversationRequest(name="mine"),
    "ListMembers": pb.ListMembersRequest(),
    "AddMember": pb.AddMemberRequest(user_ids=[NOBODY]),
    "RemoveMember": pb.RemoveMemberRequest(user_id=NOBODY),
    "SetMemberRole": pb.SetMemberRoleRequest(user_id=NOBODY, role="owner"),
    "SendMessage": pb.SendMessageRequest(content=b"x"),
    "GetMessages": pb.GetMessagesRequest(),
    "MarkDelivered": pb.MarkDeliveredRequest(seq=1),
    "MarkRead": pb.MarkReadRequest(),
    "GetConversationStats": pb.GetConversationStatsRequest(),
    "GetMessage": pb.GetMessageRequest(message_id=NOBODY),
    "EditMessage": pb.EditMessageRequest(message_id=NOBODY, content=b"x"),
    "DeleteMessage": pb.DeleteMessageRequest(message_id=NOBODY, for_everyone=True),
    "AddReaction": pb.AddReactionRequest(message_id=NOBODY, emoji="🎉"),
    "RemoveReaction": pb.RemoveReactionRequest(message_id=NOBODY, emoji="🎉"),
    "PinMessage": pb.PinMessageRequest(message_id=NOBODY),
    "UnpinMessage": pb.UnpinMessageRequest(message_id=NOBODY),
    "ListPins": pb.ListPinsRequest(),
    "SearchMessages": pb.SearchMessagesRequest(query="word"),
    "ScheduleMessage": pb.ScheduleMessageRequest(content=b"x", send_at=Timestamp(seconds=SOON)),
    "SaveDraft": pb.SaveDraftRequest(content=b"x"),
    "GetDraft": pb.GetDraftRequest(),
    "ArchiveConversation": pb.ArchiveConversationRequest(archived=True),
    "MuteConversation": pb.MuteConversationRequest(muted=True),
}
OTHERS = {
    "ListScheduledMessages",  # the caller's own messages, whatever the conversation
    "NotifyConversationEvent",  # for services alone
}


def test_every_rpc_about_a_conversation_is_tried_by_strangers() -> None:
    """A new RPC without a row in REQUESTS fails here."""
    service = pb.DESCRIPTOR.services_by_name["MessagingService"]
    about_one = {m.name for m in service.methods if "conversation_id" in m.input_type.fields_by_name}
    assert about_one == set(REQUESTS) | OTHERS


@pytest.mark.parametrize("method", REQUESTS)
async def test_strangers_are_refused_everywhere(services: World, method: str) -> None:
    """On every RPC: strangers not_a_member, unknown conversations NOT_FOUND, bad ids INVALID_ARGUMENT."""
    group, (_, left) = await a_group(services.db)
    stranger = (await sign_up(services.db, 1))[0]
    call: Callable[..., Awaitable[Any]] = getattr(services.messaging, method)
    leave = pb.RemoveMemberRequest(conversation_id=group, user_id="me")
    await services.messaging.RemoveMember(leave, metadata=as_(left))

    def about(conversation_id: str) -> Any:
        request = type(REQUESTS[method])()
        request.CopyFrom(REQUESTS[method])
        request.conversation_id = conversation_id
        return request

    for outsider in (stranger, left):
        refused = await refusal(call(about(group), metadata=as_(outsider)))
        assert refused == (Code.PERMISSION_DENIED, "not_a_member")
    assert (await refusal(call(about(NOBODY), metadata=as_(stranger))))[0] is Code.NOT_FOUND
    assert (await refusal(call(about("x"), metadata=as_(stranger))))[0] is Code.INVALID_ARGUMENT
    assert (await refusal(call(about(group))))[0] is Code.UNAUTHENTICATED
    if method != "GetConversationStats":
        assert (await refusal(call(about(group), metadata=as_service())))[0] is Code.PERMISSION_DENIED


async def test_the_last_good_answer_stands_in_for_an_absent_user_service(db: Postgres) -> None:
    """With the user service away, those with a remembered grant write on; others hear UNAVAILABLE."""
    async with world(db, ttl_s=0.0) as services:
        group, (one, two) = await a_group(db)
        assert (await send(services, group, one)).seq == 1
        services.user_rpc.network.reachable = False
        await services.user_rpc.network.cut()
        assert (await send(services, group, one)).seq == 2
        assert (await refusal(send(services, group, two)))[0] is Code.UNAVAILABLE
        remove = pb.RemoveMemberRequest(conversation_id=group, user_id="me")
        await services.messaging.RemoveMember(remove, metadata=as_(one))
        assert (await refusal(send(services, group, one)))[0] is Code.UNAVAILABLE
