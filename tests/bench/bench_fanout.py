"""Fan-out: one topic, many subscribers, and what a delivery costs the server.

    python tests/bench/bench_fanout.py [--sockets 1000] [--seconds 3] [--json]

Serves in this process and receives in a child. `flat out` keeps a window of broadcasts in flight; `paced` sends
50,000 deliveries a second, the rate at which latency is compared. `trio-websocket` is the same fan-out through its
`send_message`, the obvious way to do it. CPU time is this process's alone, and steadier than the rates: the
receiver shares the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import trio
import wsproto.events
from trio_websocket import WebSocketConnection, WebSocketRequest, serve_websocket
from wsproto import ConnectionType, WSConnection

from whispr.realtime.channel import Channel
from whispr.realtime.frames import FrameReader, encode_frame, encode_masked_frame
from whispr.realtime.limits import Limits
from whispr.realtime.protocol import encode_broadcast
from whispr.realtime.testing import served

TOPIC = "room:0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f"
PAYLOAD = {"message_id": "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70", "seq": 123456, "text": "x" * 80}
FRAME = encode_broadcast(TOPIC, "new_message", PAYLOAD)
TEXT = FRAME[4:].decode()
WINDOW = 20
PACED_PER_S = 50_000
MASK = b"\x01\x02\x03\x04"


@dataclass
class Result:
    """One run. `idle_kib` is the resident memory a connected and joined socket added."""

    what: str
    sockets: int
    deliveries_per_s: float
    cpu_us_per_delivery: float
    idle_kib: float


class Receiver:
    """The child that holds the subscribers and says how many whole broadcasts all of them have."""

    def __init__(self, port: int, sockets: int, *, join: bool) -> None:
        command = [sys.executable, __file__, "--receive", str(port), str(sockets), str(int(join))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)  # ourselves
        assert self._process.stdout is not None
        self._out = self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._text = b""
        self.delivered = 0

    async def wait(self, deliveries: int) -> None:
        """Wait until that many deliveries arrived in all."""
        while self.delivered < deliveries:
            await trio.lowlevel.wait_readable(self._out)
            self._text += self._out.read() or b""
            *lines, self._text = self._text.split(b"\n")
            if lines:
                self.delivered = int(lines[-1])

    def stop(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.wait()
        self._out.close()


def receive(port: int, sockets: int, join: bool) -> None:
    """Child: connect, join, count."""
    selector = selectors.EpollSelector()
    head = (
        "GET /socket/websocket?vsn=2.0.0&token={} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    message = json.dumps(["1", "1", TOPIC, "phx_join", {}]).encode()
    for n in range(sockets):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(head.format(f"user{n}").encode())
        while b"\r\n\r\n" not in sock.recv(4096):
            pass
        if join:
            sock.sendall(encode_masked_frame(1, message, MASK))
            sock.recv(4096)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    print(0, flush=True)
    received = reported = 0
    while True:
        ready = selector.select(0.02)
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            received += len(key.fileobj.recv(1 << 18))
        whole = received // len(FRAME)
        if whole - reported >= sockets or (whole > reported and not ready):
            reported = whole
            print(reported, flush=True)


Send = Callable[[], Awaitable[None]]


async def measure(
    what: str, receiver: Receiver, sockets: int, seconds: float, send: Send, idle_kib: float, per_s: float = 0
) -> Result:
    """Broadcast for a while, never more than WINDOW broadcasts ahead of the receiver."""
    done = already = receiver.delivered
    cpu, started = time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        if per_s:
            due = already + per_s * elapsed
            if done > due:
                await trio.sleep((done - due) / per_s)
                continue
        await send()
        done += sockets
        await receiver.wait(done - WINDOW * sockets)
    await receiver.wait(done - sockets)
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - started
    await receiver.wait(done)
    count = done - already
    return Result(what, sockets, count / elapsed, cpu / count * 1e6, idle_kib)


async def until(ready: Callable[[], bool]) -> None:
    """Poll for what another process brings about."""
    while not ready():  # noqa: ASYNC110  # there is nothing here that could set an event
        await trio.sleep(0.05)


def resident_kib() -> float:
    """Memory of this process in KiB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


