"""What a connection makes of frames that break the rules, by section of RFC 9113."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import END_HEADERS, END_STREAM, Setting, Type, frame
from whispr.http2.headers import encode
from whispr.http2.limits import Limits

Peer = Any
Make = Callable[..., Peer]

FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), (":authority", "x")]
BLOCK = encode(FIELDS)


def name(value: object) -> str:
    """Cases are known by their section."""
    return value if isinstance(value, str) else ""


def open_(stream_id: int, *, end: bool = False, block: bytes = BLOCK) -> bytes:
    return frame(Type.HEADERS, END_HEADERS | (END_STREAM if end else 0), stream_id, block)


def data(stream_id: int, payload: bytes = b"x", *, end: bool = False) -> bytes:
    return frame(Type.DATA, END_STREAM if end else 0, stream_id, payload)


def setting(name: int, value: int) -> bytes:
    return frame(Type.SETTINGS, 0, 0, name.to_bytes(2, "big") + value.to_bytes(4, "big"))


RST = frames.rst_stream(1, ErrorCode.CANCEL)
LENGTH_5 = encode([*FIELDS, ("content-length", "5")])

CONNECTION_ERRORS = [
    ("4.3 block that does not decode", [open_(1, block=b"\x80")], "COMPRESSION_ERROR"),
    ("5.1 idle: DATA", [data(1)], "PROTOCOL_ERROR"),
    ("5.1 idle: RST_STREAM", [RST], "PROTOCOL_ERROR"),
    ("5.1 idle: WINDOW_UPDATE", [frames.window_update(1, 1)], "PROTOCOL_ERROR"),
    ("5.1 idle: even stream", [data(2)], "PROTOCOL_ERROR"),
    ("5.1 closed by RST_STREAM: DATA", [open_(1), RST, data(1)], "STREAM_CLOSED"),
    ("5.1 closed by RST_STREAM: HEADERS", [open_(1), RST, open_(1)], "STREAM_CLOSED"),
    ("5.1.1 even id from a client", [open_(2)], "PROTOCOL_ERROR"),
    ("5.1.1 id below the last", [open_(5), open_(3)], "PROTOCOL_ERROR"),
    ("6.1 padding exceeds the frame", [open_(1), frame(Type.DATA, 8, 1, b"\x09abc")], "PROTOCOL_ERROR"),
    ("6.5 ACK with a payload", [frame(Type.SETTINGS, frames.ACK, 0, bytes(6))], "FRAME_SIZE_ERROR"),
    ("6.5 length", [frame(Type.SETTINGS, 0, 0, bytes(5))], "FRAME_SIZE_ERROR"),
    ("6.5.2 ENABLE_PUSH", [setting(2, 2)], "PROTOCOL_ERROR"),
    ("6.5.2 INITIAL_WINDOW_SIZE", [setting(4, 2**31)], "FLOW_CONTROL_ERROR"),
    ("6.5.2 MAX_FRAME_SIZE below", [setting(5, 2**14 - 1)], "PROTOCOL_ERROR"),
    ("6.5.2 MAX_FRAME_SIZE above", [setting(5, 2**24)], "PROTOCOL_ERROR"),
    ("6.6 PUSH_PROMISE", [open_(1), frame(Type.PUSH_PROMISE, 4, 1, bytes(4))], "PROTOCOL_ERROR"),
    ("6.8 length", [frame(Type.GOAWAY, 0, 0, bytes(7))], "FRAME_SIZE_ERROR"),
    ("6.9 zero increment", [frames.window_update(0, 0)], "PROTOCOL_ERROR"),
    ("6.9.1 overflow", [frames.window_update(0, 2**31 - 1)], "FLOW_CONTROL_ERROR"),
    (
        "6.9.2 overflow by SETTINGS",
        [open_(1), frames.window_update(1, 2**31 - 1 - 65535), setting(4, 65536)],
        "FLOW_CONTROL_ERROR",
    ),
    ("6.10 CONTINUATION alone", [frame(Type.CONTINUATION, 4, 1, b"")], "PROTOCOL_ERROR"),
    (
        "6.10 CONTINUATION after END_HEADERS",
        [open_(1), frame(Type.CONTINUATION, 4, 1, b"")],
        "PROTOCOL_ERROR",
    ),
    ("6.10 another frame within a block", [frame(Type.HEADERS, 0, 1, BLOCK), data(1)], "PROTOCOL_ERROR"),
    (
        "6.10 another stream within a block",
        [frame(Type.HEADERS, 0, 1, BLOCK), frame(Type.CONTINUATION, 4, 3, b"")],
        "PROTOCOL_ERROR",
    ),
]


@pytest.mark.parametrize(
    ("section", "pieces", "code"), CONNECTION_ERRORS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_connection_errors(raw_server: Make, section: str, pieces: list[bytes], code: str) -> None:
    """The connection ends with GOAWAY, says so, and hears nothing more."""
    peer = raw_server()
    peer.tell(*pieces)
    assert peer.goaway() == code
    assert isinstance(peer.reported[-1], events.ConnectionFailed)
    assert peer.connection.failed
    assert peer.tell(open_(101)) == []


STREAM_ERRORS = [
    ("5.1 half-closed: DATA", [open_(1, end=True), data(1)], "STREAM_CLOSED"),
    ("5.1 half-closed: HEADERS", [open_(1, end=True), open_(1, end=True)], "STREAM_CLOSED"),
    ("6.3 length", [open_(1), frame(Type.PRIORITY, 0, 1, bytes(4))], "FRAME_SIZE_ERROR"),
    ("6.9 zero increment", [open_(1), frames.window_update(1, 0)], "PROTOCOL_ERROR"),
    ("6.9.1 overflow", [open_(1), frames.window_update(1, 2**31 - 1)], "FLOW_CONTROL_ERROR"),
    ("8.1 trailers without END_STREAM", [open_(1), open_(1)], "PROTOCOL_ERROR"),
    (
        "8.1 pseudo-fields in trailers",
        [open_(1), open_(1, end=True, block=encode([(":path", "/")]))],
        "PROTOCOL_ERROR",
    ),
    ("8.1.1 body too long", [open_(1, block=LENGTH_5), data(1, b"123456")], "PROTOCOL_ERROR"),
    ("8.1.1 body too short", [open_(1, block=LENGTH_5), data(1, b"1234", end=True)], "PROTOCOL_ERROR"),
    ("8.1.1 no body", [open_(1, block=LENGTH_5, end=True)], "PROTOCOL_ERROR"),
    ("8.2 upper case", [open_(1, block=encode([*FIELDS, ("Bad", "v")]))], "PROTOCOL_ERROR"),
    ("8.2.2 connection", [open_(1, block=encode([*FIELDS, ("connection", "close")]))], "PROTOCOL_ERROR"),
    ("8.3.1 no path", [open_(1, block=encode(FIELDS[:2]))], "PROTOCOL_ERROR"),
]


@pytest.mark.parametrize(
    ("section", "pieces", "code"), STREAM_ERRORS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_stream_errors(raw_server: Make, section: str, pieces: list[bytes], code: str) -> None:
    """The stream is reset with the right code and reported; the connection goes on."""
    peer = raw_server()
    peer.tell(*pieces)
    assert peer.resets() == {1: code}
    assert [e.remote for e in peer.reported if isinstance(e, events.StreamReset)] == [False]
    assert peer.goaway() is None
    (event,) = peer.tell(open_(3))
    assert isinstance(event, events.HeadersReceived)


IGNORED = [
    ("4.1 unknown type", [frame(0xFA, 0xFF, 1, b"what")]),
    ("5.1 idle: PRIORITY", [frame(Type.PRIORITY, 0, 9, bytes(5))]),
    ("5.1 closed: WINDOW_UPDATE", [open_(1), RST, frames.window_update(1, 1)]),
    ("5.1 closed: RST_STREAM again", [open_(1), RST, RST]),
    ("6.5.2 unknown setting", [setting(0xF000, 1)]),
    ("6.5 acknowledgement", [frames.SETTINGS_ACK]),
]


@pytest.mark.parametrize(("section", "pieces"), IGNORED, ids=name)
def test_what_is_ignored(raw_server: Make, section: str, pieces: list[bytes]) -> None:
    """These change nothing and fail nothing."""
    peer = raw_server()
    peer.tell(*pieces)
    assert peer.goaway() is None
    assert peer.resets() == {}


def test_frames_that_cross_our_reset_are_ignored(raw_server: Make) -> None:
    """Section 5.1: after our RST_STREAM the peer's frames on their way are no error, and their blocks count."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.reset(1, ErrorCode.CANCEL)
    peer.tell(data(1), open_(1, end=True, block=b"\x40\x01a\x01b"))
    assert peer.goaway() is None
    (event,) = peer.tell(open_(3, block=BLOCK + b"\xbe"))
    assert event.headers.fields[-1] == ("a", "b")


