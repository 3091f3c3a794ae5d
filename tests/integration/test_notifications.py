"""Notifications through the whole product: a message, the bus, a push, a socket, REST."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.services.notification.servers import PushServer, http1_server
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.realtime.client import ClientChannel, open_phoenix

AT_HOME = {"batch_s": 0, "allow_http": True, "allow_private_addresses": True}
HEAR_S = 20.0


@pytest.fixture
async def world(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(db, cache, bus, tmp_path, notification=AT_HOME) as running:
        yield running


@asynccontextmanager
async def rest(world: World, role: str) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client that is somebody of this role."""
    headers = {"authorization": f"Bearer {world.token(role)}"}
    url = f"http://127.0.0.1:{world.ports['gateway']}"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=HEAR_S) as client:
        yield client


async def next_notification(channel: ClientChannel) -> dict[str, Any]:
    """Wait for the next `notification` event."""
    with trio.fail_after(HEAR_S):
        async for event, payload in channel:
            if event == "notification":
                assert isinstance(payload, dict)
                return payload
    raise AssertionError("the channel ended")


async def told(push: PushServer, count: int) -> dict[str, Any]:
    """Wait for that many pushes, those of having been added to the group apart; return the last one."""
    with trio.fail_after(HEAR_S):
        while len(heard := _of_messages(push)) < count:
            await push.arrived.wait()
    return heard[count - 1]


def _of_messages(push: PushServer) -> list[dict[str, Any]]:
    bodies = [json.loads(request.body) for request in push.requests]
    return [body for body in bodies if not body.get("body", "").endswith("added you")]


async def test_a_message_rings_where_nobody_looks_and_falls_silent_when_it_is_read(world: World) -> None:
    """Sent over gRPC, heard by webhook and socket, listed and read over REST, and cleared again."""
    group = await world.group()
    async with (
        http1_server() as push,
        rest(world, "member") as member,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("member")) as phone,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("moderator")) as desk,
    ):
        own = await phone.join(f"user:{world.id('member')}")
        await desk.join(f"conversation:{group}")
        for person in ("member", "moderator"):
            async with rest(world, person) as client:
                body = {"platform": "webhook", "token": f"{push.url}/{person}"}
                reply = await client.post("/v1/devices", json=body)
                assert (reply.status_code, len(reply.json()["secret"])) == (200, 43)

        await world.message(group, "owner", "is anybody there?")
        heard = await told(push, 1)
        assert heard["title"] == "group"
        assert heard["body"].endswith(": is anybody there?")
        event = await next_notification(own)
        while event["type"] != "message":
            event = await next_notification(own)  # of having been added to the group
        assert event["id"] == heard["notification_id"]

        listed = (await member.get("/v1/notifications", params={"unread_only": True})).json()
        assert heard["notification_id"] in [each["id"] for each in listed["notifications"]]
        read = {"conversation_id": group, "seq": 1}
        await world.call("MessagingService/MarkRead", read, "member")
        assert (await told(push, 2))["type"] == "clear"
        event = await next_notification(own)
        assert (event["type"], event["notification_ids"]) == ("read", [heard["notification_id"]])

        await world.message(group, "owner", "and now?")
        again = await told(push, 3)
        assert again["body"].endswith(": and now?")
        marked = await member.post(
            "/v1/notifications/read", json={"notification_ids": [again["notification_id"]]}
        )
        assert marked.json()["marked_count"] == 1
        assert (await told(push, 4))["type"] == "clear"
        about_messages = [r.path for r in push.requests if b"added you" not in r.body]
        assert set(about_messages) == {"/member"}


async def test_a_room_rings_too(world: World) -> None:
    """Messages of rooms come over the chat's stream, and are read along on `room:<id>`."""
    room = await world.room()
    async with (
        http1_server() as push,
        open_phoenix(f"ws://127.0.0.1:{world.ports['websocket']}", world.token("moderator")) as desk,
    ):
        await desk.join(f"room:{room}")
        for person in ("member", "moderator"):
            await world.call(
                "NotificationService/RegisterDevice",
                {"platform": "webhook", "token": f"{push.url}/{person}"},
                person,
            )
        await world.room_message(room, "owner")
        heard = await told(push, 1)
        assert push.requests[0].path == "/member"
        assert heard["data"]["conversation_kind"] == "room"
        assert heard["title"].startswith("room ")


async def test_signing_out_ends_pushes_to_the_device(world: World) -> None:
    """The browser that signed out is forgotten, by the event of the session's end."""
    session = await world.new_token("member")
    body = {
        "platform": "webpush",
        "token": "https://push.example/1",
        "p256dh": "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8",
        "auth": "BTBZMqHH6r4Tts7J_aSIgg",
    }
    await world.call_with("NotificationService/RegisterDevice", body, session)
    assert (await world.call("NotificationService/ListDevices", {}, "member")).devices
    await world.call_with("AuthService/Logout", {}, session)
    with trio.fail_after(HEAR_S):
        while (await world.call("NotificationService/ListDevices", {}, "member")).devices:
            await trio.lowlevel.checkpoint()


async def test_a_status_chosen_on_a_socket_is_known_to_the_services(world: World) -> None:
    """`update_status` reaches the presence that every process asks, for as long as the socket lives."""
    member = world.id("member")
    url = f"ws://127.0.0.1:{world.ports['websocket']}"
    assert world.node is not None
    online = world.node._online
    async with open_phoenix(url, world.token("member")) as phone:
        own = await phone.join(f"user:{member}")
        await own.push("update_status", {"status": "busy"})
        assert await online.status([member, world.id("owner")]) == {
            member: "busy",
            world.id("owner"): "offline",
        }
    with trio.fail_after(HEAR_S):
        while await online.connected([member]) or not await online.last_seen([member]):
            await trio.lowlevel.checkpoint()
