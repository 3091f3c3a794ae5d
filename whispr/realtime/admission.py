"""How many opening handshakes are under way, and whose go when there are too many.

A handshake takes milliseconds, or as long as its client likes, up to `Limits.handshake_s`. So when all places are
taken nothing is accepted until one ends, which holds a storm back in the kernel's queue; but a place whose client we
have waited for longer than `Limits.slow_handshake_s` is given to the next, so that clients which connect and say
nothing cannot keep the others out. Time that the server itself takes, while it is busy, is nobody's fault and does
not count: who has said something that we have not read yet keeps the place.
"""

from __future__ import annotations

import math
import socket

import trio

from whispr.realtime import metrics
from whispr.realtime.limits import Limits


class Admission:
    """Of one listener."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.handshakes
        self._slow_s = limits.slow_handshake_s
        self._under_way: set[trio.CancelScope] = set()
        self._waited_for: dict[trio.CancelScope, tuple[float, socket.socket]] = {}
        """Those whose client is to speak, since when: the one that has been waited for longest first."""
        self._ended = trio.Event()

    async def room(self) -> None:
        """Wait until another handshake may begin."""
        while self._most and len(self._under_way) >= self._most:
            oldest, (since, sock) = next(iter(self._waited_for.items()), (None, (math.inf, None)))
            with trio.move_on_at(since + self._slow_s):
                await self._ended.wait()
                continue
            if oldest not in self._waited_for or sock is None:
                continue
            if _has_spoken(sock):
                del self._waited_for[oldest]
                self._waited_for[oldest] = trio.current_time(), sock
            else:
                metrics.UPGRADES.labels("crowded_out").inc()
                oldest.cancel(reason="a newer handshake takes the place of a slow one")
                self.end(oldest)

    def begin(self) -> trio.CancelScope:
        """Take a place, for a handshake that runs in this scope."""
        scope = trio.CancelScope()
        self._under_way.add(scope)
        metrics.HANDSHAKES.inc()
        return scope

    def waits(self, scope: trio.CancelScope, sock: socket.socket) -> None:
        """Note that the client is to speak now."""
        if scope in self._under_way:
            self._waited_for[scope] = trio.current_time(), sock
            self._stir()

    def heard(self, scope: trio.CancelScope) -> None:
        """Note that the client has asked for what it wants: the rest is ours to do."""
        self._waited_for.pop(scope, None)

    def end(self, scope: trio.CancelScope) -> None:
        """Give the place back, if it is not another's already."""
        self._waited_for.pop(scope, None)
        if scope in self._under_way:
            self._under_way.discard(scope)
            metrics.HANDSHAKES.dec()
            self._stir()

    def _stir(self) -> None:
        """Have whoever waits for room look again."""
        ended, self._ended = self._ended, trio.Event()
        ended.set()


def _has_spoken(sock: socket.socket) -> bool:
    """Tell whether something has come that is not read yet."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
