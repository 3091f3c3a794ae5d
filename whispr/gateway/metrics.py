"""What the gateway counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("http_requests_total", "REST requests", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to answer a REST request", ["method", "route"])
IN_FLIGHT = Gauge("http_requests_in_flight", "REST requests being answered")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(slots=True)
class Measured:
    """What is learnt of a request while it is answered."""

    route: str = "none"
    """The template of its path: the path itself would make a label of every id."""
    status: int = 500


@contextmanager
def measured(method: str) -> Iterator[Measured]:
    """Count a request and its duration, whatever becomes of it."""
    request = Measured()
    started = time.perf_counter()
    label = method if method in _METHODS else "other"
    with IN_FLIGHT.track_inprogress():
        try:
            yield request
        finally:
            REQUESTS.labels(label, request.route, str(request.status)).inc()
            DURATION.labels(label, request.route).observe(time.perf_counter() - started)
