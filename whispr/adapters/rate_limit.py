"""Rate limits: the generic cell rate algorithm, in the cache for all nodes, locally when the cache is away.

GCRA (ITU-T I.371, annex A) keeps one number per key, the theoretical arrival time (TAT): each call moves it
one emission interval (`period / limit`) into the future, and a call is refused when it would push it more
than a whole period ahead. So `limit` calls may come at once, then one per interval, and the refusal knows
exactly when the next call will pass. Refused calls cost nothing.

Unless they go on. A refusal says when to come back; whoever comes back sooner, again and again, is a repeat
offender: for every GRACE calls that ignore what they were told within a period of each other, the wait grows, to a
quarter of the period, half of it, all of it, and so on up to PENALTY_MAX_S. One period of patience, and all
is forgotten.

`take` asks for every call. `on_account` with `settle` is for limits that nearly every call is far below: calls are
counted here and charged together, a fiftieth of the limit at a time, so that most of them ask nobody.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import structlog
import trio

from whispr.errors import Code, WhisprError, exhausted
from whispr.resilience.breaker import Breaker, BreakerRules

PATIENCE_S = 0.25
"""How long a decision waits for the cache before it is made locally."""

AWAY_S = 1.0
"""How long decisions are made locally after the cache was found away."""

_AWAY = BreakerRules(failures_in_a_row=1, open_s=AWAY_S, open_s_max=AWAY_S)

LOCAL_KEYS_MAX = 50_000
"""Keys remembered locally; the least recently used is forgotten beyond it."""

MICROS = 1_000_000

GRACE = 100
"""Refused calls that came sooner than they were told to, before the wait grows."""

PENALTY_MAX_S = 900.0
"""The longest it grows to."""

ACCOUNT_SHARE = 50
"""A limit divided by this is how many calls are charged together."""

# A key holds the TAT, and once somebody was refused: until when, how many refused calls ignored that, and when the
# last of them came. Times are in microseconds. What lies further ahead than any call can have put it was written
# before the server's clock was set back, and says nothing: nobody is to wait for as long as that was.
_LUA = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local period, limit, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ignored, grace, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local kept = {0, 0, 0, 0}
local at = 1
for word in string.gmatch(redis.call('GET', KEYS[1]) or '', '%d+') do kept[at] = tonumber(word) at = at + 1 end
local tat, promised, offences, last = kept[1], kept[2], kept[3], kept[4]
local promise = math.max(now, promised)
if tat > promise + period + 1 or promised > now + math.max(most, period) + 1 then
    tat, promised, offences, last = 0, 0, 0, 0
end
if now - last > period then offences = 0 end
local moved = math.max(tat, now) + cost * period / limit
local wait = moved - period - now
if wait > 0 then
    if now < promised then ignored = ignored + 1 end
    if ignored > 0 then offences = offences + ignored last = now end
    local level = math.floor(offences / grace)
    local penalty = 0
    if level > 0 then penalty = math.min(most, period / 4 * 2 ^ math.min(level - 1, 30)) end
    if penalty > wait then
        wait = penalty
        tat = now + wait + period - cost * period / limit
    end
    promised = now + wait
else
    wait = 0
    tat = moved
end
local ttl = tat - now
local value = string.format('%.0f', tat)
if offences > 0 or promised > now then
    ttl = math.max(ttl, promised - now, offences > 0 and last + period - now or 0)
    value = value .. string.format(' %.0f %.0f %.0f', promised, offences, last)
end
if ttl <= 0 then redis.call('DEL', KEYS[1]) return 0 end
redis.call('SET', KEYS[1], value, 'PX', math.ceil(ttl / 1000))
return math.ceil(wait)
"""
_SHA = hashlib.sha1(_LUA.encode(), usedforsecurity=False).hexdigest()

log = structlog.get_logger("whispr.rate_limit")


class Scripts(Protocol):
    """What the limiter needs of the cache."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script."""


class _Kept(NamedTuple):
    """What is known of a key, as in the cache; times are the caller's, in seconds."""

    tat: float = 0.0
    promised: float = 0.0
    offences: int = 0
    last: float = float("-inf")


