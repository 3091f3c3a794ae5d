"""One service is taken away and given back: what goes on meanwhile, what is refused, and how clearly.

Nothing acknowledged is lost, nothing hangs, and nobody has to do anything for it to go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.faults import eventually, open_split
from tests.world import World
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 10.0
"""What no answer may take, degraded or not: twice the deadline of a call, for a busy machine."""


async def send(world: World, conversation_id: str, by: str = "owner", text: str = "hello") -> Any:
    """Send a message; nothing that is sent may take longer than it may."""
    with trio.fail_after(PATIENCE_S):
        return await world.message(conversation_id, by, text)


async def texts(world: World, conversation_id: str) -> list[str]:
    """The messages of a conversation, oldest first."""
    reply = await world.call("MessagingService/GetMessages", {"conversation_id": conversation_id})
    return sorted(message.content.decode() for message in reply.messages)


async def refused(awaitable: Any, *codes: Code) -> WhisprError:
    """Wait for a clear refusal, which has to come in time."""
    with trio.fail_after(PATIENCE_S), pytest.raises(WhisprError) as error:
        await awaitable
    assert error.value.code in codes, error.value
    return error.value


async def test_user_service_away(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Who could talk goes on talking, by the last good permissions and never wider ones; new conversations wait."""
    async with open_split("user", db, cache, bus, tmp_path) as split:
        world = split.world
        group = await world.group()
        await send(world, group, text="1 before")
        await refused(send(world, group, "stranger"), Code.PERMISSION_DENIED)
        await split.take_away()
        for number in range(8):
            await send(world, group, text=f"2 during {number}")
        denied = (Code.PERMISSION_DENIED, Code.UNAVAILABLE)
        await refused(send(world, group, "stranger"), *denied)
        unknown = await world.sign_up()
        opening = {"kind": "direct", "member_ids": [unknown.user_id]}
        await refused(world.call("MessagingService/CreateConversation", opening), Code.UNAVAILABLE)
        await split.give()
        await eventually(lambda: world.call("MessagingService/CreateConversation", opening))
        await refused(send(world, group, "stranger"), Code.PERMISSION_DENIED)
        await send(world, group, text="3 after")
        expected = ["1 before", *(f"2 during {number}" for number in range(8)), "3 after"]
        assert await texts(world, group) == expected


@pytest.mark.slow
async def test_auth_service_away(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Tokens are verified without it, forged ones refused; only signing in has to wait."""
    async with open_split("auth", db, cache, bus, tmp_path) as split:
        world = split.world
        group = await world.group()
        await split.take_away()
        for number in range(5):
            await send(world, group, text=f"during {number}")
        forged = world.call_with(
            "MessagingService/ListConversations", {}, world.token("owner")[:-8] + "AAAAAAAA"
        )
        await refused(forged, Code.UNAUTHENTICATED)
        gateway = f"http://127.0.0.1:{split.ports['gateway']}"
        login = {"username": world.people["owner"].username, "password": "correct horse battery"}
        async with httpx.AsyncClient(base_url=gateway, timeout=PATIENCE_S) as client:
            for _ in range(7):
                assert (await client.post("/v1/auth/login", json=login)).status_code == 503
            health = (await client.get("/v1/health")).json()
            assert health["status"] == "degraded"
            assert health["services"]["auth"]["status"] == "down"
            assert health["services"]["auth"]["breaker"] != "closed"
            await split.give()

            async def signed_in() -> bool:
                return (await client.post("/v1/auth/login", json=login)).status_code == 200

            await eventually(signed_in)

            async def well() -> bool:
                return bool((await client.get("/v1/health")).json()["status"] == "ok")

            await eventually(well)
        assert len(await texts(world, group)) == 5


@pytest.mark.slow
async def test_media_service_away(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """A message is sent with its medium all the same: the link is pending, and made once media is there again."""
    async with open_split("media", db, cache, bus, tmp_path) as split:
        world = split.world
        group = await world.group()
        content = b"plain text, and nothing else"
        body = {"filename": "a.txt", "content_type": "text/plain", "file_size": len(content)}
        upload = await world.call("MediaService/CreateUpload", body)
        where = httpx.URL(upload.upload_url).copy_with(port=split.ports["gateway of media"])
        headers = {
            "tus-resumable": "1.0.0",
            "upload-offset": "0",
            "content-type": "application/offset+octet-stream",
        }
        async with httpx.AsyncClient() as client:
            assert (await client.patch(where, content=content, headers=headers)).status_code == 204

        async def ready() -> bool:
            known = await world.call("MediaService/GetMediaMetadata", {"media_id": upload.media_id})
            return bool(known.metadata.upload_status == "ready")

        await eventually(ready)
        await split.take_away()
        sent = await send(world, group, text="look")
        link = {"message_id": sent.id, "media_id": upload.media_id, "media_type": "document"}
        with trio.fail_after(PATIENCE_S):
            made = await world.call("MessagingService/LinkMediaToMessage", link)
        assert made.state == "pending"
        await refused(world.call("MediaService/CreateUpload", body), Code.UNAVAILABLE)
        await split.give()

        async def linked() -> bool:
            message = await world.call(
                "MessagingService/GetMessage", {"conversation_id": group, "message_id": sent.id}
            )
            return [each.state for each in message.message.attachments] == ["linked"]

        await eventually(linked)


@pytest.mark.slow
async def test_notification_service_away(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """What happens meanwhile waits on the bus, and everybody is told of all of it, once, when it is there again."""
    quick = {"notification": {"batch_s": 0}}
    async with open_split("notification", db, cache, bus, tmp_path, **quick) as split:
        world = split.world
        group = await world.group()

        async def told_of() -> int:
            reply = await world.call(
                "NotificationService/ListNotifications", {"conversation_id": group}, "member"
            )
            return sum(each.count for each in reply.notifications if each.type == "message")

        await send(world, group)
        await eventually(told_of)
        await split.take_away()
        for number in range(10):
            await send(world, group, text=f"during {number}")
        await refused(told_of(), Code.UNAVAILABLE)
        await split.give()

        async def all_told() -> bool:
            return await told_of() == 11

        await eventually(all_told)
        await send(world, group, text="after")

        async def told_after() -> bool:
            return await told_of() == 12

        await eventually(told_after)
