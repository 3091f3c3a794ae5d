"""Requests that succeed, of the RPCs whose row in `tests/calls.py` is content with being let through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import httpx
import trio

from tests.world import PASSWORD, World
from whispr.identity import ACTOR_KEY

Request = tuple[Mapping[str, Any], Mapping[str, str]]
"""A request as proto3 JSON, and the headers to make it with."""
Succeeding = Callable[[World], Awaitable[Request]]

PATIENCE_S = 30.0
SUCCEEDING: dict[str, Succeeding] = {}


def bearing(token: str) -> Mapping[str, str]:
    """Headers of who shows a token; none without one."""
    return {"authorization": f"Bearer {token}"} if token else {}


def succeeding(method: str) -> Callable[[Succeeding], Succeeding]:
    """Enter an RPC by what makes its request."""

    def enter(make: Succeeding) -> Succeeding:
        SUCCEEDING[method] = make
        return make

    return enter


async def until(
    world: World, method: str, request: Mapping[str, Any], is_so: Callable[[Any], bool], token: str
) -> Any:
    """Ask until the answer is as wanted: the product is at work, and tells nobody here when it is done."""
    with trio.fail_after(PATIENCE_S):
        while not is_so(answer := await world.call_with(method, request, token)):  # noqa: ASYNC110
            await trio.sleep(0.05)
    return answer


async def ready_medium(world: World) -> str:
    """Upload a file as the member; return its id once it is ready."""
    body = {"filename": "a.txt", "content_type": "text/plain", "file_size": 5}
    created = await world.call("MediaService/CreateUpload", body, "member")
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        assert (await client.put(created.upload_url, content=b"hello")).status_code == 204
    what = {"media_id": created.media_id}
    await until(
        world, "MediaService/GetMediaMetadata", what,
        lambda answer: answer.metadata.upload_status == "ready", world.token("member"),
    )  # fmt: skip
    return str(created.media_id)


@succeeding("AuthService/ChangePassword")
async def _(world: World) -> Request:
    somebody = await world.sign_up()
    return {"current_password": PASSWORD, "new_password": f"{PASSWORD} two"}, bearing(somebody.token)


@succeeding("AuthService/DeleteAccount")
async def _(world: World) -> Request:
    return {"password": PASSWORD}, bearing((await world.sign_up()).token)


@succeeding("AuthService/GetDataExportPart")
async def _(world: World) -> Request:
    token = (await world.sign_up()).token
    asked = await world.call_with("AuthService/RequestDataExport", {}, token)
    what = {"export_id": asked.export.id}
    await until(world, "AuthService/GetDataExport", what, lambda it: it.export.state == "done", token)
    return what | {"part": 0}, bearing(token)


@succeeding("MediaService/GetDownloadUrl")
async def _(world: World) -> Request:
    return {"media_id": await ready_medium(world)}, bearing(world.token("member"))


@succeeding("MediaService/LinkMediaToMessage")
async def _(world: World) -> Request:
    message = await world.message(await world.group())
    what = {
        "media_id": await ready_medium(world),
        "message_id": message.id,
        "conversation_id": message.conversation_id,
    }
    return what, {**bearing(world.token("service")), ACTOR_KEY: world.people["member"].user_id}


@succeeding("NotificationService/RegisterDevice")
async def _(world: World) -> Request:
    return {"platform": "webhook", "token": f"http://127.0.0.1:9/{uuid4().hex}"}, bearing(
        world.token("member")
    )


@succeeding("NotificationService/UnregisterDevice")
async def _(world: World) -> Request:
    request, headers = await SUCCEEDING["NotificationService/RegisterDevice"](world)
    registered = await world.call("NotificationService/RegisterDevice", request, "member")
    return {"device_id": registered.device.id}, headers


@succeeding("ChatService/SendDirectMessage")
async def _(world: World) -> Request:
    somebody = await world.sign_up()
    return {"other_user_id": somebody.user_id, "content": "aGVsbG8="}, bearing(world.token("member"))
