"""Version 1 of the protocol: objects instead of arrays, for clients of before `vsn`."""

from __future__ import annotations

import json

import pytest

from whispr.realtime.channel import Channel
from whispr.realtime.frames import TEXT
from whispr.realtime.protocol import MalformedMessage
from whispr.realtime.serializers import V1
from whispr.realtime.testing import Wire, served


class Demo(Channel):
    """Says who joined, and passes on what is shouted."""

    async def join(self, payload: object) -> object:
        return {"user": self.link.session.user_id}

    async def handle(self, event: str, payload: object) -> object:
        self.link.broadcast("shouted", payload)
        return None


async def say(wire: Wire, **message: object) -> None:
    await wire.send_frame(TEXT, json.dumps(message).encode())


async def test_a_conversation_in_objects() -> None:
    """Join, push, broadcast, error and leave, each with the ref of what it answers and without a join_ref."""
    async with (
        served({"demo": Demo}) as server,
        server.wire("alice", version="1.0.0") as old,
        server.wire("bob") as new,
    ):
        await say(old, topic="demo:1", event="phx_join", payload={}, ref="1")
        joined = {"status": "ok", "response": {"user": "alice"}}
        assert await old.receive() == {"topic": "demo:1", "event": "phx_reply", "payload": joined, "ref": "1"}
        await say(old, topic="phoenix", event="heartbeat", payload={}, ref="2")
        alive = {"status": "ok", "response": {}}
        assert await old.receive() == {"topic": "phoenix", "event": "phx_reply", "payload": alive, "ref": "2"}
        await new.join("demo:1")
        await say(old, topic="demo:1", event="shout", payload={"a": 1}, ref="3")
        shouted = {"topic": "demo:1", "event": "shouted", "payload": {"a": 1}, "ref": None}
        assert await old.receive() == shouted
        assert await new.receive() == [None, None, "demo:1", "shouted", {"a": 1}]
        assert await old.receive() == {"topic": "demo:1", "event": "phx_reply", "payload": alive, "ref": "3"}
        await say(old, topic="demo:2", event="echo", payload={}, ref="4")
        reply = await old.receive()
        assert isinstance(reply, dict)
        assert reply["payload"] == {"status": "error", "response": {"reason": "unmatched topic"}}
        await say(old, topic="demo:1", event="phx_leave", payload={}, ref="5")
        assert await old.receive() == {"topic": "demo:1", "event": "phx_reply", "payload": alive, "ref": "5"}
        closed = await old.receive()
        assert isinstance(closed, dict)
        assert closed["event"] == "phx_close"


async def test_bytes_reach_an_old_client_as_base64() -> None:
    """What a version 2 client gets in a binary frame is not lost on one that has none."""
    async with served({"demo": Demo}) as server, server.wire("alice", version="1.0.0") as old:
        await say(old, topic="demo:1", event="phx_join", payload={}, ref="1")
        await old.receive()
        server.hub.broadcast("demo:1", "sound", b"\x00\xff")
        heard = await old.receive()
        assert isinstance(heard, dict)
        assert heard["payload"] == {"base64": "AP8="}


@pytest.mark.parametrize("data", [b"\x00", "[]", '["1","1","demo:1","e",{}]', "{}", '{"topic":1}', "no"])
def test_what_is_no_object_of_version_1(data: str | bytes) -> None:
    """Binary frames, arrays and objects without topic or event are malformed."""
    with pytest.raises(MalformedMessage):
        V1.decode(data)
