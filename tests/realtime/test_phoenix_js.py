"""phoenix.js as published on npm, run by Node against the hub: its Socket, Channel and Presence work unchanged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.phoenix_js import SCRIPT, Step, Steps, driven
from tests.realtime.polling import poll_served
from whispr.realtime.channel import Channel, Deferred, Joined, LeaveReason
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.testing import Server

SLOW_LONGPOLL = pytest.mark.parametrize(
    "transport", ["websocket", pytest.param("longpoll", marks=pytest.mark.slow)]
)
TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "longpoll"])
LIFTED = Limits(operations_per_min=0)
DIFFS = {"topic": "chat:1", "event": "presence_diff"}


class Room:
    """A numbered log that commits a step after it appends, as a database would."""

    def __init__(self) -> None:
        self.log: list[dict[str, object]] = []
        self.left: list[LeaveReason] = []
        self.appended, self._appended = trio.open_memory_channel[tuple[Link, int, Deferred]](10_000)

    def channel(self, link: Link) -> Channel:
        return Chat(link, self)

    async def commit(self) -> None:
        async for link, seq, reply in self._appended:
            await trio.lowlevel.checkpoint()
            link.hub.broadcast(link.topic, "new_message", self.log[seq - 1], seq=seq)
            reply.resolve({"seq": seq})


class Chat(Channel):
    """Resume, presence, errors and a crash."""

    def __init__(self, link: Link, room: Room) -> None:
        super().__init__(link)
        self.room = room

    async def join(self, payload: object) -> object:
        assert isinstance(payload, dict)
        log = self.room.log
        response = {"messages": log[int(payload.get("since_seq", 0)) :], "seq": len(log)}
        await trio.lowlevel.checkpoint()
        self.link.track({"device": "node"})
        self.link.push_presence_state()
        return Joined(response, seq=response["seq"] if isinstance(response["seq"], int) else 0)

    def handle_now(self, event: str, payload: object) -> object:
        if event != "send":
            return NotImplemented
        seq, reply = len(self.room.log) + 1, Deferred()
        self.room.log.append({"seq": seq, "by": self.link.session.user_id, "body": payload})
        self.room.appended.send_nowait((self.link, seq, reply))
        return reply

    async def handle(self, event: str, payload: object) -> object:
        if event == "crash":
            raise RuntimeError("on request")
        return await super().handle(event, payload)

    async def leave(self, reason: LeaveReason) -> None:
        self.room.left.append(reason)


@asynccontextmanager
async def chat() -> AsyncIterator[tuple[Server, Room]]:
    room = Room()
    async with poll_served({"chat": room.channel}, LIFTED) as server:
        server.nursery.start_soon(room.commit)
        yield server, room


async def play(node: str, server: Server, user: str, steps: Steps) -> list[dict[str, object]]:
    """Run a scenario and return the printed lines, having checked that every step succeeded."""
    command = [node, str(SCRIPT), f"{server.url}/socket", user, json.dumps(steps)]
    done = await trio.run_process(command, capture_stdout=True, check=False)
    lines: list[dict[str, object]] = [json.loads(line) for line in done.stdout.decode().splitlines()]
    failed = [line for line in lines if "error" in line]
    assert not failed, failed
    assert done.returncode == 0
    return lines


async def present(step: Step) -> dict[str, int]:
    """Return how many metas phoenix.js lists for each user."""
    state = (await step({"op": "presence", "topic": "chat:1"}))["state"]
    assert isinstance(state, dict)
    return {key: len(metas) for key, metas in state.items()}


@TRANSPORTS
async def test_join_push_reply_error_and_leave(node: str, transport: str) -> None:
    """The ordinary life of a channel; the token rides in the subprotocol, to which `phoenix` is answered."""
    async with chat() as (server, room):
        lines = await play(
            node,
            server,
            "alice",
            [
                {"op": "connect", "authToken": True, "transport": transport},
                {"op": "join", "topic": "chat:1"},
                {"op": "push", "topic": "chat:1", "event": "send", "payload": {"text": "hé"}},
                {"op": "expect", "topic": "chat:1", "event": "new_message", "count": 1},
                {"op": "push", "topic": "chat:1", "event": "nonsense"},
                {"op": "join", "topic": "nothing:1"},
                {"op": "leave", "topic": "chat:1"},
                {"op": "disconnect"},
            ],
        )
    connect, join, push, _, nonsense, unmatched, leave, _ = lines
    assert connect["transport"] == transport
    assert connect.get("protocol", "phoenix") == "phoenix"
    assert (join["status"], join["response"]) == ("ok", {"messages": [], "seq": 0})
    assert (push["status"], push["response"]) == ("ok", {"seq": 1})
    assert nonsense["status"] == "error"
    assert unmatched["response"] == {"reason": "unmatched topic"}
    assert leave["status"] == "ok"
    assert [entry["body"] for entry in room.log] == [{"text": "hé"}]
    # phoenix.js sends pushes of a poll a moment later, and a disconnect in that moment drops them.
    assert room.left == ["left"] if transport == "websocket" else len(room.left) == 1


@pytest.mark.parametrize("transport", ["websocket", pytest.param("longpoll", marks=pytest.mark.slow)])
async def test_two_clients_at_full_speed_then_a_cut_and_a_resume(node: str, transport: str) -> None:
    """Each message arrives once and in order at both; after a cut phoenix.js rejoins and misses nothing."""
    sent = {"topic": "chat:1", "event": "send", "payload": {"n": "$n"}}
    messages = {"topic": "chat:1", "event": "new_message"}
    begin: Steps = [
        {"op": "connect", "transport": transport},
        {"op": "join", "topic": "chat:1", "resume": True},
        {"op": "burst", "count": 300, **sent},
        {"op": "expect", "count": 600, **messages},
    ]
    cut: Steps = [
        {"op": "cut"},
        {"op": "reconnected", "count": 2},
        {"op": "rejoined", "topic": "chat:1", "count": 2},
    ]
    more: Steps = [{"op": "burst", "count": 100, **sent}]
    end: Steps = [{"op": "expect", "count": 700, **messages}, {"op": "received", "field": "seq", **messages}]
    results: dict[str, list[dict[str, object]]] = {}
    async with chat() as (server, _), trio.open_nursery() as nursery:

        async def client(user: str, steps: Steps) -> None:
            results[user] = await play(node, server, user, steps)

        nursery.start_soon(client, "alice", begin + cut + end)
        nursery.start_soon(client, "bob", begin + more + end)
    assert results["alice"][2]["ok"] == results["bob"][2]["ok"] == 300
    everything = list(range(1, 701))
    assert results["alice"][-1]["values"] == everything, "a message was lost, repeated or out of order"
    assert results["bob"][-1]["values"] == everything


@SLOW_LONGPOLL
async def test_a_crashed_channel_is_rejoined_by_the_client(node: str, transport: str) -> None:
    """phx_error makes phoenix.js rejoin by itself; the push in flight gets no reply."""
    async with chat() as (server, _):
        lines = await play(
            node,
            server,
            "alice",
            [
                {"op": "connect", "transport": transport},
                {"op": "join", "topic": "chat:1"},
                {"op": "burst", "topic": "chat:1", "event": "send", "count": 1},
                {"op": "push", "topic": "chat:1", "event": "crash", "timeout_ms": 200},
                {"op": "rejoined", "topic": "chat:1", "count": 2},
                {"op": "push", "topic": "chat:1", "event": "send"},
            ],
        )
    assert lines[3]["status"] in ("error", "timeout")
    assert (lines[5]["status"], lines[5]["response"]) == ("ok", {"seq": 2})


@SLOW_LONGPOLL
async def test_presence_follows_who_is_there(node: str, transport: str) -> None:
    """Presence of phoenix.js, fed by presence_state and presence_diff, lists exactly the users joined."""
    async with chat() as (server, _), server.connect("bob") as bob, server.connect("bob") as desk:
        channel = await bob.join("chat:1")
        await desk.join("chat:1")
        async with driven(node, f"{server.url}/socket", "alice") as step:
            await step({"op": "connect", "transport": transport})
            await step({"op": "join", "topic": "chat:1"})
            await step({"op": "expect", "count": 1, **DIFFS})
            assert await present(step) == {"alice": 1, "bob": 2}
            seen = await step({"op": "expect", "count": 1, **DIFFS})
            await desk.close()
            await step({"op": "expect", "count": int(str(seen["count"])) + 1, **DIFFS})
            assert await present(step) == {"alice": 1, "bob": 1}
            await channel.leave()
            await step({"op": "expect", "count": int(str(seen["count"])) + 2, **DIFFS})
            assert await present(step) == {"alice": 1}
