"""What one rpc connection may hold or wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from whispr.http2.frames import MAX_MAX_FRAME_SIZE, MIN_MAX_FRAME_SIZE
from whispr.http2.limits import Limits
from whispr.rpc.keepalive import Keepalive


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of a server's or channel's connections. Sizes are in bytes, times in seconds."""

    message_bytes_max: int = 4 * 1024 * 1024
    """A larger message fails its call with RESOURCE_EXHAUSTED, at its first five bytes."""
    response_frame_bytes_max: int = 256 * 1024
    """Frames that a channel takes. Few large ones carry large messages much faster than many small ones."""
    handshake_s: float = 20.0
    """For a connection to be made, TLS to agree, and the peer's SETTINGS to arrive."""
    unfinished_s: float = 30.0
    """On a server: for the rest of a frame or header block that has begun. Late by at most half of it."""
    untaken_s: float = 300.0
    """On a server: for what waits to be sent while windows are shut or the socket is not read, before its stream or
    connection is ended. Late by at most half of `unfinished_s`."""
    inflated_bytes_max: int = 64 * 1024 * 1024
    """On a server: what the compressed requests of one connection's calls in progress may be when inflated."""
    accepted_connections_max: int = 10_000
    """Connections a server holds; it closes further ones as they come."""
    backoff_s: float = 1.0
    """Before the second attempt to connect to an address."""
    backoff_multiplier: float = 1.6
    """How much longer each further attempt waits."""
    backoff_s_max: float = 120.0
    backoff_jitter: float = 0.2
    """Each wait is longer or shorter by at most this part of it."""
    connections_per_address_max: int = 4
    """A channel opens another when those it has are at the server's limit of streams."""
    waiting_calls_max: int = 10_000
    """Calls of a channel queued for a free stream; more fail with RESOURCE_EXHAUSTED."""
    retry_bytes_max: int = 256 * 1024
    """Request messages a call keeps until it is answered, to send them again if the server refuses it unseen."""
    overdue_every_s: float = inf
    """How often a channel looks for calls whose limit has passed, which are late by as much at most; infinity for
    one whose calls have no limit."""
    keepalive: Keepalive = field(default_factory=Keepalive)
    http2: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        assert self.message_bytes_max > 0
        assert self.inflated_bytes_max > 0
        assert min(self.unfinished_s, self.untaken_s) > 0
        assert MIN_MAX_FRAME_SIZE <= self.response_frame_bytes_max <= MAX_MAX_FRAME_SIZE
        assert 0 < self.backoff_s <= self.backoff_s_max
        assert self.backoff_multiplier >= 1
        assert 0 <= self.backoff_jitter < 1
        assert self.connections_per_address_max > 0
        assert self.accepted_connections_max > 0
