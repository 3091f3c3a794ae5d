"""Cutting packets into parts and segments."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.audio.test_fmp4 import demux
from tests.audio.tones import tone
from whispr.audio.fmp4 import init_segment
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.audio.segments import PART, PARTS, SEGMENT, Segmenter

AAC = Rendition(Codec.AAC, Quality.MEDIUM)
OPUS = Rendition(Codec.OPUS, Quality.MEDIUM)


def blank(size: int, start: int, count: int) -> list[Packet]:
    """Packets that follow each other from `start`."""
    return [Packet(start + i * size, size, bytes([i % 251 + 1])) for i in range(count)]


def cut(packets: list[Packet], window: int = 16) -> Segmenter:
    segmenter = Segmenter(window)
    segmenter.add(packets)
    return segmenter


def test_every_rendition_is_cut_at_the_same_instants() -> None:
    """AAC and Opus parts begin and end together, bit for bit, though their packets do not."""
    cuts = {r: cut(list(tone(r, 4.5, start=SEGMENT * 7))) for r in (AAC, OPUS)}
    places = [[(s.msn, p.start, p.duration) for s in c.segments for p in s.parts] for c in cuts.values()]
    assert places[0] == places[1]
    assert places[0][:2] == [(7, SEGMENT * 7, PART), (7, SEGMENT * 7 + PART, PART)]


def test_parts_hold_exactly_their_packets() -> None:
    """A segment is its parts, and a part decodes to the packets between two cuts."""
    for rendition in (AAC, OPUS):
        packets = list(tone(rendition, 4.0))
        segmenter = cut(packets)
        segment = segmenter.segments[1]
        assert demux(init_segment(rendition) + segment.data)[1] == [
            p for p in packets if SEGMENT <= p.pts < 2 * SEGMENT
        ]
        part = segment.parts[2]
        assert demux(init_segment(rendition) + part.data)[1] == [
            p for p in packets if part.start <= p.pts < part.start + PART
        ]


def test_an_encoder_that_begins_in_the_middle_is_cut_where_all_are() -> None:
    """The first segment has the parts from the next cut on; the ones after it are whole."""
    segmenter = cut(blank(960, 5 * SEGMENT + PART + 960 * 3, 200))
    first, second = segmenter.segments[0], segmenter.segments[1]
    assert (first.msn, first.start, len(first.parts), first.whole) == (
        5,
        5 * SEGMENT + 2 * PART,
        PARTS - 2,
        True,
    )
    assert (second.msn, second.start, len(second.parts)) == (6, 6 * SEGMENT, PARTS)


def test_a_part_that_nothing_came_for_is_a_gap_in_its_place() -> None:
    """What a relay lost does not move what comes after it."""
    packets = [p for p in blank(960, 0, 200) if not PART <= p.pts < 3 * PART]
    segmenter = cut(packets)
    assert [bool(part.data) for part in segmenter.segments[0].parts] == [True, False, False, True, True, True]
    assert [part.start for part in segmenter.segments[0].parts] == [i * PART for i in range(PARTS)]


def test_a_long_hole_begins_anew() -> None:
    """After more than the window, nothing is filled in: the sequence number jumps with the clock."""
    segmenter = cut([*blank(960, 0, 200), *blank(960, 40 * SEGMENT + 960, 200)], window=4)
    assert segmenter.segments[0].msn == 40
    assert segmenter.segments[0].start == 40 * SEGMENT + PART


def test_places_of_a_playlist() -> None:
    """`has` answers as blocking reloads need it (RFC 8216bis, 6.2.5.2)."""
    segmenter = cut(blank(960, 0, 16 * 8))  # one whole segment and two parts
    assert segmenter.last == (1, 1)
    assert segmenter.next == (1, 2)
    assert segmenter.has(0, None)
    assert segmenter.has(1, 1)
    assert not segmenter.has(1, 2)
    assert not segmenter.has(1, None)
    assert segmenter.has(0, 7), "a part past the last of a segment is the first of the next one"
    segmenter = cut(blank(960, 0, 16 * 6))
    assert not segmenter.has(0, 6)
    assert segmenter.has(0, None)
    assert segmenter.next == (1, 0)


def test_the_end_closes_what_is_open() -> None:
    """The last part is as long as what there is, and nothing is taken after it."""
    segmenter = cut(blank(960, 0, 100))
    segmenter.finish()
    last = segmenter.segments[-1]
    assert last.whole
    assert last.parts[-1].duration == 960 * 4
    assert segmenter.next is None
    assert not segmenter.add(blank(960, 96_000, 50))


@given(
    st.sampled_from([960, 1024]),
    st.integers(0, 5000),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_nothing_is_lost_or_doubled(
    size: int, first: int, batches: list[tuple[int, int]], window: int
) -> None:
    """Whatever the batches and the holes: parts are on their grid, follow each other, and hold what came for them."""
    segmenter, at, given = Segmenter(window), first * size, []
    for count, hole in batches:
        batch = blank(size, at, count)
        given += batch
        segmenter.add(batch)
        at += (count + hole) * size
    parts = [part for segment in segmenter.segments for part in segment.parts]
    assert len(segmenter.segments) <= window + 1
    for before, after in pairwise(parts):
        assert before.start + before.duration == after.start
    for segment in segmenter.segments:
        assert all(part.start // SEGMENT == segment.msn for part in segment.parts)
    for part in parts:
        assert part.start % PART == 0
        held = [p for p in given if part.start <= p.pts < part.start + part.duration]
        assert bool(part.data) == bool(held)
        assert part.data.count(b"moof") == 0 or all(p.data in part.data for p in held)
