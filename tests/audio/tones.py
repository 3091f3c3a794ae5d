"""Real packets of a tone, for tests of what is done with packets."""

from __future__ import annotations

import math
from array import array
from functools import cache
from typing import Any

import av

from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Rendition

_ENCODERS = {
    Codec.OPUS: ("libopus", {"frame_duration": "20"}, 960),
    Codec.AAC: ("aac", {"aac_coder": "fast"}, 1024),
}


@cache
def tone(rendition: Rendition, seconds: float, hz: float = 440.0, start: int = 0) -> tuple[Packet, ...]:
    """Encode a stereo tone; its packets begin at `start` on the stream's clock."""
    name, options, size = _ENCODERS[rendition.codec]
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.sample_rate, encoder.layout, encoder.bit_rate = CLOCK_HZ, "stereo", rendition.bitrate_bps
    encoder.format = "flt" if rendition.codec is Codec.OPUS else "fltp"
    encoder.options = options
    count = -(-int(seconds * CLOCK_HZ) // size)
    payloads: list[bytes] = []
    for number in range(count + 2):
        payloads += [bytes(packet) for packet in encoder.encode(_frame(encoder, number, size, hz))]
    # An AAC encoder's first frame is of the time before the first sample (14496-3, encoder delay).
    primed = payloads[1:] if rendition.codec is Codec.AAC else payloads
    return tuple(Packet(start + i * size, size, data) for i, data in enumerate(primed[:count]))


def _frame(encoder: Any, number: int, size: int, hz: float) -> Any:
    frame: Any = av.AudioFrame(format=encoder.format.name, layout="stereo", samples=size)
    step = 2 * math.pi * hz / CLOCK_HZ
    wave = array("f", (0.5 * math.sin(step * (number * size + i)) for i in range(size)))
    if len(frame.planes) == 1:
        both = array("f", bytes(2 * len(wave.tobytes())))
        both[::2] = both[1::2] = wave
        frame.planes[0].update(both.tobytes())
    else:
        for plane in frame.planes:
            plane.update(wave.tobytes())
    frame.sample_rate, frame.pts = CLOCK_HZ, number * size
    return frame
