"""What the gateway counts."""

from __future__ import annotations

import time
from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("http_requests_total", "REST requests", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to answer a REST request", ["method", "route"])
IN_FLIGHT = Gauge("http_requests_in_flight", "REST requests being answered")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Measured:
    """A request in progress, and what is learnt of it: counted at its end, whatever becomes of it."""

    __slots__ = ("_method", "_started", "route", "status")

    def __init__(self, method: str) -> None:
        self._method = method
        self._started = 0.0
        self.route = "none"
        """The template of its path: the path itself would make a label of every id."""
        self.status = 500

    @property
    def age_s(self) -> float:
        """How long it has been in progress."""
        return time.perf_counter() - self._started

    def __enter__(self) -> Measured:
        IN_FLIGHT.inc()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        IN_FLIGHT.dec()
        requests, duration = _of(self._method, self.route, self.status)
        requests.inc()
        duration.observe(time.perf_counter() - self._started)


def measured(method: str) -> Measured:
    """Count a request and its duration, over a block."""
    return Measured(method if method in _METHODS else "other")


@lru_cache(maxsize=4096)
def _of(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """Return the counter and the histogram; `labels` itself would cost more than both updates."""
    return REQUESTS.labels(method, route, str(status)), DURATION.labels(method, route)
