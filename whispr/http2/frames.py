"""Frames on the wire (RFC 9113 sections 4 and 6): types, flags, shape rules, and builders.

Builders return complete frames as bytes. Reading is `FrameReader`: it splits what arrives, in whatever
pieces, into `(type, flags, stream id, payload)`, and refuses frames over the size limit before buffering
them. Long DATA frames it hands on as they come, so that nothing is copied together here.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from whispr.http2.errors import ErrorCode, ProtocolError, StreamError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

HEADER_BYTES = 9
MAX_STREAM_ID = 2**31 - 1
MAX_WINDOW = 2**31 - 1
MIN_MAX_FRAME_SIZE = 2**14
MAX_MAX_FRAME_SIZE = 2**24 - 1
DEFAULT_WINDOW = 65_535
PRIORITY_BYTES = 5


class Type(enum.IntEnum):
    """Frame types (section 6)."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


# Flags are plain integers: they are tested on every frame, and enum arithmetic is slow.
END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


class Setting(enum.IntEnum):
    """SETTINGS parameters (section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Rule(NamedTuple):
    """The shape a frame type must have, whatever the state of its stream."""

    on_stream: bool | None
    """True: never on stream 0; False: only on stream 0; None: either."""
    length: int | None
    """Exact payload length in bytes, or None."""


RULES: Mapping[int, Rule] = {
    Type.DATA: Rule(True, None),
    Type.HEADERS: Rule(True, None),
    Type.PRIORITY: Rule(True, None),  # its length is a stream error, not a connection error (section 6.3)
    Type.RST_STREAM: Rule(True, 4),
    Type.SETTINGS: Rule(False, None),
    Type.PUSH_PROMISE: Rule(True, None),
    Type.PING: Rule(False, 8),
    Type.GOAWAY: Rule(False, None),
    Type.WINDOW_UPDATE: Rule(None, 4),
    Type.CONTINUATION: Rule(True, None),
}

_HEADER = struct.Struct(">HBBBL")  # 24 bits of length come as 16 + 8
_TYPED = struct.Struct(">HBHL")  # type and flags in one
_SETTING = struct.Struct(">HL")
_GOAWAY = struct.Struct(">LL")

_DATA = Type.DATA << 8
_LAST_DATA = _DATA | END_STREAM
_HEADERS = Type.HEADERS << 8 | END_HEADERS
_LAST_HEADERS = _HEADERS | END_STREAM


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Any frame. The caller keeps the payload within the peer's MAX_FRAME_SIZE."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def data_header(stream_id: int, size: int, end_stream: bool) -> bytes:
    """What stands before the `size` bytes of a DATA frame."""
    return _TYPED.pack(size >> 8, size & 0xFF, _LAST_DATA if end_stream else _DATA, stream_id)


def whole_response(stream_id: int, block: bytes, data: bytes, trailers: bytes) -> bytes:
    """HEADERS, DATA and trailers, each of which fits one frame."""
    pack = _TYPED.pack
    size = len(data)
    return b"".join(
        (
            pack(len(block) >> 8, len(block) & 0xFF, _HEADERS, stream_id),
            block,
            pack(size >> 8, size & 0xFF, _DATA, stream_id),
            data,
            pack(len(trailers) >> 8, len(trailers) & 0xFF, _LAST_HEADERS, stream_id),
            trailers,
        )
    )


def whole_request(stream_id: int, block: bytes, data: bytes) -> bytes:
    """HEADERS and the only DATA, each of which fits one frame."""
    pack = _TYPED.pack
    size = len(data)
    return b"".join(
        (
            pack(len(block) >> 8, len(block) & 0xFF, _HEADERS, stream_id),
            block,
            pack(size >> 8, size & 0xFF, _LAST_DATA, stream_id),
            data,
        )
    )


def headers(stream_id: int, block: bytes, end_stream: bool, max_frame_size: int) -> bytes:
    """HEADERS, with as many CONTINUATIONs as the block needs."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return frame(Type.HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + max_frame_size] for at in range(0, len(block), max_frame_size)]
    frames = [frame(Type.HEADERS, flags, stream_id, pieces[0])]
    frames += [frame(Type.CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]]
    frames.append(frame(Type.CONTINUATION, END_HEADERS, stream_id, pieces[-1]))
    return b"".join(frames)


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """RST_STREAM (section 6.4)."""
    return frame(Type.RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def settings(values: Mapping[Setting, int]) -> bytes:
    """SETTINGS (section 6.5)."""
    payload = b"".join(_SETTING.pack(name, value) for name, value in values.items())
    return frame(Type.SETTINGS, 0, 0, payload)


SETTINGS_ACK = frame(Type.SETTINGS, ACK, 0)


def ping(data: bytes, ack: bool = False) -> bytes:
    """PING (section 6.7); `data` is 8 bytes."""
    return frame(Type.PING, ACK if ack else 0, 0, data)


def goaway(last_stream_id: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    """GOAWAY (section 6.8)."""
    return frame(Type.GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + debug)


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE (section 6.9); stream 0 is the connection."""
    return frame(Type.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The parameters of a SETTINGS payload, in order."""
    if len(payload) % _SETTING.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    return list(_SETTING.iter_unpack(payload))


def check_setting(name: int, value: int, *, by_client: bool) -> None:
    """Raise ProtocolError for a value its parameter may not have (section 6.5.2)."""
    if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
        raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
    if name == Setting.MAX_FRAME_SIZE and not MIN_MAX_FRAME_SIZE <= value <= MAX_MAX_FRAME_SIZE:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
    if name == Setting.ENABLE_PUSH and (value > 1 or (value and not by_client)):
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")


def parse_goaway(payload: bytes) -> tuple[int, ErrorCode, bytes]:
    """Last stream id, code and debug data of a GOAWAY payload."""
    if len(payload) < _GOAWAY.size:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
    last_stream_id, code = _GOAWAY.unpack_from(payload)
    return last_stream_id & MAX_STREAM_ID, ErrorCode.of(code), payload[_GOAWAY.size :]


def unpad(payload: bytes) -> bytes:
    """Strip the padding of a padded frame (sections 6.1, 6.2)."""
    if not payload:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "padded frame without a pad length")
    end = len(payload) - payload[0]
    if end < 1:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "padding exceeds the frame")
    return payload[1:end]


