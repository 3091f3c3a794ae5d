"""The channels `conversation:<id>` and `user:<id>`, through a real hub, socket and client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.conversations.kit import NOBODY, a_group, sign_up
from tests.services.kit import World, as_, world
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Limits
from whispr.realtime.client import ChannelClosed, ClientChannel, Phoenix, Refused
from whispr.realtime.hub import Broadcast
from whispr.v1 import messaging_pb2 as pb
from whispr.v1 import user_pb2

Json = dict[str, Any]


async def push(channel: ClientChannel, event: str, payload: Json | None = None) -> Json:
    return cast("Json", await channel.push(event, payload or {}))


async def expect(channel: ClientChannel, event: str) -> Json:
    """Return the payload of the next such event, leaving out the others."""
    with trio.fail_after(5):
        async for name, payload in channel:
            if name == event:
                return cast("Json", payload)
    raise AssertionError(f"the channel ended before {event}")


async def until_quiet(channel: ClientChannel) -> list[tuple[str, Json]]:
    """Return what has arrived on the channel before the reply to a push made now; presence comes in its own time."""
    await channel.push("get_history" if channel.topic.startswith("conv") else "get_conversations", {})
    seen: list[tuple[str, Json]] = []
    while True:
        try:
            event = cast("tuple[str, Json]", channel._events.receive_nowait())
        except trio.WouldBlock:
            return seen
        if not event[0].startswith("presence_"):
            seen.append(event)


@asynccontextmanager
async def joined(
    services: World, topic: str, *users: str, **payload: Any
) -> AsyncIterator[list[ClientChannel]]:
    """Connect these users, each with a socket of their own, and join them all to the topic."""
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(services.server.connect(user)) for user in users]
        yield [await socket.join(topic, payload) for socket in sockets]


async def refusal(phoenix: Phoenix, topic: str, payload: object = None) -> str:
    with pytest.raises(Refused) as refused:
        await phoenix.join(topic, payload or {})
    return refused.value.reason


async def test_a_message_reaches_everybody_once_and_the_sender_before_the_reply(services: World) -> None:
    """new_message carries the message to all members, the sender's socket included, before the reply."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
        message = {"text": "héllo", "client_id": "c-1", "metadata": {"k": "v"}}
        reply = await push(mine, "send_message", message)
        assert [name for name, _ in await until_quiet(mine)].count("new_message") == 1
        got = await expect(theirs, "new_message")
        assert got == {
            "id": reply["message_id"],
            "conversation_id": group,
            "seq": 1,
            "sender_id": one,
            "message_type": "text",
            "metadata": {"k": "v"},
            "sent_at": reply["sent_at"],
            "text": "héllo",
            "client_id": "c-1",
        }
        assert reply["seq"] == 1
        again = await push(mine, "send_message", message)
        assert again == reply
        assert "new_message" not in [name for name, _ in await until_quiet(theirs)]


async def test_bytes_that_are_no_text_travel_in_base64(services: World) -> None:
    """Content that is not UTF-8 is base64 `content` both ways, as are signature and key."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
        body = {"content": "//79", "signature": "AA==", "sender_public_key": "/w=="}
        await push(mine, "send_message", body)
        got = await expect(theirs, "new_message")
        assert {key: got[key] for key in body} == body
        assert "text" not in got
        await push(mine, "send_message", {"content": "aGk="})
        assert (await expect(theirs, "new_message"))["text"] == "hi"


async def test_sends_are_pipelined_in_order(services: World) -> None:
    """Hundreds of sends without waiting are stored and delivered in their order, each once, each answered."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
        receipts = [mine.push_nowait("send_message", {"text": str(n)}) for n in range(500)]
        replies = [cast("Json", await receipt.wait()) for receipt in receipts]
        assert [reply["seq"] for reply in replies] == list(range(1, 501))
        got = [await expect(theirs, "new_message") for _ in range(500)]
        assert [(m["seq"], m["text"]) for m in got] == [(n + 1, str(n)) for n in range(500)]


