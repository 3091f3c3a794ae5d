"""Our gRPC runtime beside its peers, in one run: `just bench-grpc`.

Peers are grpcio.aio, and, where `just` could make an environment for them, grpclib and stock purerpc. Every server
and client is a process of its own. Ours has what it has in the product: metrics and logging around each
call, a deadline on each call, limits. Rounds take turns among the peers, and the best of each counts, which
cancels a noisy machine's moods; ratios are to grpcio.aio. Options: --seconds, --rounds, --calls, --only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.grpc_load import BODY, CONNECTIONS, STREAMS, Load

PEERS = (
    Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    / "whispr"
    / "bench-peers"
    / "bin"
    / "python"
)
SCRIPT = Path(__file__).with_name("grpc_peers.py")
REFERENCE = "grpcio.aio"
KIB = 1024
LOG_CHARS_SHOWN = 2000
HOUR_S = 3600.0
Figures = dict[str, float]


def contestants() -> list[str]:
    """Everybody who is installed."""
    others = ["grpclib", "purerpc"]
    works = (
        PEERS.exists()
        and subprocess.run([PEERS, "-c", "import grpclib, purerpc"], check=False).returncode == 0
    )
    if not works:
        print(f"grpclib and purerpc are left out: no environment of theirs at {PEERS.parent.parent}")
    return ["whispr", REFERENCE, *(others if works else [])]


def command(peer: str, *arguments: str) -> list[str]:
    python = str(PEERS) if peer in ("grpclib", "purerpc") else sys.executable
    return [python, str(SCRIPT), peer, *arguments]


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        told = process.stdout.readline()
        if not told:
            raise SystemExit("a server did not start")
        self.port = int(told)

    @property
    def memory_bytes(self) -> int:
        """What its process has in memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def serving(peer: str) -> Iterator[Server]:
    """Run a server. What it logs, above all of calls that a measurement cuts off, is shown if something fails."""
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command(peer, "serve"), stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        try:
            yield Server(process)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-LOG_CHARS_SHOWN:])
            raise
        finally:
            process.kill()


# --- Measurements -----------------------------------------------------------------------------------------


