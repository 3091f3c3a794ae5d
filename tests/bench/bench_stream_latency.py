"""Live audio from mouth to ear: how old what is heard is, by each transport.

    python -m tests.bench.bench_stream_latency [--seconds 22] [--json]

A source sends noise with a click every few seconds, each 20 ms of it when they are over, as a microphone brings them:
by packets, as WHIP does, and by FFmpeg's `icecast://`. Listeners by every transport, over real sockets, note when
each packet came, decode, and find the clicks. All of it is one process with one clock, so the time between a click's
being made and its being heard is what a listener lives with. A place in the sound is heard once a player has got
there, and players keep something back, which counts:

    WHEP              50 ms, the packet itself and a jitter buffer of 30 ms, which is Chromium's on a quiet path
    WebSocket         100 ms of raw packets, 300 ms of fMP4 (MediaSource)
    LL-HLS            what the playlist says, PART-HOLD-BACK, from its end; it is followed as hls.js does

FFmpeg's Ogg has pages of 1 s, of which it holds one back, unless it is told `-page_duration 20000`, as here: else
every sound is 2 s old before it is sent, and LL-HLS is at 3.2 s.

`stalls` says how often a player ran dry, after which it is farther behind: figures with stalls are of a busy machine.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import av
import httpx
import structlog
import trio

from tests.audio.test_fmp4 import demux
from tests.bench.bench_stream_listeners import SoundChannel
from tests.services.stream.hearing import STREAM as HEARD_AS
from tests.services.stream.hearing import Doorkeeper
from tests.services.stream.sounds import decoded, frame_of
from tests.services.stream.webrtc.rig import STREAM, Rig, rigged
from tests.webrtc.client import Client, connection
from whispr.asgi import HttpServer
from whispr.audio.messages import decode_message
from whispr.audio.opus import PACKET
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality
from whispr.realtime.testing import Server
from whispr.realtime.testing import served as served_hub
from whispr.services.stream.domain import Stream
from whispr.services.stream.engine.icecast import Icecast
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import EngineOptions, Lives, SourceOptions
from whispr.services.stream.listener import Wish
from whispr.services.stream.listening.hls import HlsOrigin
from whispr.services.stream.listening.shelves import Shelves
from whispr.services.stream.listening.websocket import SharedFrames

PERIOD_S = 4.0
"""Between clicks: longer than anything takes, so that it is known which click one is."""
FIRST_S = 1.0
CLICK_S = 0.004
PACKET_S = PACKET / CLOCK_HZ
SETTLE_S = 12.0
"""FFmpeg sends the first second at once, when it has made up its mind about its input: in so long that is let out."""
ASKED_MS = {"WHEP": 150, "WebSocket": 500, "LL-HLS": 2000}


@dataclass
class Result:
    """One transport. Milliseconds from a click's being made to its being heard."""

    transport: str
    median_ms: int
    worst_ms: int
    clicks: int
    stalls: int
    asked_ms: int


# ── the sound ──


