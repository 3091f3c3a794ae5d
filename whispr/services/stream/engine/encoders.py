"""Encoders whose packets lie exactly on the stream's clock, and the samples cut for them. For a worker thread.

A packet's `pts` is where its *decoded* samples belong. Opus looks 312 samples ahead, so its frames are cut that much
later than its packets say; AAC needs a frame before its first, whose packet is dropped. So every rendition of a
stream, and the source's own packets, are the same sound at the same time, and nobody notices a change of rendition.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from whispr.audio.ogg import PRE_SKIP
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Rendition

if TYPE_CHECKING:
    import av

SAMPLE_BYTES: Final = 4
FRAME: Final = {Codec.OPUS: 960, Codec.AAC: 1024}
"""Samples of a packet."""
SILENT_AAC: Final = b"\x21\x10\x04\x60\x8c\x1c"
"""A frame of nothing, AAC-LC, stereo: two empty channels (ISO/IEC 14496-3, 4.4.2)."""

_OPTIONS: Final = {
    # Half the work of the highest complexity, for a difference that nobody hears at these bitrates.
    Codec.OPUS: {"compression_level": "5", "vbr": "constrained", "application": "audio"},
    Codec.AAC: {"aac_coder": "fast", "profile": "aac_low"},
}
_NAMES: Final = {Codec.OPUS: "libopus", Codec.AAC: "aac"}
_FORMATS: Final = {Codec.OPUS: "s16", Codec.AAC: "fltp"}
_AHEAD: Final = {Codec.OPUS: PRE_SKIP, Codec.AAC: 0}
TIME_BASE: Final = Fraction(1, CLOCK_HZ)


def frame_of(samples: bytes, pts: int) -> av.AudioFrame:
    """Return interleaved samples of 16 bits as a frame."""
    import av

    frame = av.AudioFrame(format="s16", layout="stereo", samples=len(samples) // SAMPLE_BYTES)
    frame.planes[0].update(samples)
    frame.sample_rate = CLOCK_HZ
    frame.pts = pts
    frame.time_base = TIME_BASE
    return frame


class Cutter:
    """Samples cut into the frames of one codec, once for all its encoders."""

    def __init__(self, codec: Codec) -> None:
        import av

        self._codec = codec
        self._rest = b""
        self._at = 0
        """Where `_rest` begins; its frames' places are `_AHEAD` before their samples'."""
        self._begun = False
        self._convert: Any = None
        if codec is Codec.AAC:
            self._convert = av.AudioResampler(_FORMATS[codec], "stereo", CLOCK_HZ)

    def cut(self, pcm: bytes, pts: int) -> Sequence[av.AudioFrame]:
        """Return the frames that are whole now; `pts`: where the samples begin, which go on where the last ended."""
        size = FRAME[self._codec]
        if not self._begun:
            first = -(-(pts - _AHEAD[self._codec]) // size) * size + _AHEAD[self._codec]
            pcm, pts = pcm[(first - pts) * SAMPLE_BYTES :], first
            self._begun, self._at = True, first
        self._rest += pcm
        frames: list[av.AudioFrame] = []
        whole = len(self._rest) // SAMPLE_BYTES // size
        for number in range(whole):
            at = number * size * SAMPLE_BYTES
            place = self._at + number * size - _AHEAD[self._codec]
            frames += self._converted(frame_of(self._rest[at : at + size * SAMPLE_BYTES], place))
        self._rest = self._rest[whole * size * SAMPLE_BYTES :]
        self._at += whole * size
        return frames

    def _converted(self, frame: av.AudioFrame) -> Sequence[av.AudioFrame]:
        return [frame] if self._convert is None else self._convert.resample(frame)


class Encoder:
    """One rendition's encoder."""

    def __init__(self, rendition: Rendition, start: int | None) -> None:
        """`start`: where its packets are to begin, None for the first frame that comes."""
        import av

        codec = rendition.codec
        context: Any = av.CodecContext.create(_NAMES[codec], "w")
        context.sample_rate = CLOCK_HZ
        context.layout = "stereo"
        context.format = _FORMATS[codec]
        context.bit_rate = rendition.bitrate_bps
        context.time_base = TIME_BASE
        context.options = dict(_OPTIONS[codec])
        context.open()
        self._context = context
        self._codec = codec
        self._start = start

    def encode(self, frames: Sequence[av.AudioFrame]) -> list[Packet]:
        """Return what comes of frames."""
        made = []
        size = FRAME[self._codec]
        for frame in frames:
            assert frame.pts is not None, "it was cut at a place"
            if self._start is None:
                self._start = frame.pts
            if frame.pts < self._start - size:
                continue
            for packet in self._context.encode(frame):
                pts = packet.pts + (PRE_SKIP if self._codec is Codec.OPUS else 0)
                if pts >= self._start:
                    made.append(Packet(pts, size, bytes(packet)))
        return made


def silence(rendition: Rendition, start: int, end: int) -> list[Packet]:
    """Return packets of nothing for a hole that this machine was too slow to encode."""
    from whispr.audio.opus import SILENCE

    size = FRAME[rendition.codec]
    data = SILENCE if rendition.codec is Codec.OPUS else SILENT_AAC
    return [Packet(pts, size, data) for pts in range(start, end, size)]
