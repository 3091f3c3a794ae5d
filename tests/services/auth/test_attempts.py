"""Waits after failures: how they grow, where they are kept, and what ends them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from whispr.adapters.cache import Cache
from whispr.errors import WhisprError, unavailable
from whispr.services.auth import attempts
from whispr.services.auth.attempts import (
    FORGIVEN_AFTER_S,
    FREE_FAILURES,
    LOCAL_MAX,
    WAIT_MAX_S,
    Attempts,
    Delays,
    wait_after,
)


class Away:
    """A cache that is away."""

    async def script(self, *_: object) -> float:
        await trio.lowlevel.checkpoint()
        raise unavailable("away")

    async def delete(self, *_: str) -> int:
        await trio.lowlevel.checkpoint()
        raise unavailable("away")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 2000))
def test_waits_double_up_to_a_quarter_of_an_hour(count: int) -> None:
    """Never shorter than the one before, never over the most, none at first."""
    assert wait_after(count) <= wait_after(count + 1) <= WAIT_MAX_S
    if count < FREE_FAILURES:
        assert wait_after(count) == 0
    elif wait_after(count) < WAIT_MAX_S:
        assert wait_after(count) == 2.0 ** (count - FREE_FAILURES)


async def test_without_a_cache_a_process_counts_by_itself() -> None:
    """While the cache is away each process keeps the waits; they end with time and with a good sign-in."""
    clock = Clock()
    delays = Delays(Away(), clock)
    for _ in range(FREE_FAILURES):
        assert await delays.take("k") == 0
    assert await delays.take("k") == 1
    assert await delays.take("other") == 0
    clock.now += 1
    assert await delays.take("k") == 0
    assert await delays.take("k") == 2
    await delays.forgive("k")
    assert await delays.take("k") == 0
    for _ in range(FREE_FAILURES - 1):
        await delays.take("k")
    clock.now += FORGIVEN_AFTER_S + WAIT_MAX_S
    for _ in range(FREE_FAILURES):
        assert await delays.take("k") == 0


async def test_the_memory_of_a_process_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are tried, only so many are remembered."""
    assert LOCAL_MAX == 10_000
    monkeypatch.setattr(attempts, "LOCAL_MAX", 5)
    delays = Delays(Away())
    for number in range(20):
        await delays.take(str(number))
    assert len(delays._local) == 5


async def test_the_cache_and_the_process_agree(cache: Cache) -> None:
    """The script in the cache gives the waits of the rule, for all processes together."""
    one, two = Delays(cache), Delays(cache)
    for number in range(FREE_FAILURES):
        assert await (one, two)[number % 2].take("whispr:test:k") == 0
    waits = [await each.take("whispr:test:k") for each in (one, two)]
    assert all(0 < wait <= 1 for wait in waits)
    assert all(earlier >= later for earlier, later in pairwise(waits))
    assert 0 < await cache.command("PTTL", "whispr:test:k") <= (FORGIVEN_AFTER_S + 1) * 1000
    await two.forgive("whispr:test:k")
    assert await one.take("whispr:test:k") == 0


async def test_attempts_at_once_are_counted_before_they_are_tried(cache: Cache) -> None:
    """Of fifty attempts at one name at the same moment, three get as far as the password."""
    subject = Attempts(cache)
    passed = 0

    async def attempt() -> None:
        nonlocal passed
        try:
            await subject.take("ada", "192.0.2.1", (1000, 1000), known=False)
        except WhisprError:
            return
        passed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(attempt)
    assert passed == FREE_FAILURES


async def test_a_refusal_costs_the_address_nothing(cache: Cache) -> None:
    """Whoever waits for one name may meanwhile sign in to another, as often as before."""
    subject = Attempts(cache)
    for _ in range(FREE_FAILURES):
        await subject.take("ada", "192.0.2.1", (5, 0), known=False)
    for _ in range(10):
        with pytest.raises(WhisprError):
            await subject.take("ada", "192.0.2.1", (5, 0), known=False)
    for _ in range(2):
        await subject.take("eva", "192.0.2.1", (5, 0), known=False)
    with pytest.raises(WhisprError):
        await subject.take("eva", "192.0.2.1", (5, 0), known=False)
