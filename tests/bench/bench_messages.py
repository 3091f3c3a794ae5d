"""Acknowledged durable messages a second, end to end: WebSocket in → commit → delivered to another socket.

    just bench-messages

Starts `whispr serve` with its own PostgreSQL (fsync on), Valkey and NATS in a temporary folder, the rate limits
lifted and every other default on, and drives it from this process over loopback: both, and PostgreSQL, share
the machine's cores. Each sending socket has a conversation of its own with one receiving socket. Two kinds of run:

* closed loop: each sender keeps a window of messages in flight, so the figure is the most the product sustains;
* open loop: messages leave at a fixed rate whatever comes back, so the latency is what a client sees at that load.

The light load comes first, on a product that has nothing left to do from a run before. Under heavy load what each
message causes later (its event, the search index, notifications) waits for quieter times; `cpu µs` is what a message
cost by the end of the run, in the product's process and in PostgreSQL, whatever else the machine does.

Latency runs from the moment a message is due to leave until the other socket has it. Acknowledgements and
deliveries are counted apart; a run in which they differ, or in which seq has a gap, fails.

The load client writes frames into non-blocking sockets itself (with a masking key of zero, which RFC 6455
allows and which costs nothing) so that it takes as little as possible of what is measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import selectors
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.product import UNLIMITED, Product, running

RUN_S = 5.0
SOCKETS_EACH = 20
"""Sockets of a person, as many as they may have."""
SELECT_MAX = 500
SEQ = re.compile(rb'"seq":(\d+)')
SENT = re.compile(rb'"text":"(\d+) ')


def client_frame(payload: bytes) -> bytes:
    """A masked text frame (RFC 6455 section 5.2) whose masking key is zero."""
    size = len(payload)
    header = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return header + b"\0\0\0\0" + payload


class LoadSocket:
    """A joined Phoenix socket over a non-blocking TCP connection."""

    def __init__(self, port: int, token: str, topic: str) -> None:
        self.topic = topic
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET /socket/websocket?vsn=2.0.0&token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.receive()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        assert b" 101 " in head.split(b"\r\n")[0], head
        self.send(json.dumps(["1", "1", topic, "phx_join", {}]).encode())
        while not (frames := self.frames()):
            self.buffer += self.receive()
        assert b'"status":"ok"' in frames[0], frames[0]
        self.sock.setblocking(False)
        self.acked = self.delivered = self.sent = self.seq = 0

    def receive(self) -> bytes:
        """Read what is there; a closed connection is an error in a benchmark."""
        data = self.sock.recv(262144)
        assert data, "the server closed a socket"
        return data

    def send(self, payload: bytes) -> None:
        """Send one text frame; a full socket buffer is an error, since windows are small."""
        data = client_frame(payload)
        assert self.sock.send(data) == len(data), "the socket is full: the window is too large"

    def send_message(self, due: float) -> None:
        """Send a message that says when it was due."""
        self.sent += 1
        text = b'{"text":"%d and then some words of a usual length","client_id":"%s-%d"}' % (
            int(due * 1e6), self.topic[-12:].encode(), self.sent,
        )  # fmt: skip
        self.send(b'["1","%d","%s","send_message",%s]' % (self.sent + 1, self.topic.encode(), text))

    def frames(self) -> list[bytes]:
        """Split off the complete frames of the buffer; server frames are unmasked."""
        data, position, out = self.buffer, 0, []
        while len(data) - position >= 2:
            size, start = data[position + 1], position + 2
            if size == 126:
                size, start = int.from_bytes(data[start : start + 2], "big"), start + 2
            elif size == 127:
                size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
            if len(data) < start + size:
                break
            out.append(data[start : start + size])
            position = start + size
        self.buffer = data[position:]
        return out


@dataclass
class Result:
    """One run's outcome; latencies in milliseconds."""

    name: str
    seconds: float
    acked: int
    latencies: list[float] = field(repr=False)
    server_cpu_s: float = 0.0
    postgres_cpu_s: float = 0.0
    client_cpu_s: float = 0.0

    def row(self) -> str:
        """A line of the printed table."""
        ordered = sorted(self.latencies)
        p50, p95, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.95, 0.99))
        return (
            f"{self.name:<34}{self.acked / self.seconds:>9,.0f}{p50:>9.1f}{p95:>9.1f}{p99:>9.1f}"
            f"{self.server_cpu_s / self.seconds:>9.0%}{self.client_cpu_s / self.seconds:>9.0%}"
            f"{self.server_cpu_s / self.acked * 1e6:>9.0f}{self.postgres_cpu_s / self.acked * 1e6:>9.0f}"
        )