async def test_joining_tells_what_was_missed_and_who_is_there(services: World) -> None:
    """The join's reply has seq, the messages after since_seq, the members and one's own role."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one) as (mine,):
        assert mine.response == {
            "seq": 0,
            "change": 1,
            "messages": [],
            "changes": [],
            "changed_messages": [],
            "receipts": [],
            "hidden_seqs": [],
            "has_more": False,
            "resync": False,
            "cursor": "",
            "members": cast("Json", mine.response)["members"],
            "member_count": 2,
            "kind": "group",
            "role": "owner",
        }
        for n in range(5):
            await push(mine, "send_message", {"text": str(n)})
    topic = f"conversation:{group}"
    async with services.server.connect(two) as phoenix:
        for since, expected in ((None, []), (0, [1, 2, 3, 4, 5]), (3, [4, 5]), (5, []), (99, [])):
            channel = await phoenix.join(topic, {} if since is None else {"since_seq": since})
            response = cast("Json", channel.response)
            assert [message["seq"] for message in response["messages"]] == expected
            assert (response["seq"], response["role"], response["has_more"]) == (5, "member", False)
            assert {member["user_id"]: member["role"] for member in response["members"]} == {
                one: "owner",
                two: "member",
            }
            await channel.leave()


async def test_a_join_replays_a_bounded_stretch(services: World) -> None:
    """At most 1,000 missed messages come with the join; get_history pages through the rest up to seq."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one) as (mine,):
        receipts = [mine.push_nowait("send_message", {"text": str(n)}) for n in range(1150)]
        for receipt in receipts:
            await receipt.wait()
    async with joined(services, f"conversation:{group}", two, since_seq=0) as (theirs,):
        response = cast("Json", theirs.response)
        assert (response["seq"], response["has_more"], len(response["messages"])) == (1150, True, 1000)
        seqs = [message["seq"] for message in response["messages"]]
        while seqs[-1] < response["seq"]:
            page = await push(theirs, "get_history", {"after_seq": seqs[-1], "limit": 100})
            seqs += [message["seq"] for message in page["messages"]]
        assert seqs == list(range(1, 1151))


async def test_resuming_under_load_misses_and_repeats_nothing(services: World) -> None:
    """A member who cuts and resumes while others send sees every message exactly once, in order."""
    group, (one, two) = await a_group(services.db)
    topic = f"conversation:{group}"
    seen: list[int] = []

    async def send_all(channel: ClientChannel) -> None:
        for _ in range(30):
            receipts = [channel.push_nowait("send_message", {"text": "x"}) for _ in range(20)]
            for receipt in receipts:
                await receipt.wait()

    async with joined(services, topic, one) as (mine,), trio.open_nursery() as nursery:
        nursery.start_soon(send_all, mine)
        while len(seen) < 600:
            async with services.server.connect(two) as phoenix:
                channel = await phoenix.join(topic, {"since_seq": len(seen)})
                seen += [message["seq"] for message in cast("Json", channel.response)["messages"]]
                for _ in range(35):
                    if len(seen) < 600:
                        seen.append((await expect(channel, "new_message"))["seq"])
                await phoenix.abort()
    assert seen == list(range(1, 601))


async def test_outsiders_do_not_join(services: World) -> None:
    """Strangers get not_a_member, unknown and malformed ids not_found, others' user topics forbidden."""
    group, (one, two) = await a_group(services.db)
    stranger = (await sign_up(services.db, 1))[0]
    async with services.server.connect(stranger) as phoenix:
        assert await refusal(phoenix, f"conversation:{group}") == "not_a_member"
        assert await refusal(phoenix, f"conversation:{NOBODY}") == "not_found"
        assert await refusal(phoenix, "conversation:x") == "not_found"
        assert await refusal(phoenix, f"user:{one}") == "forbidden"
        assert await refusal(phoenix, "user:") == "forbidden"
    async with services.server.connect(two) as phoenix:
        bad: list[object] = [{"since_seq": -1}, {"since_seq": "x"}, {"since_seq": 2**32}, [1]]
        for payload in bad:
            assert await refusal(phoenix, f"conversation:{group}", payload) == "invalid_payload"


