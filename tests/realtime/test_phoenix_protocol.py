"""The Phoenix V2 serializer: frames as phoenix.js reads and writes them, and what is no such frame."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.realtime import protocol
from whispr.realtime.frames import FrameReader
from whispr.realtime.protocol import MalformedMessage, Message

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
refs = st.one_of(st.none(), names.filter(bool), st.integers(min_value=0, max_value=2**53))
text_refs = st.one_of(st.none(), names.filter(bool))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | names,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(names, children, max_size=3),
    max_leaves=8,
)


def content(frame: bytes) -> str | bytes:
    """Read the one unmasked frame a server builds."""
    (item,) = FrameReader(masked=False, message_bytes_max=1 << 20).feed(frame)
    assert isinstance(item, str | bytes)
    return item


@given(refs, refs, names, names, values)
def test_a_client_message_is_decoded_as_it_was_sent(
    join_ref: protocol.Ref, ref: protocol.Ref, topic: str, event: str, payload: object
) -> None:
    """[join_ref, ref, topic, event, payload] comes out as it went in, with refs echoed in their own type."""
    _, data = protocol.encode_client_message(join_ref, ref, topic, event, payload)
    assert protocol.decode(data.decode()) == Message(join_ref, ref, topic, event, payload)


@given(text_refs, text_refs, names, names, st.binary(max_size=100))
def test_a_binary_push_is_decoded_as_it_was_sent(
    join_ref: str | None, ref: str | None, topic: str, event: str, payload: bytes
) -> None:
    """A binary push carries bytes behind its four length-prefixed fields."""
    _, data = protocol.encode_client_message(join_ref, ref, topic, event, payload)
    assert protocol.decode(data) == Message(join_ref, ref, topic, event, payload)


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_arbitrary_input_is_a_message_or_malformed(data: str | bytes) -> None:
    """No input makes the decoder raise anything but MalformedMessage."""
    with contextlib.suppress(MalformedMessage):
        assert isinstance(protocol.decode(data), Message)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "nonsense",
        "{}",
        "[]",
        '[null,"1","room:1","event"]',
        '[null,"1","room:1","event",{},1]',
        '[null,"1",7,"event",{}]',
        '[null,"1","room:1",null,{}]',
        '[null,["1"],"room:1","event",{}]',
        '[null,"1","room:1","event",{"a":}]',
        "[" * 100_000,
        '[null,"1","a","b",' + "[" * 100_000,
        b"",
        b"\x01\x00\x00\x00\x00",
        b"\x00\x01",
        b"\x00\x05\x01\x01\x01ab",
        b"\x00\x01\x01\x01\x01\xff\xff\xff\xff",
    ],
    ids=range(17),
)
def test_what_is_no_message_is_malformed(data: str | bytes) -> None:
    """Every malformed frame raises MalformedMessage with an explanation."""
    with pytest.raises(MalformedMessage, match=r".{10}"):
        protocol.decode(data)


def test_replies_pushes_broadcasts_and_ends_have_phoenix_shape() -> None:
    """Text frames are the JSON arrays of Phoenix V2."""
    ok = {"status": "ok", "response": {"a": 1}}
    assert json.loads(content(protocol.encode_reply("1", "2", "t", "ok", {"a": 1}))) == [
        "1",
        "2",
        "t",
        "phx_reply",
        ok,
    ]
    assert json.loads(content(protocol.encode_push("1", "t", "e", [1]))) == ["1", None, "t", "e", [1]]
    assert json.loads(content(protocol.encode_broadcast("t", "e", {}))) == [None, None, "t", "e", {}]
    assert json.loads(content(protocol.encode_end("1", "t", "phx_close"))) == ["1", "1", "t", "phx_close", {}]


def test_binary_frames_have_phoenix_bytes() -> None:
    """Binary frames are laid out as phoenix.js's serializer.js lays them out."""
    assert content(protocol.encode_push("12", "top", "ev", b"\x01")) == b"\x00\x02\x03\x0212topev\x01"
    assert (
        content(protocol.encode_reply("12", "3", "top", "ok", b"\x01")) == b"\x01\x02\x01\x03\x02123topok\x01"
    )
    assert content(protocol.encode_broadcast("top", "ev", b"\x01")) == b"\x02\x03\x02topev\x01"


@given(names.filter(bool), names, names, st.binary(max_size=50))
def test_a_client_reads_a_servers_binary_frames(ref: str, topic: str, event: str, body: bytes) -> None:
    """Push, reply and broadcast come out of the client's decoder with their fields."""
    decode = protocol.decode_from_server
    assert decode(content(protocol.encode_push(ref, topic, event, body))) == Message(
        ref, None, topic, event, body
    )
    assert decode(content(protocol.encode_broadcast(topic, event, body))) == Message(
        None, None, topic, event, body
    )
    reply = decode(content(protocol.encode_reply(ref, ref, topic, "ok", body)))
    assert reply == Message(ref, ref, topic, "phx_reply", {"status": "ok", "response": body})


def test_encoded_json_travels_inside_a_frame_unchanged() -> None:
    """A payload that another node encoded is embedded, not encoded again."""
    frame = protocol.encode_broadcast("t", "e", msgspec.Raw(protocol.encode_json({"a": [1, "é"]})))
    assert json.loads(content(frame)) == [None, None, "t", "e", {"a": [1, "é"]}]


def test_a_binary_field_over_255_bytes_is_refused() -> None:
    """A field that its one-byte size cannot express is an error of the caller, not a broken frame."""
    with pytest.raises(ValueError, match="255"):
        protocol.encode_broadcast("t" * 256, "e", b"")


def as_text(frame: bytes) -> object:
    said = content(frame)
    assert isinstance(said, bytes)
    return json.loads(protocol.binary_as_text(said))


@given(text_refs, text_refs, names, names, st.binary(max_size=300))
def test_what_is_binary_can_be_said_in_text(
    join_ref: str | None, ref: str | None, topic: str, event: str, body: bytes
) -> None:
    """A reply, a push and a broadcast keep their refs, topic and event, and their bytes in base64."""
    said = {"base64": b64encode(body).decode()}
    reply = as_text(protocol.encode_reply(join_ref, ref, topic, "ok", body))
    assert reply == [join_ref, ref, topic, "phx_reply", {"status": "ok", "response": said}]
    push = as_text(protocol.encode_push(join_ref, topic, event, body))
    assert push == [join_ref, None, topic, event, said]
    broadcast = as_text(protocol.encode_broadcast(topic, event, body))
    assert broadcast == [None, None, topic, event, said]