def stat_of(pid: int) -> list[int]:
    """Numbers of a process from its parent's on, none when it has gone (proc_pid_stat(5): from field 4)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [0] * 14
    return [int(each) for each in fields[1:15]]


def cpu_of(pid: int) -> float:
    """CPU seconds a process has used so far."""
    return sum(stat_of(pid)[10:12]) / os.sysconf("SC_CLK_TCK")


def cpu_with_children(pid: int) -> float:
    """CPU seconds of a process, its children, and those of them that have ended."""
    children = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    living = sum(cpu_of(child) for child in children if stat_of(child)[0] == pid)
    return living + sum(stat_of(pid)[10:14]) / os.sysconf("SC_CLK_TCK")


class Load:
    """Pairs of sockets, each with a conversation of its own."""

    def __init__(self, product: Product, pairs: list[tuple[LoadSocket, LoadSocket]]) -> None:
        self.product = product
        self.pairs = pairs
        self.latencies: list[float] = []
        # An epoll waits for whole milliseconds, which would count as latency; a select takes fewer sockets.
        few = 2 * len(pairs) < SELECT_MAX
        self.selector: selectors.BaseSelector = (
            selectors.SelectSelector() if few else selectors.EpollSelector()
        )
        for sender, receiver in pairs:
            self.selector.register(sender.sock, selectors.EVENT_READ, (sender, True))
            self.selector.register(receiver.sock, selectors.EVENT_READ, (receiver, False))

    def poll(self, timeout_s: float) -> list[LoadSocket]:
        """Read what has come; return each sender once per acknowledgement."""
        acked = []
        for key, _ in self.selector.select(timeout_s):
            sock, sends = key.data
            sock.buffer += sock.receive()
            now = time.perf_counter()
            for frame in sock.frames():
                if b'"new_message"' in frame:
                    if not sends:
                        self.arrived(sock, frame, now)
                elif sends and b'"phx_reply"' in frame:
                    assert b'"status":"ok"' in frame, frame
                    sock.acked += 1
                    acked.append(sock)
        return acked

    def arrived(self, sock: LoadSocket, frame: bytes, now: float) -> None:
        """Check the order of a delivery and note how long it took."""
        seq, sent = SEQ.search(frame), SENT.search(frame)
        assert seq is not None, frame
        assert sent is not None, frame
        assert int(seq[1]) == sock.seq + 1, f"seq {int(seq[1])} after {sock.seq}"
        sock.seq += 1
        sock.delivered += 1
        self.latencies.append((now * 1e6 - int(sent[1])) / 1e3)

    def run(self, name: str, window: int = 0, rate: float = 0) -> Result:
        """One run: a closed loop of `window` messages a sender, or an open loop of `rate` messages a second."""
        self.latencies = []
        before = sum(s.acked for s, _ in self.pairs)
        cpu = self.cpu()
        start = time.perf_counter()
        acked = self.closed(start, window) if window else self.open(start, rate)
        took = time.perf_counter() - start
        spent = (now - then for now, then in zip(self.cpu(), cpu, strict=True))
        self.settle()
        assert sum(s.acked for s, _ in self.pairs) - before >= acked
        return Result(name, took, acked, self.latencies, *spent)

    def cpu(self) -> tuple[float, float, float]:
        """CPU seconds used so far by the product's process, by PostgreSQL, and here."""
        postgres = cpu_with_children(self.product.pid_of("postgres"))
        return cpu_of(self.product.process.pid), postgres, time.process_time()

    def closed(self, start: float, window: int) -> int:
        """Keep `window` in flight per sender; return what was acknowledged in time."""
        for sender, _ in self.pairs:
            for _ in range(window):
                sender.send_message(time.perf_counter())
        acked = 0
        while time.perf_counter() - start < RUN_S:
            for sender in self.poll(0.1):
                acked += 1
                sender.send_message(time.perf_counter())
        return acked

    def open(self, start: float, rate: float) -> int:
        """Send at `rate`, round robin; return what was acknowledged in time."""
        acked = sent = 0
        while (now := time.perf_counter() - start) < RUN_S:
            while sent < now * rate:
                self.pairs[sent % len(self.pairs)][0].send_message(start + sent / rate)
                sent += 1
            acked += len(self.poll(max(0.0, sent / rate - now)))
        return acked

    def settle(self) -> None:
        """Wait until all that was sent is acknowledged and delivered."""
        deadline = time.perf_counter() + 10
        while any(s.acked < s.sent or r.delivered < s.sent for s, r in self.pairs):
            assert time.perf_counter() < deadline, "messages were lost"
            self.poll(0.5)

    def close(self) -> None:
        """Close every socket."""
        for pair in self.pairs:
            for sock in pair:
                sock.sock.close()
        self.selector.close()


def connect(product: Product, people: list[tuple[str, str]], count: int) -> Load:
    """Open `count` pairs of sockets, each pair alone in a new group of two people."""
    pairs = []
    for i in range(count):
        (_, token), (peer, peer_token) = people[i % len(people)], people[(i + 1) % len(people)]
        topic = "conversation:" + product.conversation(token, "group", peer)
        port = product.ports["websocket"]
        pairs.append((LoadSocket(port, token, topic), LoadSocket(port, peer_token, topic)))
    return Load(product, pairs)


def main() -> None:
    """Run all, or the sender counts named on the command line, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("senders", nargs="*", type=int, default=[1, 50, 500])
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data", UNLIMITED) as product:
        count = max(2, 2 * max(arguments.senders) // SOCKETS_EACH)
        people = [product.sign_up(f"person-{i}") for i in range(count)]
        print(
            f"{'':<34}{'acked/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'server':>9}{'client':>9}"
            f"{'cpu µs':>9}{'pg µs':>9}"
        )
        for count in arguments.senders:
            load = connect(product, people, count)
            for rate in (100, 5000):
                if rate / count <= 500:
                    print(load.run(f"{count} senders, {rate}/s in all", rate=rate).row(), flush=True)
            window = {1: 64, 50: 8}.get(count, 2)
            print(load.run(f"{count} senders, {window} in flight each", window=window).row(), flush=True)
            load.close()


if __name__ == "__main__":
    main()
