"""The RFC 6455 codec: any split of the bytes means the same, and every broken frame is refused with its code."""

from __future__ import annotations

import contextlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.realtime.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    CloseCode,
    Closed,
    FrameError,
    FrameReader,
    Item,
    Ping,
    Pong,
    apply_mask,
    close_payload,
    encode_frame,
    encode_masked_frame,
)

MASK = b"\x01\x02\x03\x04"
LIMIT = 200_000

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
items: st.SearchStrategy[Item] = st.one_of(
    texts,
    st.binary(max_size=300),
    st.binary(max_size=125).map(Ping),
    st.binary(max_size=125).map(Pong),
    st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 65535, b"x" * 65536]),
)


def reader(*, masked: bool = True, limit: int = LIMIT) -> FrameReader:
    return FrameReader(masked=masked, message_bytes_max=limit)


def parts(item: Item) -> tuple[int, bytes]:
    if isinstance(item, str):
        return TEXT, item.encode()
    if isinstance(item, bytes):
        return BINARY, item
    assert isinstance(item, Ping | Pong)
    return (PING if isinstance(item, Ping) else PONG), item.payload


def raw(first: int, payload: bytes, *, masked: bool = True) -> bytes:
    """Build a short frame with this first byte, valid or not."""
    assert len(payload) < 126
    head = bytes((first, len(payload) | (0x80 if masked else 0)))
    return head + (MASK + apply_mask(payload, MASK) if masked else payload)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(items, max_size=6), st.lists(st.integers(min_value=0, max_value=1_000_000), max_size=8))
def test_any_split_of_the_bytes_yields_the_same_messages(sent: list[Item], cuts: list[int]) -> None:
    """However TCP cuts a stream of frames, the same messages come out, in order."""
    data = b"".join(encode_masked_frame(*parts(item), MASK) for item in sent)
    incremental = reader()
    received = [item for piece in split(data, cuts) for item in incremental.feed(piece)]
    assert received == sent


@given(texts, st.lists(st.integers(min_value=0, max_value=1_000_000), max_size=5), st.binary(max_size=20))
def test_fragments_are_joined_and_control_frames_pass_between_them(
    text: str, cuts: list[int], ping: bytes
) -> None:
    """A message may come in fragments cut anywhere, even inside a character, with pings in between (§5.4)."""
    pieces = split(text.encode(), cuts)
    incremental = reader()
    received: list[Item] = []
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        first = (0x80 if last else 0) | (TEXT if index == 0 else 0)
        head = (
            struct.pack("!BBH", first, 0x80 | 126, len(piece))
            if len(piece) > 125
            else bytes((first, 0x80 | len(piece)))
        )
        received += incremental.feed(head + MASK + apply_mask(piece, MASK))
        if not last:
            received += incremental.feed(encode_masked_frame(PING, ping, MASK))
    assert received == [Ping(ping)] * (len(pieces) - 1) + [text]


@given(st.binary(max_size=400), st.binary(min_size=4, max_size=4))
def test_masking_is_its_own_inverse_and_bytewise(payload: bytes, mask: bytes) -> None:
    """Masking is the XOR with the repeated key of §5.3."""
    masked = apply_mask(payload, mask)
    assert masked == bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    assert apply_mask(masked, mask) == payload


@given(items)
def test_a_servers_frames_are_read_by_a_client(item: Item) -> None:
    """What `encode_frame` builds is an unmasked frame with the shortest length."""
    assert reader(masked=False).feed(encode_frame(*parts(item))) == [item]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_break_the_reader(data: bytes) -> None:
    """Garbage yields messages or a FrameError, nothing else."""
    with contextlib.suppress(FrameError):
        assert all(isinstance(item, str | bytes | tuple) for item in reader().feed(data))


