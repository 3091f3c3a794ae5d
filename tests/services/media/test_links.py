"""Media and messages, the whole product in one process: links agree on both sides, whatever fails between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.media.conftest import eventually
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.errors import Code, WhisprError
from whispr.ids import new_id
from whispr.services.media.store import MediaStore

TEXT = b"a text"


@pytest.fixture
async def world(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(db, cache, bus, tmp_path) as world:
        yield world


async def sent(world: World, by: str = "member", content: bytes = TEXT) -> str:
    """Upload a text through the gateway and wait until it is ready; return its id."""
    request = {"filename": "a.txt", "content_type": "text/plain", "file_size": len(content)}
    created = await world.call("MediaService/CreateUpload", request, by)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.put(created.upload_url, content=content)
    assert answer.status_code == 204, answer.text

    async def ready() -> bool:
        reply = await world.call("MediaService/GetMediaMetadata", {"media_id": created.media_id}, by)
        return bool(reply.metadata.upload_status == "ready")

    await eventually(ready)
    return str(created.media_id)


async def link(world: World, message: Any, media_id: str, by: str = "member") -> Any:
    request = {"message_id": message.id, "media_id": media_id, "media_type": "document"}
    return await world.call("MessagingService/LinkMediaToMessage", request, by)


async def attachments(world: World, message: Any) -> list[tuple[str, str]]:
    request = {"conversation_id": message.conversation_id, "message_id": message.id}
    reply = await world.call("MessagingService/GetMessage", request)
    return [(each.media_id, each.state) for each in reply.message.attachments]


async def readable(world: World, media_id: str, by: str) -> bool:
    return bool((await world.call("MediaService/GetMediaMetadata", {"media_id": media_id}, by)).found)


async def test_the_life_of_a_link(world: World) -> None:
    """It lets the other members read, and nobody else; with its message it goes, and with its medium."""
    media_id = await sent(world)
    message = await world.message(await world.group())
    assert not await readable(world, media_id, "owner")
    assert (await link(world, message, media_id)).state == "linked"
    assert await attachments(world, message) == [(media_id, "linked")]
    url = (await world.call("MediaService/GetDownloadUrl", {"media_id": media_id}, "owner")).url
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).content == TEXT
    assert not await readable(world, media_id, "stranger")
    other = await world.message(message.conversation_id)
    await link(world, other, media_id)
    request = {"conversation_id": message.conversation_id, "message_id": message.id, "for_everyone": True}
    await world.call("MessagingService/DeleteMessage", request, "member")

    async def unlinked() -> bool:
        return int(await world.db.fetchval("SELECT count(*) FROM media.links")) == 1

    await eventually(unlinked)
    assert await readable(world, media_id, "owner"), "another message shows it still"
    await world.call("MediaService/DeleteMedia", {"media_id": media_id}, "member")

    async def gone() -> bool:
        return not await attachments(world, other)

    await eventually(gone)
    await refused_links_leave_nothing(world, other)


async def refused_links_leave_nothing(world: World, message: Any) -> None:
    """Neither of media that the sender may not pass on, nor of those that are not there."""
    media_id = await sent(world, by="owner")
    for medium, code in ((media_id, Code.PERMISSION_DENIED), (new_id(), Code.NOT_FOUND)):
        with pytest.raises(WhisprError) as caught:
            await link(world, message, medium)
        assert caught.value.code is code
    with pytest.raises(WhisprError) as caught:
        await link(world, message, media_id, by="owner")
    assert caught.value.code is Code.PERMISSION_DENIED
    assert await attachments(world, message) == []


async def test_either_side_may_fail(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the media service is away a link is pending; when its answer is lost, its event settles it."""
    media_id = await sent(world)
    message = await world.message(await world.group())
    original, mode = MediaStore.link, "away"

    async def unsteady(self: MediaStore, *args: Any) -> Any:
        if mode == "away":
            raise WhisprError(Code.UNAVAILABLE, "away")
        made = await original(self, *args)
        if mode == "lossy":
            raise WhisprError(Code.UNAVAILABLE, "the answer is lost")
        return made

    monkeypatch.setattr(MediaStore, "link", unsteady)
    assert (await link(world, message, media_id)).state == "pending"
    assert not await readable(world, media_id, "owner")
    mode = "well"
    assert (await link(world, message, media_id)).state == "linked"
    assert await readable(world, media_id, "owner")
    assert await attachments(world, message) == [(media_id, "linked")]
    mode = "lossy"
    other = await world.message(message.conversation_id)
    assert (await link(world, other, media_id)).state == "pending"

    async def settled() -> bool:
        return await attachments(world, other) == [(media_id, "linked")]

    await eventually(settled)


async def test_another_service_links(world: World) -> None:
    """What a service has the media service link shows in the message; without a message the link is taken back."""
    media_id = await sent(world)
    message = await world.message(await world.group())
    store = MediaStore(world.db)
    member = world.id("member")
    await store.link(media_id, message.id, message.conversation_id, member, "")

    async def shown() -> bool:
        return await attachments(world, message) == [(media_id, "linked")]

    await eventually(shown)
    await store.link(media_id, new_id(), message.conversation_id, member, "")

    async def taken_back() -> bool:
        return int(await world.db.fetchval("SELECT count(*) FROM media.links")) == 1

    await eventually(taken_back)
    assert await attachments(world, message) == [(media_id, "linked")]
