"""Counts and times calls, as an interceptor."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import Counter, Histogram

from whispr.errors import Code, WhisprError
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed

_LABELS = ("service", "method", "status")

REQUESTS = Counter("grpc_requests", "Calls served, by outcome", _LABELS)
DURATION = Histogram(
    "grpc_request_duration_seconds",
    "Time from a call's start to its status",
    _LABELS,
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)


class Measured:
    """Server interceptor: list it first, so that what others refuse is counted too.

    Only methods that are served reach an interceptor, so the labels are as many as the API is large.
    """

    def __init__(self) -> None:
        self._children: dict[tuple[str, Code], tuple[Counter, Histogram]] = {}

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Measure one call."""
        started = time.perf_counter()
        code = Code.CANCELLED  # what it stays if neither of the below is reached
        try:
            result = await proceed()
            code = Code.OK
            return result
        except WhisprError as error:
            code = error.code
            raise
        except Exception:
            code = Code.INTERNAL
            raise
        finally:
            requests, duration = self._of(call.method, code)
            requests.inc()
            duration.observe(time.perf_counter() - started)

    def _of(self, full_name: str, code: Code) -> tuple[Counter, Histogram]:
        """Return the method's counter and histogram; `labels()` itself would cost more than both updates."""
        children = self._children.get((full_name, code))
        if children is None:
            service, _, method = full_name.removeprefix("/").partition("/")
            labels = (service, method, code.name)
            children = REQUESTS.labels(*labels), DURATION.labels(*labels)
            self._children[full_name, code] = children
        return children
