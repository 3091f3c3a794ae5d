"""Header blocks: HPACK with a cache, and malformed lists (RFC 7541; RFC 9113 section 8)."""

from __future__ import annotations

from contextlib import suppress

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.http2.headers import Decoder, Fields, Headers, Kind, SharedHeaders, encode
from whispr.http2.plain import plain_fields

GOOD: Fields = ((":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("te", "trailers"))

texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=200)
names = st.text(st.characters(min_codepoint=0x61, max_codepoint=0x7A), min_size=1, max_size=140)


@given(st.lists(st.tuples(names, texts), max_size=10))
def test_what_is_encoded_decodes_to_the_same(fields: list[tuple[str, str]]) -> None:
    """Ours and anybody's decoder read our encoding alike, and it leaves no trace in the dynamic table."""
    block = encode(fields)
    decoder = hpack.Decoder()
    plain = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    assert [tuple(header) for header in decoder.decode(block, raw=True)] == plain
    assert not decoder.header_table.dynamic_entries
    assert Decoder(2**20).decode(block, Kind.IGNORED).fields == tuple(fields)


def test_static_entries_take_a_byte() -> None:
    """RFC 7541 section 6.1: a pair of the static table is one byte."""
    assert encode([(":method", "POST"), (":status", "200")]) == b"\x83\x88"


def test_a_block_seen_before_is_not_decoded_again() -> None:
    """The same block, the table unchanged, is the same object."""
    decoder = Decoder(2**16)
    block = encode(GOOD)
    assert decoder.decode(block, Kind.REQUEST) is decoder.decode(block, Kind.REQUEST)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", "3"])), max_size=40))
def test_caching_never_changes_what_is_decoded(fields: list[tuple[str, str]]) -> None:
    """With an encoder that uses the dynamic table, cached and fresh decoding agree on every block."""
    encoder, ours, plain = hpack.Encoder(), Decoder(2**16), hpack.Decoder()
    encoder.header_table_size = 100
    plain.max_allowed_table_size = 4096
    for name, value in fields:
        block = encoder.encode([(name, value)])
        decoded = tuple((str(n), str(v)) for n, v in plain.decode(block))
        assert ours.decode(block, Kind.IGNORED).fields == decoded == ((name, value),)


def as_hpack_has_it(block: bytes) -> Fields | None:
    decoder = hpack.Decoder(2**20)
    try:
        decoded = decoder.decode(block, raw=True)
    except hpack.HPACKError:
        return None
    return tuple((bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in decoded)


@given(st.lists(st.tuples(names, texts), max_size=10))
def test_plain_blocks_are_taken_apart_the_quick_way(fields: list[tuple[str, str]]) -> None:
    """What our encoder writes takes no HPACK decoder, long strings included."""
    assert plain_fields(encode(fields)) == tuple(fields)


pieces = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\x82", b"\xbd", b"\xbe", b"\x80", b"\x04\x01/", b"\x0f\x10\x01a", b"\x1f\x30\x00"]),
    st.builds(lambda value: encode([("name", value), (":path", value)]), texts),
    st.builds(lambda name, value: hpack.Encoder().encode([(name, value)]), names, texts),
)


@given(st.lists(pieces, max_size=6))
def test_the_quick_way_agrees_with_all_of_hpack(parts: list[bytes]) -> None:
    """Any block is taken apart as HPACK has it, or left to HPACK; and leaves the dynamic table as it was."""
    block = b"".join(parts)
    fields = plain_fields(block)
    if fields is not None:
        assert fields == as_hpack_has_it(block)


@pytest.mark.parametrize("size", [126, 127, 128, 254, 255, 300, 16_510, 16_511])
def test_strings_of_any_length(size: int) -> None:
    """RFC 7541 section 5.1: lengths of one octet, and of several; cut short it is no plain block."""
    block = encode([("a", "b" * size)])
    assert plain_fields(block) == (("a", "b" * size),)
    assert all(plain_fields(block[:cut]) is None for cut in range(1, min(len(block), 300)))


def test_connections_hold_the_same_list_once() -> None:
    """Decoders that share have one object for a block, as long as one of them remembers it."""
    shared, block = SharedHeaders(), encode(GOOD)
    one, other = Decoder(2**16, shared), Decoder(2**16, shared)
    assert one.decode(block, Kind.REQUEST) is other.decode(bytes(bytearray(block)), Kind.REQUEST)
    assert one.decode(block, Kind.TRAILERS) is not one.decode(block, Kind.REQUEST)
    del one, other
    assert not any(shared._by_kind.values())


def test_what_a_dynamic_table_has_a_part_in_is_not_shared() -> None:
    """The same block means something else on a connection with another table."""
    shared = SharedHeaders()
    one, other = Decoder(2**16, shared), Decoder(2**16, shared)
    one.decode(b"\x40\x01a\x01b", Kind.IGNORED)
    other.decode(b"\x40\x01c\x01d", Kind.IGNORED)
    assert one.decode(b"\xbe", Kind.IGNORED).fields == (("a", "b"),)
    assert other.decode(b"\xbe", Kind.IGNORED).fields == (("c", "d"),)


def test_a_plain_list_over_the_hard_limit_ends_the_connection() -> None:
    """The quick way knows the limit too."""
    with pytest.raises(ProtocolError) as caught:
        Decoder(1000).decode(encode([("a", "b")] * 40), Kind.REQUEST)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_table_size_update_empties_the_cache() -> None:
    """RFC 7541 section 4.3: an update may evict what a cached block refers to."""
    decoder = Decoder(2**16)
    decoder.decode(b"\x40\x01a\x01b", Kind.IGNORED)
    indexed = b"\xbe"
    assert decoder.decode(indexed, Kind.IGNORED).fields == (("a", "b"),)
    decoder.decode(b"\x20\x3f\xe1\x1f\x82", Kind.IGNORED)  # size 0, then 4096 again: evicts everything
    with pytest.raises(ProtocolError) as caught:
        decoder.decode(indexed, Kind.IGNORED)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


@pytest.mark.parametrize(
    ("what", "block"),
    [
        ("7541 2.3.3 index 0", b"\x80"),
        ("7541 2.3.3 beyond the table", b"\xff\x7f"),
        ("7541 4.2 size update over the limit", b"\x3f\xe2\x1f"),
        ("7541 4.2 size update after a field", b"\x82\x20"),
        ("7541 5.1 endless integer", b"\xff" + b"\xff" * 40),
        ("7541 5.2 string longer than the block", b"\x40\x7fabc"),
        ("7541 5.2 Huffman EOS", b"\x40\x84\xff\xff\xff\xff\x01a"),
        ("truncated literal", b"\x40"),
    ],
)
def test_blocks_that_do_not_decode(what: str, block: bytes) -> None:
    """RFC 9113 section 4.3: a block that does not decode is a COMPRESSION_ERROR of the connection."""
    with pytest.raises(ProtocolError) as caught:
        Decoder(2**16).decode(block, Kind.REQUEST)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    """A block that refers to one large table entry a thousand times is cut off at the hard limit."""
    decoder = Decoder(64 * 1024)
    decoder.decode(b"\x40\x01a\x7f\x80\x1e" + b"x" * 3967, Kind.IGNORED)
    with pytest.raises(ProtocolError) as caught:
        decoder.decode(b"\xbe" * 1000, Kind.REQUEST)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_decoder(block: bytes) -> None:
    """Any block decodes or is a ProtocolError."""
    with suppress(ProtocolError):
        Decoder(2**16).decode(block, Kind.REQUEST)


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ("8.2 upper case", (*GOOD, ("Name", "v"))),
        ("8.2.1 space in a name", (*GOOD, ("na me", "v"))),
        ("8.2.1 empty name", (*GOOD, ("", "v"))),
        ("8.2.1 control in a value", (*GOOD, ("name", "a\nb"))),
        ("8.2.1 space around a value", (*GOOD, ("name", " v"))),
        ("8.2.2 connection", (*GOOD, ("connection", "close"))),
        ("8.2.2 transfer-encoding", (*GOOD, ("transfer-encoding", "chunked"))),
        ("8.2.2 te", (*GOOD[:3], ("te", "gzip"))),
        ("8.3 unknown pseudo", (*GOOD, (":unknown", "v"))),
        ("8.3 pseudo after regular", (("a", "b"), *GOOD)),
        ("8.3 response pseudo", (*GOOD[:3], (":status", "200"))),
        ("8.3.1 repeated", (GOOD[0], *GOOD)),
        ("8.3.1 no path", (GOOD[0], GOOD[1])),
        ("8.3.1 empty path", (GOOD[0], GOOD[1], (":path", ""))),
        ("8.3.1 no method", GOOD[1:]),
        ("8.5 CONNECT with a path", ((":method", "CONNECT"), *GOOD[1:])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_requests(section: str, fields: Fields) -> None:
    """Each rule of section 8 finds its breach."""
    assert Headers(fields, Kind.REQUEST).problem is not None


def test_well_formed_lists() -> None:
    """The rules let proper lists through."""
    assert Headers(GOOD, Kind.REQUEST).problem is None
    assert Headers(((":method", "CONNECT"), (":authority", "x:1")), Kind.REQUEST).problem is None
    assert Headers(((":status", "200"),), Kind.RESPONSE).problem is None
    assert Headers((("grpc-status", "0"),), Kind.TRAILERS).problem is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.RESPONSE, ()),
        (Kind.RESPONSE, ((":status", "20"),)),
        (Kind.RESPONSE, ((":path", "/"), (":status", "200"))),
        (Kind.TRAILERS, ((":status", "200"),)),
    ],
)
def test_malformed_responses_and_trailers(kind: Kind, fields: Fields) -> None:
    """Sections 8.1 and 8.3.2: a response has a status, trailers have no pseudo-fields."""
    assert Headers(fields, kind).problem is not None


@pytest.mark.parametrize(
    ("values", "length"),
    [((), None), (("5",), 5), (("5", "5"), 5), (("5", "6"), -1), (("-1",), -1), (("x",), -1)],
)
def test_content_length(values: tuple[str, ...], length: int | None) -> None:
    """RFC 9110 section 8.6: one number, perhaps repeated; anything else cannot be met by any body."""
    fields = tuple(("content-length", value) for value in values)
    assert Headers(fields, Kind.IGNORED).content_length == length
