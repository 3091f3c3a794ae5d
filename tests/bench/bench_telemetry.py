"""What telemetry costs a unary call, in CPU time of its process: `just bench-telemetry`.

The handler echoes 22 bytes, so the call is all runtime and the share of telemetry as large as it can be. Each way is
a process of its own; rounds take turns among them, and the least CPU of each counts, which cancels a noisy machine's
moods. Ways: none; metrics; what every process has (metrics, logs of one in a thousand calls that went well); that and
tracing at its default ratio; that and every call traced. Spans go to a collector, in a process of its own, that takes
them all. Options: --calls, --rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import trio

from tests.bench.grpc_load import Load
from tests.bench.grpc_peers import SERVICE, TEXT

SERVERS = ("none", "metrics", "default", "tracing", "traced")
CHANNELS = ("none", "default", "tracing", "traced")
TASKS = 16
OK_RATIO, TRACE_RATIO = 0.001, 0.01
"""The defaults of `log.calls` and `tracing.ratio`."""


def interceptors(way: str, side: str, tracer: Any) -> Sequence[Any]:
    """What surrounds calls, that way."""
    from whispr.rpc.logging import Logged
    from whispr.rpc.metrics import Measured
    from whispr.rpc.tracing import TracedClient, TracedServer

    if way == "none":
        return []
    around: list[Any] = [Measured(side)]
    if side == "server" and way != "metrics":
        around.append(Logged(ok_ratio=OK_RATIO))
    if way in ("tracing", "traced"):
        around.append(TracedServer(tracer) if side == "server" else TracedClient(tracer))
    return around


def serve(way: str, side: str, calls: int, collector: str) -> None:
    """Serve, and for the client's side make the calls too, in this process."""
    import purerpc
    from google.protobuf.wrappers_pb2 import StringValue

    import whispr.rpc  # noqa: F401  # before purerpc, which it makes importable
    from whispr.rpc.channel import open_channel
    from whispr.rpc.server import RpcServer
    from whispr.rpc.stubs import UnaryUnary
    from whispr.telemetry import tracing
    from whispr.telemetry.logging import configure_logging
    from whispr.telemetry.otlp import Exporter

    class Echo(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
        async def Say(self, input_message: StringValue) -> StringValue:  # noqa: N802
            return StringValue(value=input_message.value)

        @property
        def service(self) -> purerpc.Service:
            service = purerpc.Service(SERVICE)
            unary = purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue)
            service.add_method("Say", self.Say, unary)
            return service

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with ExitStack() as stack:
                exporter = Exporter(collector, {"service.name": "bench"})
                tracer = tracing.Tracer(1.0 if way == "traced" else TRACE_RATIO, exporter.record)
                if way in ("tracing", "traced"):
                    stack.enter_context(tracing.tracing_with(tracer))
                    await nursery.start(exporter.run)
                own = interceptors(way, "server", tracer) if side == "server" else ()
                server = RpcServer([Echo()], own)
                port: int = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
                print(port, flush=True)
                if side == "client":
                    await client(port, tracer)
                    nursery.cancel_scope.cancel(reason="measured")

    async def client(port: int, tracer: tracing.Tracer) -> None:
        around = interceptors(way, "client", tracer)
        async with open_channel(f"127.0.0.1:{port}", interceptors=around) as channel:
            say: UnaryUnary[StringValue, StringValue] = UnaryUnary(channel, f"/{SERVICE}/Say", StringValue)
            left = calls

            async def loop() -> None:
                nonlocal left
                if way in ("tracing", "traced"):
                    span = tracer.begin("a request", tracing.Kind.SERVER, None)
                    tracing.enter(tracing.UNSAMPLED if span is None else span.context)
                while left > 0:
                    left -= 1
                    await say(StringValue(value=TEXT))

            for measured in (False, True):
                left = calls if measured else calls // 10
                began = time.process_time()
                async with trio.open_nursery() as nursery:
                    for _ in range(TASKS):
                        nursery.start_soon(loop)
                if measured:
                    print((time.process_time() - began) / calls * 1e6, flush=True)

    configure_logging("info", "json")
    trio.run(main)


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


class _Collector(BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # http.server's name
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        """Say nothing."""


def collect() -> None:
    """Serve as the collector."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


@contextmanager
def collecting() -> Iterator[str]:
    """A collector's URL."""
    command = [sys.executable, "-m", "tests.bench.bench_telemetry", "--collect"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measured(way: str, side: str, calls: int, collector: str) -> float:
    """CPU microseconds a call."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_telemetry",
        "--serve",
        way,
        side,
        str(calls),
        collector,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            if side == "client":
                return float(process.stdout.readline())
            Load(port).run(3600, calls / 10)
            before = cpu_s(process.pid)
            load = Load(port)
            load.run(3600, calls)
            return (cpu_s(process.pid) - before) / calls * 1e6
        finally:
            process.kill()


def compare(title: str, side: str, ways: Sequence[str], rounds: int, calls: int, collector: str) -> None:
    """Measure all ways in turns, and print the least of each."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(measured(way, side, calls, collector))
    print(f"\n{title}")
    least = min(found["none"])
    for way, values in found.items():
        print(f"  {way:>8}: {min(values):6.1f} µs CPU a call   {min(values) / least - 1:+7.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200_000, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--collect", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.collect:
        collect()
        return
    if arguments.serve:
        way, side, number, url = arguments.serve
        serve(way, side, int(number), url)
        return
    rounds, calls = arguments.rounds, arguments.calls
    with collecting() as collector:
        compare("served: 8 connections of 16 calls", "server", SERVERS, rounds, calls, collector)
        both = f"made and served in one process, {TASKS} tasks on a channel; around the calls made"
        compare(both, "client", CHANNELS, rounds, calls // 4, collector)


if __name__ == "__main__":
    main()
