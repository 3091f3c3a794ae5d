"""Tones: made, and told from other sound, without an array library."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

RATE_HZ = 48_000


def tone(hz: float, start: int, count: int, amplitude: float = 12_000.0, channels: int = 2) -> bytes:
    """Samples of a sine as 16-bit integers, interleaved; `start` and `count` in samples."""
    step = 2 * math.pi * hz / RATE_HZ
    samples = array("h", [0]) * (count * channels)
    for n in range(count):
        value = int(amplitude * math.sin(step * (start + n)))
        for channel in range(channels):
            samples[n * channels + channel] = value
    return samples.tobytes()


def share_of(hz: float, sound: Sequence[float], rate_hz: float = RATE_HZ) -> float:
    """How much of a sound's power is this tone, whatever its phase: 1 for nothing else, 0 for none of it."""
    step = 2 * math.pi * hz / rate_hz
    cosine = sum(value * math.cos(step * n) for n, value in enumerate(sound))
    sine = sum(value * math.sin(step * n) for n, value in enumerate(sound))
    power = sum(value * value for value in sound)
    return 2 * (cosine**2 + sine**2) / (len(sound) * power) if power else 0.0


def rms(sound: Sequence[float]) -> float:
    """How loud."""
    return math.sqrt(sum(value * value for value in sound) / len(sound)) if sound else 0.0
