"""The cache: Redis or Valkey through redis-py on the bridge.

Nothing in the cache is the only copy of anything. Each call raises UNAVAILABLE at once when the server is
away; callers go on without it. A command whose answer is lost is not repeated, because not all commands may
be; connections that died idle are noticed and replaced before anything is sent on them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

import trio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from whispr.adapters.rate_limit import RateLimiter
from whispr.bridge import Bridge, CancelledByAsyncio
from whispr.errors import unavailable
from whispr.resilience.backend import Backend
from whispr.resilience.bulkhead import BulkheadRules

__all__ = ["Cache", "RateLimiter", "open_cache"]

T = TypeVar("T")

CONNECTIONS_MAX = 16
"""Commands under way at once; further callers wait their turn."""
WAITING_MAX = 10_000
"""Of those, so many; others are refused with RESOURCE_EXHAUSTED."""

_ALIVE = (OutOfMemoryError, ReadOnlyError)
"""Of `_AWAY`, what a server says that goes on."""
_AWAY = (
    RedisConnectionError,
    RedisTimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    OSError,
    CancelledByAsyncio,
)
_NOT_NOW = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN")
"""First words of refusals that are the server's state, such as a full disk, and no error of the command's. In a
pipeline, other words come before."""


class Cache:
    """Commands on a small pool of connections. Made by `open_cache`. Keys and values are bytes or str."""

    def __init__(self, bridge: Bridge, url: str) -> None:
        self._bridge = bridge
        self.backend = Backend("redis", BulkheadRules(CONNECTIONS_MAX, WAITING_MAX))
        """Its breaker, and its bulkhead."""
        self._redis: Any = Redis.from_url(  # untyped in parts
            url,
            # Callers own time and repetition: no time limits and no retries of redis-py's.
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            client_name="whispr",
            driver_info=None,
            protocol=2,
        )

    async def ping(self) -> None:
        """Return if the server answers; raise UNAVAILABLE if it is away."""
        await self.command("PING")

    async def probe(self) -> None:
        """Ask the server how it is, past everybody who waits. Raises UNAVAILABLE."""
        await self._attempt(lambda: self._redis.execute_command("PING"))

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        return cast(bytes | None, await self.command("GET", key))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values in the order of the keys, None for those that are not there."""
        if not keys:
            await trio.lowlevel.checkpoint()
            return []
        return cast(list[bytes | None], await self.command("MGET", *keys))

    async def set(
        self, key: str, value: bytes | str, *, ttl_s: float | None = None, only_if_absent: bool = False
    ) -> bool:
        """Store a value, for `ttl_s` seconds if given; False if it was to be absent and was not."""
        expiry = () if ttl_s is None else ("PX", max(1, round(ttl_s * 1000)))
        condition = ("NX",) if only_if_absent else ()
        return await self.command("SET", key, value, *expiry, *condition) is not None

    async def delete(self, *keys: str) -> int:
        """Remove keys; return how many there were."""
        return cast(int, await self.command("DEL", *keys))

    async def command(self, *words: bytes | str | float) -> Any:
        """Run any command, such as `command("ZADD", key, score, member)`; the reply is redis-py's."""
        return await self._run(lambda: self._redis.execute_command(*words))

    async def pipeline(self, commands: Sequence[Sequence[bytes | str | float]]) -> list[Any]:
        """Run commands in one round trip, in order but not atomically; return their replies.

        An error in one of them is raised after all have run.
        """
        if not commands:
            await trio.lowlevel.checkpoint()
            return []

        async def run() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for words in commands:
                    pipe.execute_command(*words)
                return cast(list[Any], await pipe.execute())

        return await self._run(run)

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        """Run a Lua script by its digest, sending the source only when the server does not know it."""

        async def run() -> Any:
            try:
                return await self._redis.execute_command("EVALSHA", sha, len(keys), *keys, *args)
            except NoScriptError:
                return await self._redis.execute_command("EVAL", source, len(keys), *keys, *args)

        return await self._run(run)

    async def _run(self, operation: Callable[[], Awaitable[T]]) -> T:
        self.backend.check()
        await self.backend.limiting.enter()
        try:
            return await self.backend.operate(partial(self._attempt, operation))
        finally:
            self.backend.limiting.leave()

    async def _attempt(self, operation: Callable[[], Awaitable[T]]) -> T:
        async def awaited() -> T:
            return await operation()

        try:
            return await self._bridge.call(awaited)
        except _AWAY as error:
            away = unavailable(f"the cache is away ({type(error).__name__})")
            away.by_peer = isinstance(error, _ALIVE)
            raise away from error
        except ResponseError as error:
            word = next((word for word in _NOT_NOW if word in str(error)), None)
            if word is None:
                raise
            away = unavailable(f"the cache takes nothing now ({word})")
            away.by_peer = True
            raise away from error

    async def _close(self) -> None:
        with trio.move_on_after(1, shield=True):
            await self._bridge.call(self._redis.aclose)


@asynccontextmanager
async def open_cache(bridge: Bridge, url: str) -> AsyncIterator[Cache]:
    """Open the cache. Never fails: connections are made when first needed."""
    cache = Cache(bridge, url)
    try:
        yield cache
    finally:
        await cache._close()
