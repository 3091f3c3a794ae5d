"""The time of day at places of a stream's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tests.audio.tones import tone
from whispr.audio import playlist
from whispr.audio.packets import CLOCK_HZ, Codec, Quality, Rendition
from whispr.audio.segments import SEGMENT, Segmenter
from whispr.audio.wallclock import NOTES_MAX, STEP_S, WallClock


def test_a_drifting_clock_is_kept_true_for_a_day() -> None:
    """A quartz that is 100 ppm off is 8.64 s off after a day; what is said of its segments never is."""
    clock, worst = WallClock(), 0.0
    for number in range(24 * 3600 * CLOCK_HZ // SEGMENT):
        pts = number * SEGMENT
        behind_s = pts / CLOCK_HZ * 1e-4
        clock.note(pts, behind_s)
        worst = max(worst, abs(clock.behind_s(pts) - behind_s))
    assert behind_s > 8.6
    assert worst < 2 * STEP_S
    assert len(clock.notes) == NOTES_MAX


def test_what_is_noted_holds_from_a_segment_that_nobody_has_yet() -> None:
    """Renditions and nodes which are a second behind say the same of every segment."""
    clock = WallClock()
    clock.note(SEGMENT * 5 + 1, 0.5)
    assert clock.behind_s(SEGMENT * 7 - 1) == 0.0
    assert clock.behind_s(SEGMENT * 7) == 0.5
    clock.note(SEGMENT * 5 + 9, 0.9)
    assert clock.notes == ((SEGMENT * 7, 0.5),)


@given(st.lists(st.tuples(st.integers(0, 3 * SEGMENT), st.floats(-1e6, 1e6)), max_size=60))
def test_time_never_goes_back(noted: list[tuple[int, float]]) -> None:
    """Whatever a machine's clock does: a later segment begins later."""
    clock, pts, before = WallClock(), 0, float("-inf")
    for passed, behind_s in noted:
        for number in range(pts // SEGMENT, (pts + passed) // SEGMENT):
            moment = number * SEGMENT / CLOCK_HZ + clock.behind_s(number * SEGMENT)
            assert moment > before
            before = moment
        pts += passed
        clock.note(pts, behind_s)


def test_a_playlist_says_the_time_of_day() -> None:
    """PROGRAM-DATE-TIME follows what is noted, from the segment on for which it is."""
    segmenter, rendition = Segmenter(4), Rendition(Codec.AAC, Quality.LOW)
    segmenter.add(tone(rendition, 6.0))
    text = playlist.live(
        segmenter, datetime(2026, 1, 1, tzinfo=UTC), prefix="", clock=WallClock([(SEGMENT * 2, 0.25)])
    ).decode()
    moments = [line.partition(":")[2] for line in text.splitlines() if "DATE-TIME" in line]
    assert moments[:3] == ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.920Z", "2026-01-01T00:00:04.090Z"]
