"""The names of songs in a chained Ogg stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import opus_packets
from whispr.audio.ogg import Writer
from whispr.audio.ogg_tags import TAGS_BYTES_MAX, TagWatch


def link(serial: int, tags: dict[str, str]) -> bytes:
    """One song."""
    writer, packets = Writer(serial), list(opus_packets(0.2))
    return writer.opus_headers(tags) + writer.page(packets, 960 * len(packets), last=True)


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=8))
def test_each_song_is_told_once(sizes: list[int]) -> None:
    """However the bytes come in."""
    data = link(1, {"title": "One", "artist": "A"}) + link(2, {"TITLE": "Zwei \u00fc"}) + link(3, {})
    watch, told, at, turn = TagWatch(), [], 0, 0
    while at < len(data):
        told += watch.feed(data[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    assert [tags.get("title") for tags in told] == ["One", "Zwei \u00fc", None]
    assert told[0]["artist"] == "A"


def test_pictures_are_not_waited_for() -> None:
    """What comes before one is told, and what is kept of it is bounded."""
    head = link(1, {"title": "One", "metadata_block_picture": "x" * 60_000})
    watch = TagWatch()
    assert [tags["title"] for tags in watch.feed(head)] == ["One"]
    assert len(watch._buffer) < TAGS_BYTES_MAX


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_noise_is_borne(pieces: list[bytes]) -> None:
    """Whatever comes after a mark: no error, and no more kept than needed."""
    watch = TagWatch()
    for piece in pieces:
        watch.feed(b"OpusTags" + piece)
        assert len(watch._buffer) <= TAGS_BYTES_MAX + 2 * 300 * len(pieces)
