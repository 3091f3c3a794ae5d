"""Sound over a channel, both ways: on a real hub and real sockets, from a stream without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.audio.test_fmp4 import demux
from tests.services.stream.hearing import STREAM, Doorkeeper, TonedLive, a_stream
from whispr.audio.messages import decode_message, encode_message
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.errors import WhisprError, unauthenticated
from whispr.realtime.channel import Channel
from whispr.realtime.client import ClientChannel, Refused
from whispr.realtime.link import Link
from whispr.realtime.testing import Server, served
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Stream
from whispr.services.stream.listener import Transport, Wish
from whispr.services.stream.listening.publishing import WAITING_MAX, SocketSource
from whispr.services.stream.listening.websocket import CUT_S, SharedFrames, SocketSound

TOPIC = f"stream:{STREAM}"


@dataclass
class Fed:
    """What a source has sent."""

    live: TonedLive
    reason: str = ""
    packets: list[tuple[bytes, int | None]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)
    form: str = ""
    reads: trio.Event = field(default_factory=trio.Event)

    def opus(self, data: bytes, timestamp: int | None = None, *, lost: int = 0) -> None:
        self.packets.append((data, timestamp))

    async def keep_pace(self) -> None:
        await self.reads.wait()

    async def container(self, chunks: AsyncIterator[bytes], form: str) -> None:
        self.form = form
        async for chunk in chunks:
            await self.reads.wait()
            self.pieces.append(chunk)


@dataclass
class Studio:
    """A hub with one stream, which has no engine."""

    server: Server
    live: TonedLive
    door: Doorkeeper
    fed: Fed
    sounds: list[SocketSound] = field(default_factory=list)

    async def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.live.advance(0.1)
            await wait_all_tasks_blocked()

    # What a source asks for

    async def source_allowed(self, stream_id: str, shown: Shown) -> Stream:
        await trio.lowlevel.checkpoint()
        if shown.password != "the key":
            raise unauthenticated("not the stream's key", "bad_stream_key")
        return a_stream()

    @asynccontextmanager
    async def source(self, stream_id: str, options: Any) -> AsyncIterator[Fed]:
        await trio.lowlevel.checkpoint()
        assert (stream_id, options.kind) == (STREAM, "websocket")
        yield self.fed


class SoundChannel(Channel):
    """The sound of a stream's channel."""

    def __init__(self, link: Link, studio: Studio, shared: SharedFrames) -> None:
        super().__init__(link)
        self._studio = studio
        self._shared = shared
        studio_source = cast(Any, _Access(studio))
        self._source = SocketSource(link, cast(Any, studio), studio_source)

    @property
    def media(self) -> frozenset[str]:
        return frozenset({"audio"}) if self._source.on else frozenset()

    def handle_now(self, event: str, payload: object) -> object:
        if event == "audio" and isinstance(payload, bytes):
            return None if self._source.take_now(payload) else NotImplemented
        return NotImplemented

    async def handle(self, event: str, payload: object) -> object:
        await trio.lowlevel.checkpoint()
        match event:
            case "listen":
                door = self._studio.door
                listener = door._admit(Shown(), Transport.WEBSOCKET, "", "")
                sound = SocketSound(self.link, self._studio.live, listener, self._shared)
                self._studio.sounds.append(sound)
                return sound.begin(payload)
            case "publish":
                return self._source.begin(payload)
            case "audio":
                await self._source.take(cast(bytes, payload))
                return None
            case "unpublish":
                self._source.end()
                return None
            case _:
                return await super().handle(event, payload)


class _Access:
    def __init__(self, studio: Studio) -> None:
        self.source = studio.source_allowed


@asynccontextmanager
async def studio() -> AsyncIterator[Studio]:
    live, shared = TonedLive(), SharedFrames()
    live.advance(2.0)
    made: Studio
    async with served({"stream": lambda link: SoundChannel(link, made, shared)}) as server:
        made = Studio(server, live, Doorkeeper(), Fed(live))
        made.fed.reads.set()
        yield made


async def events(channel: ClientChannel, count: int) -> list[tuple[str, Any]]:
    return [await anext(channel) for _ in range(count)]


