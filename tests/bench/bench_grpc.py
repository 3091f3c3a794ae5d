"""Unary throughput of our server beside grpcio.aio's, in one run: `python tests/bench/bench_grpc.py`.

Each server runs in a process of its own and answers a handler that does next to nothing. The load is this
process: raw frames prepared beforehand, 8 connections with 16 calls in flight on each, so that it costs less
than what it measures. Rounds alternate, and the best of each is compared, which cancels a noisy machine's
moods. Prints calls/s, latency percentiles and the ratio.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field

import whispr  # noqa: F401  # before purerpc, which it makes importable
from whispr.http2 import frames
from whispr.http2.headers import encode

CONNECTIONS = 8
STREAMS = 16
BODY = b"\0" + struct.pack(">L", 24) + b"\n\x16" + b"w" * 22
METHOD = "/whispr.bench.Echo/Say"
_HEADER = struct.Struct(">HBBBL")


@dataclass
class Connection:
    """One connection's socket, unparsed bytes, and calls in flight."""

    sock: socket.socket
    next_id: int = 1
    rest: bytes = b""
    out: bytes = b""
    started: deque[float] = field(default_factory=deque)


def connect(port: int) -> Connection:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    window = {frames.Setting.INITIAL_WINDOW_SIZE: 2**30}
    sock.sendall(frames.PREFACE + frames.settings(window) + frames.window_update(0, 2**30))
    return Connection(sock)


def request_block(port: int) -> bytes:
    return encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", METHOD),
            (":authority", f"127.0.0.1:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc+proto"),
            ("grpc-timeout", "20S"),
        ]
    )


class Load:
    """Keeps `STREAMS` calls in flight on each connection, and counts the answers."""

    def __init__(self, port: int) -> None:
        block = request_block(port)
        self.head = _HEADER.pack(0, len(block), frames.Type.HEADERS, frames.END_HEADERS, 0)[:5]
        self.block = block
        self.data = _HEADER.pack(0, len(BODY), frames.Type.DATA, frames.END_STREAM, 0)[:5]
        self.latencies: list[float] = []
        self.connections = [connect(port) for _ in range(CONNECTIONS)]

    def calls(self, connection: Connection, count: int) -> bytes:
        pieces = []
        now = time.perf_counter()
        for _ in range(count):
            stream_id = connection.next_id.to_bytes(4, "big")
            connection.next_id += 2
            connection.started.append(now)
            pieces += [self.head, stream_id, self.block, self.data, stream_id, BODY]
        return b"".join(pieces)

    def answers(self, connection: Connection, data: bytes) -> int:
        """Count the answers in what was read, and acknowledge settings and pings."""
        data = connection.rest + data
        at, done, end = 0, 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, _ = _HEADER.unpack_from(data, at)
            size = high << 8 | low
            if end - at < 9 + size:
                break
            if kind == frames.Type.HEADERS and flags & frames.END_STREAM:
                done += 1
            elif kind == frames.Type.SETTINGS and not flags & frames.ACK:
                connection.out += frames.SETTINGS_ACK
            elif kind == frames.Type.PING and not flags & frames.ACK:
                connection.out += frames.ping(data[at + 9 : at + 17], ack=True)
            elif kind in (frames.Type.RST_STREAM, frames.Type.GOAWAY):
                raise SystemExit(f"the server refused a call: {data[at : at + 9 + size]!r}")
            at += 9 + size
        connection.rest = data[at:]
        return done

    def run(self, seconds: float) -> float:
        """Calls per second."""
        selector = selectors.DefaultSelector()
        for connection in self.connections:
            connection.sock.sendall(self.calls(connection, STREAMS))
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        total, started = 0, time.perf_counter()
        stop = started + seconds
        while (now := time.perf_counter()) < stop:
            for key, _ in selector.select(1):
                connection = key.data
                done = self.answers(connection, connection.sock.recv(1 << 18))
                for _ in range(done):
                    self.latencies.append(now - connection.started.popleft())
                out, connection.out = connection.out, b""
                connection.sock.sendall(out + self.calls(connection, done))
                total += done
        for connection in self.connections:
            connection.sock.close()
        return total / (time.perf_counter() - started)


# --- The servers ------------------------------------------------------------------------------------------


def serve_whispr() -> None:
    import purerpc
    import trio
    from google.protobuf.wrappers_pb2 import StringValue

    from whispr.rpc.server import RpcServer

    class Echo(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
        async def Say(self, input_message: StringValue) -> StringValue:  # noqa: N802
            return StringValue(value=input_message.value)

        @property
        def service(self) -> purerpc.Service:
            service = purerpc.Service("whispr.bench.Echo")
            kind = purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue)
            service.add_method("Say", self.Say, kind)
            return service

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            print(await nursery.start(RpcServer([Echo()]).serve_tcp, "127.0.0.1", 0), flush=True)

    trio.run(main)


def serve_grpcio() -> None:
    import asyncio

    import grpc
    from google.protobuf.wrappers_pb2 import StringValue

    async def say(request: StringValue, context: object) -> StringValue:
        return StringValue(value=request.value)

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            say, StringValue.FromString, StringValue.SerializeToString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("whispr.bench.Echo", {"Say": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()

    asyncio.run(main())


SERVERS = {"whispr": serve_whispr, "grpcio.aio": serve_grpcio}


def measure(name: str, seconds: float) -> tuple[float, list[float]]:
    """Calls per second, and latencies in seconds, of a fresh server."""
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            Load(port).run(seconds / 4)
            load = Load(port)
            return load.run(seconds), sorted(load.latencies)
        finally:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve]()
        return
    best: dict[str, float] = dict.fromkeys(SERVERS, 0.0)
    for _ in range(arguments.rounds):
        for name in SERVERS:
            rate, latencies = measure(name, arguments.seconds)
            p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
            print(f"{name:>10}: {rate:8.0f} calls/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
            best[name] = max(best[name], rate)
    print(f"     ratio: {best['whispr'] / best['grpcio.aio']:.1f} times grpcio.aio")


if __name__ == "__main__":
    main()
