from __future__ import annotations

import pytest
import trio

from whispr.adapters.cache import CONNECTIONS_MAX, Cache, open_cache
from whispr.bridge import Bridge
from whispr.errors import Code, WhisprError


async def test_values_come_and_go(cache: Cache) -> None:
    """set, get, get_many and delete do what they say; values are bytes."""
    assert await cache.get("a") is None
    assert await cache.set("a", b"\x00\xff")
    assert await cache.set("b", "text")
    assert await cache.get("a") == b"\x00\xff"
    assert await cache.get_many(["b", "nothing", "a"]) == [b"text", None, b"\x00\xff"]
    assert await cache.get_many([]) == []
    assert await cache.delete("a", "b", "nothing") == 2
    await cache.ping()


async def test_set_only_if_absent(cache: Cache) -> None:
    """The first one wins, and the others are told."""
    assert await cache.set("lock", "me", only_if_absent=True)
    assert not await cache.set("lock", "you", only_if_absent=True)
    assert await cache.get("lock") == b"me"


async def test_values_expire(cache: Cache) -> None:
    """`ttl_s` is seconds, fractions included."""
    await cache.set("a", "1", ttl_s=90.5)
    assert 90_000 < await cache.command("PTTL", "a") <= 90_500


async def test_other_commands(cache: Cache) -> None:
    """Sorted sets and the like go through `command`."""
    await cache.command("ZADD", "z", 2, "two", 1, "one")
    assert await cache.command("ZRANGE", "z", 0, -1) == [b"one", b"two"]


async def test_a_server_that_takes_no_writes_is_away(cache: Cache) -> None:
    """What is refused for the server's state, as when its disk is full, is UNAVAILABLE, however it was sent."""
    script = "return redis.call('SET', KEYS[1], ARGV[1])"
    refusals = []
    await cache.command("CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        for write in (
            cache.set("a", "1"),
            cache.pipeline([("SET", "a", "1")]),
            cache.script("0" * 40, script, ["a"], ["1"]),
        ):
            with pytest.raises(WhisprError) as error:
                await write
            refusals.append(error.value.code)
    finally:
        await cache.command("CONFIG", "SET", "min-replicas-to-write", 0)
    assert refusals == [Code.UNAVAILABLE] * 3
    assert await cache.get("a") is None


async def test_a_cancelled_command_does_not_confuse_the_next(cache: Cache) -> None:
    """A reply that arrives after its caller has gone is never taken for another's."""
    for _ in range(5):
        with trio.move_on_after(0.01) as scope:
            await cache.command("BLPOP", "nothing", 0)
        assert scope.cancelled_caught
        assert await cache.set("a", "1")
        assert await cache.get("a") == b"1"


async def test_many_callers_share_the_connections(cache: Cache) -> None:
    """A thousand concurrent callers are served by a bounded number of connections."""
    results: list[int] = []

    async def one(n: int) -> None:
        await cache.set(f"k{n}", str(n))
        results.append(int(await cache.get(f"k{n}") or -1))

    async with trio.open_nursery() as nursery:
        for n in range(300):
            nursery.start_soon(one, n)
    assert sorted(results) == list(range(300))
    assert (await cache.command("INFO", "clients"))["connected_clients"] <= CONNECTIONS_MAX + 1


async def test_a_server_that_is_away_is_unavailable_at_once(bridge: Bridge) -> None:
    """Nobody waits for the cache: the error comes at once and says what is away."""
    async with open_cache(bridge, "unix:///nowhere/valkey.sock") as cache:
        with pytest.raises(WhisprError, match="cache is away") as caught, trio.fail_after(5):
            await cache.get("a")
        assert caught.value.code is Code.UNAVAILABLE
