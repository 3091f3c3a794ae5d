"""The seats of all nodes: how many sockets a user has anywhere, counted in Redis.

Every node keeps, in Redis, a hash of its own users' seats and a place in a registry that says until when it is
believed. Both are touched every `TOUCH_EVERY_S`; a node that dies takes its counts with it after `TTL_S`.

A socket that opens waits for one answer. Those that open while the previous question is under way are asked about
together, up to `TOGETHER` in one script, so that a storm of them costs as many round trips as fit into its time. The
script adds up, refuses what is too many and writes the count, all at once: two nodes cannot both give away a user's
last seat. What a node writes is the whole count of a user as it is there, so a lost answer or a change in between is
put right by the next writing. A socket that closes waits for nothing.

While Redis is away, or does not answer in time, each node's own limit holds (`whispr.realtime.seats`), and
`whispr_seats_unasked_total` counts who came in so; once it is known to be away nothing waits. When Redis does not
know the node, because it restarted or the node slept, all counts are written anew.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import structlog
import trio
from prometheus_client import Counter

from whispr.errors import Code, WhisprError
from whispr.realtime.seats import Seats

TOUCH_EVERY_S = 2.0
TTL_S = 8.0
"""How long a node's counts are believed after its last touch."""
TOGETHER = 500
"""Users in one question."""
PATIENCE_S = 1.0
"""How long a question waits for Redis."""
WAIT_S = 2.5 * PATIENCE_S
"""How long an opening socket waits for its answer: it may come while another question is under way."""
AWAY_S = 1.0
"""How long nothing is asked after Redis was found away."""
WITHDRAW_S = 1.0

# One hash tag: with a Redis cluster all keys live in one slot, so that a script may read them together.
_BASE = "{whispr:seats}:"
_NODES = f"{_BASE}nodes"

# KEYS: the registry, this node's hash. ARGV: this node, the base of hashes' names, the time to live in ms, the limit,
# whether to begin anew, and three words per user: who, the count here, and how many of it have just been taken.
# Answers with whether this node was known, and how many of each user's are too many.
_LUA = """
local t = redis.call('TIME')
local now, ttl, most = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[3]), tonumber(ARGV[4])
local known = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) > now
if not known or ARGV[5] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local asking, elsewhere = {}, {}
for i = 6, #ARGV, 3 do
  if tonumber(ARGV[i + 2]) > 0 then asking[#asking + 1] = ARGV[i] elsewhere[ARGV[i]] = 0 end
end
if #asking > 0 then
  for _, node in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if node ~= ARGV[1] then
      for i, count in ipairs(redis.call('HMGET', ARGV[2] .. node, unpack(asking))) do
        if count then elsewhere[asking[i]] = elsewhere[asking[i]] + tonumber(count) end
      end
    end
  end
end
local answer = {known and 1 or 0}
for i = 6, #ARGV, 3 do
  local user, count, taken = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local over = 0
  if taken > 0 then over = math.min(taken, math.max(0, count + elsewhere[user] - most)) end
  if count > over then redis.call('HSET', KEYS[2], user, count - over) else redis.call('HDEL', KEYS[2], user) end
  answer[#answer + 1] = over
end
redis.call('PEXPIRE', KEYS[2], ttl)
return answer
"""
_SHA = hashlib.sha1(_LUA.encode(), usedforsecurity=False).hexdigest()

_NOT_NOW = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})
"""What is said of a Redis that is away, or for which too many wait."""

UNASKED = Counter(
    "whispr_seats_unasked_total", "Sockets let in by this node's own limit, since Redis did not answer"
)

log = structlog.get_logger("whispr.seats")


class Commands(Protocol):
    """What is needed of the cache. Both raise UNAVAILABLE when it is away."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script."""

    async def command(self, *words: bytes | str | float) -> Any:
        """Run a command."""


class _Asker:
    """A socket that waits to be told."""

    __slots__ = ("admitted", "asked", "told")

    def __init__(self) -> None:
        self.admitted = True
        self.asked = False
        """Whether Redis has answered."""
        self.told = trio.Event()


