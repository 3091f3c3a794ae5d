from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from whispr.adapters.cache import Cache, RateLimiter
from whispr.adapters.rate_limit import AWAY_S, PATIENCE_S, PENALTY_MAX_S, LocalLimits
from whispr.errors import Code, WhisprError, unavailable


class Away:
    """A cache that is away, or hangs; it counts how often it was asked."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.asked = 0
        self._hangs = hangs

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        self.asked += 1
        if self._hangs:
            await trio.sleep_forever()
        raise unavailable("the cache is away")


async def test_a_burst_passes_and_the_next_is_told_when(cache: Cache) -> None:
    """`limit` calls pass at once; then RESOURCE_EXHAUSTED with the time until one more may."""
    limiter = RateLimiter(cache)
    for _ in range(5):
        await limiter.take("someone", 5, 60)
    with pytest.raises(WhisprError) as caught:
        await limiter.take("someone", 5, 60)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.reason == "rate_limited"
    assert caught.value.retry_after_s == pytest.approx(12, abs=0.5)
    await limiter.take("someone else", 5, 60)


async def test_the_limit_is_shared_by_all_nodes(cache: Cache) -> None:
    """Two limiters on one cache count together."""
    one, two = RateLimiter(cache), RateLimiter(cache)
    await one.take("k", 2, 60)
    await two.take("k", 2, 60)
    with pytest.raises(WhisprError):
        await one.take("k", 2, 60)


async def test_concurrent_calls_never_exceed_the_limit(cache: Cache) -> None:
    """A hundred calls at once against a limit of ten: exactly ten pass."""
    limiter = RateLimiter(cache, patience_s=10)
    passed = 0

    async def one() -> None:
        nonlocal passed
        try:
            await limiter.take("k", 10, 3600)
        except WhisprError:
            return
        passed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(one)
    assert passed == 10


async def test_keys_expire_with_the_limit(cache: Cache) -> None:
    """A key is kept no longer than it matters."""
    await RateLimiter(cache).take("k", 10, 60)
    assert 0 < await cache.command("PTTL", "whispr:rate:k") <= 6_001


async def test_zero_is_no_limit_and_no_round_trip() -> None:
    """A lifted limit never asks the cache."""
    away = Away()
    limiter = RateLimiter(away)
    for _ in range(1000):
        await limiter.take("k", 0, 60)
    assert away.asked == 0


async def test_away_limits_are_kept_locally(autojump_clock: trio.testing.MockClock) -> None:
    """With the cache away the limit still holds in this process, and time frees it."""
    limiter = RateLimiter(Away())
    for _ in range(3):
        await limiter.take("k", 3, 30)
    with pytest.raises(WhisprError) as caught:
        await limiter.take("k", 3, 30)
    assert caught.value.retry_after_s == pytest.approx(10)
    await trio.sleep(10)
    await limiter.take("k", 3, 30)


async def test_a_cache_that_is_away_is_left_in_peace(autojump_clock: trio.testing.MockClock) -> None:
    """It is asked once, then not again for AWAY_S seconds."""
    away = Away()
    limiter = RateLimiter(away)
    for _ in range(10):
        await limiter.take("k", 100, 60)
    assert away.asked == 1
    await trio.sleep(AWAY_S)
    await limiter.take("k", 100, 60)
    assert away.asked == 2


async def test_a_cache_that_hangs_costs_at_most_the_patience(autojump_clock: trio.testing.MockClock) -> None:
    """A server that accepts and never answers delays one call by PATIENCE_S, and the rest not at all."""
    limiter = RateLimiter(Away(hangs=True))
    began = trio.current_time()
    for _ in range(10):
        await limiter.take("k", 100, 60)
    assert trio.current_time() - began == pytest.approx(PATIENCE_S)


async def test_local_memory_is_bounded() -> None:
    """Beyond its bound the local limiter forgets the key used longest ago."""
    limits = LocalLimits(keys_max=3)
    for key in ("a", "b", "c", "a", "d"):
        limits.take(key, 1000, 1, now=0)
    assert len(limits) == 3
    for _ in range(999):
        assert limits.take("b", 1000, 1, now=0) == 0.0
    assert limits.take("b", 1000, 1, now=0) == 0.0  # b was forgotten and started over


@given(
    limit=st.integers(1, 50),
    period=st.floats(0.1, 3600),
    gaps=st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_no_window_holds_more_than_gcra_allows(limit: int, period: float, gaps: list[float]) -> None:
    """In any window of one period at most twice the limit pass (burst and refill), and waits are honest."""
    limits, now = LocalLimits(), 0.0
    passed: list[float] = []
    for gap in gaps:
        now += gap
        wait = limits.take("k", limit, period, now)
        if wait == 0.0:
            passed.append(now)
        else:
            assert 0 < wait <= period * (1 + 1e-9)
            assert LocalLimits.take(limits, "k", limit, period, now + wait + 1e-6) == 0.0
            now += wait + 1e-6
            passed.append(now)
    for start in passed:
        assert sum(start <= t < start + period for t in passed) <= 2 * limit + 1


async def refused(limiter: RateLimiter, key: str, limit: int, period_s: float) -> float:
    """Make a call that must be refused; return the wait it is told."""
    with pytest.raises(WhisprError) as caught:
        await limiter.take(key, limit, period_s)
    assert caught.value.retry_after_s is not None
    return caught.value.retry_after_s


@pytest.mark.parametrize("away", [False, True])
async def test_who_ignores_refusals_waits_ever_longer(cache: Cache, away: bool) -> None:
    """Every `grace` calls that come sooner than told double the wait; the same here and in the cache."""
    limiter = RateLimiter(Away() if away else cache, grace=4)
    for _ in range(10):
        await limiter.take("k", 10, 60)
    waits = [await refused(limiter, "k", 10, 60) for _ in range(21)]
    expected = [6.0] * 4 + [15.0] * 4 + [30.0] * 4 + [60.0] * 4 + [120.0] * 4 + [240.0]
    assert waits == pytest.approx(expected, abs=0.5)
    for _ in range(80):
        longest = await refused(limiter, "k", 10, 60)
    assert longest == pytest.approx(PENALTY_MAX_S, abs=0.5)


async def test_who_comes_when_told_is_never_punished(autojump_clock: trio.testing.MockClock) -> None:
    """A client always at its limit that heeds every refusal passes each time it was told it would."""
    limiter = RateLimiter(Away(), grace=2)
    for _ in range(10):
        await limiter.take("k", 10, 60)
    for _ in range(50):
        await trio.sleep(await refused(limiter, "k", 10, 60) + 0.001)
        await limiter.take("k", 10, 60)


async def test_a_period_of_patience_and_offences_are_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """After a penalty has been sat out, the limit is what it was."""
    limiter = RateLimiter(Away(), grace=2)
    for _ in range(10):
        await limiter.take("k", 10, 60)
    for _ in range(5):
        wait_s = await refused(limiter, "k", 10, 60)
    assert wait_s == pytest.approx(30)
    await trio.sleep(150)
    for _ in range(10):
        await limiter.take("k", 10, 60)
    assert await refused(limiter, "k", 10, 60) == pytest.approx(6)


async def test_on_account_most_calls_ask_nobody_and_the_limit_holds(cache: Cache) -> None:
    """Calls are charged a fiftieth of the limit at a time: exactly as many pass, with far fewer questions."""

    class Counted:
        asked = 0

        async def script(
            self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]
        ) -> Any:
            self.asked += 1
            return await cache.script(sha, source, keys, args)

    counted = Counted()
    limiter = RateLimiter(counted)
    passed = 0
    with pytest.raises(WhisprError) as caught:
        while True:
            if not limiter.on_account("k", 1000, 3600):
                await limiter.settle("k", 1000, 3600)
            passed += 1
    assert passed in range(1000, 1021)
    assert counted.asked <= 51
    assert caught.value.retry_after_s is not None
    asked = counted.asked
    with pytest.raises(WhisprError):
        limiter.on_account("k", 1000, 3600)
    assert counted.asked == asked, "a refusal is remembered"


async def test_small_limits_on_account_are_exact(cache: Cache) -> None:
    """Below fifty every call is charged at once."""
    limiter = RateLimiter(cache)
    for _ in range(3):
        assert not limiter.on_account("k", 3, 60)
        await limiter.settle("k", 3, 60)
    assert not limiter.on_account("k", 3, 60)
    with pytest.raises(WhisprError):
        await limiter.settle("k", 3, 60)
    assert limiter.on_account("k", 0, 60), "0 is no limit"


async def test_a_key_of_an_earlier_version_is_understood(cache: Cache) -> None:
    """A value that is the bare arrival time still counts."""
    limiter = RateLimiter(cache)
    for _ in range(2):
        await limiter.take("k", 2, 60)
    tat = (await cache.command("GET", "whispr:rate:k")).split()[0]
    await cache.command("SET", "whispr:rate:k", tat, "PX", 60_000)
    assert await refused(limiter, "k", 2, 60) == pytest.approx(30, abs=0.5)


@pytest.mark.parametrize("kept", ["{ahead}", "{ahead} {ahead} 100 {ahead}"])
async def test_a_clock_that_was_set_back_locks_nobody_out(cache: Cache, kept: str) -> None:
    """What was written while the server's clock was an hour ahead counts for nothing once it has been put right."""
    seconds, _ = await cache.command("TIME")
    await cache.set("whispr:rate:someone", kept.format(ahead=(int(seconds) + 3600) * 1_000_000))
    limiter = RateLimiter(cache)
    for _ in range(5):
        await limiter.take("someone", 5, 60)
    with pytest.raises(WhisprError) as caught:
        await limiter.take("someone", 5, 60)
    assert caught.value.retry_after_s == pytest.approx(12, abs=0.5)
