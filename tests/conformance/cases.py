"""What a client may send, and what a server must answer: every rule, by section of RFC 9113 and RFC 7541.

`cases(dialect)` makes the table twice: once with requests that any HTTP/2 client would send to any server (GET
and POST to "/", of no content type that gRPC knows), as general suites do, and once with gRPC calls.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance.cases_messages import PARTS as MESSAGE_PARTS
from tests.conformance.raw import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    continuation,
    data,
    frame,
    goaway,
    headers,
    priority,
    rst_stream,
    settings,
    window_update,
)
from tests.conformance.table import (
    ALIVE,
    CLOSED,
    COMPRESSION,
    ENABLE_PUSH,
    FLOW,
    FRAME_BYTES,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    PONG,
    PROTOCOL,
    REFUSED,
    SETTLE,
    SIZE,
    STREAMS_MAX,
    Case,
    Dialect,
    Expected,
    P,
    Row,
    Says,
    Wait,
    WaitForData,
    answered,
    fatal,
    fault,
)


def cases(d: Dialect) -> Iterator[Case]:
    """The whole table."""
    for part in (*PARTS, *MESSAGE_PARTS):
        for section, name, steps, expected, *rest in part(d):
            yield Case(section, name, steps if isinstance(steps, tuple) else (steps,), expected, *rest)


def _starting(d: Dialect) -> Iterator[Row]:
    yield "3.4", "client preface, SETTINGS follow", PREFACE + settings() + P, PONG, False
    yield "3.4", "SETTINGS with values", PREFACE + settings((3, 100), (4, 65535), (5, 16384)) + P, PONG, False
    yield "3.4", "wrong preface", b"INVALID CONNECTION PREFACE\r\n\r\n", fatal(PROTOCOL), False
    yield "3.4", "preface wrong in its last octet", PREFACE[:-1] + b"x" + settings(), fatal(PROTOCOL), False
    yield "3.4", "HTTP/1.1 request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", fatal(PROTOCOL), False
    yield (
        "3.4",
        "TLS to a cleartext port",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        fatal(PROTOCOL),
        False,
    )
    yield "3.4", "PING before SETTINGS", PREFACE + P, fatal(PROTOCOL), False
    yield "3.4", "request before SETTINGS", PREFACE + d.request(), fatal(PROTOCOL), False
    yield "3.4", "acknowledgement before SETTINGS", PREFACE + frame(SETTINGS, ACK), fatal(PROTOCOL), False


def _frames(d: Dialect) -> Iterator[Row]:
    yield "4.1", "frame of an unknown type", frame(0x16, 0, 0, bytes(8)) + P, PONG
    yield (
        "4.1",
        "unknown type on a stream",
        d.posting() + frame(0x16, 0xFF, 1, b"x") + data(1, d.message),
        answered(),
    )
    yield "4.1", "undefined flags", frame(PING, 0x16, 0, b"h2suite!"), PONG
    yield "4.1", "undefined flags on DATA", d.posting() + data(1, d.message, flags=0xF6), answered()
    yield "4.1", "undefined flags on DATA with padding", (
        d.posting(), data(1, bytes((3,)) + d.message + bytes(3), flags=0x28),
    ), answered()  # fmt: skip
    yield "4.1", "undefined flags on HEADERS", headers(1, block(*d.get), flags=0x4 | 0xD2), answered()
    yield "4.1", "reserved bit of the stream", frame(PING, 0, 1 << 31, b"h2suite!"), PONG
    yield "4.1", "reserved bit on a request", headers(1 | 1 << 31, block(*d.get)), answered()
    yield "4.2", "DATA of 2^14 octets", (
        d.posting(1), data(1, bytes(5) * 3276, end=False), data(1, bytes(4)[:4], end=True),
    ), answered()  # fmt: skip
    whole = bytes(5) * 3276 + bytes(4)
    yield "4.2", "DATA of exactly the limit", d.posting() + data(1, whole), answered()
    yield "4.2", "DATA over the limit", d.posting() + data(1, bytes(FRAME_BYTES + 1)), fault(SIZE)
    large = block(*d.get, ("x-large", "a" * FRAME_BYTES))
    yield "4.2", "HEADERS over the limit", headers(1, large), fatal(SIZE)
    yield "4.2", "SETTINGS over the limit", settings(*[(4, 1)] * 2731), fatal(SIZE)
    yield "4.2", "unknown type over the limit", frame(0x16, 0, 0, bytes(FRAME_BYTES + 1)), fatal(SIZE)
    for kind in (PING, RST_STREAM, WINDOW_UPDATE, GOAWAY):
        name = {PING: "PING", RST_STREAM: "RST_STREAM", WINDOW_UPDATE: "WINDOW_UPDATE", GOAWAY: "GOAWAY"}[
            kind
        ]
        stream = 1 if kind == RST_STREAM else 0
        yield "4.2", f"{name} of no octets", d.request(end=False) + frame(kind, 0, stream), fatal(SIZE)
    yield "4.2", "HEADERS too short for its priority", (
        frame(HEADERS, END_HEADERS | PRIORITIZED | 1, 1, bytes(3)),
    ), fatal(SIZE)  # fmt: skip
    yield (
        "4.2",
        "DATA too short for its pad length",
        d.posting() + data(1, b"", flags=PADDED),
        fatal(SIZE, PROTOCOL),
    )
    yield "4.3", "block that does not decode", headers(1, b"\x40"), fatal(COMPRESSION)
    yield "4.3", "PRIORITY within a block", (
        headers(1, block(*d.get), flags=0), priority(1, 0), continuation(1, b""),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "4.3", "HEADERS of another stream within a block", (
        headers(1, block(*d.get), flags=0), d.request(3),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "4.3", "block in two frames", (
        headers(1, block(*d.get)[:9], flags=0), continuation(1, block(*d.get)[9:]),
    ), answered()  # fmt: skip


def _states(d: Dialect) -> Iterator[Row]:
    idle = (
        ("DATA", data(1, b"test")),
        ("RST_STREAM", rst_stream(1)),
        ("WINDOW_UPDATE", window_update(1, 100)),
        ("CONTINUATION", continuation(1, block(*d.get))),
    )
    for name, sent in idle:
        yield "5.1", f"idle: {name}", sent, fatal(PROTOCOL)
    yield "5.1", "idle: PRIORITY", priority(1, 0) + d.request(), answered()
    yield "5.1", "idle: PRIORITY on a later stream", priority(101, 0) + d.request(), answered()
    yield "5.1", "half-closed (remote): DATA", d.request() + data(1, b"test"), fault(CLOSED)
    yield "5.1", "half-closed (remote): HEADERS", d.request() + d.request(), fault(CLOSED)
    yield "5.1", "half-closed (remote): CONTINUATION", (
        d.request(), continuation(1, block(*d.get)),
    ), fault(CLOSED, PROTOCOL)  # fmt: skip
    yield "5.1", "half-closed (remote): WINDOW_UPDATE", d.request() + window_update(1, 100), answered()
    yield "5.1", "half-closed (remote): PRIORITY", d.request() + priority(1, 0), answered()
    yield "5.1", "half-closed (remote): RST_STREAM", d.request() + rst_stream(1) + P, PONG
    after_reset: tuple[tuple[str, bytes, Expected], ...] = (
        ("DATA", data(1, b"test"), fault(CLOSED)),
        ("HEADERS", d.request(), fault(CLOSED)),
        ("CONTINUATION", continuation(1, block(*d.get)), fault(CLOSED, PROTOCOL)),
        ("PRIORITY", priority(1, 0), ALIVE),
        ("WINDOW_UPDATE", window_update(1, 1), ALIVE),
        ("RST_STREAM", rst_stream(1), ALIVE),
    )
    for name, sent, expected in after_reset:
        yield "5.1", f"closed by RST_STREAM: {name}", (d.posting(), rst_stream(1), sent), expected
    after_end: tuple[tuple[str, bytes, Expected], ...] = (
        ("DATA", data(1, b"test"), fatal(CLOSED)),
        ("HEADERS", d.request(), fatal(CLOSED)),
        ("CONTINUATION", continuation(1, block(*d.get)), fatal(CLOSED, PROTOCOL)),
        ("PRIORITY", priority(1, 0), answered()),
        ("WINDOW_UPDATE", window_update(1, 1), answered()),
        ("RST_STREAM", rst_stream(1), answered()),
    )
    for name, sent, expected in after_end:
        yield "5.1", f"closed by both: {name}", (d.request(), Wait(), sent), expected


def _identifiers(d: Dialect) -> Iterator[Row]:
    yield "5.1.1", "even stream id", d.request(2), fatal(PROTOCOL)
    yield "5.1.1", "lower stream id", d.request(5) + d.request(3), fatal(PROTOCOL)
    yield "5.1.1", "ids may skip", d.request(1) + d.request(101), answered(1, 101)
    yield "5.1.1", "the highest id", d.request(2**31 - 1), answered(2**31 - 1)
    # With no window, responses stay where they are and so do their streams.
    many = b"".join(d.request(2 * n + 1) for n in range(STREAMS_MAX + 1))
    last = 2 * STREAMS_MAX + 1
    yield "5.1.2", "more streams than allowed", (
        settings((INITIAL_WINDOW_SIZE, 0)), many,
    ), fault(PROTOCOL, REFUSED, stream=last)  # fmt: skip
    opened = b"".join(d.posting(2 * n + 1) for n in range(STREAMS_MAX + 1))
    yield "5.1.2", "more streams than allowed, all unfinished", opened, fault(PROTOCOL, REFUSED, stream=last)
    yield "5.1.2", "a closed stream makes room", (
        b"".join(d.posting(2 * n + 1) for n in range(STREAMS_MAX)), rst_stream(1), SETTLE, d.request(last),
    ), answered(last)  # fmt: skip


def _depends(on: int) -> bytes:
    return on.to_bytes(4, "big") + b"\xff"


def _priorities(d: Dialect) -> Iterator[Row]:
    flags = END_HEADERS | PRIORITIZED
    yield "5.3", "HEADERS with a priority", headers(1, _depends(0) + block(*d.get), flags=flags), answered()
    yield (
        "5.3",
        "HEADERS that depends on itself",
        headers(1, _depends(1) + block(*d.get), flags=flags),
        fault(PROTOCOL),
    )
    yield "5.3", "PRIORITY that depends on itself", d.posting() + priority(1, 1), fault(PROTOCOL)
    yield "5.3", "PRIORITY that depends on itself, idle", priority(3, 3), fault(PROTOCOL, stream=3)
    yield "6.3", "PRIORITY", priority(1, 0) + P, PONG
    yield "6.3", "PRIORITY, exclusive", priority(1, 1 << 31) + P, PONG
    yield "6.3", "PRIORITY on stream 0", priority(0, 0), fatal(PROTOCOL)
    yield "6.3", "length other than 5", d.posting() + frame(PRIORITY, 0, 1, bytes(4)), fault(SIZE)
    yield "6.3", "length other than 5, idle", frame(PRIORITY, 0, 1, bytes(6)), fault(SIZE)


def _errors(d: Dialect) -> Iterator[Row]:
    yield "5.4.1", "an error ends the connection", d.posting() + frame(PING, 0, 3, bytes(8)), fatal(PROTOCOL)
    yield "5.4.1", "GOAWAY names the last stream", (
        d.posting(1), d.posting(3), frame(PING, 0, 3, bytes(8)),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "5.4.2", "an error of one stream leaves the others", (
        d.posting(1), d.posting(3), window_update(1, 0), data(3, d.message),
    ), fault(PROTOCOL)  # fmt: skip
    yield "5.5", "unknown frame on stream 0", frame(0xFF, 0xFF, 0, b"extension") + P, PONG
    yield "5.5", "unknown frame on an idle stream", frame(0xFF, 0, 7, b"extension") + P, PONG
    yield "5.5", "unknown frame within a block", (
        headers(1, block(*d.get)[:5], flags=0), frame(0xFF, 0, 0, b""), continuation(1, block(*d.get)[5:]),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "7", "GOAWAY with an unknown code", goaway(0, 0xFF) + P, PONG
    yield "7", "RST_STREAM with an unknown code", d.posting() + rst_stream(1, 0xFF) + P, PONG


def _data(d: Dialect) -> Iterator[Row]:
    yield "6.1", "DATA", d.posting() + data(1, d.message), answered()
    yield "6.1", "several DATA", (
        d.posting(), data(1, d.message[:1], end=False), data(1, d.message[1:], end=False), data(1),
    ), answered()  # fmt: skip
    yield "6.1", "DATA with padding", (
        d.posting(), data(1, b"\x06" + d.message + bytes(6), flags=PADDED),
    ), answered()  # fmt: skip
    yield (
        "6.1",
        "DATA that is all padding",
        d.posting() + data(1, b"\x06" + bytes(6), flags=PADDED),
        answered(),
    )
    yield (
        "6.1",
        "DATA with a pad length of 0",
        d.posting() + data(1, b"\0" + d.message, flags=PADDED),
        answered(),
    )
    yield "6.1", "DATA on stream 0", data(0, b"test"), fatal(PROTOCOL)
    yield (
        "6.1",
        "padding as long as the payload",
        d.posting() + data(1, b"\x05test", flags=PADDED),
        fatal(PROTOCOL),
    )
    yield (
        "6.1",
        "padding longer than the payload",
        d.posting() + data(1, b"\xfftest", flags=PADDED),
        fatal(PROTOCOL),
    )
    yield "6.1", "DATA after END_STREAM", (
        d.posting(), data(1, d.message), data(1, b"more"),
    ), fault(CLOSED)  # fmt: skip


def _headers(d: Dialect) -> Iterator[Row]:
    whole = block(*d.get)
    yield "6.2", "HEADERS", d.request(), answered()
    padded = headers(1, b"\x08" + whole + bytes(8), flags=END_HEADERS | PADDED)
    yield "6.2", "HEADERS with padding", padded, answered()
    both = b"\x08" + bytes(5) + whole + bytes(8)
    yield (
        "6.2",
        "padding and priority",
        headers(1, both, flags=END_HEADERS | PADDED | PRIORITIZED),
        answered(),
    )
    yield "6.2", "HEADERS on stream 0", headers(0, whole), fatal(PROTOCOL)
    yield "6.2", "padding longer than the payload", (
        headers(1, b"\xff" + block((":method", "GET")), flags=END_HEADERS | PADDED),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "6.2", "PRIORITY between HEADERS and CONTINUATION", (
        headers(1, whole, flags=0), priority(1, 0), continuation(1, b""),
    ), fatal(PROTOCOL)  # fmt: skip
    yield (
        "6.2",
        "empty HEADERS, all in CONTINUATION",
        headers(1, b"", flags=0) + continuation(1, whole),
        answered(),
    )


def _small_frames(d: Dialect) -> Iterator[Row]:
    yield "6.4", "RST_STREAM", d.posting() + rst_stream(1) + P, PONG
    yield "6.4", "RST_STREAM on stream 0", rst_stream(0), fatal(PROTOCOL)
    yield "6.4", "RST_STREAM on an idle stream", rst_stream(1), fatal(PROTOCOL)
    for size in (3, 5):
        sent = d.posting() + frame(RST_STREAM, 0, 1, bytes(size))
        yield "6.4", f"RST_STREAM of {size} octets", sent, fatal(SIZE)
    pushed = (2).to_bytes(4, "big") + block(*d.get)
    yield "6.6", "PUSH_PROMISE", d.posting() + frame(PUSH_PROMISE, END_HEADERS, 1, pushed), fatal(PROTOCOL)
    yield "6.6", "PUSH_PROMISE on stream 0", frame(PUSH_PROMISE, END_HEADERS, 0, pushed), fatal(PROTOCOL)
    yield (
        "8.4",
        "a client cannot push",
        d.request() + frame(PUSH_PROMISE, END_HEADERS, 1, pushed),
        fatal(PROTOCOL),
    )


def _settings(d: Dialect) -> Iterator[Row]:
    ack = Says(SETTINGS, ACK, b"")
    yield "6.5", "SETTINGS", settings((MAX_CONCURRENT_STREAMS, 100)), ack
    yield "6.5", "empty SETTINGS", settings(), ack
    yield "6.5", "acknowledgement", frame(SETTINGS, ACK) + P, PONG
    yield "6.5", "acknowledgement with a payload", frame(SETTINGS, ACK, 0, b"\0"), fatal(SIZE)
    yield "6.5", "acknowledgement with a setting", frame(SETTINGS, ACK, 0, bytes(6)), fatal(SIZE)
    yield "6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, bytes((0, 3, 0, 0, 0, 100))), fatal(PROTOCOL)
    yield "6.5", "acknowledgement on a stream", frame(SETTINGS, ACK, 1), fatal(PROTOCOL)
    yield "6.5", "length not a multiple of 6", frame(SETTINGS, 0, 0, b"\0\x03\0"), fatal(SIZE)
    yield "6.5.2", "ENABLE_PUSH of 2", settings((ENABLE_PUSH, 2)), fatal(PROTOCOL)
    for value in (0, 1):
        yield "6.5.2", f"ENABLE_PUSH of {value}", settings((ENABLE_PUSH, value)), ack
    yield "6.5.2", "INITIAL_WINDOW_SIZE of 2^31", settings((INITIAL_WINDOW_SIZE, 2**31)), fatal(FLOW)
    yield "6.5.2", "INITIAL_WINDOW_SIZE of 2^31-1", settings((INITIAL_WINDOW_SIZE, 2**31 - 1)), ack
    for value in (0, 2**14 - 1, 2**24):
        yield "6.5.2", f"MAX_FRAME_SIZE of {value}", settings((MAX_FRAME_SIZE, value)), fatal(PROTOCOL)
    for value in (2**14, 2**24 - 1):
        yield "6.5.2", f"MAX_FRAME_SIZE of {value}", settings((MAX_FRAME_SIZE, value)), ack
    yield "6.5.2", "an unknown setting", settings((0xFF, 1)), ack
    yield "6.5.2", "HEADER_TABLE_SIZE of 0", settings((HEADER_TABLE_SIZE, 0)) + d.request(), answered()
    yield "6.5.2", "MAX_HEADER_LIST_SIZE", settings((6, 4096)) + d.request(), answered()
    # Values apply in the order they stand in (section 6.5.3): the last one holds.
    yield "6.5.3", "the same setting twice", (
        settings((INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)), d.request(), WaitForData(1, 1),
    ), ALIVE  # fmt: skip
    yield "6.5.3", "every SETTINGS is acknowledged", settings() * 3, ack


def _ping_goaway(d: Dialect) -> Iterator[Row]:
    yield "6.7", "PING", P, PONG
    yield "6.7", "PING with ACK is not answered", frame(PING, ACK, 0, b"invalid!") + P, PONG
    yield "6.7", "PING on a stream", frame(PING, 0, 1, bytes(8)), fatal(PROTOCOL)
    for size in (6, 9):
        yield "6.7", f"PING of {size} octets", frame(PING, 0, 0, bytes(size)), fatal(SIZE)
    yield "6.8", "GOAWAY", goaway() + P, PONG
    yield "6.8", "GOAWAY ends no stream", d.posting() + goaway() + data(1, d.message), answered()
    yield "6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), fatal(PROTOCOL)
    yield "6.8", "GOAWAY of 7 octets", frame(GOAWAY, 0, 0, bytes(7)), fatal(SIZE)
    yield "6.8", "GOAWAY with debug data", frame(GOAWAY, 0, 0, bytes(8) + b"\xffwhy") + P, PONG


def _windows(d: Dialect) -> Iterator[Row]:
    most = 2**31 - 1
    yield "6.9", "WINDOW_UPDATE", window_update(0, 100) + P, PONG
    yield (
        "6.9",
        "WINDOW_UPDATE on a stream",
        d.posting() + window_update(1, 100) + data(1, d.message),
        answered(),
    )
    yield "6.9", "increment of 0", window_update(0, 0), fatal(PROTOCOL)
    yield "6.9", "increment of 0 on a stream", d.posting() + window_update(1, 0), fault(PROTOCOL)
    yield "6.9", "reserved bit of the increment", frame(WINDOW_UPDATE, 0, 0, b"\x80\0\0\x01") + P, PONG
    for size in (3, 5):
        yield "6.9", f"WINDOW_UPDATE of {size} octets", frame(WINDOW_UPDATE, 0, 0, bytes(size)), fatal(SIZE)
    yield "6.9", "3 octets on a stream", d.posting() + frame(WINDOW_UPDATE, 0, 1, bytes(3)), fatal(SIZE)
    yield "6.9.1", "window of 1", (
        settings((INITIAL_WINDOW_SIZE, 1)), d.request(), WaitForData(1, 1),
    ), ALIVE  # fmt: skip
    yield "6.9.1", "overflow of the connection's window", window_update(0, most) * 2, fatal(FLOW)
    yield "6.9.1", "overflow of a stream's window", d.posting() + window_update(1, most) * 2, fault(FLOW)
    yield "6.9.1", "window exactly at its most", window_update(0, most - 65535) + P, PONG
    yield "6.9.2", "a window opened by SETTINGS", (
        settings((INITIAL_WINDOW_SIZE, 0)), d.request(), WaitForData(1, 0),
        settings((INITIAL_WINDOW_SIZE, 1)), WaitForData(1, 1),
    ), ALIVE  # fmt: skip
    yield "6.9.2", "a window made negative by SETTINGS", (
        settings((INITIAL_WINDOW_SIZE, 3)), d.request(), WaitForData(1, 3),
        settings((INITIAL_WINDOW_SIZE, 2)), window_update(1, 2), WaitForData(1, 4),
    ), ALIVE  # fmt: skip
    yield "6.9.2", "SETTINGS that overflow a stream's window", (
        d.posting(), window_update(1, most - 65535), settings((INITIAL_WINDOW_SIZE, 65536)),
    ), fatal(FLOW)  # fmt: skip
    yield "6.9.2", "SETTINGS leave the connection's window alone", (
        settings((INITIAL_WINDOW_SIZE, 0)), window_update(0, most - 65535), P,
    ), PONG  # fmt: skip


def _continuations(d: Dialect) -> Iterator[Row]:
    whole = block(*d.get)
    a, b, c = whole[:5], whole[5:20], whole[20:]
    yield "6.10", "several CONTINUATIONs", (
        headers(1, a, flags=0), continuation(1, b, end_headers=False), continuation(1, c),
    ), answered()  # fmt: skip
    yield "6.10", "an empty CONTINUATION", headers(1, whole, flags=0) + continuation(1, b""), answered()
    yield "6.10", "CONTINUATION and then DATA", (
        headers(1, block(*d.post), flags=0, end=False), continuation(1, b""), data(1, d.message),
    ), answered()  # fmt: skip
    yield "6.10", "followed by another frame", (
        headers(1, a, flags=0), continuation(1, b, end_headers=False), data(1, b"test"),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "6.10", "followed by PING", headers(1, a, flags=0) + P, fatal(PROTOCOL)
    yield "6.10", "CONTINUATION on stream 0", headers(1, a, flags=0) + continuation(0, b + c), fatal(PROTOCOL)
    yield (
        "6.10",
        "CONTINUATION on another stream",
        headers(1, a, flags=0) + continuation(3, b + c),
        fatal(PROTOCOL),
    )
    yield "6.10", "after HEADERS with END_HEADERS", d.posting() + continuation(1, b""), fatal(PROTOCOL)
    yield "6.10", "after CONTINUATION with END_HEADERS", (
        headers(1, a, flags=0), continuation(1, b + c), continuation(1, b""),
    ), fault(PROTOCOL, CLOSED)  # fmt: skip
    yield "6.10", "after DATA", (
        d.posting(), data(1, d.message, end=False), continuation(1, b""),
    ), fatal(PROTOCOL)  # fmt: skip
    yield "6.10", "PADDED means nothing on it", (
        headers(1, a, flags=0), frame(CONTINUATION, END_HEADERS | PADDED, 1, b + c),
    ), answered()  # fmt: skip


PARTS = (
    _starting, _frames, _states, _identifiers, _priorities, _errors, _data, _headers, _small_frames, _settings,
    _ping_goaway, _windows, _continuations,
)  # fmt: skip
