"""The main job: a conversation between two people, over real sockets and real backends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio

from tests.phoenix_js import Step, driven
from tests.product import Product
from whispr.realtime.client import ClientChannel, Disconnected, Phoenix, open_phoenix

MESSAGES = 1000
MORE = 200

_names = itertools.count()


class Person:
    """Somebody with an account, and what they saw of a conversation."""

    def __init__(self, product: Product, name: str) -> None:
        self.product = product
        self.id, self.token = product.sign_up(f"{name}-{next(_names)}")
        self.seen: list[tuple[int, str, str]] = []

    def note(self, message: Any) -> None:
        self.seen.append((message["seq"], message["sender_id"], message["text"]))

    async def watch(self, channel: ClientChannel, until: int) -> None:
        """Note new messages until `until` have been seen."""
        while len(self.seen) < until:
            event, payload = await channel.__anext__()
            if event == "new_message":
                self.note(payload)

    async def send(self, channel: ClientChannel, count: int, label: str) -> None:
        """Send at full speed, without waiting for replies in between; then check every reply."""
        receipts = []
        for i in range(count):
            message = {"text": f"{label} {i}", "client_id": f"{label}-{i}"}
            receipts.append(channel.push_nowait("send_message", message))
            if i % 50 == 49:
                await receipts[-1].wait()
        replies: list[Any] = [await receipt.wait() for receipt in receipts]
        seqs = [reply["seq"] for reply in replies]
        assert seqs == sorted(set(seqs))


@pytest.fixture
def pair(product: Product) -> tuple[Person, Person, str]:
    """Two people and the topic of their direct conversation."""
    alice, bob = Person(product, "talking-alice"), Person(product, "talking-bob")
    return alice, bob, f"conversation:{product.conversation(alice.token, 'direct', bob.id)}"


async def test_two_people_talk_at_full_speed_and_one_comes_back(pair: tuple[Person, Person, str]) -> None:
    """1,000 messages each way arrive once and in order at both; after a cut, nothing is missed or repeated."""
    alice, bob, topic = pair
    url = alice.product.websocket_url
    async with open_phoenix(url, alice.token) as alices:
        at_alice = await alices.join(topic)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.watch, at_alice, 2 * MESSAGES + 2 * MORE)
            async with open_phoenix(url, bob.token) as bobs:
                at_bob = await bobs.join(topic)
                async with trio.open_nursery() as talking:
                    talking.start_soon(bob.watch, at_bob, 2 * MESSAGES)
                    talking.start_soon(alice.send, at_alice, MESSAGES, "a")
                    talking.start_soon(bob.send, at_bob, MESSAGES, "b")
                nursery.start_soon(alice.send, at_alice, MORE, "mid-stream")
                await bob.watch(at_bob, 2 * MESSAGES + 20)
                await cut(bobs, at_bob)
            await alice.send(at_alice, MORE, "while away")
            async with open_phoenix(url, bob.token) as bobs:
                at_bob = await bobs.join(topic, {"since_seq": bob.seen[-1][0]})
                response: Any = at_bob.response
                for message in response["messages"]:
                    bob.note(message)
                await bob.watch(at_bob, 2 * MESSAGES + 2 * MORE)
    assert bob.seen == alice.seen
    assert [seq for seq, _, _ in bob.seen] == list(range(1, 2 * MESSAGES + 2 * MORE + 1))
    assert len({(sender, text) for _, sender, text in bob.seen}) == len(bob.seen)


async def test_phoenix_js_unchanged_does_the_same(node: str, pair: tuple[Person, Person, str]) -> None:
    """The same with phoenix.js from npm at both ends; after the cut it reconnects and rejoins by itself."""
    alice, bob, topic = pair
    socket_url = alice.product.websocket_url.removesuffix("/websocket")
    sent = {"op": "burst", "topic": topic, "event": "send_message"}
    arrive = {"op": "expect", "topic": topic, "event": "new_message"}
    async with (
        driven(node, socket_url, alice.token) as at_alice,
        driven(node, socket_url, bob.token) as at_bob,
    ):
        for step in (at_alice, at_bob):
            await step({"op": "connect"})
            assert (await step({"op": "join", "topic": topic, "resume": True}))["status"] == "ok"

        async def burst(step: Step, label: str, count: int) -> None:
            payload = {"text": f"{label} $n", "client_id": f"{label}-$n"}
            result = await step({**sent, "count": count, "payload": payload})
            assert (result["ok"], result["errors"]) == (count, [])

        async with trio.open_nursery() as talking:
            talking.start_soon(burst, at_alice, "a", MESSAGES)
            talking.start_soon(burst, at_bob, "b", MESSAGES)
        await at_bob({**arrive, "count": 2 * MESSAGES})
        async with trio.open_nursery() as cutting:
            cutting.start_soon(burst, at_alice, "cut", MORE)
            await at_bob({"op": "cut"})
        await at_bob({"op": "rejoined", "topic": topic, "count": 2})
        for step in (at_alice, at_bob):
            await step({**arrive, "count": 2 * MESSAGES + MORE})
            received = await step({"op": "received", "topic": topic, "event": "new_message", "field": "seq"})
            assert received["values"] == list(range(1, 2 * MESSAGES + MORE + 1))


async def cut(phoenix: Phoenix, channel: ClientChannel) -> None:
    """Lose the connection without a word, as a phone in a tunnel does."""
    await phoenix.abort()
    with pytest.raises(Disconnected):
        while True:
            await channel.__anext__()
