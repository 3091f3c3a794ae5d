"""gRPC's own encoding, without a connection (grpc/doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import base64
import tracemalloc
from itertools import pairwise

import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from whispr.errors import Code, WhisprError, invalid, not_found
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers, Kind
from whispr.rpc import wire


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3600),
        ("2M", 120),
        ("3S", 3),
        ("250m", 0.25),
        ("10u", 1e-5),
        ("99999999n", 0.099999999),
        ("0S", 0),
    ],
)
def test_timeouts_are_read(text: str, seconds: float) -> None:
    """Every unit, and zero."""
    assert wire.parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", " 1S", "1S ", "1S\n", "٣S"]
)
def test_bad_timeouts(text: str) -> None:
    """More than 8 digits, other units, signs, spaces and other digits are refused."""
    with pytest.raises(ValueError, match="grpc-timeout"):
        wire.parse_timeout(text)


@given(st.floats(0, 1e10))
def test_a_timeout_survives_rounded_up(seconds: float) -> None:
    """What is sent is valid, and never less than what is left, nor much more."""
    text = wire.format_timeout(seconds)
    read = wire.parse_timeout(text)
    assert seconds <= read * (1 + 1e-9)
    assert read <= seconds * 1.02 + 1e-6


def test_close_deadlines_share_a_header_block() -> None:
    """Calls made microseconds after the same `fail_after` say the same timeout."""
    assert wire.format_timeout(4.99998) == wire.format_timeout(4.99991) == "5000m"


@given(st.text(max_size=200))
def test_messages_survive_percent_encoding(message: str) -> None:
    """Any text arrives as it was, over printable ASCII alone."""
    quoted = wire.quote_message(message)
    assert all(" " <= character <= "~" for character in quoted)
    assert wire.unquote_message(quoted) == message.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100%", "100%"),
        ("%zz", "%zz"),
        ("%ff", "\ufffd"),
        ("a%20b", "a b"),
        ("%", "%"),
        ("%4", "%4"),
        ("%%41", "%A"),
        ("%c3%B6%C3%b6", "öö"),
        ("+", "+"),
        ("ö".encode().decode("latin-1"), "ö"),
    ],
)
def test_bad_percent_encoding_is_kept(text: str, message: str) -> None:
    """A broken message is shown as well as it can be, not replaced by another error."""
    assert wire.unquote_message(text) == message


@given(st.binary(max_size=100))
def test_binary_metadata_survives(value: bytes) -> None:
    """Unpadded as we send it, and padded as others may."""
    text = wire.encode_binary(value)
    assert "=" not in text
    assert wire.decode_binary(text) == wire.decode_binary(text + "=" * (-len(text) % 4)) == value


def test_joined_binary_values_are_separated() -> None:
    """Values that a proxy joined with commas come apart again."""
    pairs = wire.metadata_pairs((("k-bin", "YQ,Yg==, Yw"), ("k", "a,b")))
    assert pairs == [("k-bin", b"a"), ("k-bin", b"b"), ("k-bin", b"c"), ("k", "a,b")]


def test_reserved_fields_are_not_metadata() -> None:
    """Pseudo-fields, grpc- fields, te and content-type stay below."""
    fields = ((":path", "/"), ("grpc-timeout", "1S"), ("te", "trailers"), ("content-type", "x"), ("k", "v"))
    assert wire.metadata_pairs(fields) == [("k", "v")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grpc-status", "0"),
        ("Upper", "v"),
        ("sp ace", "v"),
        ("", "v"),
        (":path", "v"),
        ("te", "v"),
        ("k", b"bytes"),
        ("k-bin", "text"),
        ("k", "new\nline"),
        ("k", "ünicode"),
    ],
)
def test_metadata_that_may_not_be_sent(name: str, value: str | bytes) -> None:
    """The error names the offender."""
    with pytest.raises(ValueError, match=repr(name)):
        wire.metadata_fields([(name, value)])


@given(st.lists(st.binary(max_size=50), max_size=6), st.lists(st.integers(0, 400), max_size=8))
def test_messages_survive_any_split(messages: list[bytes], cuts: list[int]) -> None:
    """Wherever DATA frames end, the same messages come out."""
    data = b"".join(map(wire.frame_message, messages))
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader = wire.MessageReader(50)
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert [message for piece in pieces for message in reader.feed(piece)] == messages
    assert not reader.incomplete


@given(
    st.lists(st.sampled_from([0, 1, 16_383, 16_384, 100_000]), max_size=6),
    st.lists(st.integers(0, 400_000), max_size=12),
    st.booleans(),
)
def test_long_messages_survive_any_split(sizes: list[int], cuts: list[int], views: bool) -> None:
    """Messages long and short, in bytes or in views of a read."""
    messages = [bytes([number]) * size for number, size in enumerate(sizes)]
    data = b"".join(map(wire.frame_message, messages))
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    reader = wire.MessageReader(100_000)
    pieces = [data[start:end] for start, end in pairwise(edges)]
    read = [message for piece in pieces for message in reader.feed(memoryview(piece) if views else piece)]
    assert read == messages
    assert all(type(message) is bytes for message in read)
    assert not reader.incomplete


def test_parts_of_a_message_take_as_much_memory_as_they_have() -> None:
    """A thousand parts of one byte, each out of a large read, hold neither those reads nor an object for each."""
    reader = wire.MessageReader(10_000_000)
    reader.feed(b"\0" + (5_000_000).to_bytes(4, "big"))
    tracemalloc.start()
    try:
        for _ in range(1000):
            reader.feed(memoryview(bytes(100_000))[:1])
        reader.feed(memoryview(bytes(1_000_000))[:20_000])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 30_000


def test_an_oversize_message_is_refused_at_its_prefix() -> None:
    """Five bytes are enough; nothing of the message is buffered."""
    with pytest.raises(WhisprError) as caught:
        wire.MessageReader(100).feed(b"\0\0\0\0\x65")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert wire.MessageReader(100).feed(b"\0\0\0\0\x64") == []


def test_a_compressed_message_without_an_encoding_is_an_error() -> None:
    """The flag needs a grpc-encoding."""
    with pytest.raises(WhisprError) as caught:
        wire.MessageReader(100).feed(b"\x01\0\0\0\x01a")
    assert caught.value.code is Code.INTERNAL


def garbled_details() -> str:
    """A status like the trailers', with an ErrorInfo that does not parse."""
    status = Status(code=int(Code.NOT_FOUND))
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    return base64.b64encode(status.SerializeToString()).decode()


