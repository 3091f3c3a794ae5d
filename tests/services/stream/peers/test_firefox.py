"""Firefox publishes by WHIP and listens by WHEP: its own ICE, DTLS, SRTP, encoder and jitter buffer at both ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.services.stream.peers.firefox import MICROPHONE, firefox
from tests.services.stream.webrtc.rig import KEY, STREAM, rigged
from tests.services.stream.webrtc.test_chromium import PAGE, SECONDS, SETTLE_S, TONE_HZ, lag_s, tone_of_loud
from whispr.services.stream.engine.lives import Lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_what_firefox_publishes_firefox_hears(tmp_path: Path) -> None:
    """Through the engine: time advances, and what is heard comes and goes as the tone that was sent does."""
    lives = Lives()
    async with (
        trio.open_nursery() as nursery,
        rigged(page=PAGE, engine=lives) as rig,
        firefox(tmp_path) as browser,
    ):
        await nursery.start(lives.run)
        await browser.open(rig.url("/"))
        await browser.evaluate(MICROPHONE)
        whip = await browser.evaluate(f"publish({rig.url('/whip/' + STREAM)!r}, {KEY!r}, {TONE_HZ})")
        assert whip["state"] == "connected", whip
        heard = await browser.evaluate(f"listen({rig.url('/whep/' + STREAM)!r})")
        assert heard["state"] == "connected", heard
        await trio.sleep(SETTLE_S)
        recorded = await browser.evaluate(f"record({SECONDS})")
        await browser.evaluate("leave()")
        found = (*lag_s(recorded["sent"], recorded["heard"]), tone_of_loud(recorded["heard"]))
        print("delay, likeness, share of the tone:", found, recorded["stats"])
        assert recorded["advanced"] > SECONDS / 2
        assert found[1] > 0.8
        assert found[2] > 0.95
        nursery.cancel_scope.cancel(reason="tested")
