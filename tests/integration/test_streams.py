"""Streams through the whole product: a source on one socket, a listener on another, gRPC and REST beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.audio.tones import tone
from tests.integration.succeeding import until
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.audio.messages import decode_message, encode_message
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.realtime.client import ClientChannel, Refused, open_phoenix

PATIENCE_S = 20.0


async def next_of(channel: ClientChannel, wanted: str) -> Any:
    """The payload of the next event of a kind."""
    with trio.fail_after(PATIENCE_S):
        while True:
            event, payload = await channel.__anext__()
            if event == wanted:
                return payload


async def send_tone(channel: ClientChannel) -> None:
    """Publish a tone in real time, until cancelled or the stream has been stopped."""
    packets = list(tone(Rendition(Codec.OPUS, Quality.MEDIUM), 5.0))
    began = time.monotonic()
    for start in range(0, 1_000_000, 5):
        batch = [
            Packet(number * 960, 960, packets[number % len(packets)].data)
            for number in range(start, start + 5)
        ]
        try:
            await channel.push("audio", encode_message(Codec.OPUS, batch))
        except Refused as error:
            if error.reason != "not_publishing":
                raise
            return
        await trio.sleep(max(0.0, began + start * 0.02 - time.monotonic()))


@pytest.mark.slow
async def test_sound_from_socket_to_socket(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """What the streamer sends is heard, measured, recorded and counted; who is put out hears no more."""
    async with open_world(db, cache, bus, tmp_path, stream={"grace_s": 1}) as world:
        made = await world.call("StreamService/CreateStream", {"title": "live", "category": "MUSIC"})
        stream_id, what = made.stream.id, {"stream_id": made.stream.id}
        await world.call("StreamService/StartStream", {**what, "config": {"enable_recording": True}})
        url = f"ws://127.0.0.1:{world.ports['websocket']}"
        async with (
            open_phoenix(url, world.token("owner")) as streamers,
            open_phoenix(url, world.token("member")) as listeners,
            trio.open_nursery() as nursery,
        ):
            own, heard = [await s.join(f"stream:{stream_id}") for s in (streamers, listeners)]
            with pytest.raises(Refused) as early:
                await heard.push("listen", {"format": "packets"})
            assert early.value.reason == "no_source"
            await own.push("publish", {"key": made.stream_key, "format": "packets"})
            nursery.start_soon(send_tone, own)
            assert (await next_of(heard, "source_changed"))["connected"]
            begun: Any = await heard.push("listen", {"format": "packets", "quality": "LOW"})
            assert (begun["codec"], begun["quality"]) == ("opus", "low")
            codec, _, packets = decode_message(await next_of(heard, "audio"))
            assert codec is Codec.OPUS
            assert packets
            changed: Any = await heard.push("change_quality", {"quality": "HIGH"})
            assert changed["quality"] == "HIGH"
            assert (await next_of(heard, "quality_changed"))["quality"] == "HIGH"
            await heard.push("report", {"buffer_ms": 300, "rebuffers": 1})
            await self_describes(world, what, heard)
            removal = {**what, "user_id": world.id("member")}
            await world.call("StreamService/RemoveListener", removal)
            assert (await next_of(heard, "removed"))["stream_id"] == stream_id
            with pytest.raises(Refused) as out:
                await listeners.join(f"stream:{stream_id}")
            assert out.value.reason == "not_found"
            await world.call("StreamService/StopStream", what)
            assert (await next_of(own, "stream_stopped"))["reason"] == "stopped"
            nursery.cancel_scope.cancel(reason="the stream is over")
        await it_is_kept(world, what)


async def self_describes(world: World, what: Mapping[str, Any], heard: ClientChannel) -> None:
    """While it is heard, everything says so."""
    metrics = await until(
        world, "StreamService/GetAudioMetrics", what,
        lambda m: m.listener_count == 1 and m.levels.momentary > -60 and m.current_bitrate > 0
        and m.quality_stats.rebuffer_events == 1,
        world.token("member"),
    )  # fmt: skip
    assert (metrics.source_kind, metrics.source_codec, metrics.has_source) == ("websocket", "opus", True)
    with trio.fail_after(PATIENCE_S):
        while (await next_of(heard, "levels"))["momentary"] is None:
            await trio.lowlevel.checkpoint()
    body = {**what, "metadata": {"artist": "Ann", "current_track": "Song"}}
    await world.call("StreamService/UpdateStream", body)
    assert (await next_of(heard, "metadata_updated"))["metadata"]["artist"] == "Ann"
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{world.ports['gateway']}") as client:
        headers = {"authorization": f"Bearer {world.token('member')}"}
        shown = (await client.get(f"/v1/streams/{what['stream_id']}", headers=headers)).json()["stream"]
        assert (shown["status"], shown["listener_count"], shown["has_source"]) == ("LIVE", 1, True)
        listed = (await client.get("/v1/streams", headers=headers, params={"category": "MUSIC"})).json()
        assert [each["id"] for each in listed["streams"]] == [what["stream_id"]]


async def it_is_kept(world: World, what: Mapping[str, Any]) -> None:
    """After its end there are the recording, the figures, and the listener's history."""
    kept = await until(
        world, "StreamService/GetRecordings", {},
        lambda answer: answer.recordings[0].file_url != "", world.token("owner"),
    )  # fmt: skip
    async with httpx.AsyncClient() as client:
        answer = await client.get(kept.recordings[0].file_url, headers={"range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, b"OggS")
    figures = await until(
        world, "StreamService/GetStreamAnalytics", what,
        lambda answer: answer.unique_listeners == 1 and answer.hourly_activity
        and answer.hourly_activity[0].listeners_left == 1,
        world.token("owner"),
    )  # fmt: skip
    assert figures.max_concurrent == 1
    assert set(figures.quality_distribution) >= {"low", "high"}
    history = await world.call("StreamService/GetUserListeningHistory", {}, "member")
    assert [each.transport for each in history.sessions] == ["websocket"]


@pytest.mark.slow
async def test_a_stream_with_its_room(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """The room is made with the stream and closed with it; of a private stream whoever may listen may enter."""
    async with open_world(db, cache, bus, tmp_path) as world:
        body = {"title": "talk", "visibility": "PRIVATE_STREAM"}
        stream_id = (await world.call("StreamService/CreateStream", body)).stream.id
        what = {"stream_id": stream_id}
        started = await world.call("StreamService/StartStream", {**what, "config": {"enable_chat": True}})
        room = {"room_id": started.stream.room_id}
        with pytest.raises(Exception, match="no such"):
            await world.call("ChatService/JoinRoom", room, "member")
        await world.call("StreamService/InviteListener", {**what, "user_id": world.id("member")})
        await world.call("StreamService/JoinStream", what, "member")
        await world.call("ChatService/JoinRoom", room, "member")
        await world.call("StreamService/StopStream", what)
        await until(
            world, "ChatService/GetRoomInfo", room, lambda answer: not answer.room.is_active,
            world.token("member"),
        )  # fmt: skip