class SharedSeats:
    """The seats of one process's hub beside those of the others. `run` must be running."""

    def __init__(self, cache: Commands, seats: Seats) -> None:
        self.node_id = secrets.token_urlsafe(9)
        self._cache = cache
        self._seats = seats
        self._asking: dict[str, list[_Asker]] = {}
        """User → who waits, in the order in which they came."""
        self._changed: dict[str, None] = {}
        """Users whose counts are to be written."""
        self._stirred = trio.Event()
        self._away = True
        """Until the first question has been answered."""
        self._anew = True
        """Whether all counts are to be written, in place of what is there."""
        seats.elsewhere = self

    # Told and asked by the hub

    async def admit(self, user_id: str) -> bool:
        """Tell whether the seat just taken is not one too many; True while Redis is away."""
        if self._away:
            UNASKED.inc()
            self.changed(user_id)
            await trio.lowlevel.checkpoint()
            return True
        self._stirred.set()
        asker = _Asker()
        self._asking.setdefault(user_id, []).append(asker)
        try:
            with trio.move_on_after(WAIT_S) as waiting:
                await asker.told.wait()
        finally:
            if not asker.told.is_set():
                self._give_up(user_id, asker)
        if waiting.cancelled_caught or not asker.asked:
            UNASKED.inc()
        return asker.admitted

    def changed(self, user_id: str) -> None:
        """Have the user's count written soon."""
        self._changed[user_id] = None
        self._stirred.set()

    def _give_up(self, user_id: str, asker: _Asker) -> None:
        """Wait no more: the count is written as it is then."""
        askers = self._asking.get(user_id, [])
        if asker in askers:
            askers.remove(asker)
        if not askers:
            self._asking.pop(user_id, None)
        self.changed(user_id)

    # Asking Redis

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask, write and touch until cancelled; then take this node's counts away."""
        if not self._seats.most:
            task_status.started()
            await trio.sleep_forever()
        try:
            await self._reach()
            task_status.started()
            while True:
                if self._away:
                    await trio.sleep(AWAY_S)
                elif not (self._asking or self._changed or self._anew):
                    with trio.move_on_after(TOUCH_EVERY_S):
                        await self._stirred.wait()
                self._stirred = trio.Event()
                await self._reach()
        finally:
            self._away = True
            with trio.move_on_after(WITHDRAW_S, shield=True):
                await self._withdraw()

    async def _reach(self) -> None:
        """Put one question; while it is not answered nobody waits, and then everything is written."""
        away = True
        with trio.move_on_after(PATIENCE_S):
            try:
                await self._ask()
                away = False
            except WhisprError as error:
                if error.code not in _NOT_NOW:
                    raise
        if away:
            if not self._away:
                log.warning("seats_local", for_s=AWAY_S)
            self._anew = True
            waiting, self._asking = self._asking, {}
            _tell(waiting.values(), None)
            self._changed.clear()
        self._away = away

    async def _ask(self) -> None:
        """Touch, ask for those who wait, and write what changed. Raises UNAVAILABLE, when nobody waits any more."""
        if self._anew:
            self._changed = dict.fromkeys(self._seats.taken)
        asking = {user_id: self._asking.pop(user_id) for user_id in list(self._asking)[:TOGETHER]}
        others = [user_id for user_id in self._changed if user_id not in asking][: TOGETHER - len(asking)]
        anew, self._anew = self._anew, False
        words: list[str | float] = [
            self.node_id, _BASE, round(TTL_S * 1000), self._seats.most, int(anew)
        ]  # fmt: skip
        for user_id in (*asking, *others):
            self._changed.pop(user_id, None)
            words += (user_id, self._seats.taken.get(user_id, 0), len(asking.get(user_id, ())))
        answer: Sequence[int] = ()
        try:
            answer = await self._cache.script(_SHA, _LUA, [_NODES, _BASE + self.node_id], words)
        finally:
            for number, askers in enumerate(asking.values(), 1):
                _tell([askers], answer[number] if answer else None)
        self._anew = not answer[0] and not anew

    async def _withdraw(self) -> None:
        try:
            await self._cache.command("DEL", _BASE + self.node_id)
            await self._cache.command("ZREM", _NODES, self.node_id)
        except WhisprError as error:
            log.debug("seats_not_withdrawn", error=str(error))


def _tell(waiting: Iterable[Sequence[_Asker]], too_many: int | None) -> None:
    """Tell those who wait: the last that came are too many, of each list as many; None is that nobody knows."""
    for askers in waiting:
        for number, asker in enumerate(reversed(askers)):
            asker.asked = too_many is not None
            asker.admitted = number >= (too_many or 0)
            asker.told.set()
