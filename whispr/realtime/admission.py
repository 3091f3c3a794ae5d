"""How many opening handshakes are under way, and whose go when there are too many.

A handshake takes milliseconds, or as long as its client likes, up to `Limits.handshake_s`. So when all places are
taken nothing is accepted until one ends, which holds a storm back in the kernel's queue; but a place whose handshake
is over `Limits.slow_handshake_s` old is given to the next, so that clients which connect and say nothing cannot keep
the others out.
"""

from __future__ import annotations

import trio

from whispr.realtime import metrics
from whispr.realtime.limits import Limits


class Admission:
    """Of one listener."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.handshakes
        self._slow_s = limits.slow_handshake_s
        self._began: dict[trio.CancelScope, float] = {}  # the oldest first
        self._ended = trio.Event()

    async def room(self) -> None:
        """Wait until another handshake may begin."""
        while self._most and len(self._began) >= self._most:
            oldest, began = next(iter(self._began.items()))
            with trio.move_on_at(began + self._slow_s):
                await self._ended.wait()
                continue
            if oldest in self._began:
                metrics.UPGRADES.labels("crowded_out").inc()
                oldest.cancel(reason="a newer handshake takes the place of a slow one")
                self.end(oldest)

    def begin(self) -> trio.CancelScope:
        """Take a place, for a handshake that runs in this scope."""
        scope = trio.CancelScope()
        self._began[scope] = trio.current_time()
        metrics.HANDSHAKES.inc()
        return scope

    def end(self, scope: trio.CancelScope) -> None:
        """Give the place back, if it is not another's already."""
        if self._began.pop(scope, None) is not None:
            metrics.HANDSHAKES.dec()
            ended, self._ended = self._ended, trio.Event()
            ended.set()
