"""What is said at most so often: the first at once, the latest at the end of the interval."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from whispr.realtime.pacing import Pacer

MOMENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=60)


@given(MOMENTS)
def test_the_latest_is_always_said_and_never_too_often(steps: list[tuple[str, int]]) -> None:
    """Whatever comes when: per key at most one is said an interval, in order, and the last one is among them."""
    pacer: Pacer[tuple[str, int]] = Pacer(10)
    now = 0
    said: dict[str, list[tuple[float, int]]] = {}
    last: dict[str, int] = {}

    def catch_up(until: float) -> None:
        while (due := pacer.next_due) is not None and due <= until:
            for key, n in pacer.take_due(due):
                said.setdefault(key, []).append((due, n))

    for n, (key, pause) in enumerate(steps):
        now += pause
        catch_up(now)
        last[key] = n
        if pacer.admit(key, (key, n), now):
            said.setdefault(key, []).append((now, n))
    catch_up(now + 100)
    assert pacer.next_due is None
    for key, n in last.items():
        times, numbers = zip(*said[key], strict=True)
        assert numbers[-1] == n
        assert list(numbers) == sorted(set(numbers))
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(times))


def test_an_interval_of_nothing_lets_everything_through() -> None:
    """0 lifts it, and keeps nothing in mind."""
    pacer: Pacer[int] = Pacer(0)
    assert all(pacer.admit("a", n, 0.0) for n in range(10))
    assert pacer.next_due is None
