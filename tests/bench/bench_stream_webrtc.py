"""WebRTC listeners: what one costs the server, beside aiortc serving the same.

    python -m tests.bench.bench_stream_webrtc [--listeners 500] [--aiortc 12] [--seconds 5] [--json]

Serves WHEP in this process; the listeners are a child process of their own: real handshakes, and then from each a
connectivity check and a receiver report every five seconds, as browsers send them. Every listener gets 50 packets of
320 bytes a second (128 kbps). What counts is this process's CPU time, kernel and all; from it follows how many
listeners a core has room for. aiortc encodes for each listener; `aiortc, passed through` is aiortc with packets
already encoded, which its `recv` may return. Its clients are aiortc's own.
"""

from __future__ import annotations

import argparse
import asyncio
import fractions
import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from typing import Any

import av
import trio

from tests.bench.bench_fanout import resident_kib
from tests.services.stream.sounds import samples
from tests.services.stream.webrtc.rig import STREAM, Rig, publish, rigged
from tests.webrtc.client import Client
from whispr.audio.packets import Quality
from whispr.webrtc import rtcp
from whispr.webrtc.rtcp import Report

PACKET_BYTES = 320
PACKET_S = 0.02
ALIVE_S = 5.0
"""Between a listener's checks, and between its reports."""
SETTLE_S = 1.0


@dataclass
class Result:
    """One run. `connect_ms` is the CPU time of an offer and its handshake, `kib` the memory a listener adds."""

    what: str
    listeners: int
    cpu_us_per_packet: float
    listeners_per_core: float
    arrived: float
    """Share of the packets that should have come."""
    connect_ms: float = 0.0
    kib: float = 0.0


# The child


def listen(port: int, count: int) -> None:
    """Be so many listeners; says how many packets came whenever asked by a line."""
    selector = selectors.EpollSelector()
    http = HTTPConnection("127.0.0.1", port)
    connected = [_connect(http, number) for number in range(count)]
    for client, sock in connected:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ, client)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    packets, turn, due = 0, 0, time.monotonic()
    while True:
        for key, _ in selector.select(0.01):
            if key.data is None:
                sys.stdin.readline()
                print(packets, flush=True)
            elif isinstance(key.fileobj, socket.socket):
                packets += _drain(key.fileobj)
        while due < time.monotonic():
            _stay(*connected[turn % count])
            turn, due = turn + 1, due + ALIVE_S / count


def _drain(sock: socket.socket) -> int:
    media = 0
    while True:
        try:
            datagram = sock.recv(2048)
        except BlockingIOError:
            return media
        media += datagram[0] >> 6 == 2 and not 192 <= datagram[1] <= 223


def _connect(http: HTTPConnection, number: int) -> tuple[Client, socket.socket]:
    client = Client()
    http.request("POST", f"/whep/{STREAM}", client.offer(), {"content-type": "application/sdp"})
    answer = http.getresponse()
    text = answer.read().decode()
    assert answer.status == 201, text
    client.answered(text)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(client.candidates[0])
    sock.settimeout(10)
    sock.send(client.check())
    while not client.answers:
        client.receive(sock.recv(2048))
    out = client.hello()
    while client.protection is None:
        for datagram in out:
            sock.send(datagram)
        out = client.receive(sock.recv(2048))
    for datagram in out:
        sock.send(datagram)
    return client, sock


def _stay(client: Client, sock: socket.socket) -> None:
    """Consent, and a report."""
    report = Report(client.server_ssrc, 0.0, 0, 1000, 100, 0, 0)
    sock.send(client.check())
    sock.send(client.said(rtcp.receiver_report(client.ssrc, [report], b"client")))


