"""What is true of streams right now, in Redis, so that any node answers.

Who listens, where the source is, how it sounds, and the counters of the hour.

Keys of one stream share a hash tag. `who` is a sorted set of listeners, scored by the Unix time until which each is
believed: a process that dies takes its listeners with it after `TTL_S`. `facts` is what there is to say of each.
`source` is written by the process that has the source and expires soon after it. `hour` counts; see `analytics`.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from whispr.adapters.cache import Cache
from whispr.audio.packets import Quality

TTL_S: Final = 15.0
"""How long a listener is believed after their process last wrote of them."""
SOURCE_TTL_S: Final = 5.0
KEPT_S: Final = 3 * 3600
"""How long a stream's keys outlive their last change; counters are read long before."""
COUNTS: Final = "{whispr:streams}:counts"
"""Sorted set: stream → listeners, as last counted."""
DIRTY: Final = "{whispr:streams}:dirty"
"""Set of `stream|hour` whose counters have changed since they were read."""

# One more, if there is room: who is counted already stays.
_ADMIT = """
local now, till, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local count = redis.call('ZCOUNT', KEYS[1], now, '+inf')
local known = redis.call('ZSCORE', KEYS[1], ARGV[4])
if known and tonumber(known) >= now then count = count - 1 end
if most > 0 and count >= most then return -1 end
redis.call('ZADD', KEYS[1], till, ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return count + 1
"""
_ADMIT_SHA = hashlib.sha1(_ADMIT.encode(), usedforsecurity=False).hexdigest()

_COUNT = """
redis.call('HSETNX', KEYS[1], 'born', ARGV[1])
local peak = tonumber(ARGV[2])
if peak > tonumber(redis.call('HGET', KEYS[1], 'peak') or '0') then redis.call('HSET', KEYS[1], 'peak', peak) end
for at = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
_COUNT_SHA = hashlib.sha1(_COUNT.encode(), usedforsecurity=False).hexdigest()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of a listener."""

    id: str
    listening_id: str = ""
    """Of what is noted of it; empty when that is the same."""
    user_id: str = ""
    transport: str
    rendition: Quality | None = None
    joined_at: float
    country: str = ""
    buffer_ms: float = 0.0
    bandwidth_bps: float = 0.0
    latency_ms: float = 0.0
    loss: float = 0.0
    rebuffers: int = 0
    dropped_frames: int = 0
    bytes_sent: int = 0
    seen_at: float
    """When that was so. Times are Unix seconds."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is at its source."""

    node: str
    """The process that has it."""
    kind: str = ""
    """What sends: whip, icecast, websocket; empty while nothing does."""
    codec: str = ""
    bitrate_bps: int = 0
    loss: float = 0.0
    silent_s: float = 0.0
    connected: bool = False
    momentary_lufs: float | None = None
    """None before anything is measured, and in silence."""
    short_term_lufs: float | None = None
    integrated_lufs: float | None = None
    peak_dbfs: float | None = None
    at: float
    """Unix seconds."""


