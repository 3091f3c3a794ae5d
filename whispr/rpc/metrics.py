"""Counts and times calls, as an interceptor on either side.

The figures are plain numbers, which Prometheus' own objects are made of only when somebody asks for them: those
would take longer to update than many a handler takes to run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from time import perf_counter

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from whispr.errors import Code, WhisprError
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Observer
from whispr.telemetry.live import LiveGauge

_OK = Code.OK
_LABELS = ("service", "method", "status", "side")
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds in seconds."""

CONNECTIONS = LiveGauge("whispr_rpc_connections", "gRPC connections that are served")
STREAMS = LiveGauge("whispr_rpc_calls_in_progress", "gRPC calls that are being served")


class _Tally:
    """Calls of one method with one outcome."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BUCKETS) + 1)
        """Calls by duration, the longest last."""
        self.seconds = 0.0


_tallies: dict[str, dict[tuple[str, Code], _Tally]] = {"server": {}, "client": {}}


class _Calls(Collector):
    """What Prometheus reads."""

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("grpc_requests", "Calls by outcome, served and made", labels=_LABELS)
        duration = HistogramMetricFamily(
            "grpc_request_duration_seconds", "Time from a call's start to its status", labels=_LABELS
        )
        for side, tallies in _tallies.items():
            for (full_name, code), tally in list(tallies.items()):
                service, _, method = full_name.removeprefix("/").partition("/")
                labels = (service, method, code.name, side)
                sums = list(accumulate(tally.buckets))
                requests.add_metric(labels, sums[-1])
                bounds = [*map(str, _BUCKETS), "+Inf"]
                duration.add_metric(labels, list(zip(bounds, sums, strict=True)), tally.seconds)
        return requests, duration


REGISTRY.register(_Calls())


class Measured(Observer):
    """List it first, so that what others refuse is counted too.

    Only methods that are served reach a server's interceptor, and channels call what stubs have, so the labels are
    as many as the API is large. Of a call made again, a channel counts each attempt.
    """

    def __init__(self, side: str = "server") -> None:
        """`side` is "server", or "client" on a channel."""
        self._tallies = _tallies[side]
        self._good: dict[str, _Tally] = {}
        """By method alone: an enumeration takes longer to look something up by than all the rest here."""

    def ended(self, call: Call, code: Code, error: WhisprError | None) -> None:
        """Measure one call."""
        tally = self._good.get(call.method) if code is _OK else self._tallies.get((call.method, code))
        if tally is None:
            tally = self._tallies.setdefault((call.method, code), _Tally())
            if code is _OK:
                self._good[call.method] = tally
        seconds = perf_counter() - call.begun_at
        tally.seconds += seconds
        tally.buckets[bisect_left(_BUCKETS, seconds)] += 1
