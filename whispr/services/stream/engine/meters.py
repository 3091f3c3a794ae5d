"""Loudness and gain, by FFmpeg's filters. For a worker thread."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from whispr.audio.packets import CLOCK_HZ
from whispr.services.stream.engine.encoders import TIME_BASE
from whispr.services.stream.engine.live import Levels, Sound

if TYPE_CHECKING:
    import av

TARGET_LUFS: Final = -16.0
"""What normalising brings loudness to: the usual level of streams (AES TD1008)."""
QUIET_LUFS: Final = -50.0
"""Below this nothing is said, and the gain is left as it is."""
GAIN_MAX_DB: Final = 15.0
GAIN_MIN_DB: Final = -20.0
UP_DB: Final = 0.1
DOWN_DB: Final = 0.3
"""How fast the gain changes, with each measurement, 10 a second: too slow to be heard as a change."""

SHORT_TICKS: Final = 30
"""Of the 3 s that short-term loudness is of."""

_PEAK = "limit=0.891:level=0:attack=5:release=80"
"""-1 dB, as broadcasters ask for."""


def _source(graph: Any) -> Any:
    return graph.add_abuffer(format="s16", sample_rate=CLOCK_HZ, layout="stereo", time_base=TIME_BASE)


class Meter:
    """Measures 10 times a second what it is given."""

    def __init__(self) -> None:
        import av

        self._again = av.error.BlockingIOError
        self._graph = av.filter.Graph()
        self._in = _source(self._graph)
        meter = self._graph.add("ebur128", "metadata=1:peak=sample:framelog=quiet")
        self._out = self._graph.add("abuffersink")
        self._in.link_to(meter)
        meter.link_to(self._out)
        self._graph.configure()

    def measure(self, frame: av.AudioFrame) -> Levels | None:
        """Return the newest levels, None when a tenth of a second is not full yet."""
        self._in.push(frame)
        newest = None
        while True:
            try:
                measured: Any = self._out.pull()
            except self._again:
                break
            newest = measured
        return None if newest is None else _levels(newest.metadata, (newest.pts or 0) + newest.samples)


def _levels(facts: dict[str, str], pts: int) -> Levels:
    def read(name: str, least: float) -> float:
        value = float(facts.get(f"lavfi.r128.{name}", "nan"))
        return max(least, value) if math.isfinite(value) else least

    peak = read("sample_peak", 0.0)
    return Levels(
        read("M", -120.0), read("S", -120.0), read("I", -70.0), 20 * math.log10(max(peak, 1e-6)), pts
    )  # fmt: skip


class Gain:
    """Volume, normalising and a limiter, while the streamer asks for any of them."""

    def __init__(self) -> None:
        import av

        self._again = av.error.BlockingIOError
        self._graph = av.filter.Graph()
        self._in = _source(self._graph)
        self._volume = self._graph.add("volume", "volume=1:precision=float")
        limiter = self._graph.add("alimiter", _PEAK)
        as_before = self._graph.add(
            "aformat", f"sample_fmts=s16:sample_rates={CLOCK_HZ}:channel_layouts=stereo"
        )
        self._out = self._graph.add("abuffersink")
        self._in.link_to(self._volume)
        self._volume.link_to(limiter)
        limiter.link_to(as_before)
        as_before.link_to(self._out)
        self._graph.configure()
        self._factor = 1.0
        self._normal_db = 0.0
        self._followed = -1
        """Where on the stream's clock was what the gain has followed."""
        self._lately_db = deque([0.0], maxlen=SHORT_TICKS)
        """The gain while what `Levels.short_lufs` tells of was heard."""

    @staticmethod
    def is_needed(sound: Sound) -> bool:
        """Whether it would change anything."""
        return sound.volume != 100 or sound.normalise

    def apply(self, frame: av.AudioFrame, sound: Sound, heard: Levels) -> bytes:
        """Return as many samples as there were, changed; `heard`: what was measured of what came out last."""
        factor = sound.volume / 100 * 10 ** (self._follow(sound, heard) / 20)
        if not math.isclose(factor, self._factor, rel_tol=1e-4):
            self._factor = factor
            self._volume.process_command("volume", f"{factor:.6f}")
        self._in.push(frame)
        pieces = []
        while True:
            try:
                changed: Any = self._out.pull()
            except self._again:
                break
            pieces.append(bytes(changed.planes[0])[: changed.samples * 4])
        return b"".join(pieces)

    def _follow(self, sound: Sound, heard: Levels) -> float:
        """Move the gain towards what the source's loudness asks for; returns it in dB."""
        if heard.pts == self._followed:
            return self._normal_db
        self._followed = heard.pts
        if not sound.normalise:
            self._normal_db = 0.0
        elif heard.momentary_lufs > QUIET_LUFS:
            volume_db = 20 * math.log10(max(sound.volume, 1) / 100)
            source_lufs = heard.short_lufs - sum(self._lately_db) / len(self._lately_db)
            off = TARGET_LUFS + volume_db - source_lufs - self._normal_db
            step = max(-DOWN_DB, min(UP_DB, off))
            self._normal_db = max(GAIN_MIN_DB, min(GAIN_MAX_DB, self._normal_db + step))
        self._lately_db.append(self._normal_db)
        return self._normal_db