def raw_load(peer: str, seconds: float, method: str = "Say") -> Figures:
    """What a server takes from raw frames."""
    with serving(peer) as server:
        Load(server.port, method).run(seconds / 4)
        load = Load(server.port, method)
        rate = load.run(seconds)
        ordered = sorted(load.latencies)
        return {
            "rate": rate,
            **{f"p{share}": ordered[len(ordered) * share // 100] * 1000 for share in (50, 99)},
        }


def h2load(peer: str, seconds: float) -> Figures:
    """What a server takes from nghttp2's load generator, which knows nothing of gRPC."""
    with serving(peer) as server, tempfile.NamedTemporaryFile() as body:
        body.write(BODY)
        body.flush()
        headers = ["te: trailers", "content-type: application/grpc", "grpc-timeout: 20S"]
        told = subprocess.run(
            [
                "h2load",
                f"-c{CONNECTIONS}",
                f"-m{STREAMS}",
                f"-D{max(1, round(seconds))}",
                "--warm-up-time=1",
                "-t1",
            ]
            + [part for header in headers for part in ("-H", header)]
            + ["-d", body.name, f"http://127.0.0.1:{server.port}/whispr.bench.Echo/Say"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"finished in [^,]+, ([0-9.]+) req/s", told)
    assert found is not None, told
    assert " 0 failed" in told, told
    return {"rate": float(found[1])}


def called(client: str, server: str, scenario: str, seconds: float) -> Figures:
    """What a client makes of a server."""
    environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    with serving(server) as running:
        told = subprocess.run(
            command(client, "call", str(running.port), scenario, str(seconds)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        ).stdout
    figures: Figures = json.loads(told)
    return figures


def compare(
    title: str, peers: list[str], rounds: int, measure: Callable[[str], Figures], unit: str = "calls/s"
) -> None:
    """Measure everybody in turns and print the best of each."""
    best: dict[str, Figures] = {}
    for _ in range(rounds):
        for peer in peers:
            figures = measure(peer)
            if peer not in best or figures["rate"] > best[peer]["rate"]:
                best[peer] = figures
    print(f"\n{title}")
    for peer, figures in best.items():
        latency = "".join(f"   {name} {figures[name]:7.3f} ms" for name in ("p50", "p99") if name in figures)
        ratio = figures["rate"] / best[REFERENCE]["rate"] if REFERENCE in best else 0.0
        times = f"   {ratio:5.2f} times {REFERENCE}" if ratio and peer != REFERENCE else ""
        print(f"  {peer:>12}: {figures['rate']:9.0f} {unit}{latency}{times}", flush=True)


def memory(calls: int) -> None:
    """What connections, waiting calls and many calls leave in our server's memory."""
    with serving("whispr") as server:
        Load(server.port).run(0.5)
        before, connections = server.memory_bytes, 2000
        idle = Load(server.port, "Say", connections)
        idle.hold(1)
        time.sleep(1)
        each = (server.memory_bytes - before) / connections / KIB
        print(
            f"\nmemory\n  idle connection: {each:.1f} KiB, of {connections} that have made a call", flush=True
        )
        idle.close()
    with serving("whispr") as server:
        Load(server.port, "SayLater").run(0.5)
        before = server.memory_bytes
        waiting = Load(server.port, "Wait", 10)
        waiting.hold(1000)
        time.sleep(2)
        print(f"  10,000 waiting calls: {(server.memory_bytes - before) / KIB / KIB:.1f} MiB", flush=True)
        waiting.close()
    with serving("whispr") as server:
        Load(server.port).run(HOUR_S, calls / 10)
        before = server.memory_bytes
        Load(server.port).run(HOUR_S, calls)
        grown = (server.memory_bytes - before) / KIB
        print(f"  {calls:,} calls: grown by {grown:.0f} KiB, after {calls // 10:,} before them", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--calls", type=int, default=1_000_000, help="for the memory's growth")
    parser.add_argument("--only", default="", help="run those whose name contains this")
    arguments = parser.parse_args()
    seconds, rounds = arguments.seconds, arguments.rounds
    everybody = contestants()
    both = everybody[:2]
    runs: dict[str, Callable[[], None]] = {
        "server": lambda: compare(
            f"server, unary: {CONNECTIONS} connections of {STREAMS} calls, raw frames",
            everybody,
            rounds,
            lambda peer: raw_load(peer, seconds),
        ),
        "later": lambda: compare(
            "server, unary, ours with a handler that waits once",
            ["whispr"],
            1,
            lambda peer: raw_load(peer, seconds, "SayLater"),
        ),
        "h2load": lambda: compare(
            "server, unary, the same from h2load", both, 1, lambda peer: h2load(peer, seconds)
        ),
        "client": lambda: compare(
            "client, unary: 64 tasks on one channel, against our server",
            everybody,
            rounds,
            lambda peer: called(peer, "whispr", "unary", seconds),
        ),
        "pair": lambda: compare(
            "pair, unary: both ends the same, 64 tasks on one channel",
            everybody,
            rounds,
            lambda peer: called(peer, peer, "unary", seconds),
        ),
        "sequential": lambda: compare(
            "pair, sequential: one call after another",
            everybody,
            rounds,
            lambda peer: called(peer, peer, "sequential", seconds),
        ),
        "small": lambda: compare(
            "pair, server streaming of 100-byte messages",
            everybody,
            rounds,
            lambda peer: called(peer, peer, "small", seconds),
            "messages/s",
        ),
        "large": lambda: compare(
            "pair, server streaming of 1 MiB messages",
            both,
            rounds,
            lambda peer: called(peer, peer, "large", seconds),
            "messages/s",
        ),
        "paced": lambda: compare(
            "service to service: 1,000 calls/s, timed from when each was due",
            both,
            1,
            lambda peer: called(peer, peer, "paced", 2 * seconds),
        ),
        "memory": lambda: memory(arguments.calls),
    }
    if shutil.which("h2load") is None:
        print("h2load is left out: it is not installed (nghttp2-client)")
        del runs["h2load"]
    started = time.perf_counter()
    for name, run in runs.items():
        if arguments.only in name:
            run()
    print(f"\n{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
