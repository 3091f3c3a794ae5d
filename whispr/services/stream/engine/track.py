"""One rendition of a live stream: its last packets, and who hears it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from whispr.audio.packets import CLOCK_HZ, Packet, Rendition

BATCH: Final = 5_120
"""Those who do not want every packet at once are told where the clock is a multiple of this, 107 ms: a third of a
part of HLS, so that none of those waits for packets after it."""
RECENT: Final = 13 * CLOCK_HZ
"""Ticks that are kept."""

Take = Callable[[Sequence[Packet]], None]

log = structlog.get_logger("whispr.stream")


class Track:
    """A rendition. Packets are handed out in the order of the stream's clock, without holes while it is made."""

    def __init__(self, rendition: Rendition) -> None:
        self.rendition = rendition
        self.recent: deque[Packet] = deque()
        self.next_pts: int | None = None
        """Where the next packet must begin; None before the first, and after a rest."""
        self._prompt: list[Take] = []
        self._batched: list[Take] = []
        self._batch: list[Packet] = []
        self._idle_since: float | None = None

    def attach(self, take: Take, *, prompt: bool) -> None:
        """Add one who hears it."""
        (self._prompt if prompt else self._batched).append(take)
        self._idle_since = None

    def detach(self, take: Take) -> None:
        """Remove one who hears it, if they still do."""
        for hearers in (self._prompt, self._batched):
            if take in hearers:
                hearers.remove(take)
        if not self._prompt and not self._batched and self._idle_since is None:
            self._idle_since = trio.current_time()

    @property
    def hurried(self) -> bool:
        """Whether somebody hears it who wants every packet at once."""
        return bool(self._prompt)

    def wanted(self, now: float, linger_s: float) -> bool:
        """Whether it is heard, or was a moment ago."""
        if self._prompt or self._batched:
            return True
        return self._idle_since is not None and now - self._idle_since < linger_s

    def rest(self) -> None:
        """Be made no more: what comes after a rest need not go on where this ended."""
        self.flush()
        self.recent.clear()
        self.next_pts = None

    def publish(self, packets: Sequence[Packet]) -> None:
        """Hand out packets. They must go on where the ones before ended."""
        if not packets:
            return
        assert self.next_pts is None or packets[0].pts == self.next_pts, "a rendition has no holes"
        self.next_pts = packets[-1].pts + packets[-1].duration
        self.recent.extend(packets)
        while self.recent[0].pts < self.next_pts - RECENT:
            self.recent.popleft()
        self._tell(self._prompt, packets)
        self._batch += packets
        # What is encoded comes in batches already, which are not made to wait for the next.
        together = self.next_pts - packets[0].pts > BATCH * 2 // 3
        if together or self.next_pts // BATCH > self._batch[0].pts // BATCH:
            self.flush()

    def flush(self) -> None:
        """Hand what has gathered to those who hear it in batches."""
        batch, self._batch = self._batch, []
        if batch:
            self._tell(self._batched, batch)

    def _tell(self, hearers: list[Take], packets: Sequence[Packet]) -> None:
        for take in tuple(hearers):
            try:
                take(packets)
            except Exception:
                # One hearer's mistake is not the others' silence; who makes it hears no more.
                log.exception("hearer_failed", rendition=self.rendition.name)
                self.detach(take)
