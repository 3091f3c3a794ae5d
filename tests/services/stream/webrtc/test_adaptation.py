from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whispr.audio.packets import Quality
from whispr.services.stream.webrtc.adaptation import CLEAN_MAX_S, CLEAN_S, Adaptation

LADDER = list(Quality)


def begun(start: Quality = Quality.MEDIUM) -> Adaptation:
    return Adaptation(LADDER, start, 0.0)


def climbs_at(adaptation: Adaptation, since: float) -> float:
    """When clean reports, one a second, lead a rung up."""
    before, now = adaptation.quality, since
    while adaptation.report(0.0, 0.05, now) is before:
        now += 1
        assert now < since + 2 * CLEAN_MAX_S
    return now


def test_loss_leads_down_and_quiet_up() -> None:
    """Over 5 % a rung down at once, then after 12 s without loss up again."""
    adaptation = begun()
    assert adaptation.report(0.06, 0.05, 5.0) is Quality.LOW
    assert climbs_at(adaptation, 6.0) == 5.0 + CLEAN_S
    assert adaptation.quality is Quality.MEDIUM


def test_a_round_trip_that_grows_leads_down() -> None:
    """A queue fills on the way long before anything is lost; a path that was always long is none."""
    adaptation = begun()
    for second in range(3, 6):
        assert adaptation.report(0.0, 0.3, second) is Quality.MEDIUM
    assert adaptation.report(0.0, 0.7, 6.0) is Quality.LOW


def test_after_a_change_reports_are_of_the_time_before() -> None:
    """One burst of loss is one rung, not two."""
    adaptation = begun(Quality.ULTRA)
    assert adaptation.report(0.2, None, 5.0) is Quality.HIGH
    assert adaptation.report(0.2, None, 5.5) is Quality.HIGH
    assert adaptation.report(0.2, None, 8.0) is Quality.MEDIUM


def test_a_little_loss_keeps_where_one_is() -> None:
    """Between 2 and 5 % nothing changes, for however long."""
    adaptation = begun()
    for second in range(300):
        assert adaptation.report(0.03, 0.05, second) is Quality.MEDIUM


def test_a_rung_that_did_not_hold_is_tried_less_and_less_often() -> None:
    """Twice as long each time, up to a limit; once it has held, as at first."""
    adaptation, now, waits = begun(Quality.LOW), 0.0, []
    for _ in range(6):
        up = climbs_at(adaptation, now)
        waits.append(up - now)
        now = up + 3
        adaptation.report(0.2, None, now)
    assert waits == [12.0, 24.0, 48.0, 96.0, 96.0, 96.0]


def test_the_ladder_ends_somewhere() -> None:
    """No rung above the highest and none below the lowest."""
    adaptation = begun(Quality.LOW)
    for second in range(3, 60, 3):
        assert adaptation.report(0.5, 2.0, second) is Quality.LOW
    top = begun(Quality.ULTRA)
    for second in range(200):
        assert top.report(0.0, 0.01, second) is Quality.ULTRA


@given(st.lists(st.tuples(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 5)), st.floats(0, 30))))
def test_any_reports_keep_within_the_ladder(reports: list[tuple[float, float | None, float]]) -> None:
    """One rung at a time, and never twice within the time that a change takes to show."""
    adaptation, now, changed = begun(), 0.0, -10.0
    for loss, trip, passed in reports:
        now += passed
        before = adaptation.quality
        after = adaptation.report(loss, trip, now)
        assert abs(LADDER.index(after) - LADDER.index(before)) <= 1
        if after is not before:
            assert now - changed >= 2.0
            changed = now
