"""Listeners by HLS and by WebSocket: what one costs the server.

    python -m tests.bench.bench_stream_listeners [hls] [websocket] [progressive] [--listeners 500] [--seconds 8]

Serves one live stream in this process, whose packets are made beforehand, so that no encoder counts; the listeners
are a child process. By LL-HLS each does what a player does: it asks for the playlist that will have the next part,
waits for it, then asks for that part, on a connection that it keeps. By WebSocket and progressively it just reads.
What counts is this process's CPU time, kernel and all; from it follows how many listeners a core has room for.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import structlog
import trio

from tests.services.stream.hearing import STREAM, Doorkeeper, TonedLive, finder
from tests.services.stream.player import in_real_time
from whispr.asgi import HttpLimits, HttpServer
from whispr.realtime import frames
from whispr.realtime.channel import Channel
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.testing import served as served_hub
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Metadata, Stream
from whispr.services.stream.listener import Transport
from whispr.services.stream.listening.hls import HlsOrigin
from whispr.services.stream.listening.progressive import Progressive
from whispr.services.stream.listening.shelves import Shelves
from whispr.services.stream.listening.websocket import SharedFrames, SocketSound

SETTLE_S = 4.0
_MASK = b"\x37\xfa\x21\x3d"


@dataclass
class Result:
    """One run."""

    transport: str
    listeners: int
    cpu_ms_per_listener_second: float
    listeners_per_core: int
    requests_per_s: int
    kbps: float
    """What each was sent, about: the rendition has 128."""


# ── the child ──


def hls(port: int, count: int, seconds: float) -> None:
    """Listen by LL-HLS, as that many players."""
    selector, started = selectors.DefaultSelector(), time.monotonic()
    players = [HlsPlayer(port, selector) for _ in range(count)]
    _until(selector, started + seconds)
    _report(sum(p.requests for p in players), sum(p.bytes for p in players))


class HlsPlayer:
    """One connection: a playlist, then the part it has last, and again."""

    def __init__(self, port: int, selector: selectors.BaseSelector) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.requests = self.bytes = 0
        self._received = b""
        self._want = 0
        self._asked = ""
        self._base = ""
        selector.register(self.sock, selectors.EVENT_READ, self.readable)
        self._get(f"/hls/{STREAM}/master.m3u8")

    def _get(self, path: str) -> None:
        self._asked = path
        self.requests += 1
        self.sock.send(f"GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: identity\r\n\r\n".encode())

    def readable(self) -> None:
        """Take what has come, and answer a whole answer with the next question."""
        self._received += self.sock.recv(1 << 16)
        if not self._want:
            head = self._received.find(b"\r\n\r\n")
            if head < 0:
                return
            found = re.search(rb"content-length: (\d+)", self._received[:head])
            assert found is not None, self._received[:head]
            assert self._received.startswith(b"HTTP/1.1 200"), self._received
            self._want = head + 4 + int(found[1])
        if len(self._received) >= self._want:
            body, self._received = self._received[: self._want], self._received[self._want :]
            self._want = 0
            self._next(body.partition(b"\r\n\r\n")[2])

    def _next(self, body: bytes) -> None:
        if self._asked.endswith("master.m3u8"):
            found = re.search(rb"^.*aac-medium/live\.m3u8$", body, re.M)
            assert found is not None
            self._base = f"/hls/{STREAM}/{found[0].decode().removesuffix('live.m3u8')}"
            self._get(f"{self._base}live.m3u8")
        elif "live.m3u8" in self._asked:
            hint = re.findall(rb'PRELOAD-HINT:TYPE=PART,URI="(\d+)\.(\d+)\.m4s"', body)[-1]
            self._hint = int(hint[0]), int(hint[1])
            self._get(f"{self._base}{self._hint[0]}.{self._hint[1]}.m4s")
        else:
            self.bytes += len(body)
            msn, part = self._hint
            self._get(f"{self._base}live.m3u8?_HLS_msn={msn}&_HLS_part={part}&_HLS_skip=YES")


def websocket(port: int, count: int, seconds: float) -> None:
    """Listen by WebSocket, as that many pages."""
    begin = [["1", "1", f"stream:{STREAM}", "phx_join", {}], ["1", "2", f"stream:{STREAM}", "listen", {}]]
    upgrade = (
        "GET /socket/websocket?vsn=2.0.0&token=u{} HTTP/1.1\r\nHost: x\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    asked = b"".join(
        frames.encode_masked_frame(frames.TEXT, json.dumps(each).encode(), _MASK) for each in begin
    )
    _read_on(port, count, seconds, lambda number: upgrade.format(number).encode(), asked)


def progressive(port: int, count: int, seconds: float) -> None:
    """Listen to an endless answer, as that many players."""
    _read_on(
        port, count, seconds, lambda _: f"GET /listen/{STREAM} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), b""
    )


def _read_on(port: int, count: int, seconds: float, first: Callable[[int], bytes], then: bytes) -> None:
    selector, total = selectors.DefaultSelector(), [0]

    def readable(sock: socket.socket) -> None:
        total[0] += len(sock.recv(1 << 16))

    started = time.monotonic()
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(first(number))
        if then:
            sock.recv(4096)
            sock.sendall(then)
        selector.register(sock, selectors.EVENT_READ, partial(readable, sock))
    _until(selector, started + seconds)
    _report(0, total[0])


def _until(selector: selectors.BaseSelector, end: float) -> None:
    while (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            key.data()


def _report(requests: int, size: int) -> None:
    print(json.dumps({"requests": requests, "bytes": size}))


# ── the server ──


class SoundChannel(Channel):
    """A channel that sends sound to everybody."""

    def __init__(self, link: Link, live: TonedLive, door: Doorkeeper, shared: SharedFrames) -> None:
        super().__init__(link)
        self._live, self._door, self._shared = live, door, shared

    async def handle(self, event: str, payload: object) -> object:
        """Begin to send."""
        await trio.lowlevel.checkpoint()
        listener = self._door._admit(Shown(), Transport.WEBSOCKET, "", "")
        return SocketSound(self.link, self._live, listener, self._shared).begin(payload)


@asynccontextmanager
async def served(transport: str, live: TonedLive) -> AsyncIterator[int]:
    """Serve the stream by one transport; gives the port."""
    door, shared = Doorkeeper(), SharedFrames()
    if transport == "websocket":
        limits = Limits(user_sockets=0, address_connections=0)
        factories = {"stream": lambda link: SoundChannel(link, live, door, shared)}
        async with served_hub(factories, limits=limits) as hub:
            yield hub.port
        return

    async def describe(stream_id: str) -> Stream:
        await trio.lowlevel.checkpoint()
        return door.stream

    shelves = Shelves(finder(live))
    apps: dict[str, Any] = {
        "hls": HlsOrigin(shelves, cast(Any, door), describe, lambda scope, headers: ""),
        "progressive": Progressive(
            finder(live), cast(Any, door), lambda scope, headers: "", lambda _: Metadata()
        ),
    }
    async with trio.open_nursery() as nursery:
        await nursery.start(shelves.run)
        server = HttpServer(apps[transport], HttpLimits())
        yield await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        nursery.cancel_scope.cancel(reason="measured")


async def measure(transport: str, listeners: int, seconds: float) -> Result:
    """Have a child listen, and measure what that costs here."""
    live = TonedLive(on_demand=True)
    length = SETTLE_S + seconds + 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_real_time, [live])
        async with served(transport, live) as port:
            command = [
                sys.executable, "-m", "tests.bench.bench_stream_listeners", transport, "--child",
                "--port", str(port), "--listeners", str(listeners), "--seconds", str(length),
            ]  # fmt: skip
            child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            await trio.sleep(SETTLE_S)
            began, cpu = trio.current_time(), time.process_time()
            await trio.sleep(seconds)
            cpu, took = time.process_time() - cpu, trio.current_time() - began
            assert child.stdout is not None
            said = b"".join([data async for data in child.stdout])
            await child.wait()
        nursery.cancel_scope.cancel(reason="measured")
    told, per_listener = json.loads(said), cpu / took / listeners
    rate = told["bytes"] * 8 / listeners / (length - 1.5)
    return Result(
        transport, listeners, round(per_listener * 1000, 3), round(1 / per_listener),
        round(told["requests"] / length), round(rate / 1000),
    )  # fmt: skip


def main() -> None:
    """Measure what is asked for, and say it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("transports", nargs="*", default=["hls", "websocket", "progressive"])
    arguments.add_argument("--listeners", type=int, default=500)
    arguments.add_argument("--seconds", type=float, default=8.0)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--child", action="store_true")
    arguments.add_argument("--port", type=int)
    given = arguments.parse_args()
    if given.child:
        listen = {"hls": hls, "websocket": websocket, "progressive": progressive}[given.transports[0]]
        listen(given.port, given.listeners, given.seconds)
        return
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50)
    )  # players leave without a word
    results = [trio.run(measure, each, given.listeners, given.seconds) for each in given.transports]
    if given.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    print(
        f"{'transport':<12} {'listeners':>9} {'CPU ms a listener and second':>29} {'a core':>8} {'kbps each':>10}"
    )
    for result in results:
        print(
            f"{result.transport:<12} {result.listeners:>9} {result.cpu_ms_per_listener_second:>29}"
            f" {result.listeners_per_core:>8} {result.kbps:>10}"
        )


if __name__ == "__main__":
    main()
