"""Half capacity for a while with faults at random, and what must not grow: memory, tasks, descriptors and the like.

    just soak --minutes 30 [--seed N]

Everything of `just chaos` but what ends the product itself, for its life is what is measured; the same seed injects
the same faults in the same order. After each of them the books are checked, as there. Capacity is what the same
clients reach on this machine when they do not pause. In the end a table: how each measure began and ended, its growth
over the run without the warm-up (by the median of all slopes between two samples, Theil and Sen, which a few peaks do
not move), and a curve. Exit code 1 when one of them grows, or when the books do not add up.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from urllib.request import urlopen

import trio

from tests.chaos.books import Books, open_books
from tests.chaos.faults import FAULTS, TARGETS
from tests.chaos.load import Crowd
from tests.chaos.machine import INSIDE, Machine, NotHere, free_of, in_namespaces
from tests.chaos.rig import PORTS, PROGRAMS, Rig, open_rig
from tests.chaos.rows import HEAD, Row, one_row
from whispr.adapters.postgres import open_postgres
from whispr.bridge import open_bridge
from whispr.errors import WhisprError
from whispr.telemetry.logging import configure_logging

GROUPS = 4
CAPACITY_S = 10.0
"""For which all talk as fast as they are answered."""
SAMPLES = 150
"""Taken in a run."""
WARM_UP = 0.3
"""Part of the run that is not looked at: caches fill, and pools."""
QUIET_S = (4.0, 16.0)
"""Between two faults."""
FATAL = ("kill -9", "out of memory")
"""What ends the process that it is done to."""
CURVE = "▁▂▃▄▅▆▇█"
_BLOAT = """
    SELECT 100.0 * coalesce(sum(n_dead_tup), 0) / greatest(sum(n_live_tup + n_dead_tup), 1) FROM pg_stat_user_tables
"""


@dataclass
class Measure:
    """Something that is sampled, and how much of it may be added in a run."""

    name: str
    unit: str
    ratio_max: float
    """Growth over the run, of the median."""
    growth_max: float
    """Growth that does not matter, in its unit."""
    samples: list[tuple[float, float]] = field(default_factory=list)

    @property
    def steady(self) -> list[tuple[float, float]]:
        """Samples after the warm-up."""
        return self.samples[int(len(self.samples) * WARM_UP) :]

    @property
    def growth(self) -> float:
        """By the slope, over the steady part."""
        steady = self.steady
        return slope(steady) * (steady[-1][0] - steady[0][0])

    @property
    def is_flat(self) -> bool:
        """Whether it does not grow."""
        median = statistics.median(value for _, value in self.steady)
        return self.growth <= max(self.growth_max, self.ratio_max * median)

    def line(self) -> str:
        """As a line of the table."""
        values = [value for _, value in self.samples]
        steady = [value for _, value in self.steady]
        return (
            f"{self.name:<26}{values[0]:>9.1f}{steady[0]:>9.1f}{values[-1]:>9.1f}{max(values):>9.1f} "
            f"{self.unit:<4}{self.growth:>+9.2f}  {'flat' if self.is_flat else 'GROWS':<6}{curve(values)}"
        )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between all pairs of points (Theil 1950, Sen 1968)."""
    return statistics.median((v2 - v1) / (t2 - t1) for (t1, v1), (t2, v2) in combinations(points, 2))


def curve(values: Sequence[float], width: int = 40) -> str:
    """Draw them in one line; each character is the median of those it stands for."""
    size = max(1, len(values) // width)
    shown = [statistics.median(values[at : at + size]) for at in range(0, len(values), size)]
    low, high = min(shown), max(shown)
    return "".join(CURVE[int((v - low) / ((high - low) or 1) * (len(CURVE) - 1))] for v in shown)


class Watch:
    """Looks at the product and PostgreSQL."""

    def __init__(self, rig: Rig, every_s: float) -> None:
        self._rig = rig
        self._every_s = every_s
        self.measures = [
            Measure("resident memory", "MiB", 0.10, 4.0),
            Measure("tasks", "", 0.10, 10.0),
            Measure("descriptors", "", 0.10, 5.0),
            Measure("threads", "", 0.0, 2.0),
            Measure("PostgreSQL connections", "", 0.0, 2.0),
            Measure("outbox on disk", "MiB", 0.25, 4.0),
            Measure("dead rows", "%", 0.25, 5.0),
        ]

    async def run(self) -> None:
        """Take samples until cancelled."""
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, self._rig.urls["postgres"], pool_size=1) as db,
        ):
            while True:
                with trio.move_on_after(self._every_s):
                    try:
                        connections = await db.fetchval(
                            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'whispr'"
                        )
                        outbox = await db.fetchval("SELECT pg_total_relation_size('events.outbox')")
                        dead = await db.fetchval(_BLOAT)
                        tasks = await trio.to_thread.run_sync(_tasks, abandon_on_cancel=True)
                    except (WhisprError, OSError):
                        pass  # away for now: no sample is better than half of one
                    else:
                        self._enter(*self._of_process(), connections, outbox / 2**20, float(dead), tasks)
                await trio.sleep(self._every_s)

    def _of_process(self) -> tuple[float, float, float]:
        """Memory in MiB, descriptors and threads."""
        process = Path(f"/proc/{self._rig.pid_of('product')}")
        facts = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        resident = int(facts["VmRSS"].split()[0]) / 1024
        return resident, len(list((process / "fd").iterdir())), int(facts["Threads"])

    def _enter(
        self,
        memory: float,
        files: float,
        threads: float,
        connections: float,
        outbox: float,
        dead: float,
        tasks: float,
    ) -> None:
        now = trio.current_time()
        found = (memory, tasks, files, threads, connections, outbox, dead)
        for measure, value in zip(self.measures, found, strict=True):
            measure.samples.append((now, value))


