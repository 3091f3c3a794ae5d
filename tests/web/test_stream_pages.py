"""The pages of live audio in Chromium: one goes live, others listen, by every way that sound comes to a page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.product import Product
from tests.services.stream.player import CHROMIUM
from tests.web.browser import Browser, Page, chromium
from tests.web.pages import PASSWORD, assert_accessible, say, sign_in, sign_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

TONE_HZ = 440
HEARING = """
    window.taps = [];
    const Own = AnalyserNode;
    window.AnalyserNode = class extends Own { constructor(...given) { super(...given); taps.push(this); } };
    // How what is heard correlates with a tone of this frequency, whatever its phase: 1 is nothing but that tone.
    window.correlation = (hz) => {
      const tap = taps.at(-1), wave = new Float32Array(tap.fftSize);
      tap.getFloatTimeDomainData(wave);
      let sine = 0, cosine = 0, power = 0;
      wave.forEach((sample, index) => {
        const angle = (2 * Math.PI * hz * index) / tap.context.sampleRate;
        sine += sample * Math.sin(angle); cosine += sample * Math.cos(angle); power += sample * sample;
      });
      return power < 1e-3 ? 0 : Math.sqrt((2 * (sine * sine + cosine * cosine)) / (wave.length * power));
    };
"""
"""Keeps what the page measures its level by, which is what it plays."""


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """Chromium with a microphone that is none."""
    async with chromium(tmp_path / "profile", CHROMIUM) as browser:
        yield browser


def may_stream(product: Product, username: str) -> str:
    """Make somebody who may stream; returns their token."""
    user_id, _ = product.sign_up(username)
    _, administrator = product.call("POST", "/v1/auth/login", {"username": "root", "password": PASSWORD})
    path = f"/v1/auth/users/{user_id}/role"
    status, said = product.call("PUT", path, {"role": "premium"}, administrator["access_token"])
    assert status == 200, said
    status, own = product.call("POST", "/v1/auth/login", {"username": username, "password": PASSWORD})
    assert status == 200, own
    return str(own["access_token"])


async def studio(browser: Browser, product: Product) -> tuple[Page, str]:
    """Open the page to go live as somebody who may; returns their token, too."""
    username = f"sam-{uuid4().hex[:8]}"
    token = may_stream(product, username)
    page = await browser.page(product.url("/live/"), height=1000)
    await page.click("main button", "Sign in")
    await sign_in(page, username)
    await page.until("document.querySelector('form.setup')")
    return page, token


async def choose(page: Page, selector: str, value: str) -> None:
    """Choose an option."""
    await page.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        " e.dispatchEvent(new Event('change')); })()"
    )


async def go_live(page: Page, title: str, device: str = "tone", visibility: str = "PUBLIC_STREAM") -> str:
    """Go live; returns the path where people listen."""
    await page.type("input[name=title]", title)
    await choose(page, "#device", device)
    await choose(page, "#visibility", visibility)
    await page.click("button[type=submit]", "Go live")
    await page.shows("Your sound is being sent.")
    await page.until("document.querySelector('.on-air .tag').innerText === 'Live'")
    return str(
        await page.evaluate("new URL(document.querySelector('[aria-label=Links] input').value).pathname")
    )


async def follow(page: Page, selector: str) -> None:
    """Go where a link leads."""
    await page.until(f"document.querySelector({json.dumps(selector)})")
    await page.goto(await page.evaluate(f"document.querySelector({json.dumps(selector)}).href"))


async def listen(page: Page) -> None:
    """Press the button by the keyboard, with an ear on what is played."""
    await page.until("document.querySelector('.play-button')")
    await page.evaluate(HEARING)
    await page.evaluate("document.querySelector('.play-button').focus()")
    await page.press("Enter")
    await page.until("document.querySelector('main.listen').dataset.state === 'playing'")


async def hears_the_tone(page: Page) -> None:
    """Time advances, and what is heard is the tone that was sent."""
    await page.until(f"correlation({TONE_HZ}) > 0.95")
    before = await page.evaluate("document.querySelector('audio').currentTime")
    await page.until(f"document.querySelector('audio').currentTime > {before} + 1")
    await page.until(f"correlation({TONE_HZ}) > 0.95")


async def comes_by(page: Page, way: str) -> None:
    await page.until(f"document.querySelector('.status-line').innerText === 'Playing by {way}'")


async def end(page: Page) -> None:
    await page.click(".on-air button", "End the stream")
    await page.click("dialog button.danger", "End it")
    await page.shows("The stream has ended")


def assert_well_behaved(product: Product, *pages: Page) -> None:
    """No script failed, no policy was broken, and nobody but the product was asked for anything."""
    for page in pages:
        assert page.problems == []
        own = {f"127.0.0.1:{product.ports[name]}" for name in ("gateway", "websocket")}
        assert page.hosts - own <= {""}, "pictures of the browser's own controls are of no host"


async def test_one_goes_live_and_another_listens(product: Product, browser: Browser, shots: Path) -> None:
    """The tone that was sent arrives; quality, chat both ways, who listens, what plays, pause, recording, the end."""
    sam, _ = await studio(browser, product)
    await sam.screenshot(shots / "stream-setup.png")
    await assert_accessible(sam, height=1000)
    path = await go_live(sam, "The morning show")
    ada = await sign_up(browser, product, f"ada-{uuid4().hex[:8]}", "Ada Lovelace")
    await follow(ada, "a.to-listen")
    await follow(ada, f".stream-row[href='{path}']")
    await listen(ada)
    await hears_the_tone(ada)
    await comes_by(ada, "WebRTC (WHEP)")
    await sam.until("document.querySelector('.tile dd').innerText === '1'")
    await ada.until("document.querySelector('.player-state').innerText.includes('1 listener')")
    await ada.evaluate("document.querySelector('details.how').open = true")
    await ada.until("document.querySelector('.facts').innerText.includes('kbit/s')")
    for quality in ("LOW", "ULTRA", "AUTO"):
        await choose(ada, "#quality", quality)
        await hears_the_tone(ada)
    await sam.type("[aria-label='What is playing'] input", "Prelude")
    await sam.click("[aria-label='What is playing'] button", "Tell the listeners")
    await ada.until("document.querySelector('.now-playing').innerText === 'Prelude'")
    assert await ada.evaluate("navigator.mediaSession.metadata.title") == "Prelude"
    await ada.click(".room-chat button", "Join the chat")
    await say(ada, "Good morning from the audience")
    await sam.shows("Good morning from the audience")
    await say(sam, "Good morning, Ada")
    await ada.shows("Good morning, Ada")
    await sam.click(".on-air button", "Record")
    await sam.until("document.querySelector('.recordings')?.innerText.includes('Recording')")
    await ada.screenshot(shots / "stream-listen.png")
    await assert_accessible(ada)
    await ada.screenshot(shots / "stream-listen-dark.png")
    await assert_accessible(ada, width=390, height=844)
    await ada.look(width=390, height=844)
    await ada.screenshot(shots / "stream-listen-phone.png")
    await sam.screenshot(shots / "stream-on-air.png")
    await assert_accessible(sam, height=1000)
    await sam.screenshot(shots / "stream-on-air-dark.png")
    await sam.click(".on-air button", "Pause")
    await ada.shows("Paused by the streamer.")
    await sam.click(".on-air button", "Go on")
    await ada.until(f"correlation({TONE_HZ}) > 0.95")
    await sam.click(".on-air button", "Stop recording")
    await sam.until("document.querySelector('.recordings audio')")
    await sam.evaluate(
        "(async () => { const audio = document.querySelector('.recordings audio'); await audio.play(); })()"
    )
    await sam.until("document.querySelector('.recordings audio').currentTime > 1")
    await end(sam)
    await ada.shows("This stream has ended.")
    await ada.until("document.querySelector('.play-button').disabled")
    await ada.screenshot(shots / "stream-ended.png")
    assert_well_behaved(product, sam, ada)


async def test_where_webrtc_does_not_get_through(product: Product, browser: Browser) -> None:
    """A WebSocket takes its place; who has no account, so no socket, hears it over plain HTTP or HLS."""
    sam, _ = await studio(browser, product)
    path = await go_live(sam, "Behind walls")
    ada = await sign_up(browser, product, f"ada-{uuid4().hex[:8]}", "Ada Lovelace")
    stranger = await browser.page(product.url(path))
    for page in (ada, stranger):
        await page.call("Network.setBlockedURLs", urls=["*/whep/*"])
    await ada.goto(product.url(path))
    await listen(ada)
    await hears_the_tone(ada)
    await comes_by(ada, "WebSocket")
    for quality in ("LOW", "ULTRA"):
        await choose(ada, "#quality", quality)
        await hears_the_tone(ada)
        await ada.evaluate("document.querySelector('details.how').open = true")
        await ada.until(
            f"document.querySelector('.facts').innerText.toLowerCase().includes('{quality.lower()}')"
        )
    await stranger.reload()
    await stranger.until("document.querySelector('.play-button')")
    await stranger.evaluate(
        "HTMLMediaElement.prototype.canPlayType = (type) => (type.includes('ogg') ? 'probably' : '')"
    )
    await listen(stranger)
    await comes_by(stranger, "plain HTTP")
    await hears_the_tone(stranger)
    await stranger.shows("Sign in to choose one.")
    assert_well_behaved(product, sam, ada)


async def test_who_may_listen_to_what(product: Product, browser: Browser, shots: Path) -> None:
    """A private stream is heard by its link, without an account; who may not listen is told why."""
    sam, token = await studio(browser, product)
    path = await go_live(sam, "Among friends", visibility="PRIVATE_STREAM")
    stranger = await browser.page(product.url(path))
    await stranger.shows("for people with an account")
    await stranger.click("main button", "Sign in")
    await stranger.click(".signin button.link", "Create an account")
    await stranger.type("input[name=username]", f"eve-{uuid4().hex[:8]}")
    await stranger.type("input[name=password]", PASSWORD)
    await stranger.press("Enter")
    await stranger.shows("There is no such stream, or it is for those who are invited.")
    await stranger.screenshot(shots / "stream-refused.png")
    await assert_accessible(stranger)
    await sam.click("[aria-label=Links] button", "Make a link")
    await sam.until("document.querySelector('[aria-label=Links] input').value.includes('signature')")
    link = await sam.evaluate("document.querySelector('[aria-label=Links] input').value")
    guest = await browser.page(link)
    await listen(guest)
    await hears_the_tone(guest)
    await guest.shows("Sign in to read along and to write.")
    await guest.screenshot(shots / "stream-anonymous.png")
    await assert_accessible(guest)
    friend = f"ada-{uuid4().hex[:8]}"
    ada = await sign_up(browser, product, friend, "Ada Lovelace")
    await sam.click("[aria-label=Links] summary", "Invite somebody")
    await sam.type("[aria-label=Links] input[type=search]", friend)
    await sam.click("[aria-label=Links] .person", f"@{friend}")
    await sam.shows("Ada Lovelace may listen")
    await ada.goto(product.url(path))
    await listen(ada)
    await hears_the_tone(ada)
    await ada.click(".room-chat button", "Join the chat")
    await say(ada, "Thank you for having me")
    await sam.shows("Thank you for having me")
    stream_id = path.split("/")[2]
    status, _ = product.call("PATCH", f"/v1/streams/{stream_id}", {"visibility": "PREMIUM_ONLY"}, token)
    assert status == 200
    await stranger.goto(product.url(path))
    await stranger.shows("This stream is for premium people.")
    await guest.goto(f"{link}x")
    await guest.shows("This link is not whole")
    assert_well_behaved(product, sam, ada)


async def test_a_source_that_is_cut_off_comes_back(product: Product, browser: Browser) -> None:
    """By itself, within the grace period: the stream goes on, and so does who listens, told of it meanwhile."""
    sam, _ = await studio(browser, product)
    await sam.evaluate(
        "(() => { const Own = RTCPeerConnection; window.peers = []; window.RTCPeerConnection ="
        " class extends Own { constructor(...given) { super(...given); peers.push(this); } }; })()"
    )
    path = await go_live(sam, "Through a tunnel")
    ada = await sign_up(browser, product, f"ada-{uuid4().hex[:8]}", "Ada Lovelace")
    await ada.goto(product.url(path))
    await listen(ada)
    await hears_the_tone(ada)
    await sam.call("Network.setBlockedURLs", urls=["*/whip/*"])
    # A network that is gone closes nothing: the page finds out by itself.
    await sam.evaluate(
        "(() => { const peer = peers.at(-1); peer.close();"
        " peer.dispatchEvent(new Event('connectionstatechange')); })()"
    )
    await sam.shows("The connection was lost.")
    await ada.shows("The source is away.")
    await sam.call("Network.setBlockedURLs", urls=[])
    await sam.shows("Your sound is being sent.")
    await hears_the_tone(ada)
    await end(sam)


async def test_a_microphone_and_who_may_not_stream(product: Product, browser: Browser, shots: Path) -> None:
    """A microphone is chosen, heard and exchanged; whose role does not allow it is told which does."""
    sam, _ = await studio(browser, product)
    await sam.click("button", "Try it")
    await sam.until("Number(document.querySelector('.meter').getAttribute('aria-valuenow')) > -50")
    await choose(sam, "#manner", "music")
    path = await go_live(sam, "Beeps", device="")
    stranger = await browser.page(product.url(path))
    await listen(stranger)
    await stranger.until(
        "taps.length && Number(document.querySelector('.meter').getAttribute('aria-valuenow')) > -50"
    )
    await choose(sam, "#device", "tone")
    await hears_the_tone(stranger)
    await stranger.click(".site-head button", "Sign in")
    await stranger.click(".signin button.link", "Create an account")
    await stranger.type("input[name=username]", f"eve-{uuid4().hex[:8]}")
    await stranger.type("input[name=password]", PASSWORD)
    await stranger.press("Enter")
    await stranger.shows("Join the chat")
    await hears_the_tone(stranger)  # whoever signs in goes on listening
    await sam.reload()
    assert sam.dialogs == ["beforeunload"], "one is asked before one leaves the air"
    await sam.click("button", "Go on with it")
    await sam.shows("Your sound is being sent.")
    ada = await sign_up(browser, product, f"ada-{uuid4().hex[:8]}", "Ada Lovelace")
    await ada.goto(product.url("/live/"))
    await ada.shows("stream:write")
    await ada.screenshot(shots / "stream-no-role.png")
    await assert_accessible(ada)
    await ada.goto(product.url("/listen/"))
    await ada.until("document.querySelector('.stream-row')")
    await ada.screenshot(shots / "streams.png")
    await assert_accessible(ada)
    await choose(ada, "#category", "NEWS")
    await ada.shows("Nothing is live in this category.")
    await end(sam)