def clicking(seconds: float) -> bytes:
    """Return noise with clicks: 16 bits, stereo, 48 kHz."""
    dice, second = random.Random(7), array("h")
    for _ in range(CLOCK_HZ):
        value = int(dice.gauss(0, 400))
        second.extend((value, value))
    sound = second * -(-int(seconds * 100) // 100)
    at = FIRST_S
    while at < seconds - 0.1:
        for number in range(round(CLICK_S * CLOCK_HZ)):
            place = (round(at * CLOCK_HZ) + number) * 2
            sound[place] = sound[place + 1] = 24_000 if number // 8 % 2 else -24_000
        at += PERIOD_S
    return sound.tobytes()


def encoded(pcm: bytes) -> list[bytes]:
    """Return it as packets of Opus, 128 kbps."""
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = CLOCK_HZ, "stereo", "s16", 128_000
    made: list[bytes] = []
    for at in range(0, len(pcm), PACKET * 4):
        made += [bytes(each) for each in encoder.encode(frame_of(pcm[at : at + PACKET * 4], at // 4))]
    return made


def clicks_of(samples: Sequence[float], first_pts: int) -> list[int]:
    """Return where clicks begin."""
    loud, found = 0.4 * max(map(abs, samples)), list[int]()
    for number, value in enumerate(samples):
        if abs(value) > loud and (not found or number + first_pts - found[-1] > CLOCK_HZ):
            found.append(number + first_pts)
    return found


# ── what is heard ──


@dataclass
class Heard:
    """What has come to one listener, and when."""

    transport: str
    buffer_s: float
    codec: Codec = Codec.OPUS
    packets: list[tuple[float, Packet]] = field(default_factory=list)
    zero_at: float | None = None
    """When the stream's clock was 0, by the player's; None before it plays."""
    stalls: int = 0

    def play(self) -> None:
        """Be the player: begin with enough, and go on when what is due has come."""
        first = self.packets[0][1].pts
        for arrival, packet in self.packets:
            end = packet.pts + packet.duration
            if self.zero_at is None:
                if end - first >= self.buffer_s * CLOCK_HZ:
                    self.zero_at = arrival - end / CLOCK_HZ + self.buffer_s
            elif arrival > self.zero_at + packet.pts / CLOCK_HZ:
                self.zero_at = arrival - packet.pts / CLOCK_HZ
                self.stalls += 1

    def result(self, began_at: float) -> Result:
        """Compare what was heard with what was said."""
        self.play()
        assert self.zero_at is not None, f"{self.transport}: too little came"
        packets = [packet for _, packet in self.packets]
        found = clicks_of(decoded(packets, self.codec), packets[0].pts)
        late = [(self.zero_at + pts / CLOCK_HZ - began_at - FIRST_S) % PERIOD_S for pts in found]
        median, worst = round(statistics.median(late) * 1000), round(max(late) * 1000)
        asked = next(ms for name, ms in ASKED_MS.items() if self.transport.startswith(name))
        return Result(self.transport, median, worst, len(late), self.stalls, asked)


# ── listeners ──


async def by_whep(rig: Rig, heard: Heard, quality: Quality) -> None:
    """Listen by WebRTC."""
    client = Client()
    rig.audience.wish = Wish(quality=quality)
    async with httpx.AsyncClient() as http:
        kind = {"content-type": "application/sdp"}
        reply = await http.post(rig.url(f"/whep/{STREAM}"), content=client.offer(), headers=kind)
    assert reply.status_code == 201, reply.text
    client.answered(reply.text)
    async with connection(client) as wire:
        await wire.connect()
        first, known = -1, 0
        while True:
            await wire.receive()
            now = trio.current_time()
            for packet in client.received[known:]:
                first = packet.timestamp if first < 0 else first
                pts = packet.timestamp - first & 0xFFFFFFFF
                heard.packets.append((now, Packet(pts, PACKET, packet.payload)))
            known = len(client.received)


async def by_websocket(server: Server, heard: Heard, form: str) -> None:
    """Listen by a channel."""
    async with server.connect(f"by-{form}") as phoenix:
        channel = await phoenix.join(f"stream:{HEARD_AS}")
        await channel.push("listen", {"format": form})
        init = b""
        async for event, data in channel:
            now = trio.current_time()
            if event == "audio_init":
                init = cast(bytes, data)
            elif form == "fmp4":
                heard.packets += [(now, each) for each in demux(init + cast(bytes, data))[1]]
            else:
                _, pts, packets = decode_message(cast(bytes, data))
                heard.packets += [
                    (now, Packet(pts + number * PACKET, PACKET, each)) for number, each in enumerate(packets)
                ]


async def by_hls(base: str, heard: Heard) -> None:
    """Follow the playlist of parts as hls.js does: ask for the one that has the next part, then for the part."""
    async with httpx.AsyncClient(base_url=base) as http:
        master = (await http.get(f"/hls/{STREAM}/master.m3u8")).text
        found = re.search(r"^.*aac-\w+/live\.m3u8$", master, re.M)
        assert found is not None, master
        folder = f"/hls/{STREAM}/{found[0].removesuffix('live.m3u8')}"
        text = (await http.get(f"{folder}live.m3u8")).text
        init = (await http.get(f"{folder}init.mp4")).content
        back = re.search(r"PART-HOLD-BACK=([\d.]+)", text)
        assert back is not None, text
        while True:
            msn, part = map(int, re.findall(r'PRELOAD-HINT:TYPE=PART,URI="(\d+)\.(\d+)\.m4s"', text)[-1])
            reply = await http.get(f"{folder}live.m3u8?_HLS_msn={msn}&_HLS_part={part}&_HLS_skip=YES")
            if reply.status_code != 200:
                return
            text, told_at = reply.text, trio.current_time()
            data = (await http.get(f"{folder}{msn}.{part}.m4s")).content
            packets, now = demux(init + data)[1], trio.current_time()
            if heard.zero_at is None:
                end = packets[-1].pts + packets[-1].duration
                heard.zero_at = told_at - end / CLOCK_HZ + float(back[1])
            heard.packets += [(now, each) for each in packets]


# ── sources ──


async def by_packets(lives: Lives, pcm: bytes, began: Callable[[float], None]) -> None:
    """Be a source of packets."""
    packets = encoded(pcm)
    async with lives.source(STREAM, SourceOptions(kind="whip")) as feed:
        began_at = trio.current_time()
        began(began_at)
        for number, packet in enumerate(packets):
            await trio.sleep_until(began_at + (number + 1) * PACKET_S)
            feed.opus(packet, number * PACKET)


async def by_ffmpeg(port: int, pcm: bytes, began: Callable[[float], None], *form: str) -> None:
    """Have FFmpeg be a source that is sent samples as a microphone brings them."""
    command = [
        "ffmpeg", "-hide_banner", "-loglevel", "error", "-f", "s16le", "-ar", "48000", "-ac", "2", "-i", "pipe:0",
        *form, f"icecast://source:key@127.0.0.1:{port}/ingest/{STREAM}",
    ]  # fmt: skip
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    began_at = trio.current_time()
    began(began_at)
    try:
        for number in range(len(pcm) // (PACKET * 4)):
            await trio.sleep_until(began_at + (number + 1) * PACKET_S)
            await process.stdin.send_all(pcm[number * PACKET * 4 : (number + 1) * PACKET * 4])
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


# ── a run ──


@dataclass
class Studio:
    """What serves all transports of the engine's one stream."""

    lives: Lives
    rig: Rig
    hls: str
    sockets: Callable[[Live], Any]
    ingest_port: int


@asynccontextmanager
async def studio() -> AsyncIterator[Studio]:
    """Serve, until the block ends."""
    lives, door, shared = Lives(EngineOptions()), Doorkeeper(), SharedFrames()

    async def find(stream_id: str) -> Live | None:
        await trio.lowlevel.checkpoint()
        return lives.get(STREAM)

    async def describe(*_: object) -> Stream:
        await trio.lowlevel.checkpoint()
        return door.stream

    class Everybody(Doorkeeper):
        """Knows the stream by either name."""

        async def open_session(self, stream_id: str, *rest: Any) -> Any:
            return await super().open_session(HEARD_AS, *rest)

        async def source(self, stream_id: str, shown: object) -> Stream:
            await trio.lowlevel.checkpoint()
            return Stream(
                id=stream_id, title="", streamer_id="u", streamer_username="u",
                created_at=door.stream.created_at,
            )  # fmt: skip

    shelves, admits = Shelves(find), cast(Any, Everybody())
    origin = HlsOrigin(shelves, admits, describe, lambda scope, headers: "")
    ingest = Icecast(lives, admits, cast(Any, describe))

    def sockets(live: Live) -> Any:
        return served_hub({"stream": lambda link: SoundChannel(link, cast(Any, live), door, shared)})

    async with rigged(engine=lives) as rig, trio.open_nursery() as nursery:
        await nursery.start(lives.run)
        await nursery.start(shelves.run)
        hls = await nursery.start(HttpServer(origin).serve_tcp, "127.0.0.1", 0)
        port = await nursery.start(HttpServer(ingest).serve_tcp, "127.0.0.1", 0)
        yield Studio(lives, rig, f"http://127.0.0.1:{hls}", sockets, port)
        nursery.cancel_scope.cancel(reason="measured")


Source = Callable[[Studio, bytes, Callable[[float], None]], Any]


async def run(
    source: Source, seconds: float, what: Sequence[str], told: str, settle_s: float = 0.0
) -> list[Result]:
    """Have one source heard by these transports, from `settle_s` after its beginning."""
    began_at, results = list[float](), list[Heard]()
    async with studio() as s, trio.open_nursery() as nursery:
        nursery.start_soon(source, s, clicking(seconds), began_at.append)
        # The engine has no event for the end of a stream's first second, in which its bitrate is known.
        while (live := s.lives.get(STREAM)) is None or not live.source.bitrate_bps:  # noqa: ASYNC110 - as said
            await trio.sleep(0.05)
        await trio.sleep_until(began_at[0] + settle_s)
        async with s.sockets(live) as server:
            listeners: dict[str, tuple[float, Callable[[Heard], Any]]] = {
                "WHEP, passed": (0.05, lambda heard: by_whep(s.rig, heard, Quality.ULTRA)),
                "WHEP, encoded": (0.05, lambda heard: by_whep(s.rig, heard, Quality.LOW)),
                "WebSocket, raw Opus": (0.1, lambda heard: by_websocket(server, heard, "packets")),
                "WebSocket, fMP4": (0.3, lambda heard: by_websocket(server, heard, "fmp4")),
                "LL-HLS": (0.0, lambda heard: by_hls(s.hls, heard)),
            }
            for name in what:
                buffer_s, listen = listeners[name]
                codec = Codec.AAC if name == "LL-HLS" else Codec.OPUS
                heard = Heard(name + told, buffer_s, codec)
                results.append(heard)
                nursery.start_soon(listen, heard)
                await trio.sleep(0.2)  # the wish that each comes with is the rig's, one at a time
            await trio.sleep_until(began_at[0] + seconds)
            nursery.cancel_scope.cancel(reason="measured")
    return [each.result(began_at[0]) for each in results]


OGG = (
    "-c:a",
    "libopus",
    "-b:a",
    "128k",
    "-f",
    "ogg",
    "-page_duration",
    "20000",
    "-content_type",
    "audio/ogg",
)
MP3 = ("-c:a", "libmp3lame", "-b:a", "128k", "-f", "mp3", "-content_type", "audio/mpeg")
EVERYTHING = ("WHEP, passed", "WHEP, encoded", "WebSocket, raw Opus", "WebSocket, fMP4", "LL-HLS")


def measure(seconds: float, *, icecast: bool = True) -> list[Result]:
    """Return all of it."""

    async def packets(s: Studio, pcm: bytes, began: Callable[[float], None]) -> None:
        await by_packets(s.lives, pcm, began)

    async def ffmpeg(*form: str, s: Studio, pcm: bytes, began: Callable[[float], None]) -> None:
        await by_ffmpeg(s.ingest_port, pcm, began, *form)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    found = trio.run(run, packets, seconds, EVERYTHING, "")
    for form, told in ((OGG, ", Icecast Ogg"), (MP3, ", Icecast MP3")) if icecast else ():
        source = lambda s, pcm, began, form=form: ffmpeg(*form, s=s, pcm=pcm, began=began)  # noqa: E731 - bound to its form
        found += trio.run(partial(run, source, seconds + SETTLE_S, ("LL-HLS",), told, SETTLE_S))
    return found


def line(each: Result) -> str:
    """Say it."""
    met = "met" if each.median_ms <= each.asked_ms else "NOT met"
    return (
        f"{each.transport:<24} {each.median_ms:5} ms, at worst {each.worst_ms:5} ms, of {each.clicks} clicks,"
        f" {each.stalls} stalls; asked {each.asked_ms}: {met}"
    )


def main(say: Callable[[str], None] = print) -> None:
    """Take the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=22.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.seconds)
    if options.json:
        say(json.dumps([asdict(each) for each in found]))
        return
    for each in found:
        say(line(each))


if __name__ == "__main__":
    main()
