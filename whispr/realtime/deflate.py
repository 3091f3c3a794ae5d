"""permessage-deflate (RFC 7692), pure: negotiate it, inflate what clients send, deflate whole frames.

Both sides are always asked to forget their context after each message (`server_no_context_takeover`,
`client_no_context_takeover`; section 7.1.1). So a socket has no compressor and no window of its own, and one
compressed frame of a broadcast serves every subscriber that negotiated the extension.

Small messages are sent as they are. What a message of ordinary JSON costs and gains, in this process on one core:

    bytes    deflated   deflate µs    inflate µs
      574         347          7.6           3.6
    1,308         573           11           5.3
    4,798       1,549           22            12
   44,950      11,850          315           126

So it is on unless it is switched off (`Limits.deflate`): a broadcast of a kilobyte costs its node 11 µs more, once
for all receivers, and them half of the bytes; what a browser sends, which compresses everything, costs 4 µs more.

With zlib's own defaults (32 KiB window, level 6) the first takes 23 µs, most of it to clear the window: a message
without context needs no window larger than itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from whispr.realtime.frames import RSV1, CloseCode, FrameError, frame_head
from whispr.realtime.protocol import EMPTY, Message, Ref
from whispr.realtime.serializers import Serializer

ANSWER = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""What the server answers to an offer it accepts."""

_TAIL = b"\x00\x00\xff\xff"  # ends every flush; not sent (section 7.2.1)
_ENDS = frozenset({b"", _TAIL, b"\x00" + _TAIL})
"""What may follow a block that is marked as the last (section 7.2.3.4)."""
_WINDOW_BITS = 15
_SMALL_BYTES = 16 * 1024
_SMALL_WINDOW = (-12, 5)  # 4 KiB of window and the memory for its hash table: cleared in 2 µs, not in 15
_LARGE_WINDOW = (-15, 8)
_LEVEL = 1  # within 10 % of level 6 on chat's messages, at a quarter of its time on long ones


def negotiate(offers: Iterable[str]) -> bool:
    """Tell whether any of the `Sec-WebSocket-Extensions` headers offers what we can answer with `ANSWER`.

    An offer is passed over that has a parameter unknown to section 7.1, twice, or with a value out of its range, and
    one that wants our window smaller than 32 KiB: then a frame could not be shared.
    """
    return any(_acceptable(offer) for header in offers for offer in header.split(","))


def _acceptable(offer: str) -> bool:
    name, *parameters = (part.strip() for part in offer.split(";"))
    if name.lower() != "permessage-deflate":
        return False
    seen: set[str] = set()
    for parameter in parameters:
        key, _, value = (part.strip() for part in parameter.partition("="))
        if key in seen or not _is_valid(key, value.strip('"')):
            return False
        seen.add(key)
    return True


def _is_valid(key: str, value: str) -> bool:
    """Check one parameter of an offer (sections 7.1.1 and 7.1.2)."""
    if key in ("server_no_context_takeover", "client_no_context_takeover"):
        return not value
    if key == "client_max_window_bits":
        return value in ("", *map(str, range(8, _WINDOW_BITS + 1)))
    return key == "server_max_window_bits" and value == str(_WINDOW_BITS)


def inflate(data: bytes, bytes_max: int) -> bytes:
    """Decompress one message (section 7.2.2), never making more than `bytes_max` and a byte of it.

    Raises FrameError: 1007 for what is no DEFLATE data, 1009 for a message that is longer.
    """
    inflater = zlib.decompressobj(-_WINDOW_BITS)
    try:
        message = inflater.decompress(data + _TAIL, bytes_max + 1)
    except zlib.error as error:
        raise FrameError(
            CloseCode.INVALID_DATA, f"a compressed message is no DEFLATE data: {error}"
        ) from None
    if len(message) > bytes_max:
        raise FrameError(CloseCode.TOO_BIG, f"a message may have at most {bytes_max} bytes when inflated")
    if inflater.unconsumed_tail or inflater.unused_data not in _ENDS:
        raise FrameError(CloseCode.INVALID_DATA, "a compressed message goes on after its end")
    return message


def deflate(data: bytes) -> bytes:
    """Compress one message without context (section 7.2.1)."""
    window_bits, memory = _SMALL_WINDOW if len(data) < _SMALL_BYTES else _LARGE_WINDOW
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, window_bits, memory)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def deflate_frame(frame: bytes, bytes_min: int) -> bytes:
    """Compress a final, unmasked data frame, unless its payload is shorter than that or would not shrink."""
    start = {126: 4, 127: 10}.get(frame[1], 2)
    size = len(frame) - start
    if size < bytes_min:
        return frame
    deflated = deflate(frame[start:])
    return frame_head(frame[0] | RSV1, len(deflated)) + deflated if len(deflated) < size else frame


class Deflated:
    """The frames of another serializer, compressed from `bytes_min` of payload on."""

    def __init__(self, plain: Serializer, bytes_min: int) -> None:
        self.plain = plain
        self._bytes_min = bytes_min

    def packed(self, frame: bytes) -> bytes:
        """Compress a frame of `plain`."""
        return deflate_frame(frame, self._bytes_min)

    def decode(self, data: str | bytes) -> Message:
        """Decode one message. Raises MalformedMessage."""
        return self.plain.decode(data)

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> bytes:
        """Answer a push or a join."""
        return self.packed(self.plain.reply(join_ref, ref, topic, status, response))

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> bytes:
        """Address one joined channel."""
        return self.packed(self.plain.push(join_ref, topic, event, payload))

    def broadcast(self, topic: str, event: str, payload: object) -> bytes:
        """Build the one frame that serves every subscriber of the topic."""
        return self.packed(self.plain.broadcast(topic, event, payload))

    def end(self, join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> bytes:
        """Build `phx_close` or `phx_error`."""
        return self.packed(self.plain.end(join_ref, topic, event, payload))
