"""Live audio, all of it in one table: what a core has room for, and how old what is heard is.

    just bench-stream [--quick] [--json]

Takes about three minutes, one with `--quick`, whose figures are rougher. Each is told apart in its own file:
`bench_stream` (encoding), `bench_stream_webrtc` (WHEP, aiortc beside it), `bench_stream_listeners` (HLS, WebSocket,
progressive) and `bench_stream_latency` (from mouth to ear). Room is CPU time per core and second, kernel and all, of
the serving process alone; latencies are of the clock, and mean something only while the machine does nothing else.

On two cores that others used, too: 17.9 full ladders a core, 16.3 in hops of 20 ms, 15.8 with the engine around them;
WHEP 58 ms passed and 80 ms encoded, WebSocket 208 ms raw and 411 ms fMP4, LL-HLS 1.03 s, and of FFmpeg 1.27 s
(Icecast, Ogg) and 1.56 s (MP3).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import structlog
import trio

from tests.bench import bench_stream, bench_stream_latency, bench_stream_listeners, bench_stream_webrtc
from whispr.services.stream.engine.live import Sound

WHEP_ASKED = 1500


@dataclass
class Row:
    """One figure. `asked`: at least, or at most where it is a time; 0 for nothing."""

    what: str
    figure: float
    unit: str
    asked: float = 0.0

    @property
    def met(self) -> str:
        """Say whether it is what was asked for."""
        if not self.asked:
            return ""
        enough = self.figure <= self.asked if self.unit == "ms" else self.figure >= self.asked
        return f"asked {self.asked:,.0f}: {'met' if enough else 'NOT met'}"


def encoding(*, quick: bool) -> Iterator[Row]:
    """Full ladders."""
    packets = bench_stream.music(4 if quick else bench_stream.SECONDS)
    asked = bench_stream.ASKED_PER_CORE
    for hop, told in ((5, ""), (1, ", taken 20 ms at a time")):
        cost = bench_stream.ladder_cost(packets, bench_stream.RENDITIONS, Sound(), hop)
        yield Row(f"full ladders{told}", 1 / cost, "a core", asked)
    cost, lost = trio.run(bench_stream.whole_engine, packets, 6)
    yield Row("full ladders, engine and all", 1 / cost, "a core", asked)
    yield Row("pieces lost meanwhile", lost, "")


def listeners(*, quick: bool) -> Iterator[Row]:
    """Listeners of every transport."""
    count, seconds = (300, 3.0) if quick else (500, 6.0)
    for each in bench_stream_webrtc.results(count, 6 if quick else 12, seconds):
        ours = each.what == "whispr"
        name = "WHEP listeners" if ours else f"the same with {each.what}"
        yield Row(name, each.listeners_per_core, "a core", WHEP_ASKED if ours else 0)
    for transport, told in (("hls", "LL-HLS"), ("websocket", "WebSocket"), ("progressive", "progressive")):
        found = trio.run(bench_stream_listeners.measure, transport, count, seconds)
        yield Row(f"{told} listeners", found.listeners_per_core, "a core")


def latencies(*, quick: bool) -> Iterator[Row]:
    """From mouth to ear."""
    for each in bench_stream_latency.measure(12.0 if quick else 22.0, icecast=not quick):
        stalls = f", {each.stalls} stalls" if each.stalls else ""
        yield Row(f"latency, {each.transport}{stalls}", each.median_ms, "ms", each.asked_ms)


def main(say: Callable[[str], None] = print) -> None:
    """Take the arguments, measure and say it, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50)
    )  # players leave without a word
    rows = []
    for part in (encoding, listeners, latencies):
        for row in part(quick=options.quick):
            rows.append(row)
            if not options.json:
                say(f"{row.what:<44} {row.figure:>10,.1f} {row.unit:<7} {row.met}".rstrip())
    if options.json:
        say(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
