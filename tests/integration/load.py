"""Clients that keep sending through failures, and the check that nothing acknowledged was lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio

from tests.product import Product
from whispr.errors import WhisprError
from whispr.realtime.client import ClientChannel, Refused, open_phoenix

RETRY_S = 0.05


@dataclass
class Sender:
    """One client with a conversation of its own: sends numbered messages one after another, whatever happens.

    A message is sent again, with the same client_id, until it is acknowledged, as a real client does.
    """

    name: str
    token: str
    conversation_id: str
    acked: dict[str, int] = field(default_factory=dict)
    """client_id → seq of every acknowledged message."""
    refused: int = 0
    reconnected: int = 0
    _number: int = 0

    async def run(self, product: Product) -> None:
        """Send until cancelled, reconnecting as needed."""
        while True:
            try:
                async with open_phoenix(product.websocket_url, self.token) as phoenix:
                    channel = await phoenix.join(f"conversation:{self.conversation_id}")
                    while True:
                        await self.send(channel)
            except* WhisprError:
                self.reconnected += 1
            await trio.sleep(RETRY_S)

    async def send(self, channel: ClientChannel) -> None:
        """Send the next message until it is acknowledged."""
        client_id = f"{self.name}-{self._number}"
        try:
            reply: Any = await channel.push("send_message", {"text": client_id, "client_id": client_id})
        except Refused:
            self.refused += 1
            await trio.sleep(RETRY_S)
            return
        self.acked[client_id] = reply["seq"]
        self._number += 1

    def check(self, product: Product) -> None:
        """Every acknowledged message is there exactly once, at its seq, and seq has no gap."""
        stored = history(product, self.token, self.conversation_id)
        assert [m["seq"] for m in stored] == list(range(1, len(stored) + 1))
        ids = [m["client_id"] for m in stored]
        assert len(ids) == len(set(ids)), "a message is there twice"
        seqs = {m["client_id"]: m["seq"] for m in stored}
        lost = {client_id for client_id, seq in self.acked.items() if seqs.get(client_id) != seq}
        assert not lost, f"acknowledged, but not where it was: {sorted(lost)}"


def history(product: Product, token: str, conversation_id: str) -> list[dict[str, Any]]:
    """The whole history over REST, page by page."""
    messages: list[dict[str, Any]] = []
    while True:
        after = messages[-1]["seq"] if messages else 0
        path = f"/v1/conversations/{conversation_id}/messages?after_seq={after}&page_size=100"
        status, page = product.call("GET", path, token=token)
        assert status == 200, page
        messages += page["messages"]
        if not page["has_more"]:
            return messages


def senders(product: Product, count: int) -> list[Sender]:
    """Make clients, a conversation each; ten people in all."""
    people = [product.sign_up(f"sender-{i}") for i in range(min(count, 10) + 1)]
    made = []
    for i in range(count):
        (_, token), (peer, _) = people[i % (len(people) - 1)], people[-1]
        made.append(Sender(f"s{i}", token, product.conversation(token, "group", peer)))
    return made


def acked(clients: list[Sender]) -> int:
    """How many messages were acknowledged so far."""
    return sum(len(client.acked) for client in clients)


async def until_acked(clients: list[Sender], more: int) -> None:
    """Wait until `more` further messages have been acknowledged to every client."""
    goals = [len(client.acked) + more for client in clients]
    while any(len(client.acked) < goal for client, goal in zip(clients, goals, strict=True)):  # noqa: ASYNC110
        await trio.sleep(0.02)  # many clients, no common event; the product's clock is the real one
