"""hls.js as published, in Chromium, plays what the origin serves, and the tone that was sent is what is heard."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.services.stream.hearing import STREAM, Doorkeeper, TonedLive, finder
from tests.services.stream.player import CHROMIUM, in_real_time, installed_players, served
from tests.web.browser import Page, chromium
from whispr.audio.packets import Quality
from whispr.services.stream.domain import Stream
from whispr.services.stream.listener import Wish
from whispr.services.stream.listening.hls import HlsOrigin
from whispr.services.stream.listening.shelves import Shelves

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TONES = {Quality.LOW: 468.75, Quality.MEDIUM: 937.5, Quality.HIGH: 1406.25, Quality.ULTRA: 1875.0}
"""Whole waves in every frame of AAC, so that a second of it can be repeated; another for each quality."""
SETTLED_S = 6.0
LOST_S_MAX = 1.0
"""How long a player may have stood still, on a machine that does other things, too. A hole would be 1.92 s long."""


def lost_s(before: dict[str, Any], after: dict[str, Any]) -> float:
    """How much less the player has played than time has passed."""
    return float((after["now"] - before["now"]) / 1000 - (after["time"] - before["time"]))


@dataclass
class Playing:
    """A page that plays a stream, and what it plays from."""

    page: Page
    live: TonedLive
    door: Doorkeeper

    async def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = await self.page.evaluate("facts()")
        assert not [error for error in facts["errors"] if "true" in error], facts
        return facts

    async def hears(self, quality: Quality) -> None:
        """Wait until the tone of a quality is heard, and nothing but it."""
        await self.page.until(f"correlation({TONES[quality]}) > 0.99")

    async def change(self, quality: str) -> None:
        await self.page.evaluate(f"state.hls.loadLevel = level('{quality}')")


@asynccontextmanager
async def playing(tmp_path: Path, *, on_demand: bool = False, **options: Any) -> AsyncIterator[Playing]:
    """Play the stream by hls.js with these options."""
    installed_players()
    live, door = TonedLive(TONES, on_demand=on_demand), Doorkeeper()
    live.started_at = datetime.now(UTC)
    shelves = Shelves(finder(live))

    async def describe(stream_id: str) -> Stream:
        await trio.lowlevel.checkpoint()
        return door.stream

    origin = HlsOrigin(shelves, cast(Any, door), describe, lambda scope, headers: "127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(shelves.run)
        nursery.start_soon(in_real_time, [live])
        async with served(("/hls/", origin)) as base, chromium(tmp_path / "profile", CHROMIUM) as browser:
            page = await browser.page(f"{base}/player.html")
            await page.until("window.ready")
            await page.evaluate(f"playHls('/hls/{STREAM}/master.m3u8', {json.dumps(options)})")
            await page.until(f"audio.currentTime > {SETTLED_S}")
            yield Playing(page, live, door)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_low_latency_hls_plays_the_tone_within_two_seconds(tmp_path: Path) -> None:
    """Time advances, without a stall once it plays; what is heard is the tone; it is less than 2 s old."""
    async with playing(tmp_path, on_demand=True, startLevel=1) as player:
        before = await player.facts()
        await player.page.until(f"audio.currentTime > {before['time'] + 4}")
        after = await player.facts()
        assert lost_s(before, after) < LOST_S_MAX
        assert len(after["buffered"]) == 1
        assert after["hz"] in [pytest.approx(hz, abs=6) for hz in TONES.values()]
        heard = next(quality for quality, hz in TONES.items() if abs(hz - after["hz"]) < 6)
        await player.hears(heard)
        latency_s = (after["now"] - after["date"]) / 1000
        print(f"LL-HLS latency: {latency_s:.2f} s by the clock, {after['latency']:.2f} s by hls.js")
        assert after["latency"] < 2.0
        assert latency_s < 2.5


@pytest.mark.parametrize("codec", ["aac", "opus"])
async def test_another_quality_goes_on_without_a_gap(tmp_path: Path, codec: str) -> None:
    """hls.js changes to another rendition, up and down: no stall, no hole in what it has buffered."""
    async with playing(tmp_path) as player:
        before = await player.facts()
        for quality in (Quality.LOW, Quality.ULTRA, Quality.MEDIUM):
            await player.change(f"{codec}-{quality}")
            await player.hears(quality)
        after = await player.facts()
        assert lost_s(before, after) < LOST_S_MAX
        assert len(after["buffered"]) == 1, after
        assert after["levels"][-2:] == [f"{codec}-ultra", f"{codec}-medium"]
        assert after["latency"] < 2.0


async def test_change_quality_by_the_server_is_heard_without_a_gap(tmp_path: Path) -> None:
    """A pinned rendition is heard though the player asks for another, and nothing stalls; AUTO gives it back."""
    async with playing(tmp_path) as player:
        await player.change("aac-high")
        await player.hears(Quality.HIGH)
        before = await player.facts()
        listener = player.door.sessions["session0"]
        listener.wants(Wish(quality=Quality.LOW))
        await player.hears(Quality.LOW)
        assert listener.rendition is Quality.LOW
        listener.wants(Wish())
        await player.hears(Quality.HIGH)
        after = await player.facts()
        assert lost_s(before, after) < LOST_S_MAX
        assert len(after["buffered"]) == 1


async def test_a_player_without_low_latency_plays_whole_segments(tmp_path: Path) -> None:
    """The same playlists serve it: it leaves out what it does not know."""
    async with playing(tmp_path, lowLatencyMode=False) as player:
        before = await player.facts()
        await player.page.until(f"audio.currentTime > {before['time'] + 4}")
        after = await player.facts()
        assert lost_s(before, after) < LOST_S_MAX
        assert all("." not in each for each in after["loaded"])
        print(f"HLS latency: {after['latency']:.2f} s by hls.js")


async def test_the_end_of_a_stream_ends_the_player(tmp_path: Path) -> None:
    """It plays what there is, to the end, and is told that it was the end."""
    async with playing(tmp_path) as player:
        player.live.end("stopped")
        await player.page.until("audio.ended")
        assert not [error for error in (await player.facts())["errors"] if error.endswith("true")]
