"""Sessions, and service tokens, that were ended before they expired.

They are known from two places: a sorted set in Redis, read at start and after the bus was away, and the bus, which
brings news within milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus, Subscription
from whispr.adapters.cache import Cache
from whispr.errors import WhisprError
from whispr.resilience.retry import Backoff
from whispr.tokens import Claims, Clock

REVOKED_KEY = "whispr:revoked"
"""Redis sorted set: the id of a session or of a service's token, scored by the Unix time until which it matters."""

REVOKED_SUBJECT = "whispr.sessions.revoked"

PRUNE_EVERY_S = 60.0
RELOAD_EVERY_S = 60.0
RELOAD = Backoff(0.1, 5.0, low=0.5)

OnRevoked = Callable[[str, str], None]

log = structlog.get_logger("whispr.identity")


class Revocation(msgspec.Struct, frozen=True):
    """The news that a session has ended, as it travels on the bus."""

    session_id: str
    """Or the id of a service's token, which has no session."""
    reason: str
    expires_at: float
    """Unix time after which no token of the session can be alive."""


class Revocations:
    """What has been ended, as far as this process knows."""

    def __init__(self, cache: Cache, bus: Bus, clock: Clock) -> None:
        self._cache = cache
        self._bus = bus
        self._clock = clock
        self._until: dict[str, float] = {}
        """Unix time after which it matters no more, by id of the session or token."""
        self._callbacks: list[OnRevoked] = []
        self._stale = trio.Event()

    def cover(self, claims: Claims) -> bool:
        """Whether the token with these claims has been ended."""
        return claims.session_id in self._until or claims.token_id in self._until

    def ended(self, session_id: str) -> bool:
        """Whether a session has been ended."""
        return session_id in self._until

    def on_revoked(self, callback: OnRevoked) -> None:
        """Call `callback(session_id, reason)` whenever a session ends; it must not block or raise."""
        self._callbacks.append(callback)

    def add(self, revocation: Revocation) -> None:
        """Refuse a session's tokens from now on, and tell those who hold its sockets."""
        if revocation.session_id in self._until:
            return
        self._until[revocation.session_id] = revocation.expires_at
        for callback in self._callbacks:
            callback(revocation.session_id, revocation.reason)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up, until cancelled. Ready once it listens to the bus."""
        forget = self._bus.on_up(lambda: self._stale.set())
        try:
            async with self._bus.subscribe(REVOKED_SUBJECT) as news, trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, news)
                nursery.start_soon(self._reload_after_every_gap)
                nursery.start_soon(self._prune_for_ever)
                task_status.started()
        finally:
            forget()

    async def _follow(self, news: Subscription) -> None:
        async for message in news:
            try:
                self.add(msgspec.json.decode(message.payload, type=Revocation))
            except msgspec.MsgspecError as error:
                log.warning("revocation_unreadable", error=str(error))

    async def _reload_after_every_gap(self) -> None:
        """Read the sorted set now, and whenever the bus has been away: what it said meanwhile is lost.

        And now and then without a cause: the bus delivers at most once.
        """
        while True:
            self._stale = trio.Event()
            await self._reload()
            with trio.move_on_after(RELOAD_EVERY_S):
                await self._stale.wait()

    async def _reload(self) -> None:
        attempt = 0
        while True:
            try:
                found = await self._cache.command(
                    "ZRANGEBYSCORE", REVOKED_KEY, self._clock(), "+inf", "WITHSCORES"
                )
            except WhisprError as error:
                # Without Redis the bus still brings what happens from now on.
                log.warning("revocations_not_loaded", error=str(error), attempt=attempt)
                attempt += 1
                await trio.sleep(RELOAD.pause_s(attempt))
                continue
            for session_id, expires_at in zip(found[::2], found[1::2], strict=True):
                self.add(Revocation(session_id.decode(), "session_revoked", float(expires_at)))
            return

    async def _prune_for_ever(self) -> None:
        while True:
            await trio.sleep(PRUNE_EVERY_S)
            now = self._clock()
            self._until = {ended: until for ended, until in self._until.items() if until > now}