def opus(live: TonedLive, quality: Quality = Quality.MEDIUM) -> list[Packet]:
    return live.packets(Rendition(Codec.OPUS, quality), 0, live.now_pts)


async def test_fmp4_begins_with_the_last_moments_and_goes_on_without_a_hole(
    autojump_clock: MockClock,
) -> None:
    """What MediaSource is given, one after the other, is the stream's packets, bit for bit, at their times."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        said = cast(Any, await channel.push("listen", {"format": "fmp4"}))
        assert (said["mime"], said["quality"], said["sample_rate"]) == (
            'audio/mp4; codecs="opus"',
            "medium",
            48_000,
        )
        await s.advance(1.0)
        (name, init), *rest = await events(channel, 11)
        assert name == "audio_init"
        assert {event for event, _ in rest} == {"audio"}
        read = demux(init + b"".join(data for _, data in rest))[1]
        assert read == opus(s.live)[-len(read) :]
        assert len(read) == 50 + 15, "0.4 s from before the first batch's end"


async def test_packets_are_told_with_their_time(autojump_clock: MockClock) -> None:
    """What WebCodecs is given: one message for each 100 ms, and no initialisation."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        await channel.push("listen", {"format": "packets", "codec": "aac"})
        await s.advance(0.5)
        packets: list[Packet] = []
        for name, data in await events(channel, 4):
            assert name == "audio"
            codec, pts, payloads = decode_message(data)
            assert codec is Codec.AAC
            packets += [Packet(pts + i * 1024, 1024, each) for i, each in enumerate(payloads)]
        made = s.live.packets(Rendition(Codec.AAC, Quality.MEDIUM), 0, s.live.now_pts)
        assert packets == made[made.index(packets[0]) :][: len(packets)]


async def test_everybody_is_sent_the_same_frame(autojump_clock: MockClock) -> None:
    """A batch is encoded once for all who hear its rendition in that form."""
    async with studio() as s, s.server.connect("alice") as one, s.server.connect("bob") as two:
        first, second = await one.join(TOPIC), await two.join(TOPIC)
        for channel in (first, second):
            await channel.push("listen", {})
        shared = SharedFrames()
        batch = opus(s.live)[:5]
        frames = [
            shared.frame(s.live, TOPIC, _serializer(s), s.sounds[0]._form, Codec.OPUS, batch)
            for _ in range(2)
        ]
        assert frames[0] is frames[1]
        await s.advance(1.0)
        assert (await events(first, 11))[2:] == (await events(second, 11))[2:]


def _serializer(s: Studio) -> Any:
    return next(iter(s.server.hub.sockets)).serializer


async def test_change_quality_goes_on_with_the_next_packet(autojump_clock: MockClock) -> None:
    """Another rendition: no packet is missing, none comes twice, and nothing has to be set up anew."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        await channel.push("listen", {"format": "packets"})
        await s.advance(0.5)
        s.door.here[0].wants(Wish(quality=Quality.LOW))
        await s.advance(1.0)
        assert s.door.here[0].rendition is Quality.LOW
        packets = [each for _, data in await events(channel, 15) for each in decode_message(data)[2]]
        low, medium = [p.data for p in opus(s.live, Quality.LOW)], [p.data for p in opus(s.live)]
        begun = len(low) - len(packets)
        changed = next(at for at in range(len(packets)) if packets[at] != medium[begun + at])
        assert packets[changed:] == low[begun + changed :]
        assert 0 < changed < 50


async def test_auto_leads_down_who_runs_dry_and_up_again(autojump_clock: MockClock) -> None:
    """A player's own reports count: a rung down at once, and up after some time without trouble."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        await channel.push("listen", {"format": "packets"})
        listener = s.door.here[0]
        for seconds in range(20):
            if seconds == 3:
                listener.report(rebuffers=1)
            await trio.sleep(1.0)
            await s.advance(0.1)
            if seconds == 5:
                assert listener.rendition is Quality.LOW
        assert listener.rendition is Quality.MEDIUM


