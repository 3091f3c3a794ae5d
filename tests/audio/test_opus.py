"""Opus packets read, cut and put together, without a decoder."""

from __future__ import annotations

from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import frame_of, samples
from whispr.audio import opus
from whispr.audio.opus import PACKET, SILENCE, OpusError, Toc
from whispr.audio.packets import CLOCK_HZ

TOCS = st.builds(Toc, st.integers(0, 31), st.booleans())


def encoded(frame_ms: str, seconds: float = 0.6) -> list[bytes]:
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = CLOCK_HZ, "stereo", "s16", 128_000
    encoder.options = {"frame_duration": frame_ms}
    pcm, made = samples(seconds), []
    size = int(float(frame_ms) * 192)
    for at in range(0, len(pcm) - size + 1, size):
        made += [bytes(packet) for packet in encoder.encode(frame_of(pcm[at : at + size], at // 4))]
    return made


def decoded(packets: list[bytes]) -> bytes:
    decoder: Any = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout, decoder.format = CLOCK_HZ, "stereo", "s16"
    heard = b""
    for packet in packets:
        for frame in decoder.decode(av.Packet(packet)):
            heard += bytes(frame.planes[0])[: frame.samples * 4]
    return heard


@pytest.mark.parametrize(
    ("config", "ticks"), [(0, 480), (3, 2880), (12, 480), (13, 960), (16, 120), (19, 960), (31, 960)]
)
def test_the_table_of_configurations(config: int, ticks: int) -> None:
    """The length of a frame is that of RFC 6716's table 2."""
    assert Toc(config, stereo=False).frame == ticks


@pytest.mark.parametrize("frame_ms", ["10", "20", "40", "60"])
def test_packets_cut_anew_sound_the_same(frame_ms: str) -> None:
    """What a source packs otherwise becomes packets of 20 ms that decode to the very same samples."""
    packets = encoded(frame_ms)
    if frame_ms == "10":
        whole = [f for packet in packets for f in opus.frames(packet)]
        toc = opus.toc_of(packets[0])
        anew = [opus.pack(toc, whole[at : at + 2]) for at in range(0, len(whole), 2)]
    else:
        cut = [opus.packets_of_20_ms(packet) for packet in packets]
        anew = [packet for each in cut if each is not None for packet in each]
    assert {opus.duration(packet) for packet in anew} == {PACKET}
    assert decoded(anew) == decoded(packets)


def test_long_frames_of_speech_cannot_be_cut() -> None:
    """A single frame of 60 ms is handed on as it is, to be decoded."""
    assert opus.packets_of_20_ms(bytes([Toc(3, stereo=False).byte(0)]) + bytes(50)) is None


def test_silence_and_concealment_are_20_ms() -> None:
    """What is put in place of missing sound is a packet that a decoder takes."""
    assert opus.duration(SILENCE) == PACKET
    for frame_ms in ("2.5", "10", "20", "60"):
        last = encoded(frame_ms, 0.2)[-1]
        assert opus.duration(opus.concealment(last)) == PACKET
        assert len(decoded([last, opus.concealment(last)])) == len(decoded([last])) + PACKET * 4


@given(TOCS, st.lists(st.binary(max_size=1275), min_size=1, max_size=6))
def test_what_is_packed_can_be_read(toc: Toc, whole: list[bytes]) -> None:
    """Frames come out as they went in."""
    if toc.frame * len(whole) > opus.PACKET_TICKS_MAX:
        return
    packet = opus.pack(toc, whole)
    assert list(opus.frames(packet)) == whole
    assert opus.toc_of(packet) == toc
    assert opus.duration(packet) == toc.frame * len(whole)


@given(st.binary(max_size=1500) | st.binary(max_size=40).map(lambda rest: b"\xff" + rest))
def test_anything_else_is_refused(data: bytes) -> None:
    """Whatever a source sends is read or refused; what is cut from it has its length and can be read again."""
    try:
        packets = opus.packets_of_20_ms(data)
    except OpusError:
        return
    if packets is not None:
        assert sum(opus.duration(packet) for packet in packets) == opus.duration(data)
        for packet in packets:
            opus.frames(packet)