async def test_bad_pushes_are_answered_by_name(services: World) -> None:
    """Each bad push gets its reason and field, and the channel lives on."""
    group, (one, _) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one) as (mine,):
        for event, payload, reason, field in (
            ("send_message", {}, "invalid_payload", "text"),
            ("send_message", {"text": "a", "content": "YQ=="}, "invalid_payload", "text"),
            ("send_message", {"text": 1}, "invalid_payload", "text"),
            ("send_message", {"content": "*"}, "invalid_payload", "content"),
            ("send_message", {"text": "x", "metadata": {"a": 1}}, "invalid_payload", "metadata"),
            ("send_message", {"text": "x" * 65537}, "message_too_large", "content"),
            ("send_message", {"text": "x", "message_type": "system"}, "forbidden", None),
            ("send_message", {"text": "x", "reply_to_id": NOBODY}, "invalid_payload", "reply_to_id"),
            ("mark_read", {"seq": -1}, "invalid_payload", "seq"),
            ("mark_delivered", {"seq": 0}, "invalid_payload", "seq"),
            ("get_history", {"limit": -1}, "invalid_payload", "page_size"),
            ("dance", {}, "invalid_payload", "event"),
        ):
            with pytest.raises(Refused) as refused:
                await push(mine, event, payload)
            assert refused.value.reason == reason, (event, payload)
            assert refused.value.response.get("field") == field, (event, payload)
        await push(mine, "send_message", {"text": "a", "client_id": "c"})
        with pytest.raises(Refused) as refused:
            await push(mine, "send_message", {"text": "b", "client_id": "c"})
        assert refused.value.reason == "duplicate_mismatch"
        sent = await push(mine, "send_message", {"text": "x", "client_id": None, "reply_to_id": None})
        assert sent["seq"] == 2


async def test_receipts_reach_the_others(services: World) -> None:
    """mark_read and mark_delivered are told when they move a watermark, and only then."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
        for _ in range(3):
            await push(mine, "send_message", {"text": "x"})
        assert await push(theirs, "mark_delivered", {"seq": 3}) == {"seq": 3}
        assert await expect(mine, "delivery_status") == {"user_id": two, "seq": 3}
        assert await push(theirs, "mark_read", {"seq": 2}) == {"seq": 2, "unread_count": 1}
        receipt = await expect(mine, "read_receipt")
        assert (receipt["user_id"], receipt["seq"]) == (two, 2)
        assert receipt["read_at"]
        await push(theirs, "mark_read", {"seq": 1})
        await push(theirs, "mark_delivered", {"seq": 1})
        assert await until_quiet(mine) == []


async def test_typing_is_told_to_the_others_and_ends(services: World) -> None:
    """typing_start and typing_stop reach the others, not oneself; sending and leaving stop it."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):

        async def action() -> str:
            event = await expect(theirs, "typing_indicator")
            assert (event["user_id"], event["conversation_id"]) == (one, group)
            assert event["timestamp"]
            return cast("str", event["action"])

        await push(mine, "typing_start")
        await push(mine, "typing_stop")
        await push(mine, "typing_stop")
        assert [await action(), await action()] == ["start", "stop"]
        await push(mine, "typing_start")
        await push(mine, "send_message", {"text": "done"})
        assert [await action(), await action()] == ["start", "stop"]
        await push(mine, "typing_start")
        await mine.leave()
        assert [await action(), await action()] == ["start", "stop"]
        await until_quiet(theirs)


async def test_typing_expires(db: Postgres) -> None:
    """Typing that is not renewed ends by itself after typing_expires_s."""
    async with world(db, Limits(user_messages_per_min=0, typing_expires_s=0.05)) as services:
        group, (one, two) = await a_group(db)
        async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
            await push(mine, "typing_start")
            actions = [(await expect(theirs, "typing_indicator"))["action"] for _ in range(2)]
            assert actions == ["start", "stop"]


async def test_presence_shows_who_is_there_and_their_status(services: World) -> None:
    """presence_state lists those joined; a status chosen on user:<id> shows in every conversation."""
    group, (one, two) = await a_group(services.db)
    topic = f"conversation:{group}"
    async with services.server.connect(one) as phoenix, joined(services, topic, two) as (theirs,):
        assert set(await expect(theirs, "presence_state")) == {two}
        own = await phoenix.join(f"user:{one}")
        mine = await phoenix.join(topic)
        assert set(await expect(mine, "presence_state")) == {one, two}
        while one not in (diff := await expect(theirs, "presence_diff"))["joins"]:
            pass  # their own coming
        assert diff["joins"][one]["metas"][0]["status"] == "online"
        for status in ("busy", "offline", "away"):
            await push(own, "update_status", {"status": status})
            diff = await expect(theirs, "presence_diff")
            joins = diff["joins"].get(one, {"metas": []})["metas"]
            assert [meta["status"] for meta in joins] == ([] if status == "offline" else [status])
        with pytest.raises(Refused) as refused:
            await push(own, "update_status", {"status": "dancing"})
        assert refused.value.response["field"] == "status"
        await phoenix.abort()
        assert list((await expect(theirs, "presence_diff"))["leaves"]) == [one]


