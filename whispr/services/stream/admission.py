"""Room for one more listener: of a stream, of an address, of a person; and who may not come back yet.

Who has no account is known by their address alone. One who was put out by name may not come back from it for a while:
all processes are told (`notices.BARRED`), and each remembers so many. A process that is started meanwhile does not
know of it. Addresses are remembered and told as digests.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from whispr.errors import WhisprError, denied, exhausted
from whispr.households import household
from whispr.services.stream.domain import StreamLimits, Viewer
from whispr.services.stream.livestate import LiveState
from whispr.services.stream.places import Place

BARRED_S: Final = 600.0
BARRED_MAX: Final = 10_000
"""Addresses that a process remembers; beyond, the one that was barred first may come back."""
REMEMBERED_MAX: Final = 10_000
"""Listeners put out whose HLS sessions are refused, per process; they end by themselves in time."""

log = structlog.get_logger("whispr.stream")


def mark_of(stream_id: str, address: str) -> str:
    """Return what an address is called where it is barred from a stream; empty for none."""
    if not address:
        return ""
    return hashlib.blake2b(f"{stream_id} {household(address)}".encode(), digest_size=16).hexdigest()


class Admission:
    """Lets listeners of one process in, or not."""

    def __init__(
        self, live: LiveState, limits: StreamLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._live = live
        self._limits = limits
        self._clock = clock
        self._addresses: Counter[str] = Counter()
        self._people: Counter[str] = Counter()
        self._barred: OrderedDict[str, float] = OrderedDict()
        """What a barred address is called → when it may come back, the first first."""
        self._put_out: OrderedDict[str, None] = OrderedDict()

    def come(self, stream_id: str, address: str, viewer: Viewer) -> None:
        """Count somebody who wants to listen; take it back by `go`, also when nothing comes of it.

        Refuses a barred address, and one address or person with too many listeners here: those on their way in
        count, or many who come at once would all find room. Raises PERMISSION_DENIED (removed), RESOURCE_EXHAUSTED
        (too_many_listeners).
        """
        if not viewer.user_id and not viewer.trusted and self.is_barred(stream_id, address):
            raise denied("you have been put out of this stream", reason="removed")
        most, home = self._limits.address_listeners, household(address)
        if most and address and self._addresses[home] >= most:
            raise exhausted(f"at most {most} listeners from one address", reason="too_many_listeners")
        most = self._limits.user_listeners
        if most and viewer.user_id and self._people[viewer.user_id] >= most:
            raise exhausted(f"at most {most} listeners of one person", reason="too_many_listeners")
        self._addresses[home] += 1
        self._people[viewer.user_id] += 1

    def go(self, address: str, user_id: str) -> None:
        """Count one less."""
        for counts, whose in ((self._addresses, household(address)), (self._people, user_id)):
            counts[whose] -= 1
            if not counts[whose]:
                del counts[whose]

    async def count_in(self, place: Place, here: int) -> None:
        """Take one of the stream's places; `here` are taken here. Raises RESOURCE_EXHAUSTED (stream_full)."""
        stream = place.listener.stream
        own = place.viewer.user_id == stream.streamer_id or place.viewer.trusted
        limits = [most for most in (stream.config.max_listeners, self._limits.listeners) if most]
        most = 0 if own or not limits else min(limits)
        try:
            admitted = await self._live.admit(stream.id, place.listener.id, most)
        except WhisprError as error:
            log.info("listeners_counted_here", error=str(error))
            admitted = not most or here < most
        if not admitted:
            raise exhausted(f"the stream has room for {most} listeners", reason="stream_full")

    def bar(self, mark: str) -> None:
        """Refuse an address for `BARRED_S`."""
        now = self._clock()
        self._barred[mark] = now + BARRED_S
        self._barred.move_to_end(mark)
        while self._barred and (len(self._barred) > BARRED_MAX or next(iter(self._barred.values())) <= now):
            self._barred.popitem(last=False)

    def is_barred(self, stream_id: str, address: str) -> bool:
        """Whether an address may not come back yet."""
        return self._barred.get(mark_of(stream_id, address), 0.0) > self._clock()

    def put_out(self, listener_id: str) -> None:
        """Refuse the HLS session of a listener."""
        self._put_out[listener_id] = None
        if len(self._put_out) > REMEMBERED_MAX:
            self._put_out.popitem(last=False)

    def check_in(self, listener_id: str) -> None:
        """Raise PERMISSION_DENIED (removed) for who was put out."""
        if listener_id in self._put_out:
            raise denied("you have been put out of this stream", reason="removed")
