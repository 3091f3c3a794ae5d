"""Whispr's real-time hub beside Node's `ws`, `websockets` on uvloop, picows and a bare C send loop, in one run.

    just bench-realtime [fanout] [stall] [connect] [messages] [latency] [storm] [--seconds 4] [--json]

All servers get the same load from the same client, written in C (`realtime_peers/load.c`): sockets that speak
Phoenix, of which one publishes and all must get everything, once and in order. Whispr runs with all of its semantics
(joined channels, seq, presence, operation budgets); the peers do as little as their documentation's example of a
broadcast, and the C loop one `send` for each socket.

* fanout: to 1,000 and 5,000 sockets: deliveries/s with four broadcasts in flight, and CPU time per delivery; the
  same at a paced 50,000 deliveries/s, with latency from the moment a broadcast is due until it has been read.
* stall: latency at 50,000/s of 950 sockets while 50 others stop to read, beside the same with none.
* connect: 15,000 sockets at 2,000/s, each joined to two topics; memory of each; then held and sent to.
* messages: durable messages end to end through a whole `whispr serve`: WebSocket in, committed, delivered.
* latency: the same at a light load.
* storm: `tests.bench.realtime_storm`: everybody reconnects at once; a thousand people join one room.

Every server runs alone with the client. CPU time is the steadiest figure; on a busy machine the latencies are not.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench import bench_messages
from tests.bench.realtime_rig import OWN, ROOM, Load, Server, Unavailable, command_of, compiled, under_load
from tests.product import UNLIMITED, Product, running

PEERS = ("c send loop", "ws", "websockets", "picows", "whispr")
BYTES = 80
PACED_PER_S = 50_000
WINDOW = 4
STALL_BYTES = 2000
CONNECTIONS, CONNECTS_PER_S = 15_000, 2000
SENDERS = 50
LIGHT_PER_S = 200
STORM_S = 240


@dataclass
class Figures:
    """One run against one server."""

    section: str
    server: str
    what: str
    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    lost: int = 0

    def row(self) -> str:
        """A line of the printed table."""
        lost = f"  LOST {self.lost}" if self.lost else ""
        return (
            f"{self.section:10}{self.server:14}{self.what:34}{self.per_s:>11,.0f}/s{self.cpu_us:>9.2f} µs"
            f"{self.p50_ms:>9.1f}{self.p99_ms:>9.1f} ms{lost}"
        )


Report = Callable[[Figures], None]


def measured(section: str, name: str, what: str, server: Server, load: Load, line: str) -> Figures:
    """Have the client load the server, and take the server's CPU time of it."""
    before = server.cpu_s
    said: Mapping[str, Any] = load.ask(line)
    cpu_us = (server.cpu_s - before) / max(1, said["deliveries"]) * 1e6
    assert not said["disorder"], f"{name}: {said['disorder']} deliveries out of order, lost or doubled"
    rate = said["deliveries"] / said["seconds"]
    return Figures(section, name, what, rate, cpu_us, said["p50_ms"], said["p99_ms"], said["lost"])