def block_of(flags: int, stream_id: int, payload: bytes) -> bytes:
    """The header block in HEADERS with padding, the deprecated priority fields, or both (section 6.2)."""
    if flags & PADDED:
        payload = unpad(payload)
    if not flags & PRIORITY:
        return payload
    if len(payload) < PRIORITY_BYTES:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
    _check_dependency(stream_id, payload)
    return payload[PRIORITY_BYTES:]


def check_priority(stream_id: int, payload: bytes) -> None:
    """The rules of PRIORITY (section 6.3), which is otherwise ignored. Raises StreamError or ProtocolError."""
    if len(payload) != PRIORITY_BYTES:
        raise StreamError(stream_id, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
    _check_dependency(stream_id, payload)


def _check_dependency(stream_id: int, payload: bytes) -> None:
    # RFC 7540 section 5.3.1. A stream error there; within HEADERS the block would then still need decoding.
    if int.from_bytes(payload[:4], "big") & MAX_STREAM_ID == stream_id:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} depends on itself")


RawFrame = tuple[int, int, int, Any]
"""Type, flags, stream id, payload: bytes, or of DATA perhaps a view of them."""

DATA_BEGINS = -1
"""In place of a type: what has come so far of a long DATA frame, of `FrameReader.data_bytes` in all."""

DATA_GOES_ON = -2
"""In place of a type: more of that frame. Only the last piece has its END_STREAM."""

_HANDED_ON_FROM_BYTES = 4096
"""The payload of a shorter DATA frame is waited for, which costs less than an event more."""


