"""What is live: sanctions on open channels, streams of a room's events, and the watch for spam."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.conversations.kit import sign_up
from tests.services.chat.kit import ROOM_LIMITS, World, expect, open_world, refused
from tests.services.kit import as_
from whispr.adapters.postgres import Postgres
from whispr.conversations.spam import SpamRules
from whispr.errors import Code, WhisprError
from whispr.realtime.client import ClientChannel, Refused
from whispr.realtime.hub import Broadcast
from whispr.v1 import chat_pb2 as pb

# Channels


async def closed(channel: ClientChannel) -> None:
    """Wait until the server has closed a channel."""
    with trio.fail_after(5):
        async for _ in channel:
            pass


async def test_sanctions_reach_open_channels_at_once(world: World) -> None:
    """Everybody hears of a mute and a ban; the muted cannot speak, the banned one's channel is closed with why."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    async with world.server.connect(owner) as one, world.server.connect(member) as other:
        theirs, mine = await one.join(f"room:{room_id}"), await other.join(f"room:{room_id}")
        mute = pb.MuteUserRequest(room_id=room_id, user_id=member, duration_seconds=60, reason="noise")
        await world.chat.MuteUser(mute, metadata=as_(owner))
        for channel in (mine, theirs):
            event = await expect(channel, "user_muted")
            assert (event["user_id"], event["reason"], event["by"]) == (member, "noise", owner)
        with pytest.raises(Refused) as error:
            await mine.push("send_message", {"text": "hi"})
        assert error.value.reason == "muted"
        ban = pb.BanUserRequest(room_id=room_id, user_id=member, reason="rude")
        await world.chat.BanUser(ban, metadata=as_(owner))
        for channel in (mine, theirs):
            event = await expect(channel, "user_banned")
            assert (event["user_id"], event["reason"], event["until"][:4]) == (member, "rude", "9999")
        await closed(mine)
        with pytest.raises(Refused) as error:
            await other.join(f"room:{room_id}")
        assert error.value.reason == "not_a_member"


async def test_rooms_say_who_is_there(world: World) -> None:
    """A room counts the people who have it open, and its members show who is connected."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    info = pb.GetRoomInfoRequest(room_id=room_id)
    async with world.server.connect(member) as socket:
        await socket.join(f"room:{room_id}")
        assert (await world.chat.GetRoomInfo(info, metadata=as_(owner))).room.online_count == 1
        stats = await world.chat.GetRoomStats(pb.GetRoomStatsRequest(room_id=room_id), metadata=as_(owner))
        assert stats.online_members == 1
        listing = pb.ListRoomMembersRequest(room_id=room_id)
        members = (await world.chat.ListRoomMembers(listing, metadata=as_(owner))).members
        assert {each.user_id for each in members if each.is_online} == {member}
        figures = await world.chat.GetUserActivity(pb.GetUserActivityRequest(), metadata=as_(member))
        assert (figures.is_online, figures.current_status) == (True, "online")


async def test_coming_and_going_is_told(world: World) -> None:
    """Members hear who joined, left and was kicked; whoever goes has their channel closed."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner)
    async with world.server.connect(owner) as one, world.server.connect(member) as other:
        theirs = await one.join(f"room:{room_id}")
        own = await other.join(f"user:{member}")
        join = pb.JoinRoomRequest(room_id=room_id)
        leave = pb.LeaveRoomRequest(room_id=room_id)
        kick = pb.KickUserRequest(room_id=room_id, user_id=member, reason="out")
        for out, call in (
            ("user_left", lambda: world.chat.LeaveRoom(leave, metadata=as_(member))),
            ("user_kicked", lambda: world.chat.KickUser(kick, metadata=as_(owner))),
        ):
            await world.chat.JoinRoom(join, metadata=as_(member))
            assert (await expect(theirs, "user_joined"))["member"]["user_id"] == member
            mine = await other.join(f"room:{room_id}")
            await call()
            assert (await expect(theirs, out))["user_id"] == member
            await closed(mine)
            for _ in range(2):
                assert (await expect(own, "conversation_updated"))["user_id"] == member