async def test_previews_go_to_sockets_that_have_not_joined(services: World) -> None:
    """user:<id> gets new_message for conversations its socket has not joined, and not for those it has."""
    group, (one, two) = await a_group(services.db)
    async with (
        services.server.connect(two) as phoenix,
        joined(services, f"conversation:{group}", one) as (mine,),
    ):
        own = await phoenix.join(f"user:{two}")
        for n in range(3):
            await push(mine, "send_message", {"text": str(n)})
            preview = await expect(own, "new_message")
            assert (preview["conversation_id"], preview["text"]) == (group, str(n))
        theirs = await phoenix.join(f"conversation:{group}")
        await push(mine, "send_message", {"text": "live"})
        assert (await expect(theirs, "new_message"))["text"] == "live"
        await trio.testing.wait_all_tasks_blocked()
        assert "new_message" not in [name for name, _ in await until_quiet(own)]


async def test_the_list_of_conversations(services: World) -> None:
    """get_conversations pages through one's own with last message and unread count."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one) as (mine,):
        await push(mine, "send_message", {"text": "hi"})
    async with joined(services, f"user:{two}", two) as (own,):
        listed = await push(own, "get_conversations")
        assert listed["next_page_token"] == ""
        (only,) = listed["conversations"]
        assert (only["id"], only["unread_count"], only["last_message"]["text"]) == (group, 1, "hi")
        with pytest.raises(Refused):
            await push(own, "get_conversations", {"page_token": "x"})


async def test_membership_changes_are_live(services: World) -> None:
    """The added are invited, members told, and the removed told why before their channel closes."""
    group, (one, two) = await a_group(services.db)
    three = (await sign_up(services.db, 1))[0]
    topic = f"conversation:{group}"
    async with joined(services, topic, one) as (mine,), services.server.connect(three) as phoenix:
        own = await phoenix.join(f"user:{three}")
        assert await refusal(phoenix, topic) == "not_a_member"
        add = pb.AddMemberRequest(conversation_id=group, user_ids=[two, three])
        await services.messaging.AddMember(add, metadata=as_(one))
        invitation = await expect(own, "conversation_invitation")
        assert (invitation["conversation"]["id"], invitation["invited_by"]) == (group, one)
        added = await expect(mine, "member_added")
        assert (added["user_id"], added["member"]["role"], added["added_by"]) == (three, "member", one)
        theirs = await phoenix.join(topic)
        await push(theirs, "send_message", {"text": "hello"})
        rename = pb.UpdateConversationRequest(conversation_id=group, name="Tea")
        await services.messaging.UpdateConversation(rename, metadata=as_(one))
        assert (await expect(theirs, "settings_changed"))["name"] == "Tea"
        assert (await expect(own, "conversation_updated"))["name"] == "Tea"
        remove = pb.RemoveMemberRequest(conversation_id=group, user_id=three)
        await services.messaging.RemoveMember(remove, metadata=as_(one))
        assert (await expect(mine, "member_removed"))["user_id"] == three
        assert await expect(theirs, "user_kicked") == {"user_id": three, "reason": "removed"}
        with pytest.raises(ChannelClosed):
            await push(theirs, "send_message", {"text": "still here?"})
        assert await refusal(phoenix, topic) == "not_a_member"


async def test_a_block_takes_effect_on_a_live_channel(services: World) -> None:
    """After BlockUser neither side's send_message goes through; after UnblockUser both do."""
    one, two = await sign_up(services.db, 2)
    create = pb.CreateConversationRequest(kind="direct", member_ids=[two])
    talk = (await services.messaging.CreateConversation(create, metadata=as_(one))).conversation.id
    async with joined(services, f"conversation:{talk}", one, two) as (mine, theirs):
        await push(theirs, "send_message", {"text": "hi"})
        await services.users.BlockUser(user_pb2.BlockUserRequest(user_id=two), metadata=as_(one))
        for channel in (mine, theirs):
            with pytest.raises(Refused) as refused:
                await push(channel, "send_message", {"text": "hi"})
            assert refused.value.reason == "blocked"
        await services.users.UnblockUser(user_pb2.UnblockUserRequest(user_id=two), metadata=as_(one))
        assert (await push(theirs, "send_message", {"text": "hi"}))["seq"] == 2


