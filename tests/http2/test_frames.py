"""Frames on the wire (RFC 9113 sections 4 and 6)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.http2.frames import Type
from whispr.http2.headers import encode


def read(data: bytes, preface: bool = False) -> list[frames.RawFrame]:
    return list(frames.FrameReader(frames.MIN_MAX_FRAME_SIZE, preface).feed(data))


def test_layout_of_a_frame() -> None:
    """Section 4.1: 24 bits of length, type, flags, 31 bits of stream id."""
    assert frames.frame(Type.DATA, 1, 5, b"abc") == b"\0\0\x03\0\x01\0\0\0\x05abc"


def test_the_reserved_bit_is_ignored() -> None:
    """Section 4.1: the bit before the stream id is ignored."""
    assert read(b"\0\0\0\0\x01\x80\0\0\x05") == [(Type.DATA, 1, 5, b"")]


@pytest.mark.parametrize(
    ("section", "data", "code"),
    [
        ("3.4 preface", b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR),
        ("4.2 size", b"\0\x40\x01\0\0\0\0\0\x01", ErrorCode.FRAME_SIZE_ERROR),
        ("6.1 DATA on 0", frames.frame(Type.DATA, 0, 0), ErrorCode.PROTOCOL_ERROR),
        ("6.2 HEADERS on 0", frames.frame(Type.HEADERS, 4, 0), ErrorCode.PROTOCOL_ERROR),
        ("6.3 PRIORITY on 0", frames.frame(Type.PRIORITY, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
        ("6.4 RST_STREAM on 0", frames.frame(Type.RST_STREAM, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        ("6.4 RST_STREAM size", frames.frame(Type.RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        ("6.5 SETTINGS on 1", frames.frame(Type.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        ("6.7 PING on 1", frames.frame(Type.PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        ("6.7 PING size", frames.frame(Type.PING, 0, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        ("6.8 GOAWAY on 1", frames.frame(Type.GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        ("6.9 size", frames.frame(Type.WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        ("6.10 CONTINUATION on 0", frames.frame(Type.CONTINUATION, 4, 0), ErrorCode.PROTOCOL_ERROR),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shape_errors(section: str, data: bytes, code: ErrorCode) -> None:
    """A frame of the wrong size or on the wrong kind of stream is a connection error with the right code."""
    with pytest.raises(ProtocolError) as caught:
        read(data, preface=section == "3.4 preface")
    assert caught.value.code is code


def test_an_oversize_frame_is_refused_before_its_payload_comes() -> None:
    """Section 4.2: nine bytes suffice to refuse."""
    with pytest.raises(ProtocolError):
        read(frames.frame(Type.DATA, 0, 1, bytes(frames.MIN_MAX_FRAME_SIZE + 1))[:9])


def test_a_wrong_preface_is_refused_at_its_first_wrong_byte() -> None:
    """Section 3.4: nobody waits for 24 bytes of HTTP/1."""
    reader = frames.FrameReader(frames.MIN_MAX_FRAME_SIZE, expect_preface=True)
    assert list(reader.feed(b"PR")) == []
    with pytest.raises(ProtocolError):
        list(reader.feed(b"O"))


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        (0, b"data", b"data"),
        (0xD2, b"data", b"data"),
        (frames.PADDED, b"\x02data\0\0", b"data"),
        (frames.PADDED, b"\x00data", b"data"),
        (frames.PRIORITY, b"\0\0\0\0\x10data", b"data"),
        (frames.PADDED | frames.PRIORITY, b"\x01\0\0\0\0\x10data\0", b"data"),
    ],
)
def test_what_is_not_the_block_comes_off(flags: int, payload: bytes, expected: bytes) -> None:
    """Sections 6.1 and 6.2: padding and priority fields come off."""
    assert frames.block_of(flags, 1, payload) == expected


@pytest.mark.parametrize(
    ("flags", "payload"), [(frames.PADDED, b"\x05data"), (frames.PADDED, b""), (frames.PRIORITY, b"1234")]
)
def test_padding_that_exceeds_the_frame(flags: int, payload: bytes) -> None:
    """Section 6.1: padding as long as the payload or longer is a connection error."""
    with pytest.raises(ProtocolError):
        frames.block_of(flags, 1, payload)


def test_priority_flag_on_data_means_nothing() -> None:
    """Section 6.1 defines no such flag: five bytes of data stay data."""
    connection = Connection(Role.SERVER)
    block = encode([(":method", "POST"), (":scheme", "http"), (":path", "/")])
    connection.receive(frames.PREFACE + frames.settings({}) + frames.headers(1, block, False, 16_384))
    flags = frames.PADDED | frames.PRIORITY
    (event,) = connection.receive(frames.frame(Type.DATA, flags, 1, b"\x02hello, world\0\0"))
    assert isinstance(event, events.DataReceived)
    assert event.data == b"hello, world"


def test_a_long_header_block_continues() -> None:
    """Section 6.10: a block over the frame size goes on in CONTINUATIONs, the last with END_HEADERS."""
    block = bytes(40_000)
    parsed = read(frames.headers(3, block, True, 16_384))
    assert [(kind, flags) for kind, flags, _, _ in parsed] == [
        (Type.HEADERS, frames.END_STREAM),
        (Type.CONTINUATION, 0),
        (Type.CONTINUATION, frames.END_HEADERS),
    ]
    assert b"".join(payload for *_, payload in parsed) == block


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(0, 3000), max_size=20),
)
def test_any_split_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    """Where reads end makes no difference to the frames read."""
    data = frames.PREFACE + b"".join(frames.frame(Type.DATA, 0, 1, payload) for payload in payloads)
    reader = frames.FrameReader(frames.MIN_MAX_FRAME_SIZE, expect_preface=True)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert [frame for piece in pieces for frame in reader.feed(piece)] == read(data, preface=True)
