"""WHIP and WHEP of the product itself: keys, tokens, RPCs and the engine around them, on real backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.audio.tones import tone
from tests.webrtc.client import Client, Connection, connection
from tests.world import World, open_world
from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.bridge import Bridge
from whispr.config import SERVICES
from whispr.embed import Backends
from whispr.node import Node
from whispr.webrtc import sdp
from whispr.webrtc.ice import Credentials

SDP = {"content-type": "application/sdp"}
PATIENCE_S = 60
PUT_OUT_S = 5.0
"""Within a second, says the product; a busy machine may take longer."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@asynccontextmanager
async def published(http: httpx.AsyncClient, stream_id: str, key: str) -> AsyncIterator[Connection]:
    """Somebody who publishes a tone, until the block ends."""
    client = Client("sendonly")
    headers = {**SDP, "authorization": f"Bearer {key}"}
    reply = await http.post(f"/whip/{stream_id}", content=client.offer(), headers=headers)
    assert reply.status_code == 201, reply.text
    client.answered(reply.text)
    async with connection(client) as wire, trio.open_nursery() as nursery:
        await wire.connect()
        wire.location = reply.headers["location"]
        nursery.start_soon(_play, wire)
        yield wire
        nursery.cancel_scope.cancel(reason="tested")
    await http.delete(reply.headers["location"])


async def _play(wire: Connection) -> None:
    packets = tone(Rendition(Codec.OPUS, Quality.MEDIUM), 1.0)
    number, due = 0, trio.current_time()
    while True:
        await wire.send(wire.client.packet(number, packets[number % len(packets)].data))
        number, due = number + 1, due + 0.02
        await trio.sleep_until(due)