async def test_the_message_rate_is_limited(db: Postgres) -> None:
    """Past the limit the reply is rate_limited with retry_after_ms."""
    async with world(db, Limits(user_messages_per_min=2)) as services:
        group, (one, _) = await a_group(db)
        async with joined(services, f"conversation:{group}", one) as (mine,):
            for n in range(2):
                assert (await push(mine, "send_message", {"text": "x"}))["seq"] == n + 1
            with pytest.raises(Refused) as refused:
                await push(mine, "send_message", {"text": "x"})
            assert (refused.value.reason, refused.value.response["retry_after_ms"]) == ("rate_limited", 1500)


async def test_what_other_nodes_broadcast_is_noted(services: World) -> None:
    """A message of another node is previewed here; a removal there closes the channel here."""
    group, (_, two) = await a_group(services.db)
    topic = f"conversation:{group}"
    async with services.server.connect(two) as phoenix, joined(services, topic, two) as (theirs,):
        own = await phoenix.join(f"user:{two}")
        services.conversations.announcer.preview(topic, group, [b'{"text":"from afar"}'])
        assert (await expect(own, "new_message"))["text"] == "from afar"
        services.conversations.heard(Broadcast(topic, "typing_indicator", b"{}"))
        services.conversations.heard(Broadcast(f"user:{two}", "new_message", b"{}"))
        removed = b'{"conversation_id":"%b","user_id":"%b"}' % (group.encode(), two.encode())
        services.conversations.heard(Broadcast(topic, "member_removed", removed))
        async for _ in theirs:
            pass
        with pytest.raises(ChannelClosed):
            await push(theirs, "get_history")


async def test_changes_of_messages_are_told_with_their_numbers(services: World) -> None:
    """Each event of a change carries `change`, gap-free; edits carry the message as it is now."""
    group, (one, two) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one, two) as (mine, theirs):
        sent = await push(mine, "send_message", {"text": "frist"})
        named = {"message_id": sent["message_id"]}
        reply = await push(mine, "edit_message", {**named, "text": "first"})
        assert reply.keys() == {"message_id", "seq", "edited_at"}
        edited = await expect(theirs, "message_edited")
        assert (edited["change"], edited["seq"], edited["edited_by"]) == (2, 1, one)
        assert (edited["message"]["text"], edited["message"]["edited_at"]) == ("first", reply["edited_at"])
        await push(theirs, "add_reaction", {**named, "emoji": "👍"})
        added = await expect(mine, "reaction_added")
        assert (added["change"], added["user_id"], added["emoji"]) == (3, two, "👍")
        await push(theirs, "remove_reaction", {**named, "emoji": "👍"})
        assert (await expect(mine, "reaction_removed"))["change"] == 4
        await push(mine, "pin_message", named)
        assert (await expect(theirs, "message_pinned"))["pinned_by"] == one
        await push(mine, "unpin_message", named)
        assert (await expect(theirs, "message_unpinned"))["change"] == 6
        await push(mine, "delete_message", {**named, "for_everyone": True})
        gone = await expect(theirs, "message_deleted")
        assert (gone["change"], gone["seq"], gone["deleted_by"], gone["for_everyone"]) == (7, 1, one, True)
        history = await push(theirs, "get_history")
        assert "text" not in history["messages"][0]
        assert history["messages"][0]["deleted_at"]


