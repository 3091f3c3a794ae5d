"""Who is connected, what they have open, and the status they chose: over all nodes, through Redis.

Theory of operation. Every node with a hub keeps, in Redis, what it knows of its own sockets, and nothing of the
others': a set of its users, a sorted set of `topic NUL user` for the channels they have joined (one score, so the
readers of a topic are a range of it), and a hash of chosen statuses. A registry names the nodes and says until when
each is believed. All of a node's keys expire together unless it touches them, so a node that dies takes its people
with it after `TTL_S`, and touching costs one small script whatever the number of sockets.

The hub calls `changed` for every socket that comes or goes and every channel joined or left. That only remembers
*whom* it concerned; `run` gathers such notes for `GATHER_S` and writes what is true by then, in one pipeline of at
most `CHANGES_MAX` changes. Nothing on a socket's path waits, and a thousand joins cost one round trip. When Redis
has lost our registration (it restarted, or we slept past `TTL_S`) everything is written anew.

A question is one script: this node's own sockets are looked up here, the other nodes' there. While Redis is away
the answer is this node's own knowledge. So an answer may be old by `GATHER_S`, after a crash by `TTL_S`, and must
decide nothing that matters more than whether to ring a phone.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
import trio

from whispr.errors import Code, WhisprError
from whispr.realtime.hub import Hub
from whispr.realtime.link import State
from whispr.resilience.breaker import Breaker, BreakerRules

GATHER_S = 0.1
"""How long changes are gathered before they are written."""
TOUCH_EVERY_S = 5.0
TTL_S = 20.0
"""How long a node is believed after its last touch."""
CHANGES_MAX = 5_000
"""Changes written in one pipeline; the rest follows in the next."""
ASKED_MAX = 1_000
"""People or topics asked about in one script; longer lists are asked in parts."""
READERS_MAX = 20_000
"""Readers of one topic that a node reports; more are left out."""
LAST_SEEN_MAX = 1_000_000
"""People whose last visit is remembered; the longest absent are forgotten first."""
PATIENCE_S = 0.25
"""How long an answer waits for Redis."""
FLUSH_S = 2.0
"""How long writing may take before Redis counts as away."""
WITHDRAW_S = 1.0
AWAY_S = 1.0
"""How long answers are local after Redis was found away."""
_AWAY = BreakerRules(failures_in_a_row=1, open_s=AWAY_S, open_s_max=AWAY_S)

STATUSES = ("online", "away", "busy", "offline")
"""What a person may show; whoever shows offline is connected all the same."""

# One hash tag: with a Redis cluster all keys live in one slot, so that a script may read them together.
_BASE = "{whispr:online}:"
_NODES = f"{_BASE}nodes"
_LAST_SEEN = f"{_BASE}last_seen"

_TOUCH = """
local t = redis.call('TIME')
local now, ttl = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[2])
local known = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) > now
redis.call('ZADD', KEYS[1], now + ttl, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ttl)
for i = 2, 4 do
  if known then redis.call('PEXPIRE', KEYS[i], ttl) else redis.call('DEL', KEYS[i]) end
