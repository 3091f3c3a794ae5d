"""One rendition's packets on a stream's own clock. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

CLOCK_HZ: Final = 48_000
"""Ticks a second of every stream's clock."""


class Codec(StrEnum):
    """How packets are encoded."""

    OPUS = "opus"
    AAC = "aac"


class Quality(StrEnum):
    """A rung of the ladder."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    ULTRA = "ultra"

    @property
    def bitrate_bps(self) -> int:
        """Return the bitrate."""
        return {"low": 64_000, "medium": 128_000, "high": 256_000, "ultra": 320_000}[self.value]


@dataclass(frozen=True, slots=True)
class Rendition:
    """One codec at one quality."""

    codec: Codec
    quality: Quality

    @property
    def bitrate_bps(self) -> int:
        """Return the bitrate."""
        return self.quality.bitrate_bps

    @property
    def name(self) -> str:
        """Such as `opus-medium`."""
        return f"{self.codec}-{self.quality}"


@dataclass(frozen=True, slots=True)
class Packet:
    """`pts` and `duration` in 1/48000 s."""

    pts: int
    duration: int
    data: bytes
