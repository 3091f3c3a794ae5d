"""Requests a second: Whispr's HTTP server beside uvicorn's, and a REST call through the gateway.

    python -m tests.bench.bench_http [--rounds 3] [--seconds 2] [--connections 32] [--vary]

Both servers run the same Starlette application, uvicorn with httptools and uvloop; `rest` is `GET /v1/users/{id}`
through the gateway and over gRPC on loopback to a service in the same process. Each server has a process of its
own and the load another: wrk where it is installed, else a raw client of ours, which keeps connections alive and
does not pipeline. They take turns within each round, so that a noisy machine treats them alike; figures are
medians of the rounds, and `CPU` is the server process's own time for a request, which is steadier than the rate.
"""

from __future__ import annotations

import argparse
import itertools
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from whispr.asgi import HttpServer
from whispr.gateway.server import Gateway
from whispr.rpc.channel import open_channel
from whispr.rpc.server import RpcServer
from whispr.v1 import user_pb2
from whispr.v1.user_grpc import UserServiceServicer

PATHS = {"whispr": "/", "uvicorn": "/", "rest": "/v1/users/0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f"}
TICKS_S = 100
"""Clock ticks of /proc/<pid>/stat in a second (proc(5): USER_HZ)."""


async def hello(_: Request) -> Response:
    """Answer at once."""
    return PlainTextResponse("Hello, world")


APP = Starlette(routes=[Route("/", hello)])


class Users(UserServiceServicer):
    """A service that knows everybody."""

    async def GetProfile(self, input_message: Any) -> Any:  # noqa: N802  # named by the proto
        """Answer at once."""
        profile = user_pb2.Profile(id=input_message.user_id, username="ada", display_name="Ada Lovelace")
        return user_pb2.GetProfileResponse(profile=profile)


def serve(name: str) -> None:
    """Run one contender in this process; its port is its first line of output."""
    if name == "uvicorn":
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(
            APP, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning"
        )
        uvicorn.Server(config).run([listener])
    else:
        trio.run(serve_gateway if name == "rest" else serve_whispr)


async def serve_whispr() -> None:
    """Serve the application that uvicorn serves."""
    async with trio.open_nursery() as nursery:
        print(await nursery.start(HttpServer(APP).serve_tcp, "127.0.0.1", 0), flush=True)


async def serve_gateway() -> None:
    """Serve the gateway, and a service behind it."""

    async def readiness() -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return {}

    async with trio.open_nursery() as nursery:
        port = await nursery.start(RpcServer([Users()]).serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            gateway = Gateway({"user": channel}, readiness=readiness, voucher=lambda: "")
            print(await nursery.start(gateway.serve, "127.0.0.1", 0), flush=True)
            await trio.sleep_forever()


@dataclass(frozen=True, slots=True)
class Load:
    """What one round of load found out."""

    rate: float
    p50_ms: float
    p99_ms: float


def load(port: int, path: str, connections: int, seconds: int, vary: bool) -> Load:
    """Load a server from a process of its own."""
    if vary or shutil.which("wrk") is None:
        command = [sys.executable, "-m", "tests.bench.bench_http", "--load", str(port), path]
        command += [
            "--connections",
            str(connections),
            "--seconds",
            str(seconds),
            *(["--vary"] if vary else []),
        ]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return Load(*(float(word) for word in printed.split()))
    url = f"http://127.0.0.1:{port}{path}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += ["-H", "authorization: Bearer token", url]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise SystemExit(printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    assert rate is not None
    return Load(float(rate[1]), _percentile(printed, "50%"), _percentile(printed, "99%"))


def _percentile(printed: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s)", printed)
    assert found is not None, printed
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def raw_load(port: int, path: str, connections: int, seconds: int, vary: bool) -> None:
    """Ask over and over on each connection, one request at a time; print rate and percentiles."""
    asking = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer token\r\n%s\r\n"
    # Either the same bytes again and again, as pollers send them, or no two requests alike.
    numbers = (f"x-request-id: {number}\r\n" if vary else "" for number in itertools.count())
    selector = selectors.EpollSelector()
    clients: dict[int, socket.socket] = {}
    asked: dict[int, float] = {}
    received: dict[int, bytes] = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(client, selectors.EVENT_READ)
        clients[client.fileno()] = client
        asked[client.fileno()], received[client.fileno()] = time.perf_counter(), b""
        client.sendall((asking % next(numbers)).encode())
    times: list[float] = []
    began = now = time.perf_counter()
    while now < began + seconds:
        for key, _ in selector.select():
            answer = received[key.fd] + clients[key.fd].recv(65536)
            received[key.fd] = b"" if _is_whole(answer) else answer
            if not received[key.fd]:
                now = time.perf_counter()
                times.append(now - asked[key.fd])
                asked[key.fd] = now
                clients[key.fd].sendall((asking % next(numbers)).encode())
    times.sort()
    print(len(times) / (now - began), times[len(times) // 2] * 1e3, times[len(times) * 99 // 100] * 1e3)


def _is_whole(answer: bytes) -> bool:
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit("a request failed")
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def measure(options: argparse.Namespace) -> dict[str, list[tuple[Load, float]]]:
    """Run the rounds; per contender and round what the load found, and CPU microseconds a request."""
    command = [sys.executable, "-m", "tests.bench.bench_http", "--serve"]
    servers = {name: subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in PATHS}
    found: dict[str, list[tuple[Load, float]]] = {name: [] for name in PATHS}
    try:
        ports = {name: int(server.stdout.readline()) for name, server in servers.items() if server.stdout}
        for name, port in ports.items():
            load(port, PATHS[name], options.connections, 1, options.vary)
        for _ in range(options.rounds):
            for name, port in ports.items():
                before = cpu_s(servers[name].pid)
                result = load(port, PATHS[name], options.connections, options.seconds, options.vary)
                used = cpu_s(servers[name].pid) - before
                found[name].append((result, used / (result.rate * options.seconds) * 1e6))
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
            if server.stdout:
                server.stdout.close()
    return found


def main() -> None:
    """Print a line for each contender, and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--vary", action="store_true", help="no two requests alike")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.load:
        raw_load(int(options.load[0]), options.load[1], options.connections, options.seconds, options.vary)
        return
    found = measure(options)
    for name, rounds in found.items():
        rate = statistics.median(result.rate for result, _ in rounds)
        p50 = statistics.median(result.p50_ms for result, _ in rounds)
        p99 = statistics.median(result.p99_ms for result, _ in rounds)
        cpu = statistics.median(cpu for _, cpu in rounds)
        print(f"{name:8} {rate:8,.0f} requests/s   p50 {p50:5.2f} ms   p99 {p99:6.2f} ms   CPU {cpu:5.1f} µs")
    pairs = list(zip(found["whispr"], found["uvicorn"], strict=True))
    rates = statistics.median(ours.rate / theirs.rate for (ours, _), (theirs, _) in pairs)
    cpus = statistics.median(theirs / ours for (_, ours), (_, theirs) in pairs)
    print(f"whispr / uvicorn, median of rounds: {rates:.2f} of its rate, {cpus:.2f} by CPU")


if __name__ == "__main__":
    main()