def _tasks() -> float:
    """Ask the product's metrics, past all roads."""
    with urlopen(f"http://127.0.0.1:{PORTS['gateway']}/metrics", timeout=5) as response:
        for line in response.read().decode().splitlines():
            if line.startswith("whispr_tasks "):
                return float(line.split()[1])
    raise OSError("no such metric")


async def capacity(crowd: Crowd) -> float:
    """Messages a second that are acknowledged when nobody pauses."""
    periods = [talker.period_s for talker in crowd.talkers]
    for talker in crowd.talkers:
        talker.period_s = 0.0
    await trio.sleep(CAPACITY_S / 4)
    before = sum(len(talker.acked) for talker in crowd.talkers)
    await trio.sleep(CAPACITY_S)
    found = (sum(len(talker.acked) for talker in crowd.talkers) - before) / CAPACITY_S
    for talker, period_s in zip(crowd.talkers, periods, strict=True):
        talker.period_s = period_s
    return found


async def faults_until(
    deadline: float, chance: random.Random, rig: Rig, crowd: Crowd, books: Books
) -> list[Row]:
    """Inject one fault after another."""
    possible = [
        (target, name)
        for target in TARGETS
        for name in FAULTS
        if not (target == "product" and name in FATAL) and not (target == "nats" and name.startswith("clock"))
    ]
    rows: list[Row] = []
    while trio.current_time() < deadline:
        crowd.go_on()
        await trio.sleep(chance.uniform(*QUIET_S))
        target, name = chance.choice(possible)
        rows.append(Row(TARGETS[target], name))
        await one_row(rig, crowd, books, rows[-1], target, FAULTS[name])
        print(rows[-1].line(), flush=True)
        for note in rows[-1].notes if not rows[-1].passed else ():
            print(f"{'':<18}  {note}", flush=True)
    return rows


async def soak(machine: Machine, minutes: float, seed: int) -> bool:
    """Run it; return whether all is well."""
    chance = random.Random(seed)
    async with open_rig(machine, workers=1) as rig:
        crowd = Crowd(rig)
        await trio.to_thread.run_sync(crowd.gather, GROUPS, 48.0)
        watch = Watch(rig, minutes * 60 / SAMPLES)
        async with open_books(rig, crowd) as books, trio.open_nursery() as nursery:
            nursery.start_soon(crowd.run)
            await crowd.until_served(trio.current_time())
            most = await capacity(crowd)
            for talker in crowd.talkers:
                talker.period_s = len(crowd.talkers) / (most / 2)
            print(
                f"capacity {most:,.0f} messages/s with these clients; half of it for {minutes:g} min, seed {seed}"
            )
            print(HEAD, flush=True)
            nursery.start_soon(watch.run)
            deadline = trio.current_time() + minutes * 60
            rows = await faults_until(deadline, chance, rig, crowd, books)
            nursery.cancel_scope.cancel(reason="the time is over")
    print(f"\n{'':<26}{'first':>9}{'warm':>9}{'last':>9}{'most':>9}{'':<5}{'growth':>9}")
    for measure in watch.measures:
        print(measure.line())
    total = sum(row.tried for row in rows)
    survived = sum(row.passed for row in rows)
    print(f"{survived} of {len(rows)} faults survived; {total:,} messages tried around them")
    return survived == len(rows) and all(measure.is_flat for measure in watch.measures)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the faults")
    options = parser.parse_args()
    configure_logging("error", "console")
    if INSIDE in os.environ:
        machine = Machine(Path(os.environ[INSIDE]), list(TARGETS), list(TARGETS), PROGRAMS)
        return 0 if trio.run(soak, machine, options.minutes, options.seed) else 1
    folder = Path(tempfile.mkdtemp(prefix="whispr-soak-"))
    try:
        return in_namespaces("tests.chaos.soak", sys.argv[1:], folder)
    except NotHere as why:
        print(f"skipped: no namespaces of our own on this machine: {why}")
        return 0
    finally:
        free_of(folder)


if __name__ == "__main__":
    sys.exit(main())
