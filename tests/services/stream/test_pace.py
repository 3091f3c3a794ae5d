"""How often a stream's sound is taken to its encoders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whispr.services.stream.engine.pace import HOPS_MAX, HURRIED, STAYS, TICK_S, pace_s

CHOICES = [each for each, _ in HURRIED] + [TICK_S]


def test_a_machine_with_room_takes_each_packet_as_it_comes() -> None:
    """One stream, nothing else to do: 20 ms."""
    assert pace_s(1, 2, 0.0, TICK_S) == 0.02


def test_many_streams_are_taken_in_larger_hops() -> None:
    """24 streams on two cores broke in hops of 20 ms: there they are as those that nobody hurries."""
    paces = [pace_s(streams, 2, 0.0, TICK_S) for streams in range(1, 25)]
    assert paces == sorted(paces)
    assert set(paces) == set(CHOICES)
    assert paces[-1] == TICK_S


def test_busy_encoders_are_spared_and_do_not_swing() -> None:
    """Past a limit hops grow; they shrink again only once there is more room than at the limit."""
    for (each, busy_max), slower in zip(HURRIED, CHOICES[1:], strict=True):
        assert pace_s(1, 2, busy_max + STAYS / 2, each) == each
        assert pace_s(1, 2, busy_max + STAYS * 1.1, each) >= slower
        assert pace_s(1, 2, busy_max + STAYS / 2, TICK_S) >= slower
    assert pace_s(1, 2, 0.9, 0.02) == TICK_S


@given(
    st.integers(1, 200), st.integers(1, 64), st.floats(0, 1.5), st.sampled_from(CHOICES), st.floats(0, 0.5)
)
def test_more_to_do_is_never_smaller_hops(
    streams: int, cores: int, busy: float, before: float, more: float
) -> None:
    """And all streams together never make more hops than a machine has been seen to stand."""
    pace = pace_s(streams, cores, busy, before)
    assert pace in CHOICES
    assert pace <= pace_s(streams, cores, busy + more, before)
    assert pace <= pace_s(streams + 1, cores, busy, before)
    assert pace == TICK_S or streams / pace <= HOPS_MAX * cores
