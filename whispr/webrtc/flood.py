"""Budgets per address for what anybody can make us compute: checks that turn out to be nobody's."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

FAILURES_PER_S: Final = 20.0
FAILURES_BURST: Final = 100.0
HOSTS_MAX: Final = 4096
"""Remembered; of more, those go first that were silent longest."""


class Failures:
    """A leaking bucket of failures for every host, of IPv6 for every /64, which is one customer's."""

    def __init__(
        self, per_s: float = FAILURES_PER_S, burst: float = FAILURES_BURST, hosts_max: int = HOSTS_MAX
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._hosts_max = hosts_max
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Host → level of its bucket, and when."""

    def over(self, host: str, now: float) -> bool:
        """Whether a host has failed too often of late."""
        kept = self._levels.get(_whose(host))
        return kept is not None and kept[0] - (now - kept[1]) * self._per_s > self._burst - 1

    def note(self, host: str, now: float) -> None:
        """Count a failure."""
        whose = _whose(host)
        level, at = self._levels.pop(whose, (0.0, now))
        # Full is full: who failed a thousand times has to wait no longer than who failed often enough.
        self._levels[whose] = (min(self._burst, max(0.0, level - (now - at) * self._per_s) + 1), now)
        if len(self._levels) > self._hosts_max:
            self._levels.popitem(last=False)


def _whose(host: str) -> str:
    if ":" not in host:
        return host
    return ipaddress.IPv6Address(host.partition("%")[0]).exploded[:19]