class FrameReader:
    """Splits a byte stream into frames; holds at most one incomplete frame between reads.

    `push` what was read, then take frames with `next` until it gives None. `data` and `at` are what it works
    on, for who can do better than one frame at a time; not while `within_data`.
    """

    __slots__ = (
        "_begun",
        "_data_end",
        "_data_stream_id",
        "_expect_preface",
        "_max_frame_size",
        "_partial",
        "_resumed",
        "_wanted",
        "at",
        "data",
        "data_bytes",
        "within_data",
    )

    def __init__(self, max_frame_size: int, expect_preface: bool) -> None:
        self.data = b""
        self.at = 0
        """Where the next frame begins in `data`."""
        self.data_bytes = 0
        """The whole payload's size of the DATA frame that began last."""
        self.within_data = 0
        """Bytes still to come of a DATA frame that is handed on in pieces."""
        self._data_end = 0
        self._data_stream_id = 0
        self._max_frame_size = max_frame_size
        self._expect_preface = expect_preface
        self._partial = bytearray()
        self._begun = 0
        self._resumed = False
        # A wrong preface is refused at its first wrong byte, so those bytes are looked at as they come.
        self._wanted = 1 if expect_preface else HEADER_BYTES

    def push(self, data: bytes) -> None:
        """Take what was read. Raises ProtocolError on a bad preface."""
        self._resumed = bool(self._partial)
        if self._resumed:
            self._partial += data
            # Bytes are copied out once per complete frame, not once per read.
            if len(self._partial) < self._wanted:
                return
            data = bytes(self._partial)
            self._partial.clear()
        self.data, self.at = data, 0
        if self._expect_preface:
            if self._preface_complete(data):
                self.at = len(PREFACE)
            else:
                self._keep(1)

    def next(self) -> RawFrame | None:
        """The next frame that is complete, or long DATA as far as it has come.

        Raises ProtocolError on a bad size or shape.
        """
        if self.within_data:
            return self._more_data()
        data, at = self.data, self.at
        available = len(data) - at
        if available < HEADER_BYTES:
            self._keep(HEADER_BYTES)
            return None
        high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
        size = high << 8 | low
        if size > self._max_frame_size:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
        start, end = at + HEADER_BYTES, at + HEADER_BYTES + size
        stream_id &= MAX_STREAM_ID  # the reserved bit is ignored (section 4.1)
        if end > len(data):
            parted = kind == Type.DATA and size >= _HANDED_ON_FROM_BYTES and not flags & PADDED
            if not parted or available == HEADER_BYTES:
                self._keep(HEADER_BYTES + size)
                return None
            check_shape(kind, stream_id, size)
            self.data_bytes, self.within_data = size, size - (len(data) - start)
            self._data_end, self._data_stream_id = flags & END_STREAM, stream_id
            self.at = len(data)
            return DATA_BEGINS, 0, stream_id, _part(data, start, len(data))
        self.at = end
        check_shape(kind, stream_id, size)
        whole = size < _HANDED_ON_FROM_BYTES or kind != Type.DATA
        return kind, flags, stream_id, data[start:end] if whole else _part(data, start, end)

    def _more_data(self) -> RawFrame | None:
        start = self.at
        end = min(len(self.data), start + self.within_data)
        if start == end:
            self._keep(1)
            return None
        self.at = end
        self.within_data -= end - start
        flags = 0 if self.within_data else self._data_end
        return DATA_GOES_ON, flags, self._data_stream_id, _part(self.data, start, end)

    @property
    def unfinished(self) -> int | None:
        """A number for the frame of which a part has come; None without one, and for DATA handed on in parts."""
        return self._begun if self._partial else None

    def feed(self, data: bytes) -> Iterator[RawFrame]:
        """`push`, and every frame that it completes."""
        self.push(data)
        while (raw := self.next()) is not None:
            yield raw

    def _keep(self, wanted: int) -> None:
        """Hold what is left until there are `wanted` bytes of it."""
        if self.at < len(self.data):
            if self.at or not self._resumed:
                self._begun += 1
            self._partial += self.data[self.at :]
            self._wanted = wanted
        self.data, self.at = b"", 0

    def _preface_complete(self, data: bytes) -> bool:
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 client preface")
        self._expect_preface = len(data) < len(PREFACE)
        return not self._expect_preface


def _part(data: bytes, start: int, end: int) -> bytes | memoryview:
    """DATA within a read: a view if it is most of that read, all of which a view holds in memory."""
    return memoryview(data)[start:end] if (end - start) * 2 >= len(data) else data[start:end]


def check_shape(kind: int, stream_id: int, size: int) -> None:
    """Apply `RULES`. Frames of unknown types have any shape (section 4.1)."""
    rule = RULES.get(kind)
    if rule is None:
        return
    on_stream, length = rule
    if on_stream is not None and (stream_id != 0) is not on_stream:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{Type(kind).name} on stream {stream_id}")
    if length is not None and size != length:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"{Type(kind).name} of {size} bytes")
