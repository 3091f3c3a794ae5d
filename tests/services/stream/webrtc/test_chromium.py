"""Chromium publishes by WHIP and listens by WHEP: its own ICE, DTLS, SRTP, encoder and jitter buffer at both ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.stream.sounds import level_of, share_of
from tests.services.stream.webrtc.rig import KEY, STREAM, Rig, rigged
from tests.web.browser import Page, chromium
from whispr.audio.packets import CLOCK_HZ, Quality
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.listener import Wish

TONE_HZ = 440.0
DELAY_MAX_S = {None: 0.15, Quality.LOW: 0.3}
"""From one audio clock to the same one, through an encoder, the server and a jitter buffer. What the engine encodes
waits for the batch it is of."""
SECONDS = 3.0
TRIES = 3
SETTLE_S = 4.0
"""In which a source's bitrate is learnt, and a jitter buffer finds its size."""
PAGE = (Path(__file__).parent / "chromium.html").read_text()


def envelope(samples: list[float], step: int) -> list[float]:
    """How loud each step is, the average taken away."""
    blocks = [samples[at : at + step] for at in range(0, len(samples) - step, step)]
    loud = [sum(abs(each) for each in block) / step for block in blocks]
    average = sum(loud) / len(loud)
    return [each - average for each in loud]


def lag_s(sent: list[float], heard: list[float]) -> tuple[float, float]:
    """By how much what was heard is later than what was sent, and how alike they are then: 1 for the same."""
    step_s, longest_s = 0.001, 0.6
    step = int(CLOCK_HZ * step_s)
    first, second = envelope(sent, step), envelope(heard, step)
    count = len(first) - int(longest_s / step_s)

    def alike(lag: int) -> float:
        later = second[lag : lag + count]
        both = sum(a * b for a, b in zip(first[:count], later, strict=True))
        power = sum(a * a for a in first[:count]) * sum(b * b for b in later)
        return float(both / power**0.5) if power else 0.0

    best = max(range(int(longest_s / step_s)), key=alike)
    return best * step_s, alike(best)


def tone_of_loud(samples: list[float]) -> float:
    """How much of the sound is the tone, in the middle one of the pieces of 20 ms in which there is any."""
    pieces = [samples[at : at + 960] for at in range(0, len(samples) - 960, 960)]
    loudest = max(level_of(piece) for piece in pieces)
    shares = sorted(share_of(TONE_HZ, piece) for piece in pieces if level_of(piece) > loudest * 0.7)
    return shares[len(shares) // 2]


async def attempt(page: Page, rig: Rig) -> tuple[float, float, float]:
    """Publish and listen in a new page; returns the delay in seconds, the likeness, and the share of the tone."""
    whip = await page.evaluate(f"publish({rig.url('/whip/' + STREAM)!r}, {KEY!r}, {TONE_HZ})")
    assert whip["state"] == "connected"
    assert "stereo=1" in whip["answer"]
    heard = await page.evaluate(f"listen({rig.url('/whep/' + STREAM)!r})")
    assert heard["state"] == "connected"
    await trio.sleep(SETTLE_S)
    recorded: dict[str, Any] = await page.evaluate(f"record({SECONDS})")
    await page.evaluate("leave()")
    assert recorded["advanced"] > SECONDS / 2
    assert page.problems == []
    found = (*lag_s(recorded["sent"], recorded["heard"]), tone_of_loud(recorded["heard"]))
    print("delay, likeness, share of the tone:", found, recorded["stats"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("quality", [None, Quality.LOW], ids=["passed through", "encoded"])
async def test_what_chromium_publishes_chromium_hears(tmp_path: Path, quality: Quality | None) -> None:
    """Through the engine, passed through and encoded: time advances, and the tone that was sent arrives in time."""
    lives = Lives()
    async with (
        trio.open_nursery() as nursery,
        rigged(page=PAGE, engine=lives) as rig,
        chromium(tmp_path / "profile", ["--autoplay-policy=no-user-gesture-required"]) as browser,
    ):
        await nursery.start(lives.run)
        rig.audience.wish = Wish(quality)
        found = []
        for _ in range(TRIES):  # the machine may be busy with something else for all but one of them
            page = await browser.page(rig.url("/"))
            found.append(await attempt(page, rig))
            assert rig.audience.listeners[-1].rendition is (quality or Quality.MEDIUM)
            with trio.fail_after(10):
                while rig.webrtc.endpoint.peers:
                    await trio.lowlevel.checkpoint()
            lag, alike, share = found[-1]
            if lag < DELAY_MAX_S[quality] and alike > 0.8 and share > 0.95:
                break
        else:
            raise AssertionError(found)
        nursery.cancel_scope.cancel(reason="tested")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_browser_answers_the_check_that_a_move_takes(tmp_path: Path) -> None:
    """As if it had been elsewhere before: its own next checks, and its answer to ours, bring the media back to it."""
    async with (
        rigged(page=PAGE) as rig,
        chromium(tmp_path / "profile", ["--autoplay-policy=no-user-gesture-required"]) as browser,
    ):
        page = await browser.page(rig.url("/"))
        assert (await page.evaluate(f"publish({rig.url('/whip/' + STREAM)!r}, {KEY!r}, {TONE_HZ})"))[
            "state"
        ] == "connected"
        (peer,) = rig.webrtc.endpoint._addresses
        there, moved = peer.address, trio.Event()
        peer.on_moved = lambda _: moved.set()
        peer.ice.address = ("127.0.0.1", 9)
        with trio.fail_after(60):
            await moved.wait()
        assert peer.address == there
        assert page.problems == []