REFUSED = {
    "unmasked client frame": (raw(0x81, b"hi", masked=False), CloseCode.PROTOCOL_ERROR),
    "reserved bit": (raw(0xC1, b"hi"), CloseCode.PROTOCOL_ERROR),
    "reserved data opcode": (raw(0x83, b""), CloseCode.PROTOCOL_ERROR),
    "reserved control opcode": (raw(0x8B, b""), CloseCode.PROTOCOL_ERROR),
    "fragmented ping": (raw(0x09, b""), CloseCode.PROTOCOL_ERROR),
    "ping over 125 bytes": (struct.pack("!BBH", 0x89, 0x80 | 126, 126) + MASK, CloseCode.PROTOCOL_ERROR),
    "continuation of nothing": (raw(0x80, b"x"), CloseCode.PROTOCOL_ERROR),
    "message inside a message": (raw(0x01, b"a") + raw(0x81, b"b"), CloseCode.PROTOCOL_ERROR),
    "length not in shortest form": (
        struct.pack("!BBH", 0x82, 0x80 | 126, 5) + MASK,
        CloseCode.PROTOCOL_ERROR,
    ),
    "64-bit length that fits 16": (
        struct.pack("!BBQ", 0x82, 0x80 | 127, 300) + MASK,
        CloseCode.PROTOCOL_ERROR,
    ),
    "length with the top bit": (struct.pack("!BBQ", 0x82, 0x80 | 127, 1 << 63), CloseCode.PROTOCOL_ERROR),
    "half a close code": (raw(0x88, b"\x03"), CloseCode.PROTOCOL_ERROR),
    "close code 1005": (raw(0x88, struct.pack("!H", 1005)), CloseCode.PROTOCOL_ERROR),
    "close code 999": (raw(0x88, struct.pack("!H", 999)), CloseCode.PROTOCOL_ERROR),
    "close reason not UTF-8": (raw(0x88, struct.pack("!H", 1000) + b"\xff"), CloseCode.INVALID_DATA),
    "text not UTF-8": (raw(0x81, b"\xc0\xaf"), CloseCode.INVALID_DATA),
}


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_frame_is_refused_with_its_code(data: bytes, code: CloseCode) -> None:
    """Each violation of RFC 6455 names the status the connection is to be closed with."""
    with pytest.raises(FrameError) as raised:
        reader().feed(data)
    assert raised.value.code == code


def test_a_message_over_the_limit_is_refused_by_its_header_alone() -> None:
    """Nobody can make us buffer more than the limit: the length is judged before the payload comes."""
    with pytest.raises(FrameError) as raised:
        reader(limit=1000).feed(struct.pack("!BBH", 0x82, 0x80 | 126, 1001))
    assert raised.value.code == CloseCode.TOO_BIG
    assert reader(limit=1000).feed(encode_masked_frame(BINARY, b"x" * 1000, MASK)) == [b"x" * 1000]


def test_fragments_count_together_against_the_limit() -> None:
    """A message in fragments has the same limit as one in a single frame."""
    incremental = reader(limit=100)
    incremental.feed(raw(0x02, b"x" * 60))
    with pytest.raises(FrameError) as raised:
        incremental.feed(raw(0x80, b"x" * 41))
    assert raised.value.code == CloseCode.TOO_BIG


@pytest.mark.parametrize(
    ("payload", "closed"),
    [
        (b"", Closed(1005, "")),
        (close_payload(1000), Closed(1000, "")),
        (close_payload(4001, "bye"), Closed(4001, "bye")),
    ],
)
def test_close_frames_are_read(payload: bytes, closed: Closed) -> None:
    """A close frame yields its status and reason; without a status it means 1005 (§7.1.5)."""
    assert reader().feed(encode_masked_frame(CLOSE, payload, MASK)) == [closed]


def test_a_long_close_reason_is_cut_between_characters() -> None:
    """A control frame has at most 125 bytes, and its reason stays valid UTF-8."""
    payload = close_payload(1000, "é" * 100)
    assert len(payload) <= 125
    assert payload[2:].decode() == "é" * 61