async def test_a_stream_from_its_key_to_its_end(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Published with the key, heard by somebody without an account and by a member who changes quality; then over."""
    async with open_world(db, cache, bus, tmp_path / "data") as world:
        created = await world.call(
            "StreamService/CreateStream", {"title": "a tone", "category": "MUSIC"}, "admin"
        )
        stream_id = created.stream.id
        with trio.fail_after(PATIENCE_S):
            base = f"http://127.0.0.1:{world.ports['gateway']}"
            async with httpx.AsyncClient(base_url=base) as http:
                await _told_no(http, stream_id, created.stream_key)
                await world.call("StreamService/StartStream", {"stream_id": stream_id}, "admin")
                async with published(http, stream_id, created.stream_key):
                    await _heard(world, http, stream_id)
                    anonymous = await _listener(http, stream_id, "")
                    async with connection(anonymous) as wire:
                        await wire.connect()
                        await wire.hear(10)
                        await world.call("StreamService/StopStream", {"stream_id": stream_id}, "admin")
                        with trio.fail_after(PUT_OUT_S):
                            while not anonymous.closed:
                                await wire.receive()
                    over = await http.post(f"/whep/{stream_id}", content=Client().offer(), headers=SDP)
                    assert over.status_code in (400, 409)


async def test_sessions_are_reached_through_either_of_two_nodes(
    db: Postgres, cache: Cache, bus: Bus, bridge: Bridge, backends: Backends, tmp_path: Path
) -> None:
    """Over the real bus: published here, heard there, and each session moved and ended through the other node."""
    assert backends.nats_url is not None
    async with (
        open_bus(bridge, backends.nats_url) as other,
        open_world(db, cache, bus, tmp_path / "data") as world,
        trio.open_nursery() as nursery,
    ):
        await other.wait_connected()
        there = Node(world.settings, SERVICES, db, cache, other)
        await nursery.start(there.run)
        created = await world.call("StreamService/CreateStream", {"title": "a tone"}, "admin")
        stream_id = created.stream.id
        await world.call("StreamService/StartStream", {"stream_id": stream_id}, "admin")
        with trio.fail_after(PATIENCE_S):
            async with (
                _at(world.ports["gateway"]) as here,
                _at(there.ports["gateway"]) as away,
                published(here, stream_id, created.stream_key) as publisher,
            ):
                session, etag, listener = await _session(away, stream_id)
                async with connection(listener) as wire:
                    await wire.connect()
                    await wire.hear(10)
                await _moved(here, session, etag, listener)
                assert (await here.delete(session)).status_code == 200
                assert (await away.delete(session)).status_code == 404
                assert (await here.delete(session)).status_code == 404
                with pytest.raises(AssertionError, match="source_connected"):
                    async with published(away, stream_id, created.stream_key):
                        pass
                assert (await away.delete(publisher.location)).status_code == 200
                while not publisher.client.closed:
                    await publisher.receive()
        nursery.cancel_scope.cancel(reason="tested")


def _at(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)


async def _moved(http: httpx.AsyncClient, session: str, etag: str, client: Client) -> None:
    """Have a listener begin ICE anew through a node, and go on hearing at another address with the same keys."""
    client.local = Credentials.new()
    headers = {"content-type": "application/trickle-ice-sdpfrag"}
    text = f"a=ice-ufrag:{client.local.ufrag}\r\na=ice-pwd:{client.local.password}\r\n"
    assert (await http.patch(session, content=text, headers=headers | {"if-match": etag})).status_code == 412
    reply = await http.patch(session, content=text, headers=headers | {"if-match": "*"})
    assert reply.status_code == 200, reply.text
    first, *media = sdp.parse_fragment(reply.text)
    client.remote = sdp.credentials_of(first, media[0])
    heard = len(client.received)
    async with connection(client) as wire:
        await wire.send(client.check())
        await wire.hear(heard + 20)


async def _told_no(http: httpx.AsyncClient, stream_id: str, key: str) -> None:
    """Before it is started, and with a wrong key or none, nobody publishes."""
    for bearer, status in ((key, 400), ("wrong", 401), ("", 401)):
        headers = SDP | ({"authorization": f"Bearer {bearer}"} if bearer else {})
        reply = await http.post(f"/whip/{stream_id}", content=Client("sendonly").offer(), headers=headers)
        assert reply.status_code in (status, 403), (bearer, reply.text)


async def _listener(http: httpx.AsyncClient, stream_id: str, token: str) -> Client:
    return (await _session(http, stream_id, token))[2]


async def _session(http: httpx.AsyncClient, stream_id: str, token: str = "") -> tuple[str, str, Client]:
    """Begin to listen once there is sound; returns the session's path, its ETag, and who listens."""
    client = Client()
    headers = SDP | ({"authorization": f"Bearer {token}"} if token else {})
    with trio.fail_after(PATIENCE_S):
        while True:
            reply = await http.post(f"/whep/{stream_id}", content=client.offer(), headers=headers)
            if reply.status_code != 409:
                break
            await trio.sleep(0.1)
    assert reply.status_code == 201, reply.text
    client.answered(reply.text)
    return reply.headers["location"], reply.headers["etag"], client


async def _heard(world: World, http: httpx.AsyncClient, stream_id: str) -> None:
    """A member hears packets, is listed, and hears another rendition by ChangeQuality without a hole."""
    client = await _listener(http, stream_id, world.token("member"))
    async with connection(client) as wire:
        await wire.connect()
        await wire.hear(50)
        listed: list[str] = []
        while listed != [world.id("member")]:  # other nodes are told every few seconds
            await wire.hear(len(client.received) + 10)
            answer: Any = await world.call("StreamService/GetListeners", {"stream_id": stream_id}, "admin")
            listed = [each.user_id for each in answer.listeners]
        wish = {"stream_id": stream_id, "quality": "LOW"}
        await world.call("StreamService/ChangeQuality", wish, "member")
        before = len(client.received)
        await wire.hear(before + 100)
        sequences = [each.sequence for each in client.received]
        assert {b - a & 0xFFFF for a, b in pairwise(sequences)} == {1}
        sizes = [len(each.payload) for each in client.received]
        assert sum(sizes[-20:]) / 20 < sum(sizes[:20]) / 20
