"""The product's pages in Firefox: they load, and a stream from ffmpeg plays by every way that sound comes to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.product import Product
from tests.services.stream.peers.firefox import MICROPHONE, Firefox, firefox, installed
from tests.web.conftest import product, shots
from tests.web.pages import PASSWORD
from tests.web.test_stream_pages import HEARING, TONE_HZ, may_stream

__all__ = ["product", "shots"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ENTER = "\ue007"


@asynccontextmanager
async def tone_on_air(product: Product) -> AsyncIterator[str]:
    """Have ffmpeg send a tone in real time, as Icecast's clients do; gives the path where people listen."""
    ffmpeg, token = installed("ffmpeg"), may_stream(product, f"sam-{uuid4().hex[:8]}")
    wanted = {"title": "A tone from ffmpeg", "visibility": "PUBLIC_STREAM"}
    status, made = product.call("POST", "/v1/streams", wanted, token)
    assert status == 200, made
    stream_id = made["stream"]["id"]
    status, started = product.call("POST", f"/v1/streams/{stream_id}/start", {}, token)
    assert status == 200, started
    url = f"icecast://source:{made['stream_key']}@127.0.0.1:{product.ports['gateway']}/ingest/{stream_id}"
    command = [
        ffmpeg, "-hide_banner", "-loglevel", "warning", "-re", "-f", "lavfi",
        "-i", f"sine=frequency={TONE_HZ}:sample_rate=48000,volume=4,aformat=channel_layouts=stereo",
        "-c:a", "libopus", "-b:a", "128k", "-page_duration", "20000", "-content_type", "audio/ogg",
        "-f", "ogg", url,
    ]  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, command, check=False, capture_stderr=True))
        yield f"/listen/{stream_id}/"
        nursery.cancel_scope.cancel(reason="the test is over")


async def plays(browser: Firefox, way: str, shot: Path) -> None:
    """Press the button: it plays by this way, time advances, and the tone is what is heard."""
    await browser.until("document.querySelector('.play-button')")
    await browser.evaluate(f"(() => {{ {HEARING} }})()")
    await browser.click(".play-button")
    await browser.until(f"document.querySelector('.status-line').innerText === 'Playing by {way}'", 50)
    await browser.until(f"correlation({TONE_HZ}) > 0.95")
    before = await browser.evaluate("document.querySelector('audio').currentTime")
    await browser.until(f"document.querySelector('audio').currentTime > {before} + 1")
    await browser.until(f"correlation({TONE_HZ}) > 0.95")
    await browser.click("details.how summary")
    await browser.until("document.querySelector('.facts').innerText.includes('Held in the buffer')")
    assert not await browser.evaluate("/\\b(null|undefined|NaN)\\b/.test(document.body.innerText)")
    await browser.screenshot(shot)


async def test_the_pages_load(product: Product, tmp_path: Path, shots: Path) -> None:
    """Nothing that a script or the security policy complains about, signed in or not."""
    async with firefox(tmp_path) as browser:
        for path in ("/", "/console", "/live/", "/listen/", "/docs"):
            await browser.open(product.url(path))
            await browser.until("document.readyState === 'complete' && document.body.innerText.length > 20")
            await browser.screenshot(shots / f"firefox-{path.strip('/') or 'chat'}.png")
        await browser.open(product.url("/"))
        await sign_in(browser, "root")
        await browser.until("document.querySelector('.sidebar')")
        await browser.screenshot(shots / "firefox-signed-in.png")
        await browser.open(product.url("/console"))
        await sign_in(browser, "root")  # its session is its own
        await browser.until("document.querySelector('main') && document.body.innerText.includes('Overview')")
        await browser.screenshot(shots / "firefox-console-overview.png")
        assert await faults(browser) == []


async def faults(browser: Firefox) -> list[list[str]]:
    """What Firefox says of our pages: not of its own, nor of formats and ways that a player tries and it has not."""
    return [each for each in await browser.complaints() if each[0].startswith("http") and each[1] != "Media"]


async def sign_in(browser: Firefox, username: str) -> None:
    await browser.type("input[name=username]", username)
    await browser.type("input[name=password]", PASSWORD + ENTER)


async def test_a_stream_plays_by_every_way(product: Product, tmp_path: Path, shots: Path) -> None:
    """By WebRTC; by a WebSocket where UDP does not get through; by plain HTTP for who has neither."""
    async with tone_on_air(product) as path, firefox(tmp_path) as browser:
        await browser.open(product.url(path))
        await browser.evaluate(MICROPHONE)
        await plays(browser, "WebRTC (WHEP)", shots / "firefox-webrtc.png")
        # Without a microphone Firefox has no address that the server, at a loopback one, could be reached from.
        await browser.open(product.url("/"))
        await sign_in(browser, "root")
        await browser.until("document.querySelector('.sidebar')")
        await browser.open(product.url(path))
        await plays(browser, "WebSocket", shots / "firefox-websocket.png")
        await browser.evaluate("(localStorage.clear(), sessionStorage.clear())")
        await browser.open(product.url(path))
        await plays(browser, "plain HTTP", shots / "firefox-http.png")
        assert await faults(browser) == []