def test_first_frame_must_be_settings() -> None:
    """Section 3.4: anything before SETTINGS is a connection error."""
    from whispr.http2.connection import Connection, Role

    for first in (frames.ping(bytes(8)), frames.SETTINGS_ACK):
        connection = Connection(Role.SERVER)
        (event,) = connection.receive(frames.PREFACE + first)
        assert isinstance(event, events.ConnectionFailed)


def test_settings_and_pings_are_acknowledged(raw_server: Make) -> None:
    """Sections 6.5.3 and 6.7: each is answered, a ping with its own data; acknowledgements are not."""
    peer = raw_server()
    peer.tell(setting(3, 10), frames.ping(b"abcdefgh"), frames.ping(b"ijklmnop", ack=True))
    assert peer.said == [(Type.SETTINGS, frames.ACK, 0, b""), (Type.PING, frames.ACK, 0, b"abcdefgh")]
    assert peer.reported[-1] == events.PingAcknowledged(b"ijklmnop")


def test_a_server_that_has_answered_wants_no_more(raw_server: Make) -> None:
    """Section 8.1: a response complete before its request is followed by RST_STREAM(NO_ERROR)."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.send_headers(1, encode([(":status", "200")]), end_stream=True)
    peer.listen()
    assert peer.resets() == {1: "NO_ERROR"}
    assert peer.connection.open_streams == 0
    peer.tell(data(1))
    assert peer.goaway() is None


def test_streams_after_goaway_are_refused(raw_server: Make) -> None:
    """Section 6.8: the announcement refuses nothing, the final GOAWAY everything above its last id."""
    peer = raw_server()
    peer.connection.announce_shutdown()
    peer.tell(open_(1))
    peer.connection.go_away()
    peer.tell(open_(3))
    assert [frames.parse_goaway(p)[0] for kind, _, _, p in peer.said if kind == Type.GOAWAY] == [2**31 - 1, 1]
    assert peer.resets() == {3: "REFUSED_STREAM"}


# --- Clients ----------------------------------------------------------------------------------------------

STATUS = encode([(":status", "200")])

CLIENT_CONNECTION_ERRORS = [
    ("5.1.1 stream the server may not open", [open_(2, block=STATUS)]),
    ("5.1 idle", [open_(3, block=STATUS)]),
    ("6.5.2 ENABLE_PUSH from a server", [setting(Setting.ENABLE_PUSH, 1)]),
    ("8.4 PUSH_PROMISE", [frame(Type.PUSH_PROMISE, 4, 1, bytes(4) + BLOCK)]),
]


@pytest.mark.parametrize(
    ("section", "pieces"), CLIENT_CONNECTION_ERRORS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_client_connection_errors(raw_client: Make, section: str, pieces: list[bytes]) -> None:
    """What a server may not do ends the connection."""
    peer = raw_client()
    assert peer.connection.open_stream(BLOCK) == 1
    peer.tell(*pieces)
    assert peer.goaway() == "PROTOCOL_ERROR"


CLIENT_STREAM_ERRORS = [
    ("8.1 DATA before HEADERS", [data(1)]),
    ("8.3.2 no status", [open_(1, block=encode([("a", "b")]))]),
    ("15.2 interim ends", [open_(1, end=True, block=encode([(":status", "103")]))]),
]


@pytest.mark.parametrize(
    ("section", "pieces"), CLIENT_STREAM_ERRORS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_client_stream_errors(raw_client: Make, section: str, pieces: list[bytes]) -> None:
    """A malformed response resets its stream."""
    peer = raw_client()
    peer.connection.open_stream(BLOCK)
    peer.tell(*pieces)
    assert peer.resets() == {1: "PROTOCOL_ERROR"}


def test_interim_responses_are_passed_over(raw_client: Make) -> None:
    """RFC 9110 section 15.2: a 103 before the response is not the response."""
    peer = raw_client()
    peer.connection.open_stream(BLOCK)
    peer.tell(open_(1, block=encode([(":status", "103")])), open_(1, block=STATUS))
    (event,) = peer.reported
    assert event.headers.fields == ((":status", "200"),)
    assert not event.trailers


def test_the_peers_stream_limit(raw_client: Make) -> None:
    """Section 5.1.2: a client knows when it may not open another stream, and when it may again."""
    peer = raw_client(settings={Setting.MAX_CONCURRENT_STREAMS: 1})
    peer.connection.open_stream(BLOCK, end_stream=True)
    assert not peer.connection.streams_allowed
    peer.tell(open_(1, end=True, block=STATUS))
    assert peer.connection.streams_allowed


# --- Limits -----------------------------------------------------------------------------------------------


def test_too_many_streams_are_refused(raw_server: Make) -> None:
    """Section 5.1.2: a stream over the limit is refused, harmlessly for the others."""
    peer = raw_server(Limits(streams_max=2))
    peer.tell(open_(1), open_(3), open_(5))
    assert peer.resets() == {5: "REFUSED_STREAM"}
    peer.tell(frames.rst_stream(1, ErrorCode.CANCEL), open_(7))
    assert peer.resets() == {5: "REFUSED_STREAM"}


def test_a_header_list_over_the_limit_costs_its_stream(raw_server: Make) -> None:
    """Section 10.5.1: over 16 KiB the stream is reset; the connection and its dynamic table survive."""
    peer = raw_server()
    peer.tell(open_(1, block=encode([*FIELDS, ("big", "x" * 15_000)])))
    assert peer.resets() == {}
    over = encode([*FIELDS, ("big", "x" * 17_000)])
    peer.tell(frames.headers(3, over, False, frames.MIN_MAX_FRAME_SIZE))
    assert peer.resets() == {3: "ENHANCE_YOUR_CALM"}
    assert peer.goaway() is None


def test_a_header_block_without_end_is_cut_off(raw_server: Make) -> None:
    """CONTINUATIONs are limited in number, empty ones too, and in bytes."""
    for piece, most in ((b"", 17), (bytes(16_000), 5)):
        peer = raw_server()
        peer.tell(frame(Type.HEADERS, 0, 1, BLOCK))
        sent = 0
        while peer.goaway() is None:
            peer.tell(frame(Type.CONTINUATION, 0, 1, piece))
            sent += 1
        assert peer.goaway() == "ENHANCE_YOUR_CALM"
        assert sent <= most


FLOODS = [
    ("PING", lambda n: frames.ping(bytes(8))),
    ("SETTINGS", lambda n: frames.settings({})),
    ("SETTINGS acknowledgement", lambda n: frames.SETTINGS_ACK),
    ("PRIORITY", lambda n: frame(Type.PRIORITY, 0, 1, bytes(5))),
    ("WINDOW_UPDATE", lambda n: frames.window_update(0, 1)),
    ("unknown", lambda n: frame(0xEE, 0, 0, b"")),
    ("empty DATA", lambda n: (open_(1) if n == 0 else b"") + data(1, b"")),
    ("rapid reset", lambda n: open_(2 * n + 1) + frames.rst_stream(2 * n + 1, ErrorCode.CANCEL)),
    ("malformed requests", lambda n: open_(2 * n + 1, block=b"\x82")),
    ("refused streams", lambda n: open_(2 * n + 1)),
]


@pytest.mark.parametrize(("what", "piece"), FLOODS, ids=name)
def test_floods_end_the_connection(raw_server: Make, what: str, piece: Callable[[int], bytes]) -> None:
    """Each kind of control frame is good for the burst and no more."""
    peer = raw_server(Limits(control_frames_burst=100, streams_max=3))
    sent = 0
    while peer.goaway() is None and sent < 200:
        peer.tell(piece(sent))
        sent += 1
    assert peer.goaway() == "ENHANCE_YOUR_CALM"
    assert 98 <= sent <= 105


def test_time_and_traffic_earn_control_frames_back(raw_server: Make) -> None:
    """A ping a second for ever, and window updates with the data they answer, are no flood."""
    peer = raw_server(Limits(control_frames_burst=10, control_frames_per_s=1.0))
    for _ in range(100):
        peer.clock[0] += 1
        peer.tell(frames.ping(bytes(8)))
    for n in range(200):
        stream_id = 2 * n + 1
        peer.tell(open_(stream_id), data(stream_id, end=True), frames.window_update(0, 1))
        peer.connection.respond(stream_id, STATUS, b"x", encode([("grpc-status", "0")]))
    assert peer.goaway() is None
