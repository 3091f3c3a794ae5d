"""What phoenix.js does by itself: binary frames, heartbeats, rejoins, renewals, falling back to long polls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.phoenix_js import Step, driven
from tests.realtime.polling import admit, poll_served
from whispr.asgi import HttpServer
from whispr.gateway.longpoll import LongPollEndpoint
from whispr.realtime.channel import Channel
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.longpoll.passing import Passing
from whispr.realtime.longpoll.sessions import Sessions
from whispr.realtime.testing import Server, authenticate

SLOW_LONGPOLL = pytest.mark.parametrize(
    "transport", ["websocket", pytest.param("longpoll", marks=pytest.mark.slow)]
)
TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "longpoll"])
LIFTED = Limits(operations_per_min=0)
BYTES = {"$bytes": [0, 1, 127, 128, 255]}
ROOM = {"topic": "room:1"}


class Room(Channel):
    """Echoes, shouts and whispers what it is sent."""

    async def handle(self, event: str, payload: object) -> object:
        if event == "shout":
            self.link.broadcast("shouted", payload)
            return None
        if event == "whisper":
            self.link.push("whispered", payload)
            return None
        if event == "close":
            self.link.close("last_words", {"reason": "banned"})
            return None
        if event == "echo":
            return payload
        return await super().handle(event, payload)


@asynccontextmanager
async def visited(
    node: str, user: str = "alice", hub: Hub | None = None
) -> AsyncIterator[tuple[Server, Step]]:
    """A room, and phoenix.js to visit it."""
    async with (
        poll_served({"room": Room}, hub=hub or Hub(LIFTED)) as server,
        driven(node, f"{server.url}/socket", user) as step,
    ):
        yield server, step


class Clock:
    """Time that goes on by ten seconds with every sweep, up to `until`."""

    def __init__(self, now: float) -> None:
        self.now = self.until = now
        self.past: dict[float, trio.Event] = {}

    def __call__(self) -> float:
        self.now = min(self.now + 10, self.until)
        for when, event in self.past.items():
            if self.now >= when:
                event.set()
        return self.now

    async def go(self, until: float) -> None:
        """Go on, and return once a sweep has seen that time."""
        self.until = until
        event = self.past.setdefault(until, trio.Event())
        await event.wait()


async def test_binary_push_reply_push_and_broadcast(node: str) -> None:
    """An ArrayBuffer goes there and back as a reply, as a broadcast and as a push of the server."""
    async with visited(node) as (_, step):
        await step({"op": "connect"})
        await step({"op": "join", **ROOM})
        reply = await step({"op": "push", "event": "echo", "payload": BYTES, **ROOM})
        assert reply["response"] == BYTES
        await step({"op": "push", "event": "shout", "payload": BYTES, **ROOM})
        await step({"op": "push", "event": "whisper", "payload": BYTES, **ROOM})
        await step({"op": "expect", "event": "whispered", "count": 1, **ROOM})
        assert (await step({"op": "received", "event": "shouted", **ROOM}))["values"] == [BYTES]
        assert (await step({"op": "received", "event": "whispered", **ROOM}))["values"] == [BYTES]


async def test_binary_over_long_polls(node: str) -> None:
    """phoenix.js sends an ArrayBuffer as base64; what comes back is JSON with base64, which is all it can read."""
    async with visited(node) as (_, step):
        await step({"op": "connect", "transport": "longpoll"})
        await step({"op": "join", **ROOM})
        reply = await step({"op": "push", "event": "echo", "payload": BYTES, **ROOM})
        assert reply["response"] == {"base64": "AAF/gP8="}
        await step({"op": "push", "event": "shout", "payload": BYTES, **ROOM})
        await step({"op": "expect", "event": "shouted", "count": 1, **ROOM})
        shouted = await step({"op": "received", "event": "shouted", **ROOM})
        assert shouted["values"] == [{"base64": "AAF/gP8="}]


@pytest.mark.slow
async def test_heartbeats_are_answered(node: str) -> None:
    """At ten a second phoenix.js finds every one answered, and never reconnects."""
    async with visited(node) as (_, step):
        await step({"op": "connect", "options": {"heartbeatIntervalMs": 100}})
        await step({"op": "heartbeats", "count": 5})
        assert (await step({"op": "reconnected", "count": 1}))["count"] == 1


@SLOW_LONGPOLL
async def test_a_second_channel_of_a_topic_takes_over(node: str, transport: str) -> None:
    """phoenix.js joins twice: the older channel object is closed, the newer is joined and works."""
    async with visited(node) as (server, step):
        await step({"op": "connect", "transport": transport})
        await step({"op": "join", **ROOM})
        assert (await step({"op": "join", **ROOM}))["status"] == "ok"
        assert (await step({"op": "push", "event": "echo", "payload": {"n": 1}, **ROOM}))["status"] == "ok"
        assert (await step({"op": "channels"}))["states"] == [["room:1", "joined"]]
        assert len(server.hub.subscribers("room:1")) == 1


@SLOW_LONGPOLL
async def test_a_channel_closed_by_the_server_stays_closed(node: str, transport: str) -> None:
    """After the last event comes `phx_close`: phoenix.js forgets the channel and does not rejoin."""
    async with visited(node) as (_, step):
        await step({"op": "connect", "transport": transport})
        await step({"op": "join", **ROOM})
        await step({"op": "push", "event": "close", "timeout_ms": 300, **ROOM})
        assert (await step({"op": "received", "event": "last_words", **ROOM}))["values"] == [
            {"reason": "banned"}
        ]
        assert (await step({"op": "channels"}))["states"] == []


@pytest.mark.slow
@TRANSPORTS
async def test_a_socket_outlives_its_token(node: str, transport: str) -> None:
    """Told that its token expires, an unpatched client pushes another and stays connected past the expiry."""
    clock = Clock(1000.0)
    async with visited(node, "alice/s/2000", Hub(LIFTED, wall_clock=clock)) as (_, step):
        await step({"op": "connect", "transport": transport})
        await step({"op": "join", "renew": "alice/s/9000", **ROOM})
        await clock.go(1010.0)
        clock.now = 1930.0
        await clock.go(1950.0)
        await step({"op": "expect", "event": "renewed", "count": 1, **ROOM})
        renewed = await step({"op": "received", "event": "renewed", **ROOM})
        assert renewed["values"] == [{"status": "ok", "response": {"expires_at": "1970-01-01T02:30:00Z"}}]
        clock.now = 1990.0
        await clock.go(2010.0)
        assert (await step({"op": "push", "event": "echo", "payload": 1, **ROOM}))["status"] == "ok"
        assert (await step({"op": "reconnected", "count": 1}))["count"] == 1


@pytest.mark.slow
@TRANSPORTS
async def test_the_socket_itself_renews(node: str, transport: str) -> None:
    """`socket.push` on the topic `phoenix`, for a client that has joined nothing."""
    async with visited(node, f"alice/s/{time.time() + 600}") as (_, step):
        await step({"op": "connect", "transport": transport})
        token = {"token": f"alice/s/{time.time() + 900}"}
        reply = await step({"op": "raw", "topic": "phoenix", "event": "refresh_token", "payload": token})
        assert reply["status"] == "ok"
        token = {"token": f"bob/s/{time.time() + 900}"}
        reply = await step({"op": "raw", "topic": "phoenix", "event": "refresh_token", "payload": token})
        assert (reply["status"], reply["response"]["reason"]) == ("error", "forbidden")  # type: ignore[index]  # a dict


@asynccontextmanager
async def http_only() -> AsyncIterator[int]:
    """A port where HTTP gets through and WebSockets do not."""
    hub = Hub(LIFTED)
    hub.mount("room", Room)
    passing = Passing(Sessions(hub))
    server = HttpServer(LongPollEndpoint(passing, authenticate, admit))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await nursery.start(passing.run)
        yield await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_where_websockets_do_not_get_through_it_falls_back(node: str) -> None:
    """With `longPollFallbackMs` phoenix.js tries a WebSocket, and goes on with long polls."""
    async with http_only() as port, driven(node, f"ws://127.0.0.1:{port}/socket", "alice") as step:
        opened = await step({"op": "connect", "transport": "fallback"})
        assert opened["transport"] == "longpoll"
        await step({"op": "join", **ROOM})
        assert (await step({"op": "push", "event": "echo", "payload": {"n": 1}, **ROOM}))["response"] == {
            "n": 1
        }


@pytest.mark.slow
async def test_a_session_that_is_gone_is_opened_again_and_rejoined(node: str) -> None:
    """When the server has forgotten a long-poll session, phoenix.js opens another and rejoins by itself."""
    async with visited(node) as (server, step):
        await step({"op": "connect", "transport": "longpoll"})
        await step({"op": "join", **ROOM})
        (socket,) = server.hub.sockets
        socket.close(1001, "test")
        await step({"op": "rejoined", "count": 2, **ROOM})
        assert (await step({"op": "push", "event": "echo", "payload": 7, **ROOM}))["response"] == 7