async def test_a_sanction_of_another_process_closes_channels_here(world: World) -> None:
    """A ban that another node broadcasts closes the channel here and makes permissions be asked again."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    async with world.server.connect(member) as socket:
        mine = await socket.join(f"room:{room_id}")
        event = {"user_id": member, "reason": "rude", "until": "9999-12-31T23:59:59.000Z"}
        broadcast = Broadcast(f"room:{room_id}", "user_banned", msgspec.json.encode(event))
        world.server.hub.deliver(broadcast)
        world.core.heard(broadcast)
        assert (await expect(mine, "user_banned"))["user_id"] == member
        await closed(mine)


async def test_hidden_and_edited_messages_are_told_with_what_they_say_now(world: World) -> None:
    """A message that reports hide is shown empty on open channels too; a warned person alone hears of it."""
    owner, member, other = await sign_up(world.db, 3)
    room_id = await world.room(owner, member, other)
    message = await world.say(room_id, member, "rude")
    async with world.server.connect(owner) as one, world.server.connect(member) as socket:
        theirs, owners = await one.join(f"room:{room_id}"), await one.join(f"user:{owner}")
        own = await socket.join(f"user:{member}")
        report = pb.ReportMessageRequest(message_id=message.id)
        for reporter in (owner, other):
            await world.chat.ReportMessage(report, metadata=as_(reporter))
        flagged = await expect(owners, "notification")
        assert (flagged["kind"], flagged["message_id"]) == ("message_flagged", message.id)
        event = await expect(theirs, "message_edited")
        assert (event["message"]["text"], event["message"]["metadata"]) == ("", {"hidden": "reported"})
        warn = pb.ModerateMessageRequest(message_id=message.id, action="WARN", reason="mind your words")
        await world.chat.ModerateMessage(warn, metadata=as_(owner))
        warning = await expect(own, "notification")
        assert (warning["kind"], warning["reason"], warning["message_id"]) == (
            "warning",
            "mind your words",
            message.id,
        )


# Streams


@asynccontextmanager
async def following(world: World, room_id: str, who: str, **fields: Any) -> AsyncIterator[Any]:
    """Follow a room until the block ends; what is yielded has been subscribed."""
    request = pb.SubscribeRoomEventsRequest(room_id=room_id, **fields)
    with trio.fail_after(10):
        async with world.chat.SubscribeRoomEvents(request, metadata=as_(who)) as call:
            assert (await anext(call)).type == "subscribed"
            yield call


async def test_a_stream_is_live_and_picks_types(world: World) -> None:
    """A stream carries the room's events as channels do, those asked for, and nothing of before."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner)
    await world.say(room_id, owner, "before")
    async with (
        following(world, room_id, owner) as all_of_it,
        following(world, room_id, owner, event_types=["user_joined"]) as joins,
    ):
        await world.say(room_id, owner, "hello")
        await world.chat.JoinRoom(pb.JoinRoomRequest(room_id=room_id), metadata=as_(member))
        event = await anext(all_of_it)
        assert (event.type, event.seq, event.room_id) == ("new_message", 2, room_id)
        assert msgspec.json.decode(event.data)["text"] == "hello"
        joined = await anext(joins)
        assert (joined.type, msgspec.json.decode(joined.data)["user_id"]) == ("user_joined", member)
    await _gone(world)


async def _gone(world: World) -> None:
    """Wait until no stream is left at the server."""
    with trio.fail_after(5):
        while len(world.service.subscriptions):
            await trio.testing.wait_all_tasks_blocked()


async def test_a_stream_resumes_without_gap_or_duplicate(world: World) -> None:
    """With since_seq every message after it comes once, in order, however many are written meanwhile."""
    owner = (await sign_up(world.db, 1))[0]
    room_id = await world.room(owner)
    for n in range(150):
        await world.say(room_id, owner, str(n))
    seen: list[int] = []
    async with following(world, room_id, owner, since_seq=20) as events, trio.open_nursery() as nursery:

        async def write() -> None:
            for n in range(60):
                await world.say(room_id, owner, f"more {n}")

        nursery.start_soon(write)
        async for event in events:
            seen.append(event.seq)
            if event.seq == 210:
                break
    assert seen == list(range(21, 211))


async def test_a_slow_reader_is_told_from_where_to_go_on(world: World) -> None:
    """A reader that does not keep up gets what was queued, then the seq from which nothing is missed."""
    owner = (await sign_up(world.db, 1))[0]
    room_id = await world.room(owner)
    big = "x" * 60_000
    async with following(world, room_id, owner) as events:
        for _ in range(ROOM_LIMITS.event_queue_len + 10):
            await world.say(room_id, owner, big)
        seen: list[int] = []
        with pytest.raises(WhisprError) as ended:
            while True:
                seen.append((await anext(events)).seq)
    assert (ended.value.code, ended.value.reason) == (Code.RESOURCE_EXHAUSTED, "slow_consumer")
    assert seen == list(range(1, len(seen) + 1))
    assert ended.value.facts == {"since_seq": str(len(seen))}
    async with following(world, room_id, owner, since_seq=len(seen)) as events:
        assert (await anext(events)).seq == len(seen) + 1


