"""Gauges that are looked at when somebody asks for them, and cost nothing until then.

QUEUED = LiveGauge("whispr_log_queue_len", "Messages that wait to be written")

with QUEUED.watching(lambda: len(self._queue)):
    ...                          # while this runs, it is part of the sum
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class LiveGauge(Collector):
    """The sum of what its sources say at the moment of being asked."""

    def __init__(self, name: str, documentation: str) -> None:
        """Name it as Prometheus will; it registers itself."""
        self._name = name
        self._documentation = documentation
        self._sources: list[Callable[[], float]] = []
        REGISTRY.register(self)

    @contextmanager
    def watching(self, source: Callable[[], float]) -> Iterator[None]:
        """Count `source` in over the block. It must neither wait nor raise."""
        self._sources.append(source)
        try:
            yield
        finally:
            self._sources.remove(source)

    def collect(self) -> Iterable[Metric]:
        """What Prometheus reads."""
        yield GaugeMetricFamily(self._name, self._documentation, value=sum(each() for each in self._sources))
