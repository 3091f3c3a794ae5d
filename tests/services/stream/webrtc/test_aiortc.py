"""aiortc as an independent peer: its own ICE, DTLS, SRTP and Opus, in a process of its own."""

from __future__ import annotations

import json
import sys

import pytest
import trio

from tests.services.stream.webrtc.rig import KEY, STREAM, rigged
from whispr.services.stream.engine.lives import Lives


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_what_aiortc_publishes_aiortc_hears() -> None:
    """Through the engine: three seconds of the tone, as loud as it was sent, and reports of how it came."""
    lives = Lives()
    async with trio.open_nursery() as nursery, rigged(engine=lives) as rig:
        await nursery.start(lives.run)
        where = [rig.url(f"/{protocol}/{STREAM}") for protocol in ("whip", "whep")]
        command = [sys.executable, "-m", "tests.services.stream.webrtc.aiortc_peer", "loop", *where, KEY]
        ended = await trio.run_process(command, capture_stdout=True)
        heard = json.loads(ended.stdout)
        assert heard["seconds"] >= 3
        assert heard["share"] > 0.99
        assert heard["level"] == pytest.approx(8_000 / 2**0.5, rel=0.1)
        assert heard["remote_reports"] == 1
        (listener,) = rig.audience.listeners
        assert listener.reason == "left"
        assert listener.figures.bytes_sent > 10_000
        assert rig.webrtc.endpoint.peers == 0
        nursery.cancel_scope.cancel(reason="tested")
