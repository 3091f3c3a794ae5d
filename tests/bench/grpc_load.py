"""Raw load on a gRPC server: frames prepared beforehand, so that it costs less than what it measures."""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from whispr.http2 import frames
from whispr.http2.headers import encode

CONNECTIONS = 8
STREAMS = 16
"""Calls in flight on each connection."""
BODY = b"\0" + struct.pack(">L", 24) + b"\n\x16" + b"w" * 22
LATENCIES_MAX = 1_000_000
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


def request_block(port: int, method: str) -> bytes:
    return encode(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/whispr.bench.Echo/{method}"),
            (":authority", f"127.0.0.1:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc+proto"),
            ("grpc-timeout", "20S"),
        ]
    )


class Load:
    """Keeps `STREAMS` calls in flight on each connection, and counts the answers."""

    def __init__(self, port: int, method: str = "Say", connections: int = CONNECTIONS) -> None:
        block = request_block(port, method)
        self.head = _HEADER.pack(0, len(block), frames.Type.HEADERS, frames.END_HEADERS, 0)[:5]
        self.block = block
        self.data = _HEADER.pack(0, len(BODY), frames.Type.DATA, frames.END_STREAM, 0)[:5]
        self.latencies: deque[float] = deque(maxlen=LATENCIES_MAX)
        """Of the calls answered last."""
        self.connections = [connect(port) for _ in range(connections)]

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

    def close(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            connection.sock.close()

    def hold(self, streams: int) -> None:
        """Start calls, and take no answers."""
        for connection in self.connections:
            connection.sock.sendall(self.calls(connection, streams))

    def run(self, seconds: float, calls: float = float("inf")) -> float:
        """Calls per second, over so many seconds or calls, whichever ends first."""
        selector = selectors.DefaultSelector()
        for connection in self.connections:
            connection.sock.sendall(self.calls(connection, STREAMS))
            selector.register(connection.sock, selectors.EVENT_READ, connection)
        total, started = 0, time.perf_counter()
        stop = started + seconds
        while (now := time.perf_counter()) < stop and total < calls:
            for key, _ in selector.select(1):
                connection = key.data
                done = self.answers(connection, connection.sock.recv(1 << 18))
                for _ in range(done):
                    self.latencies.append(now - connection.started.popleft())
                out, connection.out = connection.out, b""
                connection.sock.sendall(out + self.calls(connection, done))
                total += done
        self.close()
        return total / (time.perf_counter() - started)
