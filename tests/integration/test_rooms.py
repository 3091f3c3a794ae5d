"""The chat service alone in a process of its own, beside one with messaging: rooms work across both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running
from whispr.embed import Backends
from whispr.realtime.client import Refused, open_phoenix
from whispr.rpc.channel import open_channel
from whispr.v1 import chat_pb2 as pb
from whispr.v1.chat_grpc import ChatServiceStub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Product, Product]]:
    """One process with auth, user and messaging, and one with chat, in folders of their own."""
    folder = tmp_path_factory.mktemp("rooms")
    assert backends.postgres_url is not None
    assert backends.redis_url is not None
    assert backends.nats_url is not None
    urls = UNLIMITED | {
        "WHISPR_POSTGRES_URL": backends.postgres_url,
        "WHISPR_REDIS_URL": backends.redis_url,
        "WHISPR_NATS_URL": backends.nats_url,
    }
    with running(folder / "a", urls, "auth", "user", "messaging") as people:
        token = folder / "token"
        minted = whispr("token", "chat", "--ttl", "3600", WHISPR_DATA_DIR=str(folder / "a"))
        token.write_text(minted.stdout)
        others = urls | {
            "WHISPR_AUTH_ENDPOINT": f"127.0.0.1:{people.ports['auth']}",
            "USER_SERVICE_GRPC_ENDPOINT": f"127.0.0.1:{people.ports['user']}",
            "WHISPR_AUTH_SERVICE_TOKEN_FILE": str(token),
        }
        with running(folder / "b", others, "chat") as chat:
            yield people, chat


def test_chat_runs_alone(split: tuple[Product, Product]) -> None:
    """A process with chat alone has its own gateway and WebSocket listener."""
    assert set(split[1].ports) == {"gateway", "websocket", "chat"}


async def test_rooms_across_processes(split: tuple[Product, Product]) -> None:
    """What is said in one process is heard in the other; a ban in one closes the channel in the other at once."""
    people, chat = split
    _, owners = people.sign_up("rooms-owner")
    member, members = people.sign_up("rooms-member")
    status, made = chat.call("POST", "/v1/rooms", {"name": "tea"}, owners)
    assert status == 200, made
    room = made["room"]["id"]
    assert chat.call("POST", f"/v1/rooms/{room}/join", {}, members)[0] == 200
    async with (
        open_phoenix(chat.websocket_url, owners) as first,
        open_phoenix(people.websocket_url, members) as second,
        open_channel(f"127.0.0.1:{chat.ports['chat']}") as channel,
    ):
        here, there = await first.join(f"room:{room}"), await second.join(f"room:{room}")
        metadata = [("authorization", f"Bearer {owners}")]
        follow = ChatServiceStub(channel).SubscribeRoomEvents(
            pb.SubscribeRoomEventsRequest(room_id=room), metadata=metadata
        )
        with trio.fail_after(10):
            async with follow as events:
                assert (await anext(events)).type == "subscribed"
                await there.push("send_message", {"text": "from the other process"})
                assert (await _next(here, "new_message"))["text"] == "from the other process"
                assert (await anext(events)).type == "new_message"
                assert people.call("GET", f"/v1/conversations/{room}/stats", token=members)[1]["stats"]
                ban = {"user_id": member, "reason": "rude"}
                assert chat.call("POST", f"/v1/rooms/{room}/ban", ban, owners)[0] == 200
                assert (await _next(there, "user_banned"))["reason"] == "rude"
                async for _ in there:  # the channel ends
                    pass
                with pytest.raises(Refused) as refused:
                    await second.join(f"room:{room}")
                assert refused.value.reason == "not_a_member"
                assert (await anext(events)).type == "user_banned"
    status, reply = people.call("POST", f"/v1/conversations/{room}/messages", {"text": "still here"}, members)
    assert (status, reply["details"][0]["reason"]) == (403, "not_a_member")


async def test_signing_out_ends_a_stream_in_another_process(split: tuple[Product, Product]) -> None:
    """Within a second of a logout the session's streams are ended, wherever they are."""
    people, chat = split
    _, token = people.sign_up("rooms-leaver")
    room = chat.call("POST", "/v1/rooms", {"name": "short"}, token)[1]["room"]["id"]
    async with open_channel(f"127.0.0.1:{chat.ports['chat']}") as channel:
        request = pb.SubscribeRoomEventsRequest(room_id=room)
        metadata = [("authorization", f"Bearer {token}")]
        async with ChatServiceStub(channel).SubscribeRoomEvents(request, metadata=metadata) as events:
            await anext(events)
            assert people.call("POST", "/v1/auth/logout", {}, token)[0] == 200
            with trio.fail_after(1), pytest.raises(Exception, match="session"):
                await anext(events)


async def _next(channel: Any, wanted: str) -> dict[str, Any]:
    """The payload of the next event of a kind."""
    with trio.fail_after(5):
        while True:
            event, payload = await channel.__anext__()
            if event == wanted:
                return dict(payload)
