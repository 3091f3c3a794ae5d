"""What the console plots is read out of what Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from whispr.gateway.figures import figures
from whispr.worker_metrics import merged


def exposition(calls: int, sockets: int, outbox: int) -> str:
    """What a process says."""
    registry = CollectorRegistry()
    labels = ["service", "method", "status", "side"]
    took = Histogram("grpc_request_duration_seconds", "Calls", labels, buckets=(0.01, 0.1), registry=registry)
    for _ in range(calls):
        took.labels("Chat", "Send", "OK", "server").observe(0.05)
    took.labels("Chat", "Send", "NOT_FOUND", "server").observe(1)
    took.labels("Chat", "Send", "OK", "client").observe(1)
    Gauge("whispr_ws_sockets", "Sockets", registry=registry).set(sockets)
    Gauge("whispr_events_outbox_rows", "Rows", registry=registry).set(outbox)
    return generate_latest(registry).decode()


def test_figures_are_added_up_over_workers() -> None:
    """Calls and sockets of all; of what there is once, the largest; what is called is counted where it is served."""
    found = figures(merged({"1": exposition(3, 5, 7), "2": exposition(4, 6, 0), "3": None}))
    assert found["workers"] == {"1": True, "2": True, "3": False}
    assert (found["numbers"]["whispr_ws_sockets"], found["numbers"]["whispr_events_outbox_rows"]) == (11, 7)
    calls = found["histograms"]["grpc_request_duration_seconds"]
    assert calls["bounds"] == [0.01, 0.1]
    [sends] = calls["series"]
    assert sends["labels"] == {"service": "Chat", "method": "Send"}
    assert (sends["counts"], sends["failed"]) == ([0, 7, 9], 2)


def test_one_process_alone_says_the_same_without_workers() -> None:
    """Without workers there are no labels of workers, and none are needed."""
    found = figures(exposition(1, 2, 0))
    assert (found["workers"], found["numbers"]["whispr_ws_sockets"]) == ({}, 2)
    assert found["histograms"]["http_request_duration_seconds"] == {"bounds": [], "series": []}
