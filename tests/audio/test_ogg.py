"""Ogg pages written and read, whole, cut off and damaged."""

from __future__ import annotations

import io

import av
from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import contained, opus_packets
from whispr.audio import ogg
from whispr.audio.ogg import OggError, Writer, whole_pages

PACKETS = st.lists(st.binary(max_size=700), min_size=1, max_size=30)


def slow_checksum(data: bytes) -> int:
    """RFC 3533's sum, bit by bit."""
    total = 0
    for byte in data:
        total ^= byte << 24
        for _ in range(8):
            total = (total << 1 ^ 0x04C11DB7 if total & 0x80000000 else total << 1) & 0xFFFFFFFF
    return total


@given(st.binary(max_size=300))
def test_the_checksum_is_oggs(data: bytes) -> None:
    """The quick sum is the one that the RFC defines."""
    assert ogg.checksum(data) == slow_checksum(data)


def test_pages_of_others_are_read() -> None:
    """What FFmpeg writes is read, to the last byte."""
    data = contained("ogg-opus", 1.0)
    pages = list(whole_pages(data))
    assert pages[0].first
    assert pages[-1].last
    assert pages[-1].end == len(data)
    assert pages[0].packets[0].startswith(b"OpusHead")
    assert [page.sequence for page in pages] == list(range(len(pages)))


def test_what_is_written_plays() -> None:
    """FFmpeg reads our file: as long as it should be, with its comments, every packet as it was."""
    packets, writer = opus_packets(2.0), Writer(7)
    data = writer.opus_headers({"title": "On air", "artist": "Ä"})
    data += writer.pages([(packet, 960 * (n + 1)) for n, packet in enumerate(packets)])
    data += writer.page([], 960 * len(packets), last=True)
    with av.open(io.BytesIO(data), "r") as container:
        assert container.streams.audio[0].metadata == {"TITLE": "On air", "ARTIST": "Ä"}
        assert [bytes(packet) for packet in container.demux() if packet.size] == list(packets)
        assert container.duration is not None
        assert abs(container.duration / 1e6 - 2.0) < 0.01


def test_comments_that_are_too_much_are_left_out() -> None:
    """The comment header fits a page, whatever a title is."""
    data = Writer(1).opus_headers({f"name{n}": "x" * 500 for n in range(200)})
    assert len(list(whole_pages(data))) == 2


@given(PACKETS, st.integers(0, 2**62))
def test_packets_come_out_of_a_page(packets: list[bytes], granule: int) -> None:
    """A page holds what was put on it."""
    data = Writer(3, sequence=9).pages([(packet, granule) for packet in packets])
    pages = list(whole_pages(data))
    assert [packet for page in pages for packet in page.packets] == packets
    assert {page.granule for page in pages} == {granule}
    assert pages[0].sequence == 9


@given(st.data())
def test_a_cut_or_damaged_file_is_good_elsewhere(data: st.DataObject) -> None:
    """Cut off anywhere, or with a byte changed, the pages that are not touched are all found."""
    writer = Writer(3)
    pages = [writer.page([bytes([n]) * 40, b"x" * n], n) for n in range(8)]
    whole = b"".join(pages)
    at = data.draw(st.integers(0, len(whole) - 1))
    touched = next(n for n in range(8) if at < sum(map(len, pages[: n + 1])))
    assert [page.granule for page in whole_pages(whole[:at])] == list(range(touched))
    damaged = whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :]
    assert [page.granule for page in whole_pages(damaged)] == [n for n in range(8) if n != touched]


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: b"OggS" + rest))
def test_anything_is_refused_or_waited_for(data: bytes) -> None:
    """No bytes do more than be refused."""
    try:
        page = ogg.page_at(data)
    except OggError:
        return
    assert page is None or page.end <= len(data)
    assert len(list(whole_pages(data))) <= 15
