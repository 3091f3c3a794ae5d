"""What the server does to members takes effect on live channels at once, on their node and on every other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import trio

from tests.conversations.kit import a_group, sign_up
from tests.conversations.nodes import Node, expect, join, nodes, push
from tests.conversations.test_rooms import Kit, make_kit
from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Role
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.room_rules import Person
from whispr.realtime.client import ChannelClosed, ClientChannel, Refused

HOUR = timedelta(hours=1)


@dataclass
class Room:
    """A room with its owner on one node, and one member on that and on another."""

    kit: Kit
    announcer: RoomAnnouncer
    id: str
    owner: Person
    member: str
    owners: ClientChannel
    beside: ClientChannel
    beyond: ClientChannel

    @property
    def members(self) -> tuple[ClientChannel, ClientChannel]:
        return self.beside, self.beyond


@asynccontextmanager
async def a_room(db: Postgres) -> AsyncIterator[Room]:
    kit = make_kit(db)
    owner, member = await sign_up(db, 2)
    room_id = await kit.room(owner)
    await kit.rooms.join(Person(member), room_id)
    async with nodes(db, 2) as ((here, there), _bus), AsyncExitStack() as stack:

        async def on(node: Node, user_id: str) -> ClientChannel:
            phoenix = await stack.enter_async_context(node.server.connect(user_id))
            return await join(phoenix, f"room:{room_id}")

        announcer = RoomAnnouncer(here.core.announcer, here.hub)
        channels = [await on(here, owner), await on(here, member), await on(there, member)]
        yield Room(kit, announcer, room_id, Person(owner), member, *channels)


async def ended_with(channel: ClientChannel, event: str) -> Any:
    """Return the payload of the last event, which must be this one and come once; the channel is closed after it."""
    heard: list[tuple[str, Any]] = []
    with trio.fail_after(10):
        async for each in channel:
            heard.append(each)  # noqa: PERF401  # the rest of the list matters when it fails
    assert [name for name, _ in heard].count(event) == 1
    assert heard[-1][0] == event
    with pytest.raises(ChannelClosed):
        channel.push_nowait("send_message", {"text": "still here?"})
    return heard[-1][1]


Act = Callable[[Room], Awaitable[None]]


async def ban(room: Room) -> None:
    done = await room.kit.sanctions.ban(room.owner, room.id, room.member, HOUR, "spam")
    room.announcer.sanctioned(room.id, room.member, done)


async def kick(room: Room) -> None:
    room.announcer.changed(await room.kit.sanctions.kick(room.owner, room.id, room.member, "spam"))


async def leave(room: Room) -> None:
    room.announcer.changed(await room.kit.rooms.leave(Person(room.member), room.id))


@pytest.mark.parametrize(
    ("act", "event"), [(ban, "user_banned"), (kick, "user_kicked"), (leave, "user_left")]
)
async def test_whoever_is_put_out_hears_why_and_nothing_more(db: Postgres, act: Act, event: str) -> None:
    """Banned, kicked or gone: the reason is the last event on every node, the others hear of it, and stay."""
    async with a_room(db) as room:
        await act(room)
        await push(room.owners, "send_message", {"text": "between us"})
        assert (await expect(room.owners, event))["user_id"] == room.member
        assert (await expect(room.owners, "new_message"))["text"] == "between us"
        for channel in room.members:
            assert (await ended_with(channel, event))["user_id"] == room.member


async def test_a_muted_member_is_told_until_when(db: Postgres) -> None:
    """The next send is refused with `until`, wherever the member is; the mute is told before that."""
    async with a_room(db) as room:
        done = await room.kit.sanctions.mute(room.owner, room.id, room.member, HOUR, "calm down")
        room.announcer.sanctioned(room.id, room.member, done)
        for channel in room.members:
            assert (await expect(channel, "user_muted"))["user_id"] == room.member
            with pytest.raises(Refused) as refused:
                await push(channel, "send_message", {"text": "but"})
            assert refused.value.reason == "muted"
            assert refused.value.response["until"]


async def test_a_closed_room_closes_its_channels(db: Postgres) -> None:
    """Everybody's channel ends with room_closed, on every node."""
    async with a_room(db) as room:
        change = await room.kit.rooms.close(room.owner, room.id, "over")
        assert change is not None
        room.announcer.changed([change])
        for channel in (*room.members, room.owners):
            assert (await ended_with(channel, "room_closed"))["reason"] == "over"


async def test_a_new_role_counts_at_once(db: Postgres) -> None:
    """A member pins nothing; made a moderator they do on the channel they have open, and lowered they do not."""
    async with a_room(db) as room:
        sent = await push(room.owners, "send_message", {"text": "pin me"})
        pin = {"message_id": sent["message_id"]}
        for role, may in ((Role.MODERATOR, True), (Role.MEMBER, False)):
            _, changes = await room.kit.rooms.set_role(room.owner, room.id, room.member, role)
            room.announcer.changed(changes)
            for channel in room.members:
                assert (await expect(channel, "settings_changed"))["member"]["role"] == role.value
                if may:
                    await push(channel, "pin_message", pin)
                    await push(channel, "unpin_message", pin)
                else:
                    with pytest.raises(Refused) as refused:
                        await push(channel, "pin_message", pin)
                    assert refused.value.reason == "forbidden"


async def test_a_removed_member_of_a_group_hears_why_on_every_node(db: Postgres) -> None:
    """The removed get user_kicked with the reason and no further frame; the others get member_removed."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with (
        nodes(db, 2) as ((here, there), _bus),
        here.server.connect(one) as ones,
        here.server.connect(two) as beside,
        there.server.connect(two) as beyond,
    ):
        mine = await join(ones, topic)
        theirs = [await join(beside, topic), await join(beyond, topic)]
        await here.core.operations.remove(group, one, two)
        await push(mine, "send_message", {"text": "alone"})
        assert (await expect(mine, "member_removed"))["user_id"] == two
        for channel in theirs:
            assert await ended_with(channel, "user_kicked") == {"user_id": two, "reason": "removed"}


async def test_what_one_device_does_follows_to_the_others(db: Postgres) -> None:
    """A message with its client_id, read state, a draft, archive and mute reach the person's other node at once."""
    group, (one, two) = await a_group(db)
    topic = f"conversation:{group}"
    async with (
        nodes(db, 2) as ((here, there), _bus),
        here.server.connect(one) as phone,
        there.server.connect(one) as desk,
        here.server.connect(two) as others,
    ):
        channel, other = await join(phone, topic), await join(desk, topic)
        own = await join(desk, f"user:{one}")
        theirs = await join(others, topic)
        await push(channel, "send_message", {"text": "hi", "client_id": "local-1"})
        echo = await expect(other, "new_message")
        assert (echo["client_id"], echo["sender_id"]) == ("local-1", one)
        await push(theirs, "send_message", {"text": "hello"})
        await push(channel, "mark_read", {"seq": 2})
        assert (await expect(own, "conversation_updated"))["read_seq"] == 2
        await push(channel, "save_draft", {"text": "about"})
        assert (await expect(own, "conversation_updated"))["draft"]["text"] == "about"
        await here.core.operations.personal.archive(group, one, archived=True)
        assert (await expect(own, "conversation_updated"))["archived"] is True
        await here.core.operations.personal.mute(group, one, muted=True, duration_s=3600)
        assert (await expect(own, "conversation_updated"))["muted_until"]