async def test_a_slow_listener_goes_on_at_the_live_edge_and_is_then_cut(autojump_clock: MockClock) -> None:
    """The kernel holds about a second for them; what comes meanwhile is left out, and other messages still wait."""
    async with studio() as s, s.server.wire("alice", receive_buffer_bytes=4096) as wire:
        s.door.wish = Wish(quality=Quality.ULTRA)
        await wire.send("1", "1", TOPIC, "phx_join", {})
        await wire.send("1", "2", TOPIC, "listen", {"format": "packets"})
        await s.advance(30.0)
        listener = s.door.here[0]
        assert listener.figures.dropped_frames > 500
        assert listener.figures.bytes_sent < 400_000
        last = 0
        while last < 30 * 48_000:
            item = await wire.receive_item()
            if isinstance(item, bytes) and b"audio" in item[:80]:
                last = decode_message(item[item.index(b"audio") + 5 :])[1]
            if s.live.now_pts < 60 * 48_000:
                s.live.advance(0.1)
        await s.advance(20.0)
        await trio.sleep(CUT_S + 1)
        await s.advance(0.2)
        assert listener.reason == "too_slow"
        assert not s.sounds[0].on


@pytest.mark.parametrize(("payload", "field"), [({"format": "mp3"}, "format"), ({"codec": "flac"}, "codec")])
async def test_what_there_is_not_is_refused(payload: object, field: str, autojump_clock: MockClock) -> None:
    """By the name of what is wrong."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        with pytest.raises(Refused) as refused:
            await channel.push("listen", payload)
        assert cast(Any, refused.value.response)["field"] == field


# ── publishing ──


async def test_a_recorders_bytes_reach_the_engine_in_order(autojump_clock: MockClock) -> None:
    """However many: they are no operations, which are limited to some hundred a minute."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        await channel.push("publish", {"key": "the key", "format": "webm"})
        pieces = [bytes([number % 256]) * 50 for number in range(1000)]
        receipts = []
        for number, piece in enumerate(pieces):
            receipts.append(channel.push_nowait("audio", piece))
            if number % 100 == 99:
                await receipts[-1].wait()
        await channel.push("unpublish", {})
        await wait_all_tasks_blocked()
        assert (s.fed.form, s.fed.pieces) == ("webm", pieces)


async def test_packets_reach_the_engine_with_their_time(autojump_clock: MockClock) -> None:
    """A native encoder need not wrap them; what is no message ends it, and says why."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        await channel.push("publish", {"key": "the key", "format": "packets"})
        packets = opus(s.live)[:5]
        await channel.push("audio", encode_message(Codec.OPUS, packets))
        assert s.fed.packets == [(p.data, p.pts if i == 0 else None) for i, p in enumerate(packets)]
        await channel.push("audio", b"nonsense")
        name, told = await anext(channel)
        assert (name, cast(Any, told)["reason"]) == ("publish_stopped", "invalid_payload")
        with pytest.raises(Refused) as refused:
            await channel.push("audio", b"more")
        assert refused.value.reason == "not_publishing"


@pytest.mark.parametrize("form", ["webm", "packets"])
async def test_a_source_that_sends_too_fast_is_held_back(form: str, autojump_clock: MockClock) -> None:
    """What waits is bounded; past that, pushes wait, and with them the socket."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        s.fed.reads = trio.Event()
        await channel.push("publish", {"key": "the key", "format": form})
        sound = encode_message(Codec.OPUS, opus(s.live)[:1])
        receipts = [channel.push_nowait("audio", sound) for _ in range(WAITING_MAX + 20)]
        await wait_all_tasks_blocked()
        assert sum(receipt.done for receipt in receipts) == WAITING_MAX + 1
        s.fed.reads.set()
        await receipts[-1].wait()
        await wait_all_tasks_blocked()
        assert len(s.fed.pieces or s.fed.packets) == len(receipts)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"key": "wrong"}, "bad_stream_key"),
        ({}, "bad_stream_key"),
        ({"format": "exe"}, "invalid_payload"),
        ({"key": 1}, "invalid_payload"),
    ],
)
async def test_nobody_publishes_without_the_key(
    payload: object, reason: str, autojump_clock: MockClock
) -> None:
    """And what is malformed is refused by name."""
    async with studio() as s, s.server.connect("alice") as phoenix:
        channel = await phoenix.join(TOPIC)
        with pytest.raises(Refused) as refused:
            await channel.push("publish", payload)
        assert refused.value.reason == reason
        with pytest.raises(WhisprError):
            await channel.push("audio", b"sound")
