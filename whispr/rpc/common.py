"""What the connections of one server, or of one channel, have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

from whispr.http2.headers import SharedHeaders
from whispr.rpc.flusher import Flusher
from whispr.rpc.watchman import Watchman


@dataclass(frozen=True, slots=True)
class Common:
    """Made once for all of them."""

    watchman: Watchman = field(default_factory=Watchman)
    flusher: Flusher = field(default_factory=Flusher)
    headers: SharedHeaders = field(default_factory=SharedHeaders)
