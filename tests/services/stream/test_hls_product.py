"""The whole product: FFmpeg and a browser publish; hls.js, MediaSource, WebCodecs and plain players hear it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.stream.player import CHROMIUM, installed_players, served
from tests.web.browser import Page, chromium
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.audio.packets import CLOCK_HZ
from whispr.services.stream.service import StreamService

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HZ = 1000


@dataclass
class OnAir:
    """A stream that has been started."""

    world: World
    gateway: str
    stream_id: str
    key: str

    @property
    def icecast(self) -> str:
        return f"icecast://source:{self.key}@{self.gateway.removeprefix('http://')}/ingest/{self.stream_id}"

    @property
    def master(self) -> str:
        return f"{self.gateway}/hls/{self.stream_id}/master.m3u8"

    async def page(self, page: Page, call: str, *more: object) -> None:
        """Call a function of the player's that takes a socket's address, a token and a topic."""
        url = f"ws://127.0.0.1:{self.world.ports['websocket']}/socket"
        arguments = [url, await self.world.new_token("member"), f"stream:{self.stream_id}", *more]
        await page.evaluate(f"{call}({', '.join(map(json.dumps, arguments))})")


@asynccontextmanager
async def on_air(db: Postgres, cache: Cache, bus: Bus, folder: Path) -> AsyncIterator[OnAir]:
    async with open_world(db, cache, bus, folder, websocket={"allowed_origins": ["*"]}) as world:
        streamer = await world.sign_up("premium")
        made = await world.call_with("StreamService/CreateStream", {"title": "a tone"}, streamer.token)
        stream_id = made.stream.id
        await world.call_with("StreamService/StartStream", {"stream_id": stream_id}, streamer.token)
        yield OnAir(world, f"http://127.0.0.1:{world.ports['gateway']}", stream_id, made.stream_key)


@asynccontextmanager
async def ffmpeg_sends(air: OnAir) -> AsyncIterator[None]:
    """Have FFmpeg publish a tone in real time, as Icecast's clients do."""
    found = shutil.which("ffmpeg")
    if found is None:
        pytest.skip("ffmpeg is not installed")
    command = [
        found, "-hide_banner", "-loglevel", "warning", "-re", "-f", "lavfi", "-i",
        f"sine=frequency={HZ}:sample_rate=48000,volume=4,aformat=channel_layouts=stereo",
        "-c:a", "libopus", "-b:a", "128k",
        "-page_duration", "20000", "-content_type", "audio/ogg", "-f", "ogg", air.icecast,
    ]  # fmt: skip
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, check=False, capture_stderr=True)
        nursery.start_soon(run)
        with trio.fail_after(30):
            await sent(air)
        yield
        nursery.cancel_scope.cancel(reason="the test is over")


async def sent(air: OnAir) -> None:
    """Wait until something is sent to the stream."""
    told, bitrate = {"stream_id": air.stream_id}, 0
    while not bitrate:
        await trio.sleep(0.2)
        bitrate = (await air.world.call("StreamService/GetAudioMetrics", told, "member")).current_bitrate


@asynccontextmanager
async def browser_page(tmp_path: Path) -> AsyncIterator[Page]:
    installed_players()
    async with served() as base, chromium(tmp_path / "profile", CHROMIUM) as browser:
        page = await browser.page(f"{base}/player.html")
        await page.until("window.ready")
        yield page


async def behind_s(air: OnAir, page: Page) -> float:
    """How far what is heard is behind what the stream has got to, by its own clock: the median of some looks."""
    assert air.world.node is not None
    service = next(each for each in air.world.node._making.drained if isinstance(each, StreamService))
    found = []
    for _ in range(11):
        await trio.sleep(0.3)
        live = service.lives.get(air.stream_id)
        assert live is not None
        found.append(live.now_pts / CLOCK_HZ - float(await page.evaluate("state.heard()")))
    return sorted(found)[len(found) // 2]


async def test_hls_js_plays_what_ffmpeg_sends(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> None:
    """Icecast in, LL-HLS out: time advances, the tone is the one that was sent, less than 2 s old."""
    async with (
        on_air(db, cache, bus, tmp_path / "data") as air,
        ffmpeg_sends(air),
        browser_page(tmp_path) as page,
    ):
        await page.evaluate(f"playHls({json.dumps(air.master)})")
        await page.until("audio.currentTime > 8")
        await page.until(f"correlation({HZ}) > 0.99")
        facts = await page.evaluate("facts()")
        print(f"LL-HLS: {(facts['now'] - facts['date']) / 1000:.2f} s")
        assert not [error for error in facts["errors"] if error.endswith("true")]
        assert facts["latency"] < 2.0


async def test_the_sound_comes_over_a_websocket_to_media_source(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Icecast in, fMP4 over the channel out, less than half a second old; another quality without a gap."""
    async with (
        on_air(db, cache, bus, tmp_path / "data") as air,
        ffmpeg_sends(air),
        browser_page(tmp_path) as page,
    ):
        await air.page(page, "playSource")
        await page.until("audio.currentTime > 0 && !audio.paused")
        await page.until(f"correlation({HZ}) > 0.99")
        stalls = (await page.evaluate("facts()"))["stalls"]
        behind = await behind_s(air, page)
        await page.evaluate("answered(state.channel.push('change_quality', {quality: 'LOW'}))")
        await trio.sleep(2)
        facts = await page.evaluate("facts()")
        print(f"WebSocket, MediaSource: {behind:.2f} s")
        assert facts["errors"] == []
        assert len(facts["buffered"]) == 1
        assert facts["stalls"] == stalls
        assert behind < 1.0


async def test_the_sound_comes_over_a_websocket_to_web_codecs(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """Icecast in, packets over the channel out, decoded and played one by one."""
    async with (
        on_air(db, cache, bus, tmp_path / "data") as air,
        ffmpeg_sends(air),
        browser_page(tmp_path) as page,
    ):
        await air.page(page, "playPackets")
        await page.until(f"correlation({HZ}) > 0.99")
        behind = await behind_s(air, page)
        print(f"WebSocket, WebCodecs: {behind:.2f} s")
        assert (await page.evaluate("facts()"))["errors"] == []
        assert behind < 1.0


async def test_a_browser_publishes_by_media_recorder(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """WebM in over the channel, what FFmpeg hears of it by progressive HTTP is the tone."""
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        pytest.skip("ffprobe is not installed")
    async with on_air(db, cache, bus, tmp_path / "data") as air, browser_page(tmp_path) as page:
        await air.page(page, "publishTone", air.key, HZ)
        await page.until("state.recorder?.state === 'recording'")
        await trio.sleep(4)
        assert (await page.evaluate("state.errors")) == []
        for path, codec in (
            (f"/listen/{air.stream_id}.ogg", "opus"),
            (f"/listen/{air.stream_id}.aac", "aac"),
        ):
            said = await probe(ffprobe, "-read_intervals", "%+4", "-show_packets", f"{air.gateway}{path}")
            assert said["streams"][0]["codec_name"] == codec
            assert len(said["packets"]) > 100
        said = await probe(ffprobe, "-read_intervals", "%+4", "-show_packets", air.master)
        assert len(said["packets"]) > 100
        assert {stream["codec_name"] for stream in said["streams"]} <= {"aac", "opus"}


async def probe(ffprobe: str, *arguments: str) -> Any:
    command = [ffprobe, "-v", "error", "-of", "json", "-show_streams", *arguments]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
