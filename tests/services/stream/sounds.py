"""Tones, in samples and in containers, and how much of a tone is in a sound."""

from __future__ import annotations

import io
import itertools
import math
from array import array
from collections.abc import AsyncIterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import av
import trio

from whispr.audio.packets import CLOCK_HZ, Codec, Packet

CONTAINERS = {
    "ogg-opus": ("ogg", "libopus", "ogg"),
    "webm-opus": ("webm", "libopus", "webm"),
    "mp3": ("mp3", "libmp3lame", "mp3"),
    "adts-aac": ("adts", "aac", "aac"),
    "flac": ("flac", "flac", "flac"),
    "ogg-flac": ("ogg", "flac", "ogg"),
    "ogg-vorbis": ("ogg", "vorbis", "ogg"),
    "wav": ("wav", "pcm_s16le", "wav"),
    "ts-aac": ("mpegts", "aac", "ts"),
    "mp4-aac": ("mp4", "aac", "mp4"),
}
"""FFmpeg's muxer and encoder, and our name of the container."""
_OPTIONS = {"vorbis": {"strict": "experimental"}}
_FORMAT_OPTIONS = {
    "mp4": {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
}


@cache
def samples(seconds: float, hz: float = 440.0, amplitude: int = 8000) -> bytes:
    """Return a tone: 16 bits, stereo, 48 kHz."""
    step = 2 * math.pi * hz / CLOCK_HZ
    wave = array("h")
    for number in range(int(seconds * CLOCK_HZ)):
        value = int(amplitude * math.sin(step * number))
        wave.append(value)
        wave.append(value)
    return wave.tobytes()


@cache
def contained(name: str, seconds: float, hz: float = 440.0, frame_ms: int = 20, title: str = "") -> bytes:
    """Return a tone in a container, as a source sends it."""
    muxer, encoder, _ = CONTAINERS[name]
    out = io.BytesIO()
    options: dict[str, str] = dict(_FORMAT_OPTIONS.get(muxer, {}))
    with av.open(out, "w", format=muxer, options=options) as container:
        stream: Any = container.add_stream(encoder, rate=CLOCK_HZ, options=_OPTIONS.get(encoder, {}))
        stream.layout = "stereo"
        if title:
            stream.metadata["title"] = title
        if encoder == "libopus":
            stream.codec_context.options = {"frame_duration": str(frame_ms)}
        pcm = samples(seconds, hz)
        for at in range(0, len(pcm), 3840):
            for packet in stream.encode(frame_of(pcm[at : at + 3840], at // 4)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return out.getvalue()


def frame_of(data: bytes, pts: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="s16", layout="stereo", samples=len(data) // 4)
    frame.planes[0].update(data)
    frame.sample_rate, frame.pts, frame.time_base = CLOCK_HZ, pts, Fraction(1, CLOCK_HZ)
    return frame


@cache
def opus_packets(seconds: float, hz: float = 440.0, bitrate_bps: int = 128_000) -> tuple[bytes, ...]:
    """Return a tone as Opus packets of 20 ms."""
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = CLOCK_HZ, "stereo", "s16"
    encoder.bit_rate = bitrate_bps
    pcm, made = samples(seconds, hz), []
    for at in range(0, len(pcm), 3840):
        made += [bytes(packet) for packet in encoder.encode(frame_of(pcm[at : at + 3840], at // 4))]
    return tuple(made)


def decoded(packets: Sequence[Packet], codec: Codec) -> array[float]:
    """Decode packets to one channel of floats."""
    context: Any = av.CodecContext.create("libopus" if codec is Codec.OPUS else "aac", "r")
    context.sample_rate, context.layout = CLOCK_HZ, "stereo"
    if codec is Codec.AAC:
        context.extradata = bytes.fromhex("1190")  # AAC-LC, 48 kHz, stereo (ISO/IEC 14496-3, 1.6)
    to_mono = av.AudioResampler(format="flt", layout="mono", rate=CLOCK_HZ)
    heard = array("f")
    for packet in packets:
        for frame in context.decode(av.Packet(packet.data)):
            for mono in to_mono.resample(frame):
                heard.frombytes(bytes(mono.planes[0])[: mono.samples * 4])
    return heard


def share_of(tone_hz: float, heard: Sequence[float]) -> float:
    """Return how much of a sound's energy is at a frequency: 1 for that tone alone."""
    energy = sum(value * value for value in heard)
    if not energy:
        return 0.0
    step = 2 * math.pi * tone_hz / CLOCK_HZ
    real = sum(value * math.cos(step * number) for number, value in enumerate(heard))
    imaginary = sum(value * math.sin(step * number) for number, value in enumerate(heard))
    return 2 * (real * real + imaginary * imaginary) / (len(heard) * energy)


def level_of(heard: Sequence[float]) -> float:
    """Return the root mean square."""
    return math.sqrt(sum(value * value for value in heard) / max(1, len(heard)))


class pieces:  # noqa: N801 - used as a function
    """Bytes as a connection brings them."""

    def __init__(self, data: bytes, size: int = 1500) -> None:
        self._data, self._size = data, size

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self._data = self._data[: self._size], self._data[self._size :]
        if not piece:
            raise StopAsyncIteration
        return piece


def without_holes(packets: Sequence[Packet]) -> bool:
    """Whether each packet begins where the one before ends."""
    return all(a.pts + a.duration == b.pts for a, b in itertools.pairwise(packets))
