"""aiortc as an independent WebRTC peer, in a process of its own: publishes a tone by WHIP and hears it by WHEP.

    python -m tests.services.stream.webrtc.aiortc_peer loop <whip url> <whep url> <key> [seconds]

Prints one line of JSON: what it heard.
"""

from __future__ import annotations

import asyncio
import fractions
import json
import sys
import time
import urllib.parse
import urllib.request
from array import array
from collections.abc import Sequence
from typing import Any

from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from av import AudioFrame

from tests.services.stream.sounds import level_of, samples, share_of
from whispr.audio.packets import CLOCK_HZ

SAMPLES = 960
TONE_HZ = 440.0
SECOND = samples(1.0, TONE_HZ)
"""A whole number of its periods, so it goes on where it ends."""


class Tone(MediaStreamTrack):
    """A steady tone."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._pts = 0
        self._began_at = time.monotonic()

    async def recv(self) -> AudioFrame:
        """The next 20 ms, when they are due."""
        due = self._began_at + self._pts / CLOCK_HZ
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        at = self._pts * 4 % len(SECOND)
        frame = AudioFrame(format="s16", layout="stereo", samples=SAMPLES)
        frame.planes[0].update(SECOND[at : at + SAMPLES * 4])
        frame.sample_rate, frame.pts, frame.time_base = CLOCK_HZ, self._pts, fractions.Fraction(1, CLOCK_HZ)
        self._pts += SAMPLES
        return frame


def request(method: str, url: str, body: bytes = b"", **headers: str) -> Any:
    """Make one HTTP request."""
    asked = urllib.request.Request(url, body or None, headers, method=method)  # noqa: S310  # of the test's own server
    return urllib.request.urlopen(asked, timeout=20)  # noqa: S310


async def negotiate(peer: RTCPeerConnection, url: str, key: str = "") -> str:
    """Offer, and take the answer; returns the session's URL."""
    await peer.setLocalDescription(await peer.createOffer())
    headers = {"Content-Type": "application/sdp"} | ({"Authorization": f"Bearer {key}"} if key else {})
    offer = peer.localDescription.sdp.encode()
    reply = await asyncio.to_thread(request, "POST", url, offer, **headers)
    assert reply.status == 201, reply.status
    await peer.setRemoteDescription(RTCSessionDescription(reply.read().decode(), "answer"))
    return str(urllib.parse.urljoin(url, reply.headers["location"]))


async def connected(peer: RTCPeerConnection) -> None:
    """Wait until it is."""
    while peer.connectionState != "connected":
        assert peer.connectionState in ("new", "connecting"), peer.connectionState
        await asyncio.sleep(0.02)


async def hear(track: MediaStreamTrack, seconds: float) -> Sequence[int]:
    """Collect sound of one channel."""
    heard = array("h")
    while len(heard) < seconds * CLOCK_HZ:
        frame = await asyncio.wait_for(track.recv(), 20)
        assert isinstance(frame, AudioFrame)
        samples = array("h", bytes(frame.planes[0])[: frame.samples * 4])
        heard.extend(samples[::2])
    return heard


async def loop(whip: str, whep: str, key: str, seconds: float) -> dict[str, Any]:
    """Publish and listen at once."""
    publisher, listener = RTCPeerConnection(), RTCPeerConnection()
    tracks: asyncio.Queue[MediaStreamTrack] = asyncio.Queue()
    listener.on("track", tracks.put_nowait)
    try:
        publisher.addTrack(Tone())
        whip_session = await negotiate(publisher, whip, key)
        await connected(publisher)
        listener.addTransceiver("audio", direction="recvonly")
        whep_session = await negotiate(listener, whep)
        await connected(listener)
        sound = await hear(await tracks.get(), seconds)
        stats = await publisher.getStats()
        remote = [each for each in stats.values() if each.type == "remote-inbound-rtp"]
        for url in (whep_session, whip_session):
            assert (await asyncio.to_thread(request, "DELETE", url)).status == 200
        tail = sound[-CLOCK_HZ:]
        return {
            "seconds": len(sound) / CLOCK_HZ,
            "share": share_of(TONE_HZ, tail),
            "level": level_of(tail),
            "remote_reports": len(remote),
            "remote_loss": remote[0].fractionLost if remote else None,
        }
    finally:
        await publisher.close()
        await listener.close()


if __name__ == "__main__":
    how_long = float(sys.argv[5]) if len(sys.argv) > 5 else 3.0
    print(json.dumps(asyncio.run(loop(sys.argv[2], sys.argv[3], sys.argv[4], how_long))))
