"""Rate limits: the generic cell rate algorithm, in the cache for all nodes, locally when the cache is away.

GCRA (ITU-T I.371, annex A) keeps one number per key, the theoretical arrival time (TAT): each call moves it
one emission interval (`period / limit`) into the future, and a call is refused when it would push it more
than a whole period ahead. So `limit` calls may come at once, then one per interval, and the refusal knows
exactly when the next call will pass. Refused calls cost nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import structlog
import trio

from whispr.errors import Code, WhisprError, exhausted

PATIENCE_S = 0.25
"""How long a decision waits for the cache before it is made locally."""

AWAY_S = 1.0
"""How long decisions are made locally after the cache was found away."""

LOCAL_KEYS_MAX = 50_000
"""Keys remembered locally; the least recently used is forgotten beyond it."""

_LUA = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local period, limit, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + cost * period / limit
local wait = tat - period - now
if wait > 0 then return math.ceil(wait) end
if tat <= now then redis.call('DEL', KEYS[1]) return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
return 0
"""
_SHA = hashlib.sha1(_LUA.encode(), usedforsecurity=False).hexdigest()

log = structlog.get_logger("whispr.rate_limit")


class Scripts(Protocol):
    """What the limiter needs of the cache."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script."""


class LocalLimits:
    """GCRA in memory, for one process. Pure: the clock is passed in."""

    def __init__(self, keys_max: int = LOCAL_KEYS_MAX) -> None:
        self._tats: OrderedDict[str, float] = OrderedDict()
        self._keys_max = keys_max

    def __len__(self) -> int:
        return len(self._tats)

    def take(self, key: str, limit: float, period_s: float, now: float, cost: float = 1) -> float:
        """Count `cost` calls; return 0.0 if they may pass, else the seconds until they may.

        A negative cost gives back what was taken before.
        """
        tat = max(self._tats.get(key, now), now) + cost * period_s / limit
        wait_s = tat - period_s - now
        if wait_s > 1e-9:  # rounding must not refuse the last call of a full burst
            return wait_s
        self._tats[key] = tat
        self._tats.move_to_end(key)
        if len(self._tats) > self._keys_max:
            self._tats.popitem(last=False)
        return 0.0


class RateLimiter:
    """Limits shared by all nodes through the cache, each node's own while the cache is away."""

    def __init__(self, cache: Scripts, clock: Callable[[], float] = trio.current_time) -> None:
        self._cache = cache
        self._clock = clock
        self._local = LocalLimits()
        self._away_until = float("-inf")

    async def take(self, key: str, limit: float, period_s: float) -> None:
        """Count a call under `key`, at most `limit` in `period_s` seconds; 0 means no limit.

        Raises RESOURCE_EXHAUSTED (`rate_limited`) with the seconds until the next call may pass.
        """
        if limit <= 0:
            await trio.lowlevel.checkpoint()
            return
        wait_s = await self._wait_s(key, limit, period_s)
        if wait_s > 0:
            raise exhausted(f"at most {limit:g} in {period_s:g} s; again in {wait_s:.1f} s", wait_s)

    async def give_back(self, key: str, limit: float, period_s: float) -> None:
        """Undo one `take`: the call turned out not to be of the kind that is counted, such as a good login."""
        if limit <= 0:
            await trio.lowlevel.checkpoint()
            return
        await self._wait_s(key, limit, period_s, cost=-1)

    async def _wait_s(self, key: str, limit: float, period_s: float, cost: float = 1) -> float:
        """Ask the cache; decide locally when it is away or does not answer within PATIENCE_S."""
        if self._clock() >= self._away_until:
            with trio.move_on_after(PATIENCE_S):
                try:
                    return await self._shared(key, limit, period_s, cost)
                except WhisprError as error:
                    if error.code is not Code.UNAVAILABLE:
                        raise
            log.warning("rate_limits_local", for_s=AWAY_S)
            self._away_until = self._clock() + AWAY_S
        else:
            await trio.lowlevel.checkpoint()
        return self._local.take(key, limit, period_s, self._clock(), cost)

    async def _shared(self, key: str, limit: float, period_s: float, cost: float) -> float:
        args = [round(period_s * 1_000_000), limit, cost]
        wait_us = await self._cache.script(_SHA, _LUA, [f"whispr:rate:{key}"], args)
        return float(wait_us) / 1_000_000
