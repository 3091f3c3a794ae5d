"""Fragmented MP4 as readers by others read it."""

from __future__ import annotations

import io
from itertools import pairwise
from struct import unpack_from
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.tones import tone
from whispr.audio.fmp4 import fragment, fragments, init_segment, mime_type
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition

MEDIUM = [Rendition(codec, Quality.MEDIUM) for codec in Codec]


def opened(data: bytes, name: str | None = None) -> Any:
    """Open bytes as FFmpeg does a file."""
    return av.open(io.BytesIO(data), format=name)


def demux(data: bytes) -> tuple[Any, list[Packet]]:
    """Read a file with FFmpeg's demuxer; return its stream and its packets."""
    with opened(data) as container:
        stream = container.streams.audio[0]
        packets = [Packet(p.pts or 0, p.duration or 0, bytes(p)) for p in container.demux(stream) if p.size]
        return stream.codec_context, packets


@pytest.mark.parametrize("rendition", MEDIUM, ids=lambda r: r.codec)
def test_ffmpeg_reads_every_packet_bit_for_bit_at_its_time(rendition: Rendition) -> None:
    """What goes in comes out, in as many fragments as it may be, hours after the stream began."""
    start = 15_360 * 3600 * 30
    packets = tone(rendition, 1.0, start=start)
    data = init_segment(rendition) + fragment(1, packets[:15]) + fragment(2, packets[15:])
    codec, read = demux(data)
    assert read == list(packets)
    assert codec.name == rendition.codec
    assert (codec.sample_rate, codec.channels) == (CLOCK_HZ, 2)


@pytest.mark.parametrize("rendition", MEDIUM, ids=lambda r: r.codec)
def test_the_sound_is_the_tone_that_was_encoded(rendition: Rendition) -> None:
    """A decoder that begins with any fragment hears the tone within its first packets."""
    packets = tone(rendition, 1.0, hz=1000.0)
    with opened(init_segment(rendition) + fragment(7, packets[20:])) as container:
        frames = list(container.decode(audio=0))
    left = b"".join(bytes(frame.planes[0])[: frame.samples * 4] for frame in frames)
    wave = memoryview(left).cast("f").tolist()[4800:24_000]
    crossings = sum(a < 0 <= b for a, b in pairwise(wave))
    assert abs(crossings / 0.4 - 1000) < 5


@given(
    st.integers(0, (1 << 63) - (1 << 32)),
    st.lists(
        st.tuples(st.sampled_from([120, 960, 1024, 2880]), st.binary(min_size=1, max_size=1600)),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 1 << 40),
)
def test_a_fragment_is_boxes_of_the_sizes_they_say(
    start: int, given: list[tuple[int, bytes]], number: int
) -> None:
    """The offset of the data, the sizes and the times in `trun` and `tfdt` are true of any packets."""
    packets, at = [], start
    for duration, data in given:
        packets.append(Packet(at, duration, data))
        at += duration
    made = fragment(number, packets)
    moof, kind = unpack_from(">I4s", made)
    assert kind == b"moof"
    assert unpack_from(">I4s", made, moof) == (len(made) - moof, b"mdat")
    assert unpack_from(">I", made, 20)[0] == number % (1 << 32)
    assert read_run(made) == packets


def read_run(made: bytes) -> list[Packet]:
    """Read the packets of one fragment by the standard, apart from how they are written."""
    tfhd, tfdt, trun = (made.index(kind) + 4 for kind in (b"tfhd", b"tfdt", b"trun"))
    default = unpack_from(">I", made, tfhd + 8)[0]
    at = unpack_from(">Q", made, tfdt + 4)[0]
    flags, count, offset = unpack_from(">III", made, trun)
    field, packets = trun + 12, []
    for _ in range(count):
        duration = default
        if flags & 0x100:
            duration = unpack_from(">I", made, field)[0]
            field += 4
        size = unpack_from(">I", made, field)[0]
        field += 4
        packets.append(Packet(at, duration, made[offset : offset + size]))
        at, offset = at + duration, offset + size
    assert offset == len(made)
    return packets


def test_a_hole_begins_a_fragment_of_its_own() -> None:
    """Packets after a hole keep their time: players hear the hole where it was."""
    rendition = Rendition(Codec.OPUS, Quality.LOW)
    packets = tone(rendition, 0.4)
    held = [*packets[:5], *packets[8:]]
    assert demux(init_segment(rendition) + fragments(1, held))[1] == held


def test_browsers_are_told_the_codec() -> None:
    """MediaSource.isTypeSupported gets the codec strings that browsers know."""
    assert mime_type(Codec.AAC) == 'audio/mp4; codecs="mp4a.40.2"'
    assert mime_type(Codec.OPUS) == 'audio/mp4; codecs="opus"'
