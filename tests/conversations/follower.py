"""A client that keeps a copy of a conversation by what the protocol tells it, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import trio

from tests.conversations.nodes import Node, join
from whispr.realtime.client import ClientChannel, Disconnected, Phoenix, open_phoenix


@dataclass
class Copy:
    """What somebody knows of a conversation."""

    seq: int = 0
    change: int = 0
    messages: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Seq → what it says, and whether it is deleted."""
    reactions: set[tuple[int, str, str]] = field(default_factory=set)
    pins: set[int] = field(default_factory=set)
    delivered: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)

    def take_reply(self, reply: Any) -> None:
        """Take the reply to a join, or a page after it."""
        for message in (*reply["messages"], *reply["changed_messages"]):
            self.take_message(message)
        for change in reply["changes"]:
            self.take_change(change["event"], change)
        for receipt in (*reply["receipts"], *reply["members"]):
            self.mark(receipt["user_id"], receipt["delivered_seq"], receipt["read_seq"])
        self.hidden.update(reply["hidden_seqs"])

    def take_message(self, message: Any) -> None:
        seq = message["seq"]
        self.messages[seq] = (message.get("text", ""), "deleted_at" in message)
        self.reactions = {each for each in self.reactions if each[0] != seq}
        self.reactions.update(
            (seq, reaction["emoji"], user_id)
            for reaction in message.get("reactions", ())
            for user_id in reaction["user_ids"]
        )

    def take_change(self, event: str, change: Any) -> None:
        seq = change.get("seq", 0)
        if event == "message_edited" and "message" in change and seq in self.messages:
            self.messages[seq] = (change["message"].get("text", ""), self.messages[seq][1])
        elif event == "message_deleted":
            self.messages[seq] = ("", True)
            self.reactions = {each for each in self.reactions if each[0] != seq}
            self.pins.discard(seq)
        elif event == "reaction_added":
            self.reactions.add((seq, change["emoji"], change["user_id"]))
        elif event == "reaction_removed":
            self.reactions.discard((seq, change["emoji"], change["user_id"]))
        elif event in ("message_pinned", "message_unpinned"):
            (self.pins.add if event == "message_pinned" else self.pins.discard)(seq)

    def mark(self, user_id: str, delivered: int, read: int) -> None:
        self.delivered[user_id] = max(self.delivered.get(user_id, 0), delivered, read)
        self.read[user_id] = max(self.read.get(user_id, 0), read)

    def shown(self) -> dict[str, object]:
        """What it shows: deleted messages have no text, and what the viewer hid is left out."""
        gone = self.hidden
        return {
            "messages": {seq: said for seq, said in sorted(self.messages.items()) if seq not in gone},
            "reactions": sorted(each for each in self.reactions if each[0] not in gone),
            "pins": sorted(self.pins - gone),
            "delivered": {user_id: seq for user_id, seq in sorted(self.delivered.items()) if seq},
            "read": {user_id: seq for user_id, seq in sorted(self.read.items()) if seq},
        }


class Follower:
    """Somebody's client, now on this node and now on that; it checks that nothing is missed or told twice."""

    def __init__(self, user_id: str, conversation_id: str) -> None:
        self.user_id = user_id
        self.topic = f"conversation:{conversation_id}"
        self.copy = Copy()
        self.channel: ClientChannel | None = None
        self.resyncs = 0
        self._phoenix: Phoenix | None = None
        self._moved = trio.Event()

    async def live(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        """Be connected to a node until cut off."""
        async with open_phoenix(node.server.url, self.user_id) as self._phoenix:
            own = await join(self._phoenix, f"user:{self.user_id}")
            places: dict[str, object] = {"since_seq": str(self.copy.seq), "since_change": self.copy.change}
            channel = await join(self._phoenix, self.topic, **places)
            await self._caught_up(channel)
            self.channel = channel
            task_status.started()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hear_own, own)
                    await self._hear(channel)
            except* Disconnected:
                self.channel = None

    async def cut(self) -> None:
        """Lose the connection without a word."""
        if self._phoenix is not None:
            self.channel = None
            await self._phoenix.abort()

    async def reach(self, seq: int, change: int) -> None:
        """Wait until the copy is that far."""
        while self.copy.seq < seq or self.copy.change < change:
            self._moved = trio.Event()
            await self._moved.wait()

    async def _caught_up(self, channel: ClientChannel) -> None:
        reply: Any = channel.response
        goal = reply["seq"], reply["change"]
        before = self.copy.seq, self.copy.change
        self.copy.take_reply(reply)
        numbers = [message["seq"] for message in reply["messages"]]
        changes = [change["change"] for change in reply["changes"]]
        while reply["resync"]:
            self.resyncs += 1
            reply = cast("Any", await channel.push("get_history", {"cursor": reply["cursor"]}))
            self.copy.take_reply(reply)
            numbers += [message["seq"] for message in reply["messages"]]
            changes += [change["change"] for change in reply["changes"]]
            # A page is as of now; what it holds beyond the join comes live as well, and again.
            goal = max(goal[0], reply["seq"]), max(goal[1], reply["change"])
        missing = set(range(before[0] + 1, goal[0] + 1)) - set(numbers)
        assert missing <= self.copy.hidden, "a message is missing from the replay"
        assert numbers == sorted(set(numbers)), "a message came twice, or out of order"
        assert changes == list(range(before[1] + 1, goal[1] + 1)), "changes are missing, or came twice"
        first: Any = channel.response
        self.copy.seq, self.copy.change = first["seq"], first["change"]
        self._moved.set()

    async def _hear(self, channel: ClientChannel) -> None:
        async for event, payload in channel:
            self._take(event, cast("Any", payload))
            self._moved.set()

    def _take(self, event: str, payload: Any) -> None:
        copy = self.copy
        if event == "new_message":
            assert payload["seq"] == copy.seq + 1, "a live message is missing, or came twice"
            copy.seq += 1
            copy.take_message(payload)
        elif "change" in payload:
            assert payload["change"] == copy.change + 1, "a live change is missing, or came twice"
            copy.change += 1
            copy.take_change(event, payload)
        elif event == "read_receipt":
            copy.mark(payload["user_id"], payload["seq"], payload["seq"])
        elif event == "delivery_status":
            copy.mark(payload["user_id"], payload["seq"], 0)

    async def _hear_own(self, channel: ClientChannel) -> None:
        async for event, payload in channel:
            if event == "message_deleted":
                self.copy.hidden.add(cast("Any", payload)["seq"])
                self._moved.set()
