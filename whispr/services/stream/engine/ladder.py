"""A stream's pieces made into samples, measured, and encoded as every rendition that is heard.

Everything here runs in a worker thread, one call at a time for each stream: `Ladder.climb` takes what has come since
the call before. Decoders and encoders of FFmpeg let other threads run meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from whispr.audio.opus import concealment
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Rendition
from whispr.services.stream.engine.encoders import SAMPLE_BYTES, Cutter, Encoder, frame_of
from whispr.services.stream.engine.line import Kind, Piece
from whispr.services.stream.engine.live import Levels, Sound
from whispr.services.stream.engine.meters import Gain, Meter

CONCEALED_MAX: Final = 10
"""Pieces in a row that the decoder fills in; then it has only noise to give, and there is silence."""


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one call."""

    packets: Mapping[Rendition, Sequence[Packet]] = field(default_factory=dict)
    levels: Levels | None = None
    failed: int = 0
    """Packets of the source that could not be decoded."""
    cpu_s: float = 0.0


class Ladder:
    """One stream's decoder, meters and encoders."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._last = b""
        self._concealed = 0
        self._meter = Meter()
        self._gain: Gain | None = None
        self._heard = Levels()
        self._cutters: dict[Codec, Cutter] = {}
        self._encoders: dict[Rendition, Encoder] = {}
        self._next = 0
        self._failed = 0

    def climb(self, pieces: Sequence[Piece], wanted: Mapping[Rendition, int | None], sound: Sound) -> Made:
        """Encode pieces, which are not empty; `wanted`: what to make, and where it has to begin or go on."""
        began = time.thread_time()
        start = pieces[0].pts
        if start != self._next:
            self._cutters.clear()
            self._encoders.clear()
        self._next = pieces[-1].pts + pieces[-1].ticks
        self._failed = 0
        pcm = b"".join([self._decoded(piece) for piece in pieces])
        pcm = self._with_gain(pcm, start, sound)
        measured = self._meter.measure(frame_of(pcm, start))
        self._heard = measured or self._heard
        packets = self._encoded(pcm, start, wanted)
        return Made(packets, measured, self._failed, time.thread_time() - began)

    def _encoded(
        self, pcm: bytes, start: int, wanted: Mapping[Rendition, int | None]
    ) -> dict[Rendition, Sequence[Packet]]:
        for rendition in self._encoders.keys() - wanted.keys():
            del self._encoders[rendition]
        codecs = {rendition.codec for rendition in wanted}
        for codec in self._cutters.keys() - codecs:
            del self._cutters[codec]
        made: dict[Rendition, Sequence[Packet]] = {}
        for codec in codecs:
            cutter = self._cutters.setdefault(codec, Cutter(codec))
            frames = cutter.cut(pcm, start)
            for rendition, begin in wanted.items():
                if rendition.codec is codec:
                    made[rendition] = self._encoder(rendition, begin).encode(frames)
        return made

    def _encoder(self, rendition: Rendition, begin: int | None) -> Encoder:
        encoder = self._encoders.get(rendition)
        if encoder is None:
            encoder = self._encoders[rendition] = Encoder(rendition, begin)
        return encoder

    def _with_gain(self, pcm: bytes, start: int, sound: Sound) -> bytes:
        if not Gain.is_needed(sound):
            self._gain = None
            return pcm
        if self._gain is None:
            self._gain = Gain()
        return _of_length(self._gain.apply(frame_of(pcm, start), sound, self._heard), len(pcm))

    # To samples

    def _decoded(self, piece: Piece) -> bytes:
        """Return a piece's samples: 16 bits, stereo, interleaved."""
        size = piece.ticks * SAMPLE_BYTES
        if piece.kind is Kind.PCM:
            self._concealed = CONCEALED_MAX
            return piece.data
        if piece.kind in (Kind.OPUS, Kind.LONG_OPUS):
            self._concealed = 0
            self._last = piece.data
            samples = self._decode(piece.data)
            if samples is not None:
                return _of_length(samples, size)
            self._failed += 1
        if piece.kind is not Kind.SILENCE and self._last and self._concealed < CONCEALED_MAX:
            self._concealed += 1
            return _of_length(self._decode(concealment(self._last)) or b"", size)
        return bytes(size)

    def _decode(self, packet: bytes) -> bytes | None:
        """Decode an Opus packet; None for what is none."""
        import av

        if self._decoder is None:
            self._decoder = av.CodecContext.create("libopus", "r")
            self._decoder.sample_rate = CLOCK_HZ
            self._decoder.layout = "stereo"
            self._decoder.format = "s16"
        try:
            decoded = self._decoder.decode(av.Packet(packet))
        except av.error.FFmpegError:
            return None
        return b"".join([bytes(frame.planes[0])[: frame.samples * SAMPLE_BYTES] for frame in decoded])


def _of_length(samples: bytes, size: int) -> bytes:
    """Cut, or fill up with silence: a piece's length is what the stream's clock says, whatever the decoder does."""
    return samples if len(samples) == size else samples[:size].ljust(size, b"\0")