async def bench_hub(sockets: int, seconds: float) -> list[Result]:
    """The hub with all its semantics."""
    async with served({"room": Channel}, Limits(operations_per_min=0, address_connections=0)) as server:
        before = resident_kib()
        receiver = Receiver(server.port, sockets, join=True)
        try:
            await receiver.wait(0)
            await until(lambda: len(server.hub.subscribers(TOPIC)) == sockets)
            idle_kib = (resident_kib() - before) / sockets

            async def send() -> None:
                server.hub.broadcast(TOPIC, "new_message", PAYLOAD)
                await trio.lowlevel.checkpoint()

            flat = await measure("hub, flat out", receiver, sockets, seconds, send, idle_kib)
            paced = await measure("hub, paced", receiver, sockets, seconds, send, idle_kib, PACED_PER_S)
            return [flat, paced]
        finally:
            receiver.stop()


async def bench_trio_websocket(sockets: int, seconds: float) -> list[Result]:
    """trio-websocket's own server and `send_message`."""
    connections: list[WebSocketConnection] = []

    async def hold(request: WebSocketRequest) -> None:
        connections.append(await request.accept())
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, hold, "127.0.0.1", 0, None)
        before = resident_kib()
        receiver = Receiver(server.port, sockets, join=False)
        try:
            await until(lambda: len(connections) == sockets)
            idle_kib = (resident_kib() - before) / sockets

            async def send() -> None:
                for connection in connections:
                    await connection.send_message(TEXT)

            result = await measure("trio-websocket, flat out", receiver, sockets, seconds, send, idle_kib)
            return [result]
        finally:
            receiver.stop()
            nursery.cancel_scope.cancel(reason="measured")


def bench_readers(messages: int = 20_000) -> list[str]:
    """Measure reading one masked text message of a client, without I/O: our codec beside wsproto's."""
    data = encode_masked_frame(1, json.dumps(["1", "2", TOPIC, "send_message", PAYLOAD]).encode(), MASK)
    ours = FrameReader(masked=True, message_bytes_max=1 << 20)
    theirs, client = WSConnection(ConnectionType.SERVER), WSConnection(ConnectionType.CLIENT)
    theirs.receive_data(client.send(wsproto.events.Request(host="localhost", target="/")))
    list(theirs.events())
    theirs.send(wsproto.events.AcceptConnection())

    def feed_theirs(data: bytes) -> Sequence[object]:
        theirs.receive_data(data)
        return list(theirs.events())

    lines = []
    feeds: dict[str, Callable[[bytes], Sequence[object]]] = {"ours": ours.feed, "wsproto": feed_theirs}
    for name, feed in feeds.items():
        cpu = time.process_time()
        for _ in range(messages):
            assert len(feed(data)) == 1
        cost = (time.process_time() - cpu) / messages * 1e6
        lines.append(f"reading a message, {name:8} {cost:6.2f} CPU µs")
    return lines


async def main(sockets: int, seconds: float) -> list[Result]:
    """Run everything, one after the other."""
    assert encode_frame(1, TEXT.encode()) == FRAME
    return await bench_hub(sockets, seconds) + await bench_trio_websocket(sockets, seconds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receive"]:
        receive(int(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4])))
    parser = argparse.ArgumentParser()
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = trio.run(main, options.sockets, options.seconds)
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
    else:
        print("\n".join(bench_readers()))
        for r in results:
            print(
                f"{r.what:26} {r.sockets:6} sockets {r.deliveries_per_s:10,.0f} deliveries/s "
                f"{r.cpu_us_per_delivery:6.2f} CPU µs each {r.idle_kib:6.1f} KiB a socket"
            )