end
redis.call('ZREMRANGEBYRANK', KEYS[5], 0, -(tonumber(ARGV[3]) + 1))
return known and 1 or 0
"""
_OTHERS = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local nodes = {}
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
  if node ~= ARGV[1] then nodes[#nodes + 1] = ARGV[2] .. node end
end
local asked = {}
for i = 3, #ARGV do asked[#asked + 1] = ARGV[i] end
"""
_CONNECTED = (
    _OTHERS
    + """
local answer = {}
for i = 1, #asked do answer[i] = 0 end
for _, node in ipairs(nodes) do
  for i, found in ipairs(redis.call('SMISMEMBER', node .. ':users', unpack(asked))) do
    if found == 1 then answer[i] = 1 end
  end
end
return answer
"""
)
_READING = (
    _OTHERS
    + """
local answer = {}
for _, node in ipairs(nodes) do
  local found = redis.call('ZRANGEBYLEX', node .. ':links', '[' .. asked[1] .. '\\0', '(' .. asked[1] .. '\\1',
    'LIMIT', 0, tonumber(asked[2]))
  for _, each in ipairs(found) do answer[#answer + 1] = string.sub(each, #asked[1] + 2) end
end
return answer
"""
)
_READING_AMONG = (
    _OTHERS
    + """
local answer, members = {}, {}
for i = 2, #asked do answer[i - 1] = 0 members[i - 1] = asked[1] .. '\\0' .. asked[i] end
for _, node in ipairs(nodes) do
  for i, score in ipairs(redis.call('ZMSCORE', node .. ':links', unpack(members))) do
    if score then answer[i] = 1 end
  end
end
return answer
"""
)
_COUNTS = (
    _OTHERS
    + """
local answer = {}
for i, topic in ipairs(asked) do
  answer[i] = 0
  for _, node in ipairs(nodes) do
    answer[i] = answer[i] + redis.call('ZLEXCOUNT', node .. ':links', '[' .. topic .. '\\0', '(' .. topic .. '\\1')
  end
end
return answer
"""
)
_CHOSEN = (
    _OTHERS
    + """
local answer = {}
for i = 1, #asked do answer[i] = '' end
for _, node in ipairs(nodes) do
  for i, chosen in ipairs(redis.call('HMGET', node .. ':status', unpack(asked))) do
    if chosen and chosen > answer[i] then answer[i] = chosen end
  end
end
return answer
"""
)
_SCRIPTS = {
    source: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    for source in (_CONNECTED, _READING, _READING_AMONG, _COUNTS, _CHOSEN)
}

Words = Sequence[bytes | str | float]

_NOT_NOW = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})
"""What is said of a Redis that is away, or for which too many wait."""

log = structlog.get_logger("whispr.online")


class Commands(Protocol):
    """What is needed of the cache. Both raise UNAVAILABLE when it is away."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script."""

    async def pipeline(self, commands: Sequence[Words]) -> list[Any]:
        """Run commands in one round trip."""


