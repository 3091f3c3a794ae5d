"""Resuming as people do: phoenix.js as published, over real sockets, whose parameters say what the client has."""

from __future__ import annotations

from typing import Any

import trio

from tests.integration.test_conversation import Person
from tests.phoenix_js import driven
from tests.product import Product

ROUNDS = 20


async def test_phoenix_js_catches_up_on_edits_deletes_and_reactions(node: str, product: Product) -> None:
    """Cut while messages are edited and deleted, it rejoins by itself; each change came once, in order."""
    alice, bob = Person(product, "resuming-alice"), Person(product, "resuming-bob")
    topic = f"conversation:{product.conversation(alice.token, 'direct', bob.id)}"
    url = product.websocket_url.removesuffix("/websocket")
    async with driven(node, url, alice.token) as at_alice, driven(node, url, bob.token) as at_bob:
        for step in (at_alice, at_bob):
            await step({"op": "connect"})
            assert (await step({"op": "join", "topic": topic, "resume": True}))["status"] == "ok"

        async def push(event: str, **payload: object) -> Any:
            reply: Any = await at_alice({"op": "push", "topic": topic, "event": event, "payload": payload})
            assert reply["status"] == "ok", reply
            return reply["response"]

        async def change() -> None:
            for number in range(ROUNDS):
                message_id = (await push("send_message", text=f"first {number}"))["message_id"]
                await push("edit_message", message_id=message_id, text=f"then {number}")
                await push("add_reaction", message_id=message_id, emoji="👍")
                await push("delete_message", message_id=message_id, for_everyone=True)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                await at_bob({"op": "cut"})
            await at_bob({"op": "rejoined", "topic": topic, "count": 2})
            for event in ("new_message", "message_edited", "reaction_added", "message_deleted"):
                await at_bob({"op": "expect", "topic": topic, "event": event, "count": ROUNDS})
                got = await at_bob({"op": "received", "topic": topic, "event": event, "field": "seq"})
                assert got["values"] == list(range(1, ROUNDS + 1)), event
