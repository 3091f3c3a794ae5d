"""GStreamer's webrtcbin publishes by WHIP and listens by WHEP: its own ICE, DTLS and SRTP at both ends."""

from __future__ import annotations

import json
import socket
from array import array
from pathlib import Path

import pytest
import trio

from tests.services.stream.sounds import level_of, share_of
from tests.services.stream.webrtc.rig import KEY, STREAM, rigged
from whispr.audio.packets import CLOCK_HZ
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.webrtc.service import WebRtcSetup

PYTHON = "/usr/bin/python3"
SECONDS = 6
NEEDS = (
    "import gi; gi.require_version('GstWebRTC', '1.0'); from gi.repository import Gst, GstWebRTC; Gst.init(None);"
    "assert all(map(Gst.ElementFactory.find, ('webrtcbin', 'nicesink', 'opusenc', 'dtlsdec', 'srtpdec')))"
)


def own_address() -> str:
    """An address of this machine that is not loopback, of which libnice gathers none: packets to it stay here, too.

    Skips the test where there is none. Nothing is sent: to connect UDP is to ask which address would be used.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("203.0.113.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback, where libnice does not look")
        return str(asking.getsockname()[0])


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_what_gstreamer_publishes_gstreamer_hears(tmp_path: Path) -> None:
    """Through the engine: the tone that was sent is what is heard, without a hole in the last seconds of it."""
    if (
        not Path(PYTHON).exists()
        or (await trio.run_process([PYTHON, "-c", NEEDS], check=False, capture_stderr=True)).returncode
    ):
        pytest.skip("GStreamer with webrtcbin and its bindings for the system's Python are not installed")
    setup = WebRtcSetup(host=own_address())
    lives, file = Lives(), tmp_path / "heard.wav"
    async with trio.open_nursery() as nursery, rigged(setup, engine=lives) as rig:
        await nursery.start(lives.run)
        script = Path(__file__).parent / "gstreamer_peer.py"
        command = [
            PYTHON, str(script), rig.url("/whip/" + STREAM), rig.url("/whep/" + STREAM), KEY, str(SECONDS), str(file),
        ]  # fmt: skip
        with trio.fail_after(120):
            done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
        assert done.returncode == 0, done.stderr.decode()
        for offer in json.loads(done.stdout):
            print(offer)
        heard = array("h", file.read_bytes()[44:][: (file.stat().st_size - 44) // 2 * 2])
        assert len(heard) > CLOCK_HZ * SECONDS / 2
        tail = [each / 32768 for each in heard[-CLOCK_HZ * 2 :]]
        assert share_of(440.0, tail) > 0.95
        assert level_of(tail) > 0.1
        nursery.cancel_scope.cancel(reason="tested")
