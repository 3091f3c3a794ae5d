"""Presence over WebSockets, as blocks, contacts and people's own settings have it."""

from __future__ import annotations

from typing import Any

import trio

from tests.conversations.kit import a_group, sign_up
from tests.services.kit import World, as_
from tests.services.messaging.test_channels import expect, joined
from whispr.conversations import visibility
from whispr.conversations.domain import Limits
from whispr.conversations.membership import Membership
from whispr.conversations.visibility import CHANGES_MAX, Visibility
from whispr.errors import unavailable
from whispr.realtime.client import ClientChannel
from whispr.v1 import user_pb2 as pb


async def block(services: World, one: str, other: str) -> None:
    await services.users.BlockUser(pb.BlockUserRequest(user_id=other), metadata=as_(one))


async def unblock(services: World, one: str, other: str) -> None:
    await services.users.UnblockUser(pb.UnblockUserRequest(user_id=other), metadata=as_(one))


async def add(services: World, one: str, other: str) -> None:
    await services.users.AddContact(pb.AddContactRequest(user_id=other), metadata=as_(one))


async def remove(services: World, one: str, other: str) -> None:
    await services.users.RemoveContact(pb.RemoveContactRequest(user_id=other), metadata=as_(one))


async def show_to(services: World, one: str, whom: str) -> None:
    await services.users.UpdateProfile(pb.UpdateProfileRequest(presence_privacy=whom), metadata=as_(one))


async def came(channel: ClientChannel, user_id: str) -> Any:
    """Wait until the user is told to have come; return their metas. Others may come and go meanwhile."""
    return await told(channel, "joins", user_id)


async def went(channel: ClientChannel, user_id: str) -> Any:
    """Wait until the user is told to have gone."""
    return await told(channel, "leaves", user_id)


async def told(channel: ClientChannel, what: str, user_id: str) -> Any:
    while True:
        diff = await expect(channel, "presence_diff")
        if user_id in diff[what]:
            return diff[what][user_id]["metas"]


async def test_a_block_hides_two_people_from_each_other(services: World) -> None:
    """In their direct conversation neither is seen, from when the block is made until it is taken back."""
    one, two = await sign_up(services.db, 2)
    direct, _ = await Membership(services.db, Limits()).open_direct(one, two)
    topic = f"conversation:{direct}"
    async with joined(services, topic, one, two) as (mine, theirs):
        await came(mine, two)
        await block(services, two, one)
        await went(mine, two)
        await went(theirs, one)
        async with joined(services, topic, two) as (late,):
            assert await expect(late, "presence_state") == {}
        await unblock(services, two, one)
        await came(mine, two)
        await came(theirs, one)


async def test_who_keeps_their_presence_to_themselves_is_not_seen(services: World) -> None:
    """In a group whoever does not show everybody is not shown, and sees the others all the same."""
    group, (one, two) = await a_group(services.db)
    topic = f"conversation:{group}"
    await show_to(services, two, "nobody")
    async with joined(services, topic, one) as (mine,):
        assert set(await expect(mine, "presence_state")) == {one}
        async with joined(services, topic, two) as (theirs,):
            assert set(await expect(theirs, "presence_state")) == {one}
            await show_to(services, two, "everyone")
            await came(mine, two)
            await show_to(services, two, "contacts")
            await went(mine, two)


async def test_a_status_is_chosen_only_where_one_is_shown(services: World) -> None:
    """A hidden person who chooses a status stays hidden."""
    group, (one, two) = await a_group(services.db)
    await show_to(services, two, "nobody")
    async with (
        joined(services, f"conversation:{group}", one) as (mine,),
        joined(services, f"conversation:{group}", two) as (theirs,),
        joined(services, f"user:{two}", two) as (own,),
    ):
        await own.push("update_status", {"status": "busy"})
        assert services.hub.presence_state(f"conversation:{group}").keys() == {one}
        await show_to(services, two, "everyone")
        assert (await came(mine, two))[0]["status"] == "busy"
        del theirs


async def test_contacts_are_followed(services: World) -> None:
    """user:<id> says which contacts are there, when they come and go, and what they are up to."""
    one, two, three = await sign_up(services.db, 3)
    await add(services, one, two)
    async with joined(services, f"user:{two}", two) as (theirs,):
        async with joined(services, f"user:{one}", one) as (mine,):
            state = await expect(mine, "presence_state")
            assert state.keys() == {one, two}
            assert state[two]["metas"][0]["status"] == "online"
            await theirs.push("update_status", {"status": "away"})
            assert (await came(mine, two))[0]["status"] == "away"
            async with joined(services, f"user:{three}", three):
                await add(services, one, three)
                await came(mine, three)
                await remove(services, one, three)
                await went(mine, three)
        assert set(services.conversations.visibility._viewers) == {two}


async def test_contacts_are_seen_as_they_like(services: World) -> None:
    """A contact who blocks one or keeps their presence is gone at once, and back when they change their mind."""
    one, two = await sign_up(services.db, 2)
    await add(services, one, two)
    async with joined(services, f"user:{two}", two), joined(services, f"user:{one}", one) as (mine,):
        assert (await expect(mine, "presence_state")).keys() == {one, two}
        await show_to(services, two, "nobody")
        await went(mine, two)
        await show_to(services, two, "everyone")
        await came(mine, two)
        await show_to(services, two, "contacts")
        await went(mine, two)
        await add(services, two, one)
        await came(mine, two)
        await block(services, two, one)  # which also ends the contact
        await went(mine, two)
        await unblock(services, two, one)
        await show_to(services, two, "everyone")
        await came(mine, two)


async def test_who_hides_is_not_found_out_by_coming_and_going(services: World) -> None:
    """What happens on the topic of a contact who does not show themselves is not passed on."""
    one, two, three = await sign_up(services.db, 3)
    await add(services, one, two)
    await add(services, one, three)
    await show_to(services, two, "nobody")
    async with joined(services, f"user:{one}", one) as (mine,):
        assert (await expect(mine, "presence_state")).keys() == {one}
        async with joined(services, f"user:{two}", two):
            pass
        async with joined(services, f"user:{three}", three):
            while True:
                diff = await expect(mine, "presence_diff")
                assert two not in diff["joins"]
                if three in diff["joins"]:
                    break


async def test_without_the_user_service_nobody_is_shown(services: World, monkeypatch: Any) -> None:
    """In doubt a person is neither seen nor sees; when everything is asked again they are, and do."""
    group, (one, two) = await a_group(services.db)
    await add(services, one, two)
    permissions = services.conversations.permissions

    async def away(*_: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise unavailable("away")

    monkeypatch.setattr(permissions, "visible_contacts", away)
    monkeypatch.setattr(permissions, "shows", away)
    monkeypatch.setattr(permissions, "visible", away)
    async with (
        joined(services, f"user:{two}", two),
        joined(services, f"conversation:{group}", one) as (conversing,),
        joined(services, f"user:{one}", one) as (mine,),
    ):
        assert await expect(conversing, "presence_state") == {}
        assert (await expect(mine, "presence_state")).keys() == {one}
        monkeypatch.undo()
        services.conversations.missed_changes()
        await came(conversing, one)
        await came(mine, two)


async def test_changes_that_wait_are_bounded(services: World, monkeypatch: Any) -> None:
    """Too many to keep apart become one: everything is asked again."""
    assert CHANGES_MAX == 10_000
    monkeypatch.setattr(visibility, "CHANGES_MAX", 3)
    waiting = Visibility(services.hub, services.conversations.permissions, lambda _: [])
    for number in range(4):
        waiting.changed("one", str(number))
    assert (waiting._everything, waiting._changed) == (True, {})
