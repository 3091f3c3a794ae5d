"""What a soak calls flat."""

from __future__ import annotations

from tests.chaos.soak import Measure, curve, slope


def measured(values: list[float]) -> Measure:
    measure = Measure("memory", "MiB", 0.1, 1.0)
    measure.samples = [(float(at), value) for at, value in enumerate(values)]
    return measure


def test_a_few_peaks_are_no_growth() -> None:
    """The median of slopes is that of most samples, whatever a few of them say."""
    assert slope([(0, 1), (1, 1), (2, 90), (3, 1), (4, 1)]) == 0
    assert measured([100.0] * 50 + [900.0] + [100.0] * 49).is_flat


def test_a_leak_is_growth() -> None:
    """What grows all the time is found, and what grew while it was warming up is not held against it."""
    assert not measured([100.0 + at for at in range(100)]).is_flat
    assert measured([100.0 + min(at, 20) for at in range(100)]).is_flat


def test_a_curve_shows_low_and_high() -> None:
    """One character for each stretch, from the lowest to the highest."""
    assert curve([0.0, 5.0, 10.0]) == "▁▄█"
    assert curve([3.0, 3.0]) == "▁▁"
