"""Spreading the news that a session has ended.

PostgreSQL holds the truth. The bus tells every live process within milliseconds, but forgets; the sorted set
in Redis tells processes that start or were cut off. Neither may be there at the moment: so whenever one of
them was away, everything that ended within the life of an access token is read from PostgreSQL and said
again, to both. Saying it twice does no harm.
"""

from __future__ import annotations

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.errors import WhisprError
from whispr.identity import REVOKED_KEY, REVOKED_SUBJECT, Identity, Revocation
from whispr.resilience.retry import Backoff
from whispr.services.auth.store import AuthStore
from whispr.tokens import LEEWAY_S, Clock

PAUSES = Backoff(0.1, 5.0, low=0.5)

REPEAT_EVERY_S = 60.0
"""A Redis that was restarted has forgotten, and tells nobody."""

log = structlog.get_logger("whispr.auth")


class Revoker:
    """Ends sessions, and sees to it that every process knows."""

    def __init__(
        self, store: AuthStore, cache: Cache, bus: Bus, identity: Identity, remember_s: float, clock: Clock
    ) -> None:
        self._store = store
        self._cache = cache
        self._bus = bus
        self._identity = identity
        self._remember_s = remember_s
        self._clock = clock
        self._missed = trio.Event()

    async def revoke(self, session_id: str, reason: str) -> None:
        """End a session in the database, then everywhere. To end it again is harmless."""
        await self._store.revoke(session_id, reason)
        await self.spread(session_id, reason=reason)

    async def revoke_token(self, token_id: str, reason: str, expires_at: float) -> None:
        """Refuse a service's token from now until it would have expired, everywhere."""
        until = expires_at + LEEWAY_S
        await self._store.revoke_token(token_id, reason, until)
        await self._spread(Revocation(token_id, reason, until))

    async def spread(self, *session_ids: str, reason: str) -> None:
        """Tell everybody of sessions that have ended in the database. Never fails: `run` repeats it."""
        until = self._clock() + self._remember_s
        await self._spread(*(Revocation(each, reason, until) for each in session_ids))

    async def _spread(self, *revocations: Revocation) -> None:
        # The bus first, for all of them: it never waits.
        for each in revocations:
            self._announce(each)
        try:
            for each in revocations:
                await self._remember(each)
        except WhisprError as error:
            log.warning("revocation_not_remembered", error=str(error))
            self._missed.set()

    def _announce(self, revocation: Revocation) -> None:
        # Our own process is told first: the bus does not echo.
        self._identity.revoke(revocation)
        self._bus.publish(REVOKED_SUBJECT, msgspec.json.encode(revocation))

    async def _remember(self, revocation: Revocation) -> None:
        await self._cache.command("ZADD", REVOKED_KEY, revocation.expires_at, revocation.session_id)

    async def run(self) -> None:
        """Repeat what may not have got through: at start, after a failure, when the bus comes up, at times."""
        forget = self._bus.on_up(lambda: self._missed.set())
        try:
            while True:
                self._missed = trio.Event()
                await self._repeat()
                with trio.move_on_after(REPEAT_EVERY_S):
                    await self._missed.wait()
        finally:
            forget()

    async def _repeat(self) -> None:
        attempt = 0
        while True:
            try:
                for revoked_id, reason, until in await self._store.revoked_within(self._remember_s):
                    revocation = Revocation(revoked_id, reason, until)
                    self._announce(revocation)
                    await self._remember(revocation)
                await self._cache.command("ZREMRANGEBYSCORE", REVOKED_KEY, "-inf", self._clock())
            except WhisprError as error:
                log.debug("revocations_not_repeated", error=str(error), attempt=attempt)
                attempt += 1
                await trio.sleep(PAUSES.pause_s(attempt))
            else:
                return