@pytest.mark.parametrize("how", ["kicked", "banned", "not_a_member", "room_closed"])
async def test_a_stream_ends_when_access_does(world: World, how: str) -> None:
    """Who is put out, leaves, or whose room is closed gets the event, then the error that says so."""
    owner, member = await sign_up(world.db, 2)
    room_id = await world.room(owner, member)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "kicked": lambda: world.chat.KickUser(
            pb.KickUserRequest(room_id=room_id, user_id=member), metadata=as_(owner)
        ),
        "banned": lambda: world.chat.BanUser(
            pb.BanUserRequest(room_id=room_id, user_id=member), metadata=as_(owner)
        ),
        "not_a_member": lambda: world.chat.LeaveRoom(
            pb.LeaveRoomRequest(room_id=room_id), metadata=as_(member)
        ),
        "room_closed": lambda: world.chat.CloseRoom(
            pb.CloseRoomRequest(room_id=room_id), metadata=as_(owner)
        ),
    }
    names = {"kicked": "user_kicked", "banned": "user_banned", "not_a_member": "user_left"}
    async with following(world, room_id, member) as events:
        await calls[how]()
        assert (await anext(events)).type == names.get(how, how)
        error = await refused(anext(events))
    assert error.reason == how
    assert error.code is (Code.FAILED_PRECONDITION if how == "room_closed" else Code.PERMISSION_DENIED)


async def test_a_stream_ends_with_its_session_and_its_token(world: World) -> None:
    """An ended session ends its streams at once, a token that runs out at the next event; others go on."""
    owner = (await sign_up(world.db, 1))[0]
    room_id = await world.room(owner)
    async with (
        following(world, room_id, f"{owner}/user/one") as ended,
        following(world, room_id, f"{owner}/user/two") as kept,
    ):
        world.service.session_ended("one", "logout")
        error = await refused(anext(ended))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "session_revoked")
        await world.say(room_id, owner)
        assert (await anext(kept)).seq == 1
    world.tokens.lifetime_s = 0
    async with following(world, room_id, owner) as short:
        world.tokens.lifetime_s = 60
        await world.say(room_id, owner)
        assert (await refused(anext(short))).reason == "token_expired"


async def test_streams_are_bounded_and_drained(world: World) -> None:
    """A person has so many streams at once; a stopping server ends them all as unavailable."""
    owner = (await sign_up(world.db, 1))[0]
    room_id = await world.room(owner)
    async with following(world, room_id, owner) as one, following(world, room_id, owner):
        request = pb.SubscribeRoomEventsRequest(room_id=room_id)
        async with world.chat.SubscribeRoomEvents(request, metadata=as_(owner)) as third:
            assert (await refused(anext(third))).reason == "too_many_subscriptions"
        world.service.drain()
        assert (await refused(anext(one))).code is Code.UNAVAILABLE
    await _gone(world)


# The watch for spam


async def test_spam_is_sanctioned_beside_the_path_of_messages(db: Postgres) -> None:
    """A burst earns a warning, then silence; the sender hears why; what others say is left alone."""
    async with open_world(db, rules=SpamRules(limit=10)) as world:
        owner, spammer, chatter = await sign_up(world.db, 3)
        room_id = await world.room(owner, spammer, chatter)
        async with world.server.connect(spammer) as socket, world.server.connect(chatter) as other:
            own, theirs = await socket.join(f"user:{spammer}"), await other.join(f"room:{room_id}")
            for _ in range(5):
                await world.say(room_id, spammer, "buy now")
            assert (await expect(own, "notification"))["reason"] == "spam: repetition"
            # What follows is another burst once the audit log says that a moment has passed.
            await world.db.execute("ALTER TABLE conversations.audit DISABLE TRIGGER append_only")
            await world.db.execute("UPDATE conversations.audit SET at = at - interval '10 s'")
            for n in range(9):
                await world.say(room_id, chatter, f"plain words {n}")
            with pytest.raises(WhisprError) as muted:
                for n in range(50):
                    await world.say(room_id, spammer, f"http://a http://b http://c http://d {n}")
            assert muted.value.reason == "muted"
            event = await expect(theirs, "user_muted")
            assert (event["user_id"], event["by"], event["reason"][:6]) == (spammer, None, "spam: ")
        log = await world.chat.GetAuditLog(pb.GetAuditLogRequest(room_id=room_id), metadata=as_(owner))
        assert [(e.action, e.actor_id, e.target_id) for e in log.entries] == [
            ("mute", "", spammer),
            ("warn", "", spammer),
        ]


async def test_owners_and_groups_are_not_watched(db: Postgres) -> None:
    """Moderators and above, and conversations that are no rooms, are left alone by the machine."""
    async with open_world(db, rules=SpamRules(limit=4)) as world:
        owner, other = await sign_up(world.db, 2)
        room_id = await world.room(owner)
        for _ in range(12):
            await world.say(room_id, owner, "same")
            direct = pb.SendDirectMessageRequest(recipient_id=other, content=b"same")
            await world.chat.SendDirectMessage(direct, metadata=as_(owner))
        assert await world.db.fetchval("SELECT count(*) FROM conversations.audit") == 0
