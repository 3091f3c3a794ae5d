"""RFC 6455 frames, pure: feed bytes, get messages; build whole frames as bytes.

trio-websocket performs the opening handshake; from then on this codec reads and writes. It exists because a
server's frames are unmasked, so that one frame can be built once and sent to every subscriber, and because
reading is cheap here: a client's 240-byte message takes 1.7 µs of CPU, against 9.3 µs in wsproto alone
(`python tests/bench/bench_fanout.py`, one core of a 2-core machine, Python 3.11).

`FrameReader.feed` is incremental: any split of the same bytes yields the same items. It holds at most one
message (`message_bytes_max`) and one incomplete frame. Once it raised `FrameError` it must be fed no more.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import NamedTuple

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA
_CONTINUATION = 0x0

_FIN = 0x80
_RESERVED = 0x70
RSV1 = 0x40
"""The bit of a first frame that says "compressed" where permessage-deflate was negotiated (RFC 7692 §6)."""
_MASKED = 0x80
_CONTROL_BYTES_MAX = 125


class CloseCode(enum.IntEnum):
    """Status codes of a close frame (RFC 6455 §7.4.1 and the IANA registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013


class FrameError(Exception):
    """The peer broke RFC 6455; `code` is the status to close with, the message says how."""

    def __init__(self, code: CloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.items: list[Item] = []
        """What the peer said before, in the same bytes."""


class Closed(NamedTuple):
    """The peer's close frame: `code` is 1005 when it carried none (§7.1.5)."""

    code: int
    reason: str


class Ping(NamedTuple):
    """A ping, to be answered with the same payload (§5.5.2)."""

    payload: bytes


class Pong(NamedTuple):
    """A pong, solicited or not (§5.5.3)."""

    payload: bytes


Inflate = Callable[[bytes, int], bytes]

Item = str | bytes | Ping | Pong | Closed
"""What a reader yields: a text message, a binary message, or a control frame."""


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Build one final, unmasked frame: what a server sends (§5.1)."""
    return frame_head(_FIN | opcode, len(payload)) + payload


def frame_head(first: int, size: int) -> bytes:
    """Build what precedes the payload of an unmasked frame: its first byte and its length (§5.2)."""
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return struct.pack("!BBH", first, 126, size)
    return struct.pack("!BBQ", first, 127, size)


def encode_masked_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """Build one final frame masked with the 4 bytes of `mask`: what a client sends (§5.3)."""
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, _MASKED | size))
    elif size < 65536:
        head = struct.pack("!BBH", _FIN | opcode, _MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | opcode, _MASKED | 127, size)
    return b"".join((head, mask, apply_mask(payload, mask)))


def close_payload(code: int, reason: str = "") -> bytes:
    """Body of a close frame; the reason is cut to the 123 bytes that fit, at a character boundary."""
    cut = reason.encode()[: _CONTROL_BYTES_MAX - 2].decode(errors="ignore")
    return struct.pack("!H", code) + cut.encode()


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask. One big-integer operation is the fastest XOR in plain Python."""
    size = len(payload)
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


class FrameReader:
    """Incremental reader of one side of a connection.

    `masked` says what the peer must do: True for a client's frames, False for a server's (§5.1). `inflate` is given
    where permessage-deflate was negotiated: it takes a compressed message and the most bytes it may have, and raises
    FrameError.
    """

    __slots__ = (
        "_compressed",
        "_fragments",
        "_fragments_max",
        "_inflate",
        "_masked",
        "_max",
        "_message",
        "_need",
        "_opcode",
        "_partial",
    )

    def __init__(
        self, *, masked: bool, message_bytes_max: int, inflate: Inflate | None = None, fragments_max: int = 0
    ) -> None:
        """`fragments_max`: of one message, 0 for any number."""
        self._masked = masked
        self._inflate = inflate
        self._compressed = False
        self._fragments = 0
        self._fragments_max = fragments_max
        self._max = message_bytes_max
        self._partial = bytearray()  # the start of a frame, of which `_need` bytes are worth another look
        self._need = 2
        self._message: bytearray | None = None  # the fragments so far of an unfinished message
        self._opcode = 0

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes as they came and return what they completed, in order.

        Raises FrameError, which has the items that were completed before it in the same call.
        """
        if self._partial:
            self._partial += data
            if len(self._partial) < self._need:
                return []  # a frame that trickles in is copied once, not once for each trickle
            data = bytes(self._partial)
            self._partial.clear()
        items: list[Item] = []
        start = 0
        try:
            while (frame := self._frame(data, start)) is not None:
                first, payload, start = frame
                item = self._accept(first, payload)
                if item is not None:
                    items.append(item)
        except FrameError as error:
            error.items = items
            raise
        self._partial += data[start:]
        return items

    def _frame(self, buffer: bytes, start: int) -> tuple[int, bytes, int] | None:
        """Cut one whole frame off at `start`: its first byte, unmasked payload, and where the next begins."""
        available = len(buffer) - start
        self._need = 2
        if available < 2:
            return None
        first, second = buffer[start], buffer[start + 1]
        size = second & 0x7F
        at = start + 2
        if (second >= _MASKED) is not self._masked:
            need = "must be" if self._masked else "must not be"
            raise FrameError(CloseCode.PROTOCOL_ERROR, f"frames from this side {need} masked")
        if size >= 126:
            width = 2 if size == 126 else 8
            self._need = 2 + width
            if available < self._need:
                return None
            size = _extended_size(buffer[at : at + width])
            at += width
        self._check(first, size)
        end = at + size + 4 if self._masked else at + size
        if len(buffer) < end:
            self._need = end - start
            return None
        if self._masked:
            return first, apply_mask(buffer[at + 4 : end], buffer[at : at + 4]), end
        return first, buffer[at:end], end

    def _check(self, first: int, size: int) -> None:
        """Refuse a frame by its header, before any of its payload is kept."""
        opcode = first & 0x0F
        if first & _RESERVED and not self._may_be_compressed(first):
            raise FrameError(
                CloseCode.PROTOCOL_ERROR, "reserved bits are set that no negotiated extension gives a meaning"
            )
        if opcode >= CLOSE:
            if opcode > PONG:
                raise FrameError(CloseCode.PROTOCOL_ERROR, f"reserved opcode {opcode:#x}")
            if not first & _FIN:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "a control frame is fragmented")
            if size > _CONTROL_BYTES_MAX:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "a control frame is longer than 125 bytes")
            return
        if opcode > BINARY:
            raise FrameError(CloseCode.PROTOCOL_ERROR, f"reserved opcode {opcode:#x}")
        held = len(self._message) if self._message is not None else 0
        if held + size > self._max:
            raise FrameError(CloseCode.TOO_BIG, f"a message may have at most {self._max} bytes")

    def _may_be_compressed(self, first: int) -> bool:
        """Tell whether RSV1 alone is set, on the first frame of a message (RFC 7692 §6)."""
        return (
            self._inflate is not None and first & _RESERVED == RSV1 and _CONTINUATION < first & 0x0F <= BINARY
        )

    def _accept(self, first: int, payload: bytes) -> Item | None:
        opcode = first & 0x0F
        if opcode >= CLOSE:
            return _control(opcode, payload)
        compressed = bool(first & RSV1)
        if opcode == _CONTINUATION:
            if self._message is None:
                raise FrameError(CloseCode.PROTOCOL_ERROR, "a continuation frame continues nothing")
            self._message += payload
            if not first & _FIN:
                self._count_fragment()
                return None
            payload, opcode, self._message = bytes(self._message), self._opcode, None
            compressed = self._compressed
        elif self._message is not None:
            raise FrameError(CloseCode.PROTOCOL_ERROR, "a new message began inside a fragmented one")
        elif not first & _FIN:
            self._message, self._opcode, self._compressed = bytearray(payload), opcode, compressed
            self._fragments = 1
            return None
        if compressed and self._inflate is not None:
            payload = self._inflate(payload, self._max)
        return _text(payload) if opcode == TEXT else payload

    def _count_fragment(self) -> None:
        """A message in crumbs costs as much as many messages."""
        self._fragments += 1
        if self._fragments_max and self._fragments >= self._fragments_max:
            raise FrameError(CloseCode.TOO_BIG, f"a message may have at most {self._fragments_max} fragments")


def _extended_size(field: bytes) -> int:
    """Read a 16- or 64-bit length, which must not fit a shorter form (§5.2)."""
    size = int.from_bytes(field, "big")
    if size < (126 if len(field) == 2 else 65536) or size >> 63:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "the payload length is not in its shortest form")
    return size


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise FrameError(CloseCode.INVALID_DATA, "a text message is not valid UTF-8") from None


def _control(opcode: int, payload: bytes) -> Item:
    if opcode == PING:
        return Ping(payload)
    if opcode == PONG:
        return Pong(payload)
    if not payload:
        return Closed(CloseCode.NO_STATUS, "")
    if len(payload) == 1:
        raise FrameError(CloseCode.PROTOCOL_ERROR, "a close frame carries half a status code")
    code = int.from_bytes(payload[:2], "big")
    if not _may_be_sent(code):
        raise FrameError(CloseCode.PROTOCOL_ERROR, f"close code {code} may not be sent")
    return Closed(code, _text(payload[2:]))


def _may_be_sent(code: int) -> bool:
    """Tell codes that may travel (§7.4.2) from those that only describe an end locally (1005, 1006, 1015)."""
    return 3000 <= code < 5000 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
