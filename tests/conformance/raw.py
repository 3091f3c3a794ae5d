"""HTTP/2 by hand: frames and header blocks as octets, built here and by nothing under test."""

from __future__ import annotations

from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

_MAX_STREAM = 2**31 - 1

CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One frame as it was received."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> str:
        """The error code of RST_STREAM or GOAWAY."""
        at = 0 if self.kind == RST_STREAM else 4
        return CODES[int.from_bytes(self.payload[at : at + 4], "big")]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Any frame."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def headers(stream: int, block: bytes, *, end: bool = True, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream, block)


def continuation(stream: int, block: bytes, *, end_headers: bool = True) -> bytes:
    return frame(CONTINUATION, END_HEADERS if end_headers else 0, stream, block)


def data(stream: int, payload: bytes = b"", *, end: bool = True, flags: int = 0) -> bytes:
    return frame(DATA, flags | (END_STREAM if end else 0), stream, payload)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(k.to_bytes(2, "big") + v.to_bytes(4, "big") for k, v in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst_stream(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last: int = 0, code: int = 0) -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def priority(stream: int, depends_on: int, weight: int = 255) -> bytes:
    return frame(PRIORITY, 0, stream, depends_on.to_bytes(4, "big") + bytes((weight,)))


# --- HPACK (RFC 7541) -------------------------------------------------------------------------------------


def integer(value: int, prefix_bits: int, pattern: int = 0) -> bytes:
    """Section 5.1."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((pattern | value,))
    octets = bytearray((pattern | most,))
    value -= most
    while value >= 0x80:
        octets.append(0x80 | value & 0x7F)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def string(text: bytes) -> bytes:
    """Section 5.2, without Huffman coding."""
    return integer(len(text), 7) + text


def literal(name: str, value: str | bytes, *, indexing: int = 0x00) -> bytes:
    """Section 6.2: `indexing` is 0x00 for none, 0x10 for never, 0x40 for incremental."""
    octets = value.encode() if isinstance(value, str) else value
    return bytes((indexing,)) + string(name.encode()) + string(octets)


def block(*fields: tuple[str, str | bytes]) -> bytes:
    """A whole header block of literals."""
    return b"".join(literal(name, value) for name, value in fields)


def shifted(octets: bytes, by: int) -> bytes:
    """The same frames on streams of higher ids; what is no whole frame stays as it is."""
    frames, rest = cut(octets)
    moved = []
    for old in frames:
        stream, payload = old.stream, old.payload
        if 0 < stream & _MAX_STREAM < _MAX_STREAM:
            stream += by
        if old.kind in (PRIORITY, HEADERS) and payload[:4] == old.stream.to_bytes(4, "big"):
            payload = stream.to_bytes(4, "big") + payload[4:]
        moved.append(frame(old.kind, old.flags, stream, payload))
    return b"".join(moved) + rest


def cut(octets: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames at the beginning of `octets`, and the rest."""
    frames = []
    while len(octets) >= 9 and len(octets) >= 9 + (size := int.from_bytes(octets[:3], "big")):
        stream = int.from_bytes(octets[5:9], "big")
        frames.append(Frame(octets[3], octets[4], stream, octets[9 : 9 + size]))
        octets = octets[9 + size :]
    return frames, octets