class Bench:
    """The sections. Each prints as it goes and returns what to say of it in the end."""

    def __init__(self, folder: Path, seconds: float, report: Report) -> None:
        self._seconds = seconds
        self._report = report
        self._load = compiled("load", folder)
        self._sendloop = compiled("sendloop", folder)
        self._folder = folder
        self.found: list[Figures] = []

    def fanout(self) -> list[str]:
        """Deliveries a second, and what each costs."""
        found: dict[tuple[int, str], Figures] = {}
        paced: dict[tuple[int, str], Figures] = {}
        for sockets in (1000, 5000):
            for peer in PEERS:
                try:
                    command = command_of(peer, self._sendloop)
                    with under_load(command, self._load, sockets, [ROOM]) as (server, load, _):
                        load.ask(f"flat {WINDOW} 0.5 {BYTES}")
                        line = f"flat {WINDOW} {self._seconds} {BYTES}"
                        what = f"{sockets} sockets, flat out"
                        found[sockets, peer] = self._note(measured("fanout", peer, what, server, load, line))
                        line = f"paced {PACED_PER_S} {self._seconds} {BYTES}"
                        what = f"{sockets} sockets, {PACED_PER_S:,}/s asked"
                        paced[sockets, peer] = self._note(measured("fanout", peer, what, server, load, line))
                except Unavailable as error:
                    print(f"fanout    {peer:14}{error}", flush=True)
        return [_compared(f"{sockets} sockets", sockets, found, paced) for sockets in (1000, 5000)]

    def stall(self) -> list[str]:
        """What the others notice when 5 % stop to read."""
        command = command_of("whispr", self._sendloop)
        line = f"paced {PACED_PER_S} {self._seconds} {STALL_BYTES}"
        with under_load(command, self._load, 1000, [ROOM]) as (server, load, _):
            load.ask(f"paced {PACED_PER_S} 0.5 {STALL_BYTES}")
            rounds = [
                self._note(measured("stall", "whispr", "nobody stalls", server, load, line)) for _ in range(3)
            ]
            load.ask("stall 5")
            stalled = [
                self._note(measured("stall", "whispr", "5 % stall", server, load, line)) for _ in range(3)
            ]
        calm, busy = (statistics.median(f.p99_ms for f in each) for each in (rounds, stalled))
        return [f"stall: the others' p99 {calm:.1f} ms with nobody stalled, {busy:.1f} ms while 5 % are"]

    def connect(self) -> list[str]:
        """Many sockets, what each takes, and that they can be reached."""
        lines = []
        for peer in PEERS:
            try:
                command = command_of(peer, self._sendloop)
                with under_load(command, self._load, CONNECTIONS, [ROOM, OWN], CONNECTS_PER_S) as (
                    server,
                    load,
                    kib,
                ):
                    ready_s = load.connected["ready_s"]
                    lines.append(
                        f"connect: {peer}: {CONNECTIONS:,} sockets, asked {CONNECTS_PER_S:,}/s, all joined to two "
                        f"topics after {ready_s:.1f} s; {kib:.1f} KiB each"
                    )
                    line = f"paced {PACED_PER_S} {self._seconds} {BYTES}"
                    what = f"{CONNECTIONS:,} sockets, {PACED_PER_S:,}/s asked"
                    self._note(measured("connect", peer, what, server, load, line))
            except Unavailable as error:
                lines.append(f"connect: {peer}: {error}")
        return lines

    def messages(self) -> list[str]:
        """Acknowledged durable messages a second, and how long each takes at half of that."""
        with _product(self._folder) as product:
            load = bench_messages.connect(product, _people(product), SENDERS)
            load.run("warming up", window=8)
            most = load.run("closed loop", window=8)
            rate = most.acked / most.seconds
            half = load.run("half of it", rate=rate / 2)
            load.close()
        return [
            f"messages: {rate:,.0f} acknowledged/s end to end, client and PostgreSQL on the same cores; "
            f"at {rate / 2:,.0f}/s p50 {_quantile(half, 0.5):.1f}, p99 {_quantile(half, 0.99):.1f} ms"
        ]

    def latency(self) -> list[str]:
        """From one client to another with the commit between them, at a light load."""
        with _product(self._folder) as product:
            load = bench_messages.connect(product, _people(product), 1)
            load.run("warming up", rate=LIGHT_PER_S)
            light = load.run("light", rate=LIGHT_PER_S)
            load.close()
        return [
            f"latency: client to client with commit, {LIGHT_PER_S}/s: p50 {_quantile(light, 0.5):.2f}, "
            f"p99 {_quantile(light, 0.99):.2f} ms"
        ]

    def storm(self) -> list[str]:
        """The storms have a program of their own."""
        command = [sys.executable, "-m", "tests.bench.realtime_storm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=STORM_S, check=False)
        said = done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]
        return [f"storm: {line}" for line in said.splitlines()]

    def _note(self, figures: Figures) -> Figures:
        self.found.append(figures)
        self._report(figures)
        return figures


SECTIONS: Mapping[str, Callable[[Bench], list[str]]] = {
    "fanout": Bench.fanout,
    "stall": Bench.stall,
    "connect": Bench.connect,
    "messages": Bench.messages,
    "latency": Bench.latency,
    "storm": Bench.storm,
}


def _compared(
    what: str,
    sockets: int,
    found: Mapping[tuple[int, str], Figures],
    paced: Mapping[tuple[int, str], Figures],
) -> str:
    ours, own = found.get((sockets, "whispr")), paced.get((sockets, "whispr"))
    if ours is None or own is None:
        return f"fanout: {what}: not measured"
    times = [
        f"{ours.per_s / each.per_s:.2f} times {peer} ({each.cpu_us / ours.cpu_us:.2f} by CPU; at the pace "
        f"{paced[sockets, peer].cpu_us / own.cpu_us:.2f})"
        for peer in PEERS[:-1]
        if (each := found.get((sockets, peer))) is not None and (sockets, peer) in paced
    ]
    return f"fanout: {what}: {ours.per_s:,.0f}/s, {ours.cpu_us:.2f} CPU µs each: {', '.join(times)}"


def _product(folder: Path) -> Any:
    return running(Path(tempfile.mkdtemp(dir=folder)) / "data", UNLIMITED)


def _people(product: Product) -> list[tuple[str, str]]:
    count = 2 * SENDERS // bench_messages.SOCKETS_EACH
    return [product.sign_up(f"person-{n}") for n in range(count)]


def _quantile(result: bench_messages.Result, q: float) -> float:
    ordered = sorted(result.latencies)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def main() -> None:
    """Run the sections named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':58}{'deliveries':>13}{'CPU each':>12}{'p50':>9}{'p99':>9}", flush=True)
        bench = Bench(Path(folder), arguments.seconds, lambda figures: print(figures.row(), flush=True))
        for name in arguments.sections or SECTIONS:
            print("\n".join(_run(bench, name)), flush=True)
    if arguments.json:
        print(json.dumps([asdict(each) for each in bench.found]))


def _run(bench: Bench, section: str) -> list[str]:
    try:
        return SECTIONS[section](bench)
    except (Unavailable, AssertionError, subprocess.TimeoutExpired) as error:
        return [f"{section}: {error}"]


if __name__ == "__main__":
    main()
