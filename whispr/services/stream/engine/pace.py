"""How often a stream's sound is taken to its encoders. Pure.

Each time is a hop to a worker thread and back, which costs the same for 20 ms of sound as for 100: every stream in
hops of 20 ms broke at 24 streams, in hops of 100 ms they took 1.16 cores. So sound goes in small hops only where
somebody counts the milliseconds, and while this machine has room for that.
"""

from __future__ import annotations

from typing import Final

TICK_S: Final = 0.1
"""For streams that nobody hears who counts milliseconds."""
HURRIED: Final = ((0.02, 0.5), (0.04, 0.65))
"""What others are taken at, and how busy the encoders may be for it, the hastiest first."""
STAYS: Final = 0.1
"""So much busier they may be before a stream that is hurried is so no more, or it would go to and fro."""
HOPS_MAX: Final = 160.0
"""A second and core, if every stream were hurried."""


def pace_s(streams: int, cores: int, busy: float, before_s: float) -> float:
    """Return how much sound a hurried stream takes to its encoders at a time.

    `streams`: all that are made here; `busy`: the share of the cores that encoding takes; `before_s`: what it was.
    """
    for each_s, busy_max in HURRIED:
        allowed = busy_max + (STAYS if before_s <= each_s else 0.0)
        if streams / each_s <= HOPS_MAX * cores and busy <= allowed:
            return each_s
    return TICK_S
