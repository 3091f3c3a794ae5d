"""GStreamer's webrtcbin as a WebRTC peer, in the system's own Python: publishes a tone by WHIP, hears it by WHEP.

    /usr/bin/python3 gstreamer_peer.py <whip url> <whep url> <key> <seconds> <WAV file of what was heard>

Prints one line of JSON: both offers.
"""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import gi  # type: ignore[import-not-found]  # of the system's Python alone

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import (  # type: ignore[import-not-found]  # noqa: E402  # of the same, and after the versions
    GLib,
    Gst,
    GstSdp,
    GstWebRTC,
)

OPUS = (
    "application/x-rtp,media=audio,encoding-name=OPUS,payload=97,clock-rate=48000,encoding-params=(string)2"
)
TONE = (
    "audiotestsrc is-live=true wave=sine freq=440 volume=0.4 ! audio/x-raw,rate=48000,channels=2"
    f" ! opusenc ! rtpopuspay ! {OPUS} ! webrtcbin name=peer bundle-policy=max-bundle"
)
sessions: list[str] = []
kept: list[Any] = []
"""Promises: what they give is freed with them, which Python's references to it do not know."""


def request(method: str, url: str, body: bytes = b"", **headers: str) -> Any:
    """Make one HTTP request."""
    asked = urllib.request.Request(url, body or None, headers, method=method)  # noqa: S310  # of the test's own server
    return urllib.request.urlopen(asked, timeout=20)  # noqa: S310


def wait(done: Callable[[], object], what: str) -> None:
    """Let GStreamer work until this is so."""
    context = GLib.MainContext.default()
    late: list[bool] = []
    GLib.timeout_add_seconds(30, late.append, True)
    GLib.timeout_add(20, lambda: not late)  # what GStreamer does in its own threads wakes nobody here
    while not done():
        context.iteration(True)
        if late:
            raise SystemExit(f"{what} took longer than 30 s")


def promised(peer: Any, signal: str, argument: Any, name: str = "") -> Any:
    """Ask for something, and return what was promised."""
    promise = Gst.Promise.new()
    kept.append(promise)
    peer.emit(signal, argument, promise)
    promise.wait()
    reply = promise.get_reply()
    kept.append(reply)
    return reply.get_value(name) if name else None


def negotiate(peer: Any, url: str, key: str = "") -> str:
    """Offer with all candidates, and take the answer; returns the offer."""
    offer = promised(peer, "create-offer", None, "offer")
    promised(peer, "set-local-description", offer)
    wait(lambda: peer.props.ice_gathering_state == GstWebRTC.WebRTCICEGatheringState.COMPLETE, "gathering")
    text = peer.props.local_description.sdp.as_text()
    headers = {"Content-Type": "application/sdp"} | ({"Authorization": f"Bearer {key}"} if key else {})
    reply = request("POST", url, text.encode(), **headers)
    sessions.append(urllib.parse.urljoin(url, reply.headers["location"]))
    _, message = GstSdp.SDPMessage.new_from_text(reply.read().decode())
    answer = GstWebRTC.WebRTCSessionDescription.new(GstWebRTC.WebRTCSDPType.ANSWER, message)
    promised(peer, "set-remote-description", answer)
    connected = GstWebRTC.WebRTCPeerConnectionState.CONNECTED
    wait(lambda: peer.props.connection_state == connected, "connecting")
    return str(text)


def on_pad(pipeline: Any, file: str) -> Callable[[Any, Any], None]:
    """Return what writes a track that arrives to a file."""

    def arrived(_: Any, pad: Any) -> None:
        if pad.direction != Gst.PadDirection.SRC:
            return
        sink = Gst.parse_bin_from_description(
            "rtpopusdepay ! opusdec ! audioconvert ! audioresample ! audio/x-raw,format=S16LE,rate=48000,channels=1"
            f" ! wavenc ! filesink location={file}",
            True,
        )
        pipeline.add(sink)
        sink.sync_state_with_parent()
        pad.link(sink.get_static_pad("sink"))

    return arrived


def main(whip: str, whep: str, key: str, seconds: str, file: str) -> None:
    """Publish and listen at once."""
    Gst.init(None)
    publisher = Gst.parse_launch(TONE)
    publisher.set_state(Gst.State.PLAYING)
    offers = [negotiate(publisher.get_by_name("peer"), whip, key)]
    listener = Gst.Pipeline.new("listener")
    peer = Gst.ElementFactory.make("webrtcbin", "peer")
    peer.props.bundle_policy = GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE
    listener.add(peer)
    peer.connect("pad-added", on_pad(listener, file))
    listener.set_state(Gst.State.PLAYING)
    direction = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
    peer.emit("add-transceiver", direction, Gst.Caps.from_string(OPUS))
    offers.append(negotiate(peer, whep))
    over: list[bool] = []
    GLib.timeout_add(int(float(seconds) * 1000), over.append, True)
    wait(lambda: over, "listening")
    for url in sessions:
        request("DELETE", url)
    listener.set_state(Gst.State.NULL)
    publisher.set_state(Gst.State.NULL)
    print(json.dumps(offers))


if __name__ == "__main__":
    main(*sys.argv[1:])