class Listeners:
    """The child, from here."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_stream_webrtc", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._out, self._in = self._process.stdout, self._process.stdin

    def line(self) -> str:
        """Read what it says next."""
        return self._out.readline().decode().strip()

    def packets(self) -> int:
        """Ask how many packets came."""
        self._in.write(b"\n")
        self._in.flush()
        return int(self.line())

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


# Ours


async def bench_ours(count: int, seconds: float) -> Result:
    """WHEP as the product serves it, fed as a source that passes through feeds it."""
    async with rigged() as rig, trio.open_nursery() as nursery:
        rig.lives.begin()
        listeners = Listeners("--listen", str(rig.port), str(count))
        cpu, memory = time.process_time(), resident_kib()
        try:
            assert await trio.to_thread.run_sync(listeners.line) == "ready"
            connect_ms = (time.process_time() - cpu) / count * 1e3
            nursery.start_soon(_feed, rig)
            await trio.sleep(SETTLE_S)
            came = await trio.to_thread.run_sync(listeners.packets)
            cpu, began = time.process_time(), trio.current_time()
            await trio.sleep(seconds)
            cpu_s, passed = time.process_time() - cpu, trio.current_time() - began
            came = await trio.to_thread.run_sync(listeners.packets) - came
            kib = (resident_kib() - memory) / count
        finally:
            listeners.stop()
            nursery.cancel_scope.cancel(reason="measured")
    return replace(_result("whispr", count, cpu_s, passed, came), connect_ms=connect_ms, kib=kib)


async def _feed(rig: Rig) -> None:
    live = rig.lives.lives[STREAM]
    due = trio.current_time()
    while True:
        publish(live, live.now_pts, bytes([0xFC]) * PACKET_BYTES, (Quality.MEDIUM,))
        due += PACKET_S
        await trio.sleep_until(due)


def _result(what: str, count: int, cpu_s: float, passed_s: float, came: int) -> Result:
    # By what arrived: on a busy machine not everything is sent in time, and what is not sent costs nothing.
    each_s = cpu_s / came
    return Result(what, count, each_s * 1e6, PACKET_S / each_s, came * PACKET_S / (count * passed_s))


# aiortc


def bench_aiortc(count: int, seconds: float, passed_through: bool) -> Result:
    """The same with aiortc as the server."""
    return asyncio.run(_bench_aiortc(count, seconds, passed_through))


async def _bench_aiortc(count: int, seconds: float, passed_through: bool) -> Result:
    from aiortc import RTCPeerConnection, RTCSessionDescription

    child = Listeners("--listen-aiortc", str(count))
    peers = []
    try:
        for _ in range(count):
            offer = json.loads(await asyncio.to_thread(child.line))
            peer = RTCPeerConnection()
            peers.append(peer)
            peer.addTrack(_track(passed_through))
            await peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            await peer.setLocalDescription(await peer.createAnswer())
            child._in.write(json.dumps(peer.localDescription.sdp).encode() + b"\n")
            child._in.flush()
        assert await asyncio.to_thread(child.line) == "ready"
        await asyncio.sleep(SETTLE_S)
        came = await asyncio.to_thread(child.packets)
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        cpu_s, passed = time.process_time() - cpu, time.monotonic() - began
        came = await asyncio.to_thread(child.packets) - came
    finally:
        child.stop()
        for peer in peers:
            await peer.close()
    what = "aiortc, passed through" if passed_through else "aiortc"
    return _result(what, count, cpu_s, passed, came)


def _track(passed_through: bool) -> Any:
    from aiortc import MediaStreamTrack

    base = fractions.Fraction(1, 48_000)

    class Steady(MediaStreamTrack):
        kind = "audio"
        pts = 0
        began_at = 0.0

        async def recv(self) -> Any:
            self.began_at = self.began_at or time.monotonic()
            await asyncio.sleep(max(0.0, self.began_at + self.pts / 48_000 - time.monotonic()))
            made: Any
            if passed_through:
                made = av.Packet(bytes([0xFC]) * PACKET_BYTES)
            else:
                made = av.AudioFrame(format="s16", layout="stereo", samples=960)
                made.planes[0].update(SOUND)
                made.sample_rate = 48_000
            made.pts, made.time_base = self.pts, base
            self.pts += 960
            return made

    return Steady()


SOUND = samples(0.02)


def listen_aiortc(count: int) -> None:
    """Be so many listeners made of aiortc."""
    asyncio.run(_listen_aiortc(count))


async def _listen_aiortc(count: int) -> None:
    from aiortc import RTCPeerConnection, RTCSessionDescription

    peers = []
    for _ in range(count):
        peer = RTCPeerConnection()
        peers.append(peer)
        peer.addTransceiver("audio", direction="recvonly")
        await peer.setLocalDescription(await peer.createOffer())
        print(json.dumps(peer.localDescription.sdp), flush=True)
        answer = json.loads(await asyncio.to_thread(sys.stdin.readline))
        await peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        connected = asyncio.Event()
        peer.on("connectionstatechange", connected.set)
        while peer.connectionState != "connected":
            await connected.wait()
            connected.clear()
    print("ready", flush=True)
    while True:
        await asyncio.to_thread(sys.stdin.readline)
        came = 0
        for peer in peers:
            stats = await peer.getStats()
            came += sum(each.packetsReceived for each in stats.values() if each.type == "inbound-rtp")
        print(came, flush=True)


def results(listeners: int, aiortc: int, seconds: float) -> list[Result]:
    """Run everything, one after the other."""
    found = [trio.run(bench_ours, listeners, seconds)]
    if aiortc:
        found += [bench_aiortc(aiortc, seconds, passed) for passed in (False, True)]
    return found


def main(argv: list[str], say: Callable[[str], None] = print) -> None:
    """Take the arguments and run."""
    if argv[:1] == ["--listen"]:
        listen(int(argv[1]), int(argv[2]))
    if argv[:1] == ["--listen-aiortc"]:
        listen_aiortc(int(argv[1]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--listeners", type=int, default=500)
    parser.add_argument("--aiortc", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    found = results(options.listeners, options.aiortc, options.seconds)
    if options.json:
        say(json.dumps([asdict(each) for each in found], indent=1))
        return
    for each in found:
        say(
            f"{each.what:24} {each.listeners:5} listeners {each.cpu_us_per_packet:8.1f} CPU µs a packet"
            f" {each.listeners_per_core:8,.0f} listeners a core, {each.arrived:.1%} arrived"
            + (f", {each.connect_ms:.1f} CPU ms to connect, {each.kib:.0f} KiB" if each.kib else "")
        )


if __name__ == "__main__":
    main(sys.argv[1:])