class LocalLimits:
    """The same in memory, for one process. Pure: the clock is passed in."""

    def __init__(self, keys_max: int = LOCAL_KEYS_MAX, grace: int = GRACE) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._keys_max = keys_max
        self._grace = grace

    def __len__(self) -> int:
        return len(self._kept)

    def take(
        self, key: str, limit: float, period_s: float, now: float, cost: float = 1, ignored: int = 0
    ) -> float:
        """Count `cost` calls; return 0.0 if they may pass, else the seconds until they may.

        A negative cost gives back what was taken before. `ignored` calls were refused elsewhere and came too soon.
        """
        tat, promised, offences, last = self._kept.get(key) or _Kept(now)
        if now - last > period_s:
            offences = 0
        moved = max(tat, now) + cost * period_s / limit
        wait_s = moved - period_s - now
        if wait_s <= 1e-9:  # rounding must not refuse the last call of a full burst
            self._keep(key, _Kept(moved, promised, offences, last))
            return 0.0
        ignored += now < promised
        if ignored:
            offences, last = offences + ignored, now
        penalty_s = self._penalty_s(offences, period_s)
        if penalty_s > wait_s:
            wait_s = penalty_s
            tat = now + wait_s + period_s - cost * period_s / limit
        self._keep(key, _Kept(tat, now + wait_s, offences, last))
        return wait_s

    def _penalty_s(self, offences: int, period_s: float) -> float:
        level = offences // self._grace
        return min(PENALTY_MAX_S, period_s / 4 * 2.0 ** min(level - 1, 30)) if level else 0.0

    def _keep(self, key: str, kept: _Kept) -> None:
        self._kept[key] = kept
        self._kept.move_to_end(key)
        if len(self._kept) > self._keys_max:
            self._kept.popitem(last=False)


@dataclass(slots=True)
class _Account:
    """Calls of a key that are counted here and not charged yet."""

    count: int = 0
    refused_until: float = float("-inf")
    ignored: int = 0


class RateLimiter:
    """Limits shared by all nodes through the cache, each node's own while the cache is away."""

    def __init__(
        self,
        cache: Scripts,
        clock: Callable[[], float] = trio.current_time,
        *,
        grace: int = GRACE,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._cache = cache
        self._patience_s = patience_s
        self._clock = clock
        self._grace = grace
        self._local = LocalLimits(grace=grace)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._breaker = Breaker(_AWAY, self._clock)

    async def take(self, key: str, limit: float, period_s: float) -> None:
        """Count a call under `key`, at most `limit` in `period_s` seconds; 0 means no limit.

        Raises RESOURCE_EXHAUSTED (`rate_limited`) with the seconds until the next call may pass.
        """
        if limit <= 0:
            await trio.lowlevel.checkpoint()
            return
        wait_s = await self._wait_s(key, limit, period_s)
        if wait_s > 0:
            raise _refusal(limit, period_s, wait_s)

    async def give_back(self, key: str, limit: float, period_s: float) -> None:
        """Undo one `take`: the call turned out not to be of the kind that is counted, such as a good login."""
        if limit <= 0:
            await trio.lowlevel.checkpoint()
            return
        await self._wait_s(key, limit, period_s, cost=-1)

    def on_account(self, key: str, limit: float, period_s: float) -> bool:
        """Count a call here if that will do; if False, `settle`, which counts it. 0 means no limit.

        Raises as `take`, for a key that was refused when it was settled, until then.
        """
        if limit <= 0:
            return True
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account()
            if len(self._accounts) > LOCAL_KEYS_MAX:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(key)
            now = self._clock()
            if now < account.refused_until:
                account.ignored += 1
                raise _refusal(limit, period_s, account.refused_until - now)
        if account.count + 1 >= limit / ACCOUNT_SHARE:
            return False
        account.count += 1
        return True

    async def settle(self, key: str, limit: float, period_s: float) -> None:
        """Count this call and charge it with what is on account. Raises as `take`."""
        account = self._accounts.get(key) or _Account()
        count, account.count = account.count, 0
        ignored, account.ignored = account.ignored, 0
        wait_s = await self._wait_s(key, limit, period_s, count + 1, ignored)
        if wait_s > 0:
            account.count += count
            account.refused_until = self._clock() + wait_s
            raise _refusal(limit, period_s, wait_s)

    async def _wait_s(
        self, key: str, limit: float, period_s: float, cost: float = 1, ignored: int = 0
    ) -> float:
        """Ask the cache; decide locally when it is away or does not answer within `patience_s`."""
        ticket = self._breaker.admit()
        if ticket is None:
            await trio.lowlevel.checkpoint()
            return self._local.take(key, limit, period_s, self._clock(), cost, ignored)
        try:
            with trio.move_on_after(self._patience_s):
                try:
                    wait_s = await self._shared(key, limit, period_s, cost, ignored)
                except WhisprError as error:
                    if error.code is not Code.UNAVAILABLE:
                        raise
                else:
                    self._breaker.succeeded(ticket)
                    return wait_s
            self._breaker.failed(ticket)
        finally:
            self._breaker.abandoned(ticket)  # changes nothing once it has been told how it went
        log.warning("rate_limits_local", for_s=AWAY_S)
        return self._local.take(key, limit, period_s, self._clock(), cost, ignored)

    async def _shared(self, key: str, limit: float, period_s: float, cost: float, ignored: int) -> float:
        args = [round(period_s * MICROS), limit, cost, ignored, self._grace, PENALTY_MAX_S * MICROS]
        wait_us = await self._cache.script(_SHA, _LUA, [f"whispr:rate:{key}"], args)
        return float(wait_us) / MICROS


def _refusal(limit: float, period_s: float, wait_s: float) -> WhisprError:
    return exhausted(f"at most {limit:g} in {period_s:g} s; again in {wait_s:.1f} s", wait_s)
