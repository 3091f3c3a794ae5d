"""Long polls and renewed tokens against the whole product, in several processes, by phoenix.js."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from tests.integration.test_workers import metric
from tests.phoenix_js import driven
from tests.product import UNLIMITED, Product, running

pytestmark = pytest.mark.slow
CLIENTS = 6
"""That none of them has a request at the process that does not have its session has a chance below 2 ** -5."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`whispr serve --workers 2`."""
    with running(tmp_path_factory.mktemp("polling") / "data", UNLIMITED, "--workers", "2") as product:
        yield product


@pytest.mark.parametrize("listener", ["gateway", "websocket"])
async def test_people_who_poll_talk(product: Product, node: str, listener: str) -> None:
    """Over long polls alone, whichever process answers: messages arrive in order, and nobody has to reconnect."""
    people = [product.sign_up(f"poller-{listener}-{n}") for n in range(CLIENTS)]
    group = product.conversation(people[0][1], "group", *(user for user, _ in people[1:]))
    topic = f"conversation:{group}"
    url = f"ws://127.0.0.1:{product.ports[listener]}/socket"
    async with AsyncExitStack() as stack:
        steps = [await stack.enter_async_context(driven(node, url, token)) for _, token in people]
        for step in steps:
            assert (await step({"op": "connect", "transport": "longpoll"}))["transport"] == "longpoll"
            assert (await step({"op": "join", "topic": topic}))["status"] == "ok"
        for n, step in enumerate(steps):
            reply = await step(
                {"op": "push", "topic": topic, "event": "send_message", "payload": {"text": f"{n}"}}
            )
            assert reply["status"] == "ok", reply
        for step in steps:
            await step({"op": "expect", "topic": topic, "event": "new_message", "count": CLIENTS})
            seen = await step({"op": "received", "topic": topic, "event": "new_message", "field": "text"})
            assert seen["values"] == [f"{n}" for n in range(CLIENTS)]
            assert (await step({"op": "reconnected", "count": 1}))["count"] == 1
    assert sum(metric(product, "whispr_longpoll_passed_total").values()) > 0


async def test_a_real_token_is_renewed(product: Product, node: str) -> None:
    """The access token of a refreshed session is taken, a stranger's is not."""
    account = {"username": "renewer", "password": "correct horse battery", "display_name": "Renewer"}
    status, signed_up = product.call("POST", "/v1/auth/register", account)
    assert status == 200, signed_up
    _, strangers = product.sign_up("renewer-stranger")
    user = {"topic": f"user:{signed_up['user']['id']}", "event": "refresh_token"}
    async with driven(
        node, f"ws://127.0.0.1:{product.ports['websocket']}/socket", signed_up["access_token"]
    ) as step:
        await step({"op": "connect"})
        assert (await step({"op": "join", "topic": user["topic"]}))["status"] == "ok"
        status, fresh = product.call(
            "POST", "/v1/auth/refresh", {"refresh_token": signed_up["refresh_token"]}
        )
        assert status == 200, fresh
        reply = await step({"op": "push", "payload": {"token": fresh["access_token"]}, **user})
        assert reply["status"] == "ok", reply
        reply = await step({"op": "push", "payload": {"token": strangers}, **user})
        assert reply["response"]["reason"] == "forbidden"  # type: ignore[index]  # a dict
