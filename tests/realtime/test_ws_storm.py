"""The hub under disorder: whatever clients and services do at once, nothing leaks and nothing of ours fails."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from structlog.testing import capture_logs
from trio_websocket import open_websocket_url

from whispr.errors import WhisprError, denied
from whispr.realtime import frames
from whispr.realtime.channel import Channel, Deferred, Joined
from whispr.realtime.client import Phoenix
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served

USERS, TOPICS, STEPS = 6, 4, 400


class Wild(Channel):
    """Takes its time, refuses at random, tracks presence, and answers later."""

    rng: random.Random
    later: list[Deferred]

    async def join(self, payload: object) -> object:
        for _ in range(Wild.rng.randrange(3)):
            await trio.lowlevel.checkpoint()
        if Wild.rng.random() < 0.1:
            raise denied("not today")
        self.link.track({"n": 1})
        self.link.push_presence_state()
        return Joined({}, seq=5)

    def handle_now(self, event: str, payload: object) -> object:
        if event == "later":
            Wild.later.append(Deferred())
            return Wild.later[-1]
        return NotImplemented

    async def handle(self, event: str, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        if event == "shout":
            self.link.broadcast("shouted", payload)
        elif event == "beside":
            self.link.start_soon(trio.sleep_forever)
        elif event == "close":
            self.link.close("bye", {})
        elif event == "crash":
            raise RuntimeError("on request")
        return {}


async def one_client(server: Server, user: str, rng: random.Random) -> None:
    """Do random things on one connection after another; what the server may say to them is expected."""
    for _ in range(4):
        with suppress(WhisprError):
            async with server.connect(user) as phoenix:
                await random_steps(phoenix, rng)
                if rng.random() < 0.5:
                    await phoenix.abort()


async def random_steps(phoenix: Phoenix, rng: random.Random) -> None:
    for _ in range(STEPS // 10):
        topic = f"wild:{rng.randrange(TOPICS)}"
        with suppress(WhisprError), trio.move_on_after(0.01 * rng.random()):
            channel = await phoenix.join(topic, {})
            for event in rng.choices(["later", "shout", "beside", "close", "crash", "nonsense"], k=3):
                channel.push_nowait(event, {"x": "y" * rng.randrange(2000)})
            await channel.push("shout", {})
            if rng.random() < 0.3:
                await channel.leave()


async def the_server_side(server: Server, rng: random.Random) -> None:
    """Broadcast, kick, revoke and settle, at random."""
    hub = server.hub
    while True:
        topic, user = f"wild:{rng.randrange(TOPICS)}", f"user{rng.randrange(USERS)}"
        match rng.randrange(12):
            case 0:
                hub.kick(topic, user, "kicked", {})
            case 1:
                hub.disconnect(user_id=user)
            case 2 | 3:
                for deferred in Wild.later:
                    deferred.resolve({"ok": True})
                Wild.later.clear()
            case 4:
                with hub.corked():
                    for n in range(5):
                        hub.broadcast(topic, "burst", n)
            case _:
                hub.broadcast(topic, "n", {"z": "z" * rng.randrange(500)}, seq=rng.randrange(10))
        await trio.sleep(0.001 * rng.random())


@pytest.mark.parametrize("seed", range(3))
async def test_random_clients_and_services_leak_nothing(seed: int) -> None:
    """After the storm every map of the hub is empty, and the only errors logged are the crashes asked for."""
    rng = Wild.rng = random.Random(seed)
    Wild.later = []
    limits = Limits(operations_per_min=0, user_sockets=2, close_s=0.2, presence_linger_s=0)
    with capture_logs() as logs:
        async with served({"wild": Wild}, limits) as server:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(the_server_side, server, rng)
                async with trio.open_nursery() as clients:
                    for n in range(USERS * 2):
                        clients.start_soon(one_client, server, f"user{n % USERS}", rng)
                nursery.cancel_scope.cancel(reason="the storm is over")
            hub = server.hub
            await hub.drain()
            for name in ("_audiences", "_taps", "_followers", "_users", "sockets"):
                assert not getattr(hub, name), name
            assert not any(hub.presence_state(f"wild:{n}") for n in range(TOPICS))
    errors = {entry["event"] for entry in logs if entry["log_level"] == "error"}
    assert errors <= {"channel crashed"}


async def test_another_websocket_library_is_understood() -> None:
    """trio-websocket's own client, on wsproto: fragments, pings, pongs and the closing handshake."""
    async with served({"wild": Wild}) as server:
        url = f"{server.url}/socket/websocket?vsn=2.0.0&token=alice"
        async with open_websocket_url(url) as websocket:
            await websocket.send_message('[null,"1","phoenix","heartbeat",{}]')
            reply = await websocket.get_message()
            assert reply == '[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]'
            with trio.fail_after(5):
                await websocket.ping(b"are you there")
            (socket,) = server.hub.sockets
            socket.send(frames.encode_frame(frames.PING, b"and you"))
            text = "x" * 70_000
            await websocket.send_message(f'[null,"2","nothing:1","e","{text}"]')
            assert await websocket.get_message() == (
                '[null,"2","nothing:1","phx_reply",{"status":"error","response":{"reason":"unmatched topic"}}]'
            )
        assert websocket.closed is not None
        assert websocket.closed.code == 1000