GARBLED_DETAILS = garbled_details()


def trailers(*fields: tuple[str, str]) -> Headers:
    return Headers(fields, Kind.TRAILERS)


@pytest.mark.parametrize(
    "error", [invalid({"password": "at least 8 ü characters"}), not_found("room", "x\n%")]
)
def test_an_error_survives_trailers(error: WhisprError) -> None:
    """Code, message and details arrive."""
    read = wire.read_status(trailers(*wire.status_fields(error)))
    assert read is not None
    assert (read.code, read.message, read.details) == (error.code, error.message, error.details)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ([], Code.UNKNOWN),
        ([("grpc-status", "13")], Code.INTERNAL),
        ([("grpc-status", "99")], Code.UNKNOWN),
        ([("grpc-status", "x")], Code.UNKNOWN),
        ([("grpc-status", "00")], Code.UNKNOWN),
        ([("grpc-status", "5"), ("grpc-status-details-bin", "!!")], Code.NOT_FOUND),
        ([("grpc-status", "5"), ("grpc-status-details-bin", "CAM")], Code.NOT_FOUND),
        ([("grpc-status", "5"), ("grpc-status-details-bin", GARBLED_DETAILS)], Code.NOT_FOUND),
    ],
)
def test_odd_statuses(fields: list[tuple[str, str]], code: Code) -> None:
    """Missing, unknown and malformed statuses, and details that are broken or contradict, keep their sense."""
    error = wire.read_status(trailers(*fields))
    assert error is not None
    assert (error.code, error.retry_after_s) == (code, None)


def test_long_details_are_left_out() -> None:
    """A status must fit a peer's header list; the code matters more than the details."""
    fields = dict(wire.status_fields(invalid({"f": "x" * 20_000})))
    assert "grpc-status-details-bin" not in fields
    assert len(fields["grpc-message"]) <= 1024


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.INTERNAL), (401, Code.UNAUTHENTICATED), (403, Code.PERMISSION_DENIED), (404, Code.UNIMPLEMENTED),
        (429, Code.UNAVAILABLE), (502, Code.UNAVAILABLE), (503, Code.UNAVAILABLE), (504, Code.UNAVAILABLE),
        (500, Code.UNKNOWN), (302, Code.UNKNOWN),
    ],
)  # fmt: skip
def test_http_statuses(status: int, code: Code) -> None:
    """grpc/doc/http-grpc-status-mapping.md."""
    error = wire.read_response(
        Headers(((":status", str(status)), ("content-type", "text/html")), Kind.RESPONSE)
    )
    assert error is not None
    assert error.code is code


@pytest.mark.parametrize(
    "kind", [None, "text/html", "application/json", "application/grpcx", "application/grpc-web"]
)
def test_what_is_not_grpc(kind: str | None) -> None:
    """Content types that merely resemble gRPC's are not."""
    assert not wire.is_grpc(kind)


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"]
)
def test_what_is_grpc(kind: str) -> None:
    """The plain type, the protobuf one, and parameters."""
    assert wire.is_grpc(kind)


@pytest.mark.parametrize(
    ("reset", "code"),
    [
        (ErrorCode.REFUSED_STREAM, Code.UNAVAILABLE),
        (ErrorCode.CANCEL, Code.CANCELLED),
        (ErrorCode.ENHANCE_YOUR_CALM, Code.RESOURCE_EXHAUSTED),
        (ErrorCode.PROTOCOL_ERROR, Code.INTERNAL),
    ],
)
def test_reset_codes(reset: ErrorCode, code: Code) -> None:
    """PROTOCOL-HTTP2.md, errors."""
    assert wire.reset_error(reset, "").code is code
