"""What one client may take of the server. Sizes in bytes, times in seconds; 0 lifts a size or a count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Each is enforced with the status that it says."""

    line_bytes: int = 8 * 1024
    """The request line: 414."""
    head_bytes: int = 16 * 1024
    """Request line and headers together, and the trailers of a chunked body: 431."""
    headers: int = 100
    """How many headers: 431."""
    body_bytes: int = 0
    """A request's body, declared or as it turns out: 413."""
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers: 408. Also a TLS handshake."""
    idle_s: float = 30.0
    """Between two requests on a connection, then it is closed without a word, within a quarter of a second more."""
    body_gap_s: float = 20.0
    """Between two reads of a body that the application waits for: 408."""
    send_gap_s: float = 60.0
    """Between two writes to a client that does not read: the connection is cut."""
    connections: int = 10_000
    """Open at once: 503."""
    ahead_bytes: int = 64 * 1024
    """What a client may send ahead of its answers (pipelining); the rest waits in the network."""

    def __post_init__(self) -> None:
        if self.head_bytes and self.line_bytes > self.head_bytes:
            raise ValueError("the request line is part of the head: line_bytes cannot be over head_bytes")
        if self.ahead_bytes <= 0:
            raise ValueError("ahead_bytes must be positive: a request has to be read somewhere")
