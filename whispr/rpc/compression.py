"""Encodings of messages (grpc/doc/compression.md), without I/O.

A compressed message is inflated when it is read, not when it arrives, and never past the limit on messages:
what waits to be read is bounded by the bytes that came, and one read by one message.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from whispr.errors import Code, WhisprError

IDENTITY: Final = "identity"

COMPRESSED_FROM_BYTES: Final = 1024
"""Smaller messages are sent as they are: they fit a packet anyway."""

_LEVEL = 1
"""The fastest: a call that is being compressed holds up all the others."""


class Encoding:
    """One encoding. Both that there are wrap the same deflate."""

    __slots__ = ("_window_bits", "name")

    def __init__(self, name: str, window_bits: int) -> None:
        """`window_bits`: which wrapping, as zlib numbers them."""
        self.name = name
        self._window_bits = window_bits

    def __repr__(self) -> str:
        return f"<Encoding {self.name}>"

    def compress(self, message: bytes) -> bytes | None:
        """The message compressed; None when it is small, or would not get smaller."""
        if len(message) < COMPRESSED_FROM_BYTES:
            return None
        compressed = zlib.compress(message, _LEVEL, self._window_bits)
        return compressed if len(compressed) < len(message) else None

    def expand(self, data: bytes, bytes_max: int) -> bytes:
        """The message in `data`.

        Raises WhisprError: RESOURCE_EXHAUSTED when it has more than `bytes_max` bytes, of which that many and one are
        inflated to find out; INTERNAL when it is broken, cut short, or followed by something else.
        """
        inflater = zlib.decompressobj(self._window_bits)
        try:
            message = inflater.decompress(data, bytes_max + 1)
        except zlib.error as error:
            raise WhisprError(Code.INTERNAL, f"a message is not {self.name}") from error
        if len(message) > bytes_max:
            told = f"message is over the limit of {bytes_max} bytes when decompressed"
            raise WhisprError(Code.RESOURCE_EXHAUSTED, told)
        # A second member after the first, which gzip allows, nobody sends; a million empty ones an attacker might.
        if not inflater.eof or inflater.unused_data:
            raise WhisprError(Code.INTERNAL, f"a message is not one whole {self.name} member")
        return message


_ENCODINGS: Mapping[str, Encoding] = {
    encoding.name: encoding
    for encoding in (Encoding("deflate", zlib.MAX_WBITS), Encoding("gzip", zlib.MAX_WBITS | 16))
}

ACCEPTED: Final = ",".join((IDENTITY, *_ENCODINGS))
"""What `grpc-accept-encoding` says of us."""


def known(name: str | None) -> bool:
    """Whether `grpc-encoding` is one of ours, or there is none."""
    return name is None or name == IDENTITY or name in _ENCODINGS


def named(name: str | None) -> Encoding | None:
    """The encoding of a name; None for no encoding. Raises ValueError for an unknown one."""
    if name is None or name == IDENTITY:
        return None
    try:
        return _ENCODINGS[name]
    except KeyError:
        raise ValueError(f"no such encoding: {name!r} (there are {ACCEPTED})") from None


_NOTHING: frozenset[str] = frozenset()


def accepted(text: str | None) -> frozenset[str]:
    """The names in a `grpc-accept-encoding` that are ours, but for identity."""
    if text is None:
        return _NOTHING
    offered = {name.strip().lower() for name in text.split(",")}
    return frozenset(offered & _ENCODINGS.keys())
