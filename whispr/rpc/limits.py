"""What one rpc connection may hold or wait for."""

from __future__ import annotations

from dataclasses import dataclass, field

from whispr.http2.limits import Limits


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of a server's or channel's connections. Sizes are in bytes, times in seconds."""

    message_bytes_max: int = 4 * 1024 * 1024
    """A larger message fails its call with RESOURCE_EXHAUSTED, at its first five bytes."""
    handshake_s: float = 20.0
    """For a connection to be made and the peer's SETTINGS to arrive."""
    backoff_s: float = 1.0
    """Before the second attempt to connect; each further one waits 1.6 times as long."""
    backoff_s_max: float = 120.0
    waiting_calls_max: int = 10_000
    """Calls of a channel queued for a free stream; more fail with RESOURCE_EXHAUSTED."""
    http2: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        assert self.message_bytes_max > 0
        assert 0 < self.backoff_s <= self.backoff_s_max
