"""Recordings cut into segments, by the heads of their pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.test_fmp4 import demux
from tests.audio.tones import tone
from whispr.audio.fmp4 import fragments, init_segment
from whispr.audio.ogg import OggError, Writer
from whispr.audio.ogg_segments import LENGTH, Segmented, packets_in
from whispr.audio.packets import Codec, Packet, Quality, Rendition

OPUS = Rendition(Codec.OPUS, Quality.LOW)


def recording(seconds: float) -> tuple[bytes, list[Packet]]:
    """A file as recordings are: a page for each half second."""
    packets = list(tone(OPUS, 1.0)) * int(seconds + 1)
    packets = [Packet(i * 960, 960, p.data) for i, p in enumerate(packets[: int(seconds * 50)])]
    writer = Writer(7)
    data = writer.opus_headers({"title": "a tone"})
    for at in range(0, len(packets), 25):
        page = packets[at : at + 25]
        data += writer.page([p.data for p in page], page[-1].pts + 960, last=at + 25 >= len(packets))
    return data, packets


@given(st.lists(st.integers(1, 40_000), max_size=8))
def test_segments_are_the_recording_whatever_the_pieces_it_comes_in(sizes: list[int]) -> None:
    """Six seconds each, one after the other, and their packets are all there are, bit for bit."""
    data, packets = recording(14.3)
    segmented, at = Segmented(), 0
    for size in [*sizes, len(data)]:
        segmented.feed(data[at : at + size])
        at += size
    segmented.finish()
    stretches = segmented.stretches
    assert [each.duration for each in stretches] == [LENGTH, LENGTH, 115 * 960]
    assert [each.pts for each in stretches] == [0, LENGTH, 2 * LENGTH]
    read = [packet for each in stretches for packet in packets_in(data[each.start : each.end], each.pts)]
    assert read == packets


def test_players_read_the_segments_as_one() -> None:
    """Each is a fragment that follows the one before."""
    data, packets = recording(13)
    segmented = Segmented()
    segmented.feed(data)
    segmented.finish()
    sound = [
        fragments(n + 1, packets_in(data[s.start : s.end], s.pts)) for n, s in enumerate(segmented.stretches)
    ]
    assert demux(init_segment(OPUS) + b"".join(sound))[1] == packets


def test_a_page_that_was_cut_off_is_left_out() -> None:
    """A file that ends in the middle of a page is good up to there; what is no Ogg is refused."""
    data, _ = recording(7)
    segmented = Segmented()
    segmented.feed(data[:-10])
    segmented.finish()
    assert sum(each.duration for each in segmented.stretches) == int(6.5 * 48_000)
    with pytest.raises(OggError):
        Segmented().feed(b"RIFF" + bytes(100))
