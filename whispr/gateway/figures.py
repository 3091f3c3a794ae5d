"""What the console plots, out of an exposition: calls, requests, and what is in use. Pure.

`/metrics` says everything of every worker; a page that asks every other second wants little of it, added up over the
workers. Histograms stay cumulative counts, so whoever asks twice has the rate and the quantiles of the time between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([^ ]+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

SUMMED = frozenset({
    "whispr_ws_sockets", "whispr_ws_channels", "whispr_ws_handshakes", "whispr_ws_pushes_total",
    "whispr_ws_deliveries_total", "whispr_ws_broadcasts_total", "whispr_ws_slow_closed_total",
    "whispr_longpoll_sessions", "whispr_messages_queued", "whispr_postgres_pool_size",
    "whispr_postgres_pool_in_use", "whispr_postgres_pool_waiting", "whispr_rpc_calls_in_progress",
    "http_requests_in_flight", "whispr_tasks", "process_cpu_seconds_total", "process_resident_memory_bytes",
    "process_open_fds", "whispr_message_batch_len_sum", "whispr_worker_restarts_total",
})  # fmt: skip
"""Added up over workers and labels."""
LARGEST = frozenset({"whispr_events_outbox_rows", "whispr_events_outbox_lag_seconds"})
"""Of one thing that several workers may look at: the largest is what one of them has just seen."""
HISTOGRAMS: Mapping[str, tuple[str, ...]] = {
    "grpc_request_duration_seconds": ("service", "method"),
    "http_request_duration_seconds": ("method", "route"),
    "whispr_message_write_seconds": (),
    "whispr_loop_lag_seconds": (),
}
"""By which labels each is told apart; the rest is added up."""


@dataclass(slots=True)
class _Series:
    buckets: dict[float, float] = field(default_factory=dict)
    failed: float = 0.0


def figures(exposition: str) -> dict[str, Any]:
    """Read them. Calls are those served: what a service calls, another has served."""
    numbers: dict[str, float] = {}
    workers: dict[str, bool] = {}
    series: dict[str, dict[tuple[str, ...], _Series]] = {name: {} for name in HISTOGRAMS}
    for line in exposition.splitlines():
        if line.startswith("#") or (sample := _SAMPLE.match(line)) is None:
            continue
        name, value = sample[1], float(sample[3])
        if name in SUMMED:
            numbers[name] = numbers.get(name, 0.0) + value
        elif name in LARGEST:
            numbers[name] = max(numbers.get(name, 0.0), value)
        elif name == "whispr_worker_up":
            workers[_labels(sample[2])["worker"]] = bool(value)
        elif name.endswith("_bucket") and name.removesuffix("_bucket") in HISTOGRAMS:
            _add(series[name.removesuffix("_bucket")], name.removesuffix("_bucket"), sample[2], value)
    return {
        "workers": workers,
        "numbers": numbers,
        "histograms": {name: _shown(name, found) for name, found in series.items()},
    }


def _labels(text: str | None) -> dict[str, str]:
    return dict(_LABEL.findall(text or ""))


def _add(found: dict[tuple[str, ...], _Series], name: str, text: str, value: float) -> None:
    labels = _labels(text)
    if labels.get("side") == "client":
        return
    one = found.setdefault(tuple(labels[each] for each in HISTOGRAMS[name]), _Series())
    bound = float(labels["le"])
    one.buckets[bound] = one.buckets.get(bound, 0.0) + value
    if bound == float("inf") and labels.get("status", "OK") != "OK":
        one.failed += value


def _shown(name: str, found: Mapping[tuple[str, ...], _Series]) -> dict[str, Any]:
    """Bounds in seconds once, then each series' cumulative counts, the last of them all there were."""
    bounds = sorted({bound for one in found.values() for bound in one.buckets})
    return {
        "bounds": [bound for bound in bounds if bound != float("inf")],
        "series": [
            {
                "labels": dict(zip(HISTOGRAMS[name], key, strict=True)),
                "counts": [one.buckets.get(bound, 0.0) for bound in bounds],
                "failed": one.failed,
            }
            for key, one in sorted(found.items())
            if one.buckets.get(float("inf"))
        ],
    }
