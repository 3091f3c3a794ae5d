"""How Trio's loop is doing: how late it is, and how many tasks it has.

One task sleeps and looks how late it was woken: that is how long everything else that was due had to wait, whether
because a task held the thread or because the machine gave it to somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import trio
from prometheus_client import REGISTRY, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

EVERY_S = 0.25
"""How often the loop is looked at."""

LAG = Histogram(
    "whispr_loop_lag_seconds",
    "How late a task was woken that was due",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


class _Tasks(Collector):
    """What Prometheus reads of the loop it is served from."""

    def collect(self) -> Iterable[Metric]:
        living = GaugeMetricFamily("whispr_tasks", "Tasks in Trio's tree")
        runnable = GaugeMetricFamily("whispr_tasks_runnable", "Tasks that wait for the thread alone")
        if trio.lowlevel.in_trio_run():
            statistics = trio.lowlevel.current_statistics()
            living.add_metric([], statistics.tasks_living)
            runnable.add_metric([], statistics.tasks_runnable)
        return living, runnable


REGISTRY.register(_Tasks())


async def watch_loop(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
    """Measure the loop's lag until cancelled."""
    task_status.started()
    while True:
        due = trio.current_time() + EVERY_S
        await trio.sleep_until(due)
        LAG.observe(trio.current_time() - due)
