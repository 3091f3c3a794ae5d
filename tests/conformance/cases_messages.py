"""The part of the conformance table that is about messages and header compression."""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance.raw import (
    PADDED,
    block,
    data,
    headers,
    integer,
    literal,
    string,
)
from tests.conformance.table import (
    CLOSED,
    COMPRESSION,
    PROTOCOL,
    Dialect,
    Row,
    Wait,
    answered,
    fatal,
    fault,
)


def _messages(d: Dialect) -> Iterator[Row]:
    trailers = headers(1, block(("x-test", "ok")))
    yield "8.1", "request with trailers", d.posting() + data(1, d.message, end=False) + trailers, answered()
    yield "8.1", "trailers without a body", d.posting() + trailers, answered()
    yield "8.1", "second HEADERS without END_STREAM", (
        d.posting(), data(1, d.message, end=False), headers(1, block(("x-test", "ok")), end=False),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1", "trailers with a pseudo-field", (
        d.posting(), data(1, d.message, end=False), headers(1, block((":method", "GET"), ("x-test", "ok"))),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1", "DATA after trailers", d.posting() + trailers + data(1, b"x"), fault(CLOSED)
    size = str(len(d.message))
    yield "8.1.1", "content-length that matches", (
        d.posting(1, ("content-length", size)), data(1, d.message),
    ), answered()  # fmt: skip
    yield "8.1.1", "content-length over several DATA", (
        d.posting(1, ("content-length", size)), data(1, d.message[:2], end=False), data(1, d.message[2:]),
    ), answered()  # fmt: skip
    yield "8.1.1", "content-length above one DATA", (
        d.posting(1, ("content-length", "100")), data(1, d.message),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1.1", "content-length below one DATA", (
        d.posting(1, ("content-length", "1")), data(1, d.message),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1.1", "content-length not the sum of several DATA", (
        d.posting(1, ("content-length", "1")), data(1, b"te", end=False), data(1, b"st"),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1.1", "content-length without a body", d.request(1, ("content-length", "5")), fault(PROTOCOL)
    yield "8.1.1", "content-length without a body but trailers", (
        d.posting(1, ("content-length", "5")), trailers,
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.1.1", "padding is no content", (
        d.posting(1, ("content-length", size)), data(1, b"\x03" + d.message + bytes(3), flags=PADDED),
    ), answered()  # fmt: skip
    yield "8.1.1", "content-length that is no number", d.request(1, ("content-length", "4x")), fault(PROTOCOL)
    yield "8.1.1", "two content-lengths that differ", (
        d.request(1, ("content-length", "0"), ("content-length", "1")),
    ), fault(PROTOCOL)  # fmt: skip


def _fields_of_requests(d: Dialect) -> Iterator[Row]:
    for name in ("X-TEST", "x-tEst", "x test", "x\x7ftest", "x\0test", "", "x:test", "x\u00fctest"):
        yield "8.2.1", f"name {name!r}", d.request(1, (name, "ok")), fault(PROTOCOL)
    for bad in (b"a\0b", b"a\rb", b"a\nb", b" a", b"a ", b"\ta", b"a\t"):
        yield "8.2.1", f"value {bad!r}", d.request(1, ("x-test", bad)), fault(PROTOCOL)
    for good in (b"", b"a b", b"a\tb", b"\xff\xfe", b"~!@#$%^&*()"):
        yield "8.2.1", f"value {good!r}", d.request(1, ("x-test", good)), answered()
    for name, value in (
        ("connection", "keep-alive"), ("proxy-connection", "keep-alive"), ("keep-alive", "timeout=1"),
        ("transfer-encoding", "chunked"), ("upgrade", "h2c"),
    ):  # fmt: skip
        yield "8.2.2", name, d.request(1, (name, value)), fault(PROTOCOL)
    for value in ("gzip", "trailers, deflate;q=0.5"):
        yield "8.2.2", f"te: {value}", headers(1, block(*d.without("te"), ("te", value))), fault(PROTOCOL)
    yield "8.2.2", "te: trailers", headers(1, block(*d.without("te"), ("te", "trailers"))), answered()
    yield "8.3", "unknown pseudo-field", headers(1, block((":test", "ok"), *d.get)), fault(PROTOCOL)
    yield "8.3", "pseudo-field of a response", headers(1, block((":status", "200"), *d.get)), fault(PROTOCOL)
    yield "8.3", "pseudo-field after a field", headers(1, block(("x-test", "ok"), *d.get)), fault(PROTOCOL)
    for name in (":method", ":scheme", ":path"):
        yield "8.3.1", f"no {name}", headers(1, block(*d.without(name))), fault(PROTOCOL)
        yield "8.3.1", f"empty {name}", headers(1, block(*d.instead(name, ""))), fault(PROTOCOL)
        twice = block(*d.get[:4], (name, dict(d.get)[name]), *d.get[4:])
        yield "8.3.1", f"{name} twice", headers(1, twice), fault(PROTOCOL)
    yield "8.3.1", ":authority twice", (
        headers(1, block(*d.get[:4], (":authority", "x"), *d.get[4:])),
    ), fault(PROTOCOL)  # fmt: skip
    yield "8.3.1", "no :authority", headers(1, block(*d.without(":authority"))), answered()
    yield "8.3.1", "host in its place", headers(1, block(*d.without(":authority"), ("host", "x"))), answered()
    yield "8.3.1", "nothing at all", headers(1, b""), fault(PROTOCOL)
    connect = block((":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "x:1"))
    yield "8.5", "CONNECT with a path", headers(1, connect), fault(PROTOCOL)
    yield "8.5", "CONNECT", headers(1, block((":method", "CONNECT"), (":authority", "x:1"))), answered()
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE"):
        yield "8.3.1", f"{method} request", headers(1, block(*d.instead(":method", method))), answered()


def _representations(d: Dialect) -> Iterator[Row]:
    """Generic: each header representation there is, in a good request."""
    base = block(*d.get)
    # Appendix C.4.1: www.example.com, C.4.2: no-cache, C.4.3: custom-key, custom-value.
    key, value = bytes.fromhex("8825a849e95ba97d7f"), bytes.fromhex("8925a849e95bb8e8b4bf")
    good = (
        ("6.1 indexed from the static table", base + b"\x90"),
        ("6.2.1 incremental indexing, indexed name", base + b"\x7a" + string(b"agent")),
        ("6.2.1 incremental indexing, indexed name, Huffman", base + b"\x7a" + value),
        ("6.2.1 incremental indexing, new name", base + literal("x-test", "a", indexing=0x40)),
        ("6.2.1 incremental indexing, new name, Huffman", base + b"\x40" + key + value),
        ("6.2.2 without indexing, indexed name", base + b"\x0f\x2b" + string(b"agent")),
        ("6.2.2 without indexing, indexed name, Huffman", base + b"\x0f\x2b" + value),
        ("6.2.2 without indexing, new name", base + literal("x-test", "a")),
        ("6.2.2 without indexing, new name, Huffman", base + b"\x00" + key + value),
        ("6.2.3 never indexed, indexed name", base + b"\x1f\x2b" + string(b"agent")),
        ("6.2.3 never indexed, indexed name, Huffman", base + b"\x1f\x2b" + value),
        ("6.2.3 never indexed, new name", base + literal("x-test", "a", indexing=0x10)),
        ("6.2.3 never indexed, new name, Huffman", base + b"\x10" + key + value),
        ("6.1 indexed from the dynamic table", base + literal("x-test", "a", indexing=0x40) + b"\xbe"),
        ("6.3 size update", b"\x20" + base),
        ("6.3 size update to the most", integer(4096, 5, 0x20) + base),
        ("6.3 several size updates", b"\x20" + integer(4096, 5, 0x20) + base),
        ("4.4 an entry larger than the table", base + literal("x-test", "a" * 4096, indexing=0x40)),
        ("5.1 an integer longer than need be", base + b"\x00\x06x-test" + b"\x7f\x80\x00" + b"a" * 127),
    )
    for name, octets in good:
        section, _, name = name.partition(" ")
        yield f"hpack {section}", name, headers(1, octets), answered()
    yield "hpack 2.2", "the table outlives its stream", (
        headers(1, base + literal("x-test", "a", indexing=0x40)), Wait(1), headers(3, base + b"\xbe"),
    ), answered(3)  # fmt: skip
    yield "hpack 2.2", "the table counts refused requests", (
        headers(1, base + literal("x-test", "a", indexing=0x40) + literal("connection", "close")), d.posting(3),
        headers(3, b"\xbe"),
    ), fault(PROTOCOL)  # fmt: skip


def _compression(d: Dialect) -> Iterator[Row]:
    base = block(*d.get)
    long = b"\xff" * 10
    bad = (
        ("2.3.3 index beyond both tables", base + b"\xbe"),
        ("2.3.3 name's index beyond both tables", base + b"\x7e" + string(b"a")),
        ("2.3.3 far index", base + integer(5000, 7, 0x80)),
        ("4.2 size update at the end of a block", base + b"\x20"),
        ("4.2 size update within a block", block(d.get[0]) + b"\x20" + block(*d.get[1:])),
        ("5.2 Huffman padding longer than 7 bits", base + b"\x00\x06x-test" + b"\x82\x0f\xff"),
        ("5.2 Huffman padding of zeros", base + b"\x00\x06x-test" + b"\x81\x00"),
        ("5.2 Huffman with EOS", base + b"\x00\x06x-test" + b"\x84\xff\xff\xff\xff"),
        ("6.1 index 0", base + b"\x80"),
        ("6.3 size update above the setting", integer(4097, 5, 0x20) + base),
        ("5.1 integer without end", base + b"\x00\x06x-test" + b"\x7f" + long),
        ("5.1 integer far too large", base + b"\x00\x06x-test" + b"\x7f" + long + b"\x7f" + b"a"),
        ("5.2 string longer than the block", base + b"\x00\x06x-test" + b"\x20" + b"a"),
        ("6.2 literal cut off", base + b"\x00\x06x-te"),
    )
    for name, octets in bad:
        section, _, name = name.partition(" ")
        yield f"hpack {section}", name, headers(1, octets), fatal(COMPRESSION)


PARTS = (_messages, _fields_of_requests, _representations, _compression)
