"""What a peer may make this side hold or do. Every limit is enforced in `connection` and tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.http2.frames import DEFAULT_WINDOW, MAX_MAX_FRAME_SIZE, MAX_WINDOW, MIN_MAX_FRAME_SIZE


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection. Sizes are in bytes."""

    streams_max: int = 1000
    """Concurrent streams the peer may open; more are refused with REFUSED_STREAM."""
    frame_bytes_max: int = MIN_MAX_FRAME_SIZE
    header_list_bytes_max: int = 16 * 1024
    """A larger list resets its stream with ENHANCE_YOUR_CALM; one four times as large ends the connection."""
    continuations_max: int = 16
    """CONTINUATION frames in one header block."""
    stream_window_bytes: int = DEFAULT_WINDOW
    stream_window_bytes_max: int = 4 * 1024 * 1024
    connection_window_bytes: int = 1024 * 1024
    connection_window_bytes_max: int = 16 * 1024 * 1024
    unread_bytes_max: int = 16 * 1024 * 1024
    """Unconsumed bytes over all streams, beyond which the connection's window no longer opens by itself."""
    queued_bytes_max: int = 64 * 1024 * 1024
    """DATA that waits for the peer's windows, over all streams; a server ends calls that would add to it.

    Sixteen of the largest messages that gRPC takes by default. Streams wait at 64 KiB each, so only answers that are
    large and many come near it.
    """
    control_frames_burst: int = 1000
    """Control frames a peer may send at once, beyond those that its traffic explains."""
    control_frames_per_s: float = 100.0
    """How fast that allowance comes back."""

    def __post_init__(self) -> None:
        assert MIN_MAX_FRAME_SIZE <= self.frame_bytes_max <= MAX_MAX_FRAME_SIZE
        # A smaller window than the default would have to wait for the peer's acknowledgement to be enforced.
        assert DEFAULT_WINDOW <= self.stream_window_bytes <= self.stream_window_bytes_max <= MAX_WINDOW
        assert (
            DEFAULT_WINDOW <= self.connection_window_bytes <= self.connection_window_bytes_max <= MAX_WINDOW
        )
        assert self.streams_max > 0
        assert self.header_list_bytes_max > 0

    @property
    def header_list_bytes_hard_max(self) -> int:
        """Where decoding stops, and with it the connection: a bomb need not be unpacked to be refused."""
        return 4 * self.header_list_bytes_max


class ControlBudget:
    """A token bucket for frames that cost us work and carry no call forward.

    PING, SETTINGS, RST_STREAM, WINDOW_UPDATE, PRIORITY, unknown frames and empty DATA each take a token, so
    no flood of them lasts. Traffic earns tokens back: the WINDOW_UPDATEs and PINGs that come with a busy
    connection are never held against it. Time earns them too; the clock is read only when they run out.
    """

    __slots__ = ("_burst", "_clock", "_filled_at", "_per_s", "_tokens")

    def __init__(self, burst: int, per_s: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._tokens = burst
        self._filled_at = clock()

    def spend(self) -> None:
        """Take a token. Raises ProtocolError ENHANCE_YOUR_CALM when there is none."""
        if self._tokens <= 0:
            self._refill()
        if self._tokens <= 0:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")
        self._tokens -= 1

    def earn(self, count: int) -> None:
        """Return tokens for useful traffic, up to the burst."""
        self._tokens = min(self._burst, self._tokens + count)

    def _refill(self) -> None:
        now = self._clock()
        whole = int((now - self._filled_at) * self._per_s)
        if whole > 0:
            self._filled_at = now
            self.earn(whole)