@pytest.mark.parametrize(
    ("event", "payload", "reason"),
    [
        ("edit_message", {"message_id": NOBODY, "text": "x"}, "not_found"),
        ("edit_message", {"message_id": NOBODY}, "invalid_payload"),
        ("edit_message", {"message_id": "x", "text": "x"}, "invalid_payload"),
        ("delete_message", {}, "invalid_payload"),
        ("delete_message", {"message_id": NOBODY, "for_everyone": True}, "not_found"),
        ("add_reaction", {"message_id": NOBODY, "emoji": "ok"}, "invalid_payload"),
        ("add_reaction", {"message_id": NOBODY, "emoji": "👍"}, "not_found"),
        ("pin_message", {"message_id": NOBODY}, "not_found"),
        ("save_draft", {"text": "x", "content": "eA=="}, "invalid_payload"),
    ],
)
async def test_impossible_changes_are_refused(
    services: World, event: str, payload: Json, reason: str
) -> None:
    """Each bad push gets the reason that says what is wrong, and the channel lives on."""
    group, (one, _) = await a_group(services.db)
    async with joined(services, f"conversation:{group}", one) as (mine,):
        with pytest.raises(Refused) as refused:
            await push(mine, event, payload)
        assert refused.value.reason == reason
        await push(mine, "get_history")


async def test_own_state_follows_to_other_sockets(services: World) -> None:
    """Drafts, hiding, archive and failures of scheduled messages are told on user:<id>, to nobody else."""
    group, (one, two) = await a_group(services.db)
    async with (
        joined(services, f"conversation:{group}", one) as (mine,),
        joined(services, f"user:{one}", one) as (own,),
        joined(services, f"user:{two}", two) as (theirs,),
    ):
        await push(mine, "save_draft", {"text": "hel"})
        draft = await expect(own, "conversation_updated")
        assert (draft["conversation_id"], draft["draft"]["text"]) == (group, "hel")
        await push(mine, "save_draft", {})
        assert (await expect(own, "conversation_updated"))["draft"] is None
        sent = await push(mine, "send_message", {"text": "x"})
        await push(mine, "delete_message", {"message_id": sent["message_id"]})
        hidden = await expect(own, "message_deleted")
        assert (hidden["seq"], hidden["for_everyone"]) == (1, False)
        archive = pb.ArchiveConversationRequest(conversation_id=group, archived=True)
        await services.messaging.ArchiveConversation(archive, metadata=as_(one))
        assert (await expect(own, "conversation_updated"))["archived"] is True
        listed = await push(own, "get_conversations", {"archived": True})
        assert [each["id"] for each in listed["conversations"]] == [group]
        synced = await push(own, "sync")
        assert [each["conversation"]["id"] for each in synced["conversations"]] == [group]
        assert (await push(own, "sync", {"since": synced["cursor"]}))["has_more"] is False
        seen = {name for name, _ in await until_quiet(theirs)}
        assert not seen & {"conversation_updated", "message_deleted"}
        marked = await push(theirs, "mark_all_read")
        assert marked == {"marked_count": 1}
        read = await expect(theirs, "conversation_updated")
        assert read == {"conversation_id": group, "read_seq": 1, "unread_count": 0}


async def test_deliveries_of_a_direct_conversation_reach_the_sender_anywhere(services: World) -> None:
    """delivery_status is told on user:<id> too, unless the socket has joined the conversation."""
    one, two = await sign_up(services.db, 2)
    create = pb.CreateConversationRequest(kind="direct", member_ids=[two])
    talk = (await services.messaging.CreateConversation(create, metadata=as_(one))).conversation.id
    send = pb.SendMessageRequest(conversation_id=talk, content=b"hi")
    await services.messaging.SendMessage(send, metadata=as_(one))
    async with joined(services, f"user:{one}", one) as (own,):
        mark = pb.MarkDeliveredRequest(conversation_id=talk, seq=1)
        await services.messaging.MarkDelivered(mark, metadata=as_(two))
        got = await expect(own, "delivery_status")
        assert got == {"conversation_id": talk, "user_id": two, "seq": 1}


async def test_a_room_has_the_same_channel_on_its_own_topic(services: World) -> None:
    """room:<id> serves what conversation:<id> does, and the room's events go there."""
    group, (one, two) = await a_group(services.db)
    await services.db.execute("UPDATE conversations.conversations SET kind = 'room' WHERE id = $1", group)
    async with joined(services, f"room:{group}", one, two) as (mine, theirs):
        sent = await push(mine, "send_message", {"text": "hello room"})
        assert (await expect(theirs, "new_message"))["id"] == sent["message_id"]
        await push(theirs, "mark_read", {"seq": 1})
        assert (await expect(mine, "read_receipt"))["seq"] == 1
        await push(mine, "add_reaction", {"message_id": sent["message_id"], "emoji": "👍"})
        assert (await expect(theirs, "reaction_added"))["emoji"] == "👍"
