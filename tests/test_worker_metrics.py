"""Metrics of several processes become one exposition that Prometheus reads."""

from __future__ import annotations

from pathlib import Path

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from whispr.worker_metrics import SUPERVISOR, gather, merged, serve_metrics, socket_name


def exposition(calls: int) -> str:
    """What a process says."""
    registry = CollectorRegistry()
    counter = Counter("calls_total", 'Calls, by "method"', ["method"], registry=registry)
    counter.labels('with "quotes", {braces}').inc(calls)
    Counter("restarts_total", "Restarts", registry=registry).inc(calls)
    Histogram("took_seconds", "How long", registry=registry).observe(calls)
    return generate_latest(registry).decode()


def test_every_family_comes_once_with_each_process_s_samples() -> None:
    """Names, labels and values stay as they were; each sample has its worker; who is silent shows as down."""
    families = {
        family.name: family
        for family in text_string_to_metric_families(
            merged({"1": exposition(1), "2": exposition(2), "3": None})
        )
    }
    calls = [s for s in families["calls"].samples if s.name == "calls_total"]
    assert [(s.labels["worker"], s.labels["method"], s.value) for s in calls] == [
        ("1", 'with "quotes", {braces}', 1.0),
        ("2", 'with "quotes", {braces}', 2.0),
    ]
    assert [s.labels for s in families["restarts"].samples if s.name == "restarts_total"] == [
        {"worker": "1"},
        {"worker": "2"},
    ]
    assert families["took_seconds"].type == "histogram"
    assert {s.labels["worker"]: s.value for s in families["whispr_worker_up"].samples} == {
        "1": 1,
        "2": 1,
        "3": 0,
    }
    before = next(iter(text_string_to_metric_families(exposition(1))))
    assert len(calls) == 2 * len([s for s in before.samples if s.name == "calls_total"])


async def test_a_process_that_does_not_answer_holds_nobody_up(tmp_path: Path, autojump_clock: object) -> None:
    """One that is gone and one that says nothing are down; the others' metrics come all the same."""
    del autojump_clock
    async with trio.open_nursery() as nursery:
        for name in (SUPERVISOR, "1"):
            await nursery.start(
                serve_metrics, tmp_path / socket_name(name), lambda: b"# TYPE up gauge\nup 1.0\n"
            )
        silent = trio.socket.socket(trio.socket.AF_UNIX)
        await silent.bind(str(tmp_path / socket_name("2")))
        silent.listen()
        said = (await gather(tmp_path, 3)).decode()
        silent.close()
        nursery.cancel_scope.cancel(reason="the test is over")
    assert [line for line in said.splitlines() if line.startswith("whispr_worker_up")] == [
        'whispr_worker_up{worker="supervisor"} 1',
        'whispr_worker_up{worker="1"} 1',
        'whispr_worker_up{worker="2"} 0',
        'whispr_worker_up{worker="3"} 0',
    ]
    assert 'up{worker="1"} 1.0' in said.splitlines()
