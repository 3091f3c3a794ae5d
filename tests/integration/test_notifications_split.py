"""The notification service in a process of its own, without sockets: it knows of those of the others.

Run by `just test-resilience`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running
from tests.services.notification.servers import http1_server
from whispr.embed import Backends
from whispr.realtime.client import open_phoenix

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def split(backends: Backends, tmp_path: Path) -> Iterator[tuple[Product, Product]]:
    """One process with the people and what they say, another one that tells of it."""
    assert backends.postgres_url is not None
    assert backends.redis_url is not None
    assert backends.nats_url is not None
    urls = UNLIMITED | {
        "WHISPR_POSTGRES_URL": backends.postgres_url,
        "WHISPR_REDIS_URL": backends.redis_url,
        "WHISPR_NATS_URL": backends.nats_url,
    }
    with running(tmp_path / "a", urls, "auth", "user", "messaging") as talk:
        token = tmp_path / "token"
        minted = whispr("token", "notification", "--ttl", "3600", WHISPR_DATA_DIR=str(tmp_path / "a"))
        token.write_text(minted.stdout)
        others = urls | {
            "WHISPR_AUTH_ENDPOINT": f"127.0.0.1:{talk.ports['auth']}",
            "USER_SERVICE_GRPC_ENDPOINT": f"127.0.0.1:{talk.ports['user']}",
            "WHISPR_MESSAGING_ENDPOINT": f"127.0.0.1:{talk.ports['messaging']}",
            "WHISPR_AUTH_SERVICE_TOKEN_FILE": str(token),
            "WHISPR_NOTIFICATION_BATCH_S": "0",
            "WHISPR_NOTIFICATION_ALLOW_HTTP": "true",
            "WHISPR_NOTIFICATION_ALLOW_PRIVATE_ADDRESSES": "true",
        }
        with running(tmp_path / "b", others, "notification") as notifying:
            yield talk, notifying


async def told_of_the_group(notifying: Product, token: str) -> None:
    """Wait until somebody has been told that they were added: before they have a device to be told on."""
    with trio.fail_after(20):
        while True:
            call = partial(notifying.call, "GET", "/v1/notifications", token=token)
            status, reply = await trio.to_thread.run_sync(call)
            assert status == 200, reply
            if reply["notifications"]:
                return
            await trio.sleep(0.05)


async def test_it_tells_who_does_not_read_elsewhere(split: tuple[Product, Product]) -> None:
    """Sockets of another process count as reading, and get the event; blocks and names are asked over gRPC."""
    talk, notifying = split
    assert set(notifying.ports) == {"gateway", "notification"}
    _, ann = talk.sign_up("split-ann")
    bob_id, bob = talk.sign_up("split-bob")
    cid_id, cid = talk.sign_up("split-cid")
    group = talk.conversation(ann, "group", bob_id, cid_id)
    async with (
        http1_server() as push,
        open_phoenix(talk.websocket_url, bob) as reader,
        open_phoenix(talk.websocket_url, cid) as elsewhere,
    ):
        await reader.join(f"conversation:{group}")
        own = await elsewhere.join(f"user:{cid_id}")
        for token in (bob, cid):
            await told_of_the_group(notifying, token)
        for name, token in (("bob", bob), ("cid", cid)):
            body = {"platform": "webhook", "token": f"{push.url}/{name}"}
            status, reply = await trio.to_thread.run_sync(notifying.call, "POST", "/v1/devices", body, token)
            assert status == 200, reply
        path = f"/v1/conversations/{group}/messages"
        status, reply = await trio.to_thread.run_sync(talk.call, "POST", path, {"text": "hello"}, ann)
        assert status == 200, reply
        announced = ""
        with trio.fail_after(20):
            while not push.requests:
                await push.arrived.wait()
            async for event, payload in own:
                if event == "notification":
                    assert isinstance(payload, dict)
                    announced = payload["id"] if payload["type"] == "message" else ""
                if announced:
                    break
        assert [request.path for request in push.requests] == ["/cid"]
        heard = json.loads(push.requests[0].body)
        assert (heard["title"], heard["notification_id"]) == ("test", announced)
