"""A header block spread over HEADERS and CONTINUATION frames (RFC 9113 sections 4.3 and 6.10)."""

from __future__ import annotations

from dataclasses import dataclass

from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.http2.limits import Limits


@dataclass(slots=True)
class PartialBlock:
    """A block whose last frame is still to come. No other frame may come before it."""

    stream_id: int
    end_stream: bool
    fragments: bytearray
    continuations: int = 0

    def add(self, payload: bytes, limits: Limits) -> None:
        """Append a CONTINUATION. Raises ProtocolError for too many of them, empty ones too, or too many bytes."""
        self.fragments += payload
        self.continuations += 1
        # A list is never smaller than the block that encodes it, so this refuses nothing that could be used.
        too_large = len(self.fragments) > limits.header_list_bytes_hard_max
        if too_large or self.continuations > limits.continuations_max:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