class LiveState:
    """Reads and writes it. Every method raises UNAVAILABLE while Redis is away."""

    def __init__(self, cache: Cache, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._clock = clock

    async def admit(self, stream_id: str, listener_id: str, most: int) -> bool:
        """Count a listener in, unless there are `most` already (0 for no limit)."""
        now = self._clock()
        args: list[str | float] = [now, now + TTL_S, most, listener_id, KEPT_S]
        return bool(await self._cache.script(_ADMIT_SHA, _ADMIT, [_who(stream_id)], args) > 0)

    async def beat(self, streams: Mapping[str, Sequence[Facts]]) -> Mapping[str, int]:
        """Write of the listeners of this process; return how many each stream has, over all."""
        now = self._clock()
        commands: list[list[bytes | str | float]] = []
        for stream_id, listeners in streams.items():
            if listeners:
                commands.append(
                    ["ZADD", _who(stream_id), *(w for f in listeners for w in (now + TTL_S, f.id))]
                )
                commands.append(
                    [
                        "HSET",
                        _facts(stream_id),
                        *(w for f in listeners for w in (f.id, msgspec.json.encode(f))),
                    ]
                )
                commands.append(["EXPIRE", _who(stream_id), KEPT_S])
                commands.append(["EXPIRE", _facts(stream_id), KEPT_S])
        await self._cache.pipeline(commands)
        return await self.recount(streams)

    async def recount(self, stream_ids: Iterable[str]) -> Mapping[str, int]:
        """Count the listeners of streams, and keep the counts for lists."""
        counts = await self.counts(stream_ids)
        commands: list[list[bytes | str | float]] = [
            ["ZADD", COUNTS, float(count), stream_id] if count else ["ZREM", COUNTS, stream_id]
            for stream_id, count in counts.items()
        ]
        await self._cache.pipeline(commands)
        return counts

    async def counts(self, stream_ids: Iterable[str]) -> Mapping[str, int]:
        """Return how many listen to each of these."""
        now, ids = self._clock(), list(stream_ids)
        found = await self._cache.pipeline([["ZCOUNT", _who(each), now, "+inf"] for each in ids])
        return dict(zip(ids, map(int, found), strict=True))

    async def all_counts(self) -> Mapping[str, int]:
        """Return how many listen to each stream that has listeners, as last counted."""
        found = await self._cache.command("ZRANGE", COUNTS, 0, -1, "WITHSCORES")
        return {key.decode(): int(float(count)) for key, count in zip(found[::2], found[1::2], strict=True)}

    async def leave(self, stream_id: str, listener_ids: Sequence[str]) -> int:
        """Count listeners out; return how many are left."""
        _, _, left = await self._cache.pipeline(
            [
                ["ZREM", _who(stream_id), *listener_ids],
                ["HDEL", _facts(stream_id), *listener_ids],
                ["ZCOUNT", _who(stream_id), self._clock(), "+inf"],
            ]
        )
        return int(left)

    async def listeners(self, stream_id: str) -> list[Facts]:
        """Return what is known of everybody who listens, those first who came first."""
        alive, facts = await self._cache.pipeline(
            [
                ["ZRANGEBYSCORE", _who(stream_id), self._clock(), "+inf"],
                ["HGETALL", _facts(stream_id)],
            ]
        )
        known = _pairs(facts)
        found = [msgspec.json.decode(known[each], type=Facts) for each in alive if each in known]
        return sorted(found, key=lambda each: (each.joined_at, each.id))

    async def lost(self, stream_id: str, for_s: float = TTL_S) -> list[Facts]:
        """Return what was known of listeners whose process has said nothing for so long after their end."""
        gone = await self._cache.command("ZRANGEBYSCORE", _who(stream_id), "-inf", self._clock() - for_s)
        if not gone:
            return []
        facts = await self._cache.command("HMGET", _facts(stream_id), *gone)
        unknown = [each for each, packed in zip(gone, facts, strict=True) if not packed]
        if unknown:
            await self._cache.command("ZREM", _who(stream_id), *unknown)
        return [msgspec.json.decode(each, type=Facts) for each in facts if each]

    # The source

    async def show(self, stream_id: str, picture: Picture) -> None:
        """Say how the stream is at its source, which this process has."""
        packed = msgspec.json.encode(picture)
        await self._cache.command("SET", _source(stream_id), packed, "PX", round(SOURCE_TTL_S * 1000))

    async def picture(self, stream_id: str) -> Picture | None:
        """Return how it is there; None when no process has it."""
        found = await self._cache.command("GET", _source(stream_id))
        return msgspec.json.decode(found, type=Picture) if found else None

    async def with_source(self, stream_ids: Sequence[str]) -> set[str]:
        """Return those of the streams that something is sent to now."""
        if not stream_ids:
            return set()
        found = await self._cache.pipeline([["GET", _source(each)] for each in stream_ids])
        return {
            stream_id
            for stream_id, packed in zip(stream_ids, found, strict=True)
            if packed and msgspec.json.decode(packed, type=Picture).connected
        }

    async def hide(self, stream_id: str) -> None:
        """Say that no process has the source any more."""
        await self._cache.command("DEL", _source(stream_id))

    # The counters of an hour

    async def count(self, stream_id: str, hour: int, peak: int, more: Mapping[str, int]) -> None:
        """Add to the counters of a stream's hour (Unix time / 3600); `peak` is how many listen now.

        Have it read by `put_back`: apart from this, for what failed there need not be added again.
        """
        added: list[str | float] = [
            word for name, number in more.items() if number for word in (name, number)
        ]
        args: list[str | float] = [secrets.token_hex(8), peak, KEPT_S, *added]
        await self._cache.script(_COUNT_SHA, _COUNT, [_hour(stream_id, hour)], args)

    async def take_dirty(self, most: int) -> list[tuple[str, int]]:
        """Take hours whose counters have changed; `put_back` those that were not kept."""
        found = await self._cache.command("SPOP", DIRTY, most)
        parts = [each.decode().partition("|") for each in found]
        return [(stream_id, int(hour)) for stream_id, _, hour in parts]

    async def put_back(self, hours: Iterable[tuple[str, int]]) -> None:
        """Have counters of hours read, again or for the first time."""
        await self._cache.command("SADD", DIRTY, *(f"{stream_id}|{hour}" for stream_id, hour in hours))

    async def counters(self, stream_id: str, hour: int) -> Mapping[str, str]:
        """Return the counters of an hour; `born` tells those apart that began anew."""
        found = _pairs(await self._cache.command("HGETALL", _hour(stream_id, hour)))
        return {name.decode(): value.decode() for name, value in found.items()}


def _pairs(flat: Sequence[Any] | Mapping[Any, Any]) -> Mapping[bytes, bytes]:
    """HGETALL's reply: pairs one after another, or a mapping, as the driver pleases."""
    if isinstance(flat, Mapping):
        return flat
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _who(stream_id: str) -> str:
    return f"{{whispr:stream:{stream_id}}}:who"


def _facts(stream_id: str) -> str:
    return f"{{whispr:stream:{stream_id}}}:facts"


def _source(stream_id: str) -> str:
    return f"{{whispr:stream:{stream_id}}}:source"


def _hour(stream_id: str, hour: int) -> str:
    return f"{{whispr:stream:{stream_id}}}:hour:{hour}"
