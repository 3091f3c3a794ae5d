"""Attempts at signing in: how often who may be wrong.

Three counts, each of failures alone, for each of which a good sign-in gives back what it took:

- An address may fail so often an hour, whoever it tries to be: that slows who tries one password on many names.
- A name and an address together: after three failures the next attempt has to wait a second, then two, then four,
  up to a quarter of an hour; a good sign-in ends that. That slows who tries many passwords on one name.
- A name, from all the addresses it is not known at: a high number an hour. That stops who has many addresses. It
  does not count against those at which the account has a session, so a stranger who keeps a name at this limit
  locks its owner out of new places alone, and for no longer than the attempts go on.

What is counted is a name as it was typed, whether or not there is such an account: the limits tell nobody who has
one. Everything is counted before the password is looked at, so many attempts at once are no way round it.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from whispr.adapters.rate_limit import RateLimiter
from whispr.errors import Code, WhisprError, exhausted

HOUR_S = 3600.0
FREE_FAILURES = 3
"""Failures of a name and an address together before the first wait."""
FIRST_WAIT_S = 1.0
WAIT_MAX_S = 15 * 60.0
FORGIVEN_AFTER_S = HOUR_S
"""How long after the last wait failures of a name and an address are remembered."""
PATIENCE_S = 0.25
GIVE_BACK_S = 0.5
LOCAL_MAX = 10_000

Limits = tuple[int, int]
"""Failures an hour of an address, and of a name from where it is not known; 0 lifts one."""

_LUA = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local free, first, most, kept = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local known = redis.call('HMGET', KEYS[1], 'count', 'again_at')
local again_at = tonumber(known[2] or 0)
if again_at > now then return again_at - now end
local count = tonumber(known[1] or 0) + 1
local wait = 0
if count >= free then wait = math.min(most, first * 2 ^ math.min(count - free, 30)) end
redis.call('HSET', KEYS[1], 'count', count, 'again_at', string.format('%.0f', now + wait))
redis.call('PEXPIRE', KEYS[1], math.ceil(wait + kept))
return 0
"""
_SHA = hashlib.sha1(_LUA.encode(), usedforsecurity=False).hexdigest()


class Commands(Protocol):
    """What is needed of the cache. Both raise UNAVAILABLE when it is away."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script."""

    async def delete(self, *keys: str) -> int:
        """Remove keys."""


class Delays:
    """Waits that double with each failure, shared through the cache; this process's own while that is away."""

    def __init__(self, cache: Commands, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._clock = clock
        self._local: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def take(self, key: str) -> float:
        """Count a failure; return 0.0, or the seconds to wait if it comes too early and was not counted."""
        with trio.move_on_after(PATIENCE_S):
            try:
                args = [FREE_FAILURES, FIRST_WAIT_S * 1000, WAIT_MAX_S * 1000, FORGIVEN_AFTER_S * 1000]
                return float(await self._cache.script(_SHA, _LUA, [key], args)) / 1000
            except WhisprError as error:
                if error.code is not Code.UNAVAILABLE:
                    raise
        return self._take_here(key)

    async def forgive(self, key: str) -> None:
        """Forget the failures."""
        self._local.pop(key, None)
        with trio.move_on_after(PATIENCE_S):
            try:
                await self._cache.delete(key)
            except WhisprError as error:
                if error.code is not Code.UNAVAILABLE:
                    raise

    def _take_here(self, key: str) -> float:
        now = self._clock()
        count, again_at = self._local.get(key, (0, 0.0))
        if again_at > now:
            return again_at - now
        if now > again_at + FORGIVEN_AFTER_S:
            count = 0
        count += 1
        self._local[key] = (count, now + wait_after(count))
        self._local.move_to_end(key)
        if len(self._local) > LOCAL_MAX:
            self._local.popitem(last=False)
        return 0.0


def wait_after(count: int) -> float:
    """Return how long to wait after so many failures, in seconds."""
    if count < FREE_FAILURES:
        return 0.0
    return float(min(WAIT_MAX_S, FIRST_WAIT_S * 2 ** min(count - FREE_FAILURES, 30)))


class Attempts:
    """Counts attempts at signing in to the name `username` from `address` (an address key, see `domain`)."""

    def __init__(self, cache: Commands) -> None:
        self._limiter = RateLimiter(cache)
        self._delays = Delays(cache)

    async def take(self, username: str, address: str, limits: Limits, *, known: bool) -> None:
        """Count an attempt as a failure for now. `known` is whether the account has been used there.

        Raises RESOURCE_EXHAUSTED (`rate_limited`) with the time to wait.
        """
        per_address, per_account = limits
        await self._limiter.take(_address(address), per_address, HOUR_S)
        try:
            if per_address:
                wait_s = await self._delays.take(_pair(username, address))
                if wait_s > 0:
                    raise exhausted(f"too many failures; again in {wait_s:.1f} s", wait_s)
            if not known:
                await self._limiter.take(_account(username), per_account, HOUR_S)
        except WhisprError:  # Refused unseen: that costs the address nothing.
            await self._limiter.give_back(_address(address), per_address, HOUR_S)
            raise

    async def give_back(
        self, username: str, address: str, limits: Limits, *, known: bool, good: bool
    ) -> None:
        """Take back what an attempt was counted for that was no failure; a good one ends the waits as well."""
        per_address, per_account = limits
        with trio.move_on_after(GIVE_BACK_S, shield=True):
            await self._limiter.give_back(_address(address), per_address, HOUR_S)
            if not known:
                await self._limiter.give_back(_account(username), per_account, HOUR_S)
            if good and per_address:
                await self._delays.forgive(_pair(username, address))


def _address(address: str) -> str:
    return f"auth:login:{address}"


def _account(username: str) -> str:
    return f"auth:account:{_name(username)}"


def _pair(username: str, address: str) -> str:
    return f"whispr:auth:failures:{_name(username)}:{address}"


def _name(username: str) -> str:
    """Bound what a stranger may make a key of."""
    return username.lower()[:64]