class Online:
    """Presence over all nodes. One per process; `run` must be running where there is a hub."""

    def __init__(
        self, cache: Commands, hub: Hub | None = None, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.node_id = secrets.token_urlsafe(9)
        """This node's name in the registry; a new one with every start."""
        self._cache = cache
        self._wall_clock = wall_clock
        self._hub: Hub | None = None
        self._chosen: dict[str, str] = {}
        """User → `<Unix ms, 13 digits>:<status>`, so that the greater of two is the later choice."""
        self._users: dict[str, None] = {}
        """Users to be written, in the order in which something changed for them."""
        self._links: dict[tuple[str, str], None] = {}
        """(topic, user) to be written."""
        self._stirred = trio.Event()
        self._breaker = Breaker(_AWAY, trio.current_time)
        if hub is not None:
            self.attach(hub)

    def attach(self, hub: Hub) -> None:
        """Follow the sockets of this process's hub."""
        assert self._hub is None, "a process has one hub"
        self._hub = hub
        hub.watcher = self.changed

    # Told by the hub and by channels

    def changed(self, user_id: str, topic: str | None) -> None:
        """Note that a socket of the user came or went, or joined or left a topic. Never waits."""
        if topic is None:
            self._users[user_id] = None
        elif not topic.startswith("user:"):
            self._links[topic, user_id] = None
        self._stirred.set()

    def choose(self, user_id: str, status: str) -> None:
        """Show a status, for as long as the user has a socket on this node; the latest choice counts."""
        assert status in STATUSES
        self._chosen[user_id] = f"{round(self._wall_clock() * 1000):013d}:{status}"
        self._users[user_id] = None
        self._stirred.set()

    # Asked by anybody

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        """Return those of the users who have a socket, on any node."""
        found = {user_id for user_id in user_ids if self._is_here(user_id)}
        rest = [user_id for user_id in user_ids if user_id not in found]
        async for part, answer in self._ask(_CONNECTED, rest):
            found.update(user_id for user_id, there in zip(part, answer, strict=True) if there)
        return found

    async def reading(self, topic: str, among: Collection[str] | None = None) -> set[str]:
        """Return the users who have the topic joined on a live socket; with `among`, those of them.

        Without `among` at most READERS_MAX of each other node.
        """
        if among is None:
            found = self.readers_here(topic)
            args = (topic, READERS_MAX)
            found.update(user_id.decode() for user_id in await self._others(_READING, args) or ())
            return found
        found = {user_id for user_id in among if self._reads_here(topic, user_id)}
        rest = [user_id for user_id in among if user_id not in found]
        async for part, answer in self._ask(_READING_AMONG, rest, topic):
            found.update(user_id for user_id, there in zip(part, answer, strict=True) if there)
        return found

    def readers_here(self, topic: str) -> set[str]:
        """Return the users who have the topic joined on a live socket of this node."""
        return {link.session.user_id for link in self._hub.subscribers(topic)} if self._hub else set()

    async def counts(self, topics: Collection[str]) -> dict[str, int]:
        """Return how many users have each topic joined; one who does so on two nodes counts twice."""
        counts = {topic: len(self.readers_here(topic)) for topic in topics}
        async for part, answer in self._ask(_COUNTS, list(counts)):
            for topic, count in zip(part, answer, strict=True):
                counts[topic] += count
        return counts

    async def status(self, user_ids: Collection[str]) -> dict[str, str]:
        """Return what each user shows: the status last chosen, online by default, offline without a socket."""
        chosen = {user_id: self._chosen.get(user_id, "") for user_id in user_ids}
        async for part, answer in self._ask(_CHOSEN, list(chosen)):
            for user_id, there in zip(part, answer, strict=True):
                chosen[user_id] = max(chosen[user_id], there.decode())
        connected = await self.connected(chosen)
        return {
            user_id: (choice.partition(":")[2] or "online") if user_id in connected else "offline"
            for user_id, choice in chosen.items()
        }

    async def shown(self, user_ids: Collection[str]) -> set[str]:
        """Return those who are connected and do not show offline: whom others may see as online."""
        statuses = await self.status(user_ids)
        return {user_id for user_id, status in statuses.items() if status != "offline"}

    async def last_seen(self, user_ids: Collection[str]) -> dict[str, datetime]:
        """Return when each user was last there: now for those who are shown. Those unknown are left out.

        Of who shows offline it is when they chose to; of people whose node died, when they connected. Of
        everybody but those shown it is nothing while Redis is away.
        """
        shown = await self.shown(user_ids)
        seen = dict.fromkeys(shown, datetime.fromtimestamp(self._wall_clock(), UTC))
        absent = [user_id for user_id in user_ids if user_id not in shown]
        for part in _parts(absent, ASKED_MAX):
            scores = await self._patiently(self._cache.pipeline, [("ZMSCORE", _LAST_SEEN, *part)])
            for user_id, score in zip(part, scores[0] if scores else (), strict=False):
                if score is not None:
                    seen[user_id] = datetime.fromtimestamp(float(score) / 1000, UTC)
        return seen

    # Writing

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what changes, and touch, until cancelled; then take this node's people away."""
        task_status.started()
        if self._hub is None:
            await trio.sleep_forever()
        try:
            while True:
                reached = await self._flushed()
                if not reached:
                    await trio.sleep(AWAY_S)  # notes go on gathering, one per person and channel
                elif not (self._users or self._links):
                    with trio.move_on_after(TOUCH_EVERY_S):
                        await self._stirred.wait()
                self._stirred = trio.Event()
                await trio.sleep(GATHER_S)
        finally:
            with trio.move_on_after(WITHDRAW_S, shield=True):
                await self._withdraw()

    async def _flushed(self) -> bool:
        """Flush; False when Redis is away or does not answer."""
        with trio.move_on_after(FLUSH_S):
            try:
                await self.flush()
            except WhisprError as error:
                log.warning("online_not_written", error=str(error))
                return False
            return True
        return False

    async def flush(self) -> None:
        """Touch, and write the changes noted so far, CHANGES_MAX of them. Raises UNAVAILABLE, keeping them."""
        users = _taken(self._users, CHANGES_MAX)
        links = _taken(self._links, CHANGES_MAX - len(users))
        written = False
        try:
            keys = (_NODES, *self._keys(), _LAST_SEEN)
            touch = ("EVAL", _TOUCH, len(keys), *keys, self.node_id, round(TTL_S * 1000), LAST_SEEN_MAX)
            answers = await self._cache.pipeline([touch, *self._changes(users, links)])
            written = True
        finally:
            if not written:
                self._users.update(dict.fromkeys(users))
                self._links.update(dict.fromkeys(links))
        if not answers[0]:
            self._note_everything()

    def _changes(self, users: Sequence[str], links: Sequence[tuple[str, str]]) -> Iterator[Words]:
        """Turn notes into commands that write what is true now."""
        here = [user_id for user_id in users if self._is_here(user_id)]
        gone = [user_id for user_id in users if not self._is_here(user_id)]
        for user_id in gone:
            self._chosen.pop(user_id, None)
        users_key, links_key, status_key = self._keys()
        seen = [word for user_id in users for word in (round(self._wall_clock() * 1000), user_id)]
        chosen = [
            word for user_id in here if user_id in self._chosen for word in (user_id, self._chosen[user_id])
        ]
        joined = [
            word
            for topic, user_id in links
            if self._reads_here(topic, user_id)
            for word in (0, f"{topic}\0{user_id}")
        ]
        left = [f"{topic}\0{user_id}" for topic, user_id in links if not self._reads_here(topic, user_id)]
        for head, words in (
            (("SADD", users_key), here),
            (("SREM", users_key), gone),
            (("HSET", status_key), chosen),
            (("HDEL", status_key), gone),
            (("ZADD", links_key), joined),
            (("ZREM", links_key), left),
            (("ZADD", _LAST_SEEN, "GT"), seen),
        ):
            if words:
                yield (*head, *words)
        for key in self._keys():
            yield ("PEXPIRE", key, round(TTL_S * 1000))

    def _note_everything(self) -> None:
        """Write everything anew: Redis did not know us."""
        assert self._hub is not None
        for socket in self._hub.sockets:
            self.changed(socket.session.user_id, None)
            for topic in socket.links:
                self.changed(socket.session.user_id, topic)

    async def _withdraw(self) -> None:
        try:
            gone = self._changes(list(self._users), [])
            await self._cache.pipeline([*gone, ("DEL", *self._keys()), ("ZREM", _NODES, self.node_id)])
        except WhisprError as error:
            log.debug("online_not_withdrawn", error=str(error))

    def _keys(self) -> tuple[str, str, str]:
        node = f"{_BASE}{self.node_id}"
        return f"{node}:users", f"{node}:links", f"{node}:status"

    # This node's own knowledge

    def _is_here(self, user_id: str) -> bool:
        return self._hub is not None and bool(self._hub.sockets_of(user_id))

    def _reads_here(self, topic: str, user_id: str) -> bool:
        sockets = self._hub.sockets_of(user_id) if self._hub is not None else ()
        links = (socket.links.get(topic) for socket in sockets)
        return any(link is not None and link.state is State.JOINED for link in links)

    # The others' knowledge

    async def _ask(self, script: str, asked: Sequence[str], *first: str) -> Any:
        """Ask in parts; yields each part with its answer, nothing while Redis is away."""
        for part in _parts(asked, ASKED_MAX):
            answer = await self._others(script, (*first, *part))
            if answer is not None:
                yield part, answer

    async def _others(self, script: str, args: Sequence[str | float]) -> Any:
        words = [self.node_id, _BASE, *args]
        return await self._patiently(self._cache.script, _SCRIPTS[script], script, [_NODES], words)

    async def _patiently(self, ask: Callable[..., Any], *args: Any) -> Any:
        """Return the answer; None when Redis is away, was so just now, or does not answer within PATIENCE_S."""
        ticket = self._breaker.admit()
        if ticket is None:
            await trio.lowlevel.checkpoint()
            return None
        try:
            with trio.move_on_after(PATIENCE_S):
                try:
                    answer = await ask(*args)
                except WhisprError as error:
                    if error.code not in _NOT_NOW:
                        raise
                else:
                    self._breaker.succeeded(ticket)
                    return answer
            self._breaker.failed(ticket)
        finally:
            self._breaker.abandoned(ticket)  # changes nothing once it has been told how it went
        log.warning("online_local", for_s=AWAY_S)
        return None


def _parts(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _taken(notes: dict[Any, None], count: int) -> list[Any]:
    """Take the oldest notes out."""
    taken = [note for note, _ in zip(notes, range(count), strict=False)]
    for note in taken:
        del notes[note]
    return taken
