"""From bytes to requests: the same whatever the pieces they come in, and refused when two could read them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.asgi.limits import HttpLimits
from whispr.asgi.reader import RequestReader
from whispr.asgi.refusals import Refusal
from whispr.asgi.request import KNOWN_BYTES_MAX, KNOWN_MAX, Known

BASE: dict[str, Any] = {"type": "http", "http_version": "1.1", "scheme": "http"}
TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: f"x-{name}")
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)


def read_all(pieces: list[bytes], limits: HttpLimits | None = None) -> list[tuple[dict[str, Any], bytes]]:
    """Every request in the pieces, with its body; what is incomplete at the end is left out."""
    reader = RequestReader(limits or HttpLimits(), BASE)
    found: list[tuple[dict[str, Any], bytes]] = []
    scope: dict[str, Any] | None = None
    body = b""
    for piece in pieces:
        reader.feed(piece)
        while True:
            if scope is None:
                head = reader.head()
                if head is None:
                    break
                scope, body = head.scope, b""
            body += reader.body()
            if not reader.body_done:
                break
            found.append((scope, body))
            scope = None
    return found


def one(data: bytes, limits: HttpLimits | None = None) -> tuple[dict[str, Any], bytes]:
    (request,) = read_all([data], limits)
    return request


def refusal(data: bytes, limits: HttpLimits | None = None) -> Refusal:
    with pytest.raises(Refusal) as whole:
        read_all([data], limits)
    with pytest.raises(Refusal) as split:
        read_all([data[i : i + 1] for i in range(len(data))], limits)
    assert split.value.status == whole.value.status
    return whole.value


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, rest = b"", body
    for size in sizes:
        chunk, rest = rest[:size], rest[size:]
        out += b"%X\r\n%b\r\n" % (len(chunk), chunk) if chunk else b""
    out += b"%x;a=b\r\n%b\r\n" % (len(rest), rest) if rest else b""
    return out + b"0\r\nx-trailer: 1\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[str, list[tuple[bytes, bytes]], bytes]]:
    """A request as bytes, and what has to be found in it."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"]))
    path = "/" + draw(st.text("abc/~%20".replace("%20", ""), max_size=8))
    headers = [("host", "x"), *draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))]
    body = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        headers.append(("transfer-encoding", "chunked"))
        sent = chunked(body, draw(st.lists(st.integers(1, 9), max_size=4)))
    else:
        headers += [("content-length", str(len(body)))] if body or draw(st.booleans()) else []
        sent = body
    lines = "".join(f"{name.title()}: {value}\r\n" for name, value in headers)
    expected = [(name.encode(), value.encode()) for name, value in headers]
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + sent, (path, expected, body)


@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(1, 60), max_size=40))
def test_any_split_reads_the_same(sent: list[Any], sizes: list[int]) -> None:
    """Requests one after another are found with path, headers and body, however the bytes are cut."""
    data = b"".join(raw for raw, _ in sent)
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    found = read_all([*filter(None, pieces), rest])
    assert [(scope["path"], scope["headers"], body) for scope, body in found] == [want for _, want in sent]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_a_request_or_refused(data: bytes, cut: int) -> None:
    """Nothing that a client sends is more than a refusal."""
    for start in (b"", b"GET / HTTP/1.1\r\nhost: x\r\n", CHUNKED):
        whole = start + data
        with suppress(Refusal):
            read_all([whole[:cut], whole[cut:]])


def test_a_scope_says_what_asgi_asks_for() -> None:
    """Path decoded and raw, query, lower-case headers, method and version."""
    scope, _ = one(b"GET /a%2Fb%20c?q=%20 HTTP/1.1\r\nHost: X\r\nA:  b\t \r\n\r\n")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a/b c", b"/a%2Fb%20c", b"q=%20")
    assert scope["headers"] == [(b"host", b"X"), (b"a", b"b")]
    assert (scope["method"], scope["http_version"]) == ("GET", "1.1")
    assert one(b"GET / HTTP/1.0\r\n\r\n")[0]["http_version"] == "1.0"


def test_targets_of_other_forms() -> None:
    """A URL for its path, `*` for OPTIONS."""
    assert one(b"GET http://Ab:1/p?q HTTP/1.1\r\nhost: aB:1\r\n\r\n")[0]["path"] == "/p"
    assert one(b"GET http://a?q HTTP/1.1\r\nhost: a\r\n\r\n")[0]["raw_path"] == b"/"
    assert one(b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")[0]["path"] == "*"


def test_empty_lines_before_a_request_are_skipped() -> None:
    """Some clients end a body with a line break too many."""
    assert len(read_all([b"\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n\r\n", b"\r\n"])) == 1


def test_an_upgrade_that_is_not_ours_is_ignored() -> None:
    """A client that would like HTTP/2 is served HTTP/1.1, and its next request too."""
    raw = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\r\n"
    assert len(read_all([raw + raw])) == 2


HOST = b"host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def post(headers: bytes, rest: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n" + rest


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # Two lengths (RFC 9112, section 6.3; request smuggling).
        (post(b"content-length: 5\r\ntransfer-encoding: chunked\r\n"), 400),
        (post(b"transfer-encoding: chunked\r\ncontent-length: 5\r\n"), 400),
        (post(b"content-length: 5\r\ncontent-length: 6\r\n"), 400),
        (post(b"content-length: 5\r\ncontent-length: 5\r\n"), 400),
        (post(b"content-length: 5, 5\r\n"), 400),
        (post(b"content-length: +5\r\n"), 400),
        (post(b"content-length: -5\r\n"), 400),
        (post(b"content-length: 0x5\r\n"), 400),
        (post(b"content-length: 5_0\r\n"), 400),
        (post(b"content-length:\r\n"), 400),
        (post(b"content-length: 99999999999999999999999\r\n"), 400),
        (post(b"transfer-encoding: gzip\r\n"), 400),
        (post(b"transfer-encoding: xchunked\r\n"), 400),
        (post(b"transfer-encoding: chunked, gzip\r\n"), 400),
        (post(b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"), 400),
        (post(b"transfer-encoding: gzip, chunked\r\n"), 501),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        # Lines.
        (b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n a: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n a: b\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\ry\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\ny: z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\x00y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\n: empty\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        # Hosts.
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http:/// HTTP/1.0\r\n\r\n", 400),
        # Request lines.
        (b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nhost: x\r\n\r\n", 400),
        (b"GET /#a HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET ftp://x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.2\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\n\r\n", 505),
        (b"GET / RTSP/1.0\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"SPEAK / HTTP/1.1\r\nhost: x\r\n\r\n", 501),
        (b"get / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        # What is not offered.
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\n\r\n", 403),
        (post(b"expect: 200-maybe\r\n"), 417),
        # Chunks (RFC 9112, section 7.1).
        (CHUNKED + b"x\r\n", 400),
        (CHUNKED + b"\r\n", 400),
        (CHUNKED + b"5 \r\nhello\r\n", 400),
        (CHUNKED + b" 5\r\nhello\r\n", 400),
        (CHUNKED + b"0x5\r\nhello\r\n", 400),
        (CHUNKED + b"+5\r\nhello\r\n", 400),
        (CHUNKED + b"5\nhello\r\n0\r\n\r\n", 400),
        (CHUNKED + b"5;a\nb\r\nhello\r\n", 400),
        (CHUNKED + b"5\r\nhelloo\r\n", 400),
        (CHUNKED + b"5\r\nhello\n0\r\n\r\n", 400),
        (CHUNKED + b"5\r\nhello\r0\r\n\r\n", 400),
        (CHUNKED + b"11111111111111111\r\n", 400),
        (CHUNKED + b"5" + b";" * 2000 + b"\r\n", 400),
        (CHUNKED + b"5" * 2000, 400),
        (CHUNKED + (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 17, 400),
        (CHUNKED + b"0\r\n folded\r\n\r\n", 400),
        (CHUNKED + b"0\r\na: b\nc: d\r\n\r\n", 400),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 4000, 431),
        (CHUNKED + b"0\r\na: " + b"b" * 20_000, 431),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(data: bytes, status: int) -> None:
    """Each of these has been used to have two servers disagree, or is not HTTP/1.1; in one piece or in bytes."""
    assert refusal(data).status == status


LIMITS = HttpLimits(line_bytes=50, head_bytes=200, headers=5, body_bytes=10)


def line(size: int) -> bytes:
    return b"GET /" + b"a" * (size - len("GET / HTTP/1.1")) + b" HTTP/1.1\r\n"


def head(size: int) -> bytes:
    start = b"GET / HTTP/1.1\r\nhost: x\r\na: "
    return start + b"b" * (size - len(start) - 4) + b"\r\n\r\n"


def test_the_request_line_has_a_limit() -> None:
    """At the limit it passes, over it 414 as soon as that is known."""
    assert one(line(50) + b"host: x\r\n\r\n", LIMITS)
    assert refusal(line(51) + b"host: x\r\n\r\n", LIMITS).status == 414
    assert refusal(b"GET /" + b"a" * 60, LIMITS).status == 414
    assert one(line(100) + b"host: x\r\n\r\n", HttpLimits(line_bytes=0))


def test_the_head_has_a_limit() -> None:
    """At the limit it passes, over it 431, complete or not."""
    assert one(head(200), LIMITS)
    assert refusal(head(201), LIMITS).status == 431
    assert refusal(head(400)[:300], LIMITS).status == 431
    assert one(head(40_000), HttpLimits(head_bytes=0))


def test_the_number_of_headers_has_a_limit() -> None:
    """At the limit they pass, over it 431."""
    assert one(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 4 + b"\r\n", LIMITS)
    assert refusal(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5 + b"\r\n", LIMITS).status == 431
    assert one(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 500 + b"\r\n", HttpLimits(headers=0))


@pytest.mark.parametrize("size", [10, 11])
def test_a_body_has_a_limit(size: int) -> None:
    """At the limit it passes, over it 413, whether declared or found out on the way."""
    declared = post(b"content-length: %d\r\n" % size, b"a" * size)
    found = CHUNKED + chunked(b"a" * size, [3, 3])
    if size == 10:
        assert [len(one(data, LIMITS)[1]) for data in (declared, found)] == [10, 10]
    else:
        assert [refusal(data, LIMITS).status for data in (declared, found)] == [413, 413]


def test_limits_that_contradict_each_other_are_refused() -> None:
    """A line longer than the head that it is part of cannot be meant."""
    with pytest.raises(ValueError, match="part of the head"):
        HttpLimits(line_bytes=100, head_bytes=50)
    with pytest.raises(ValueError, match="ahead_bytes"):
        HttpLimits(ahead_bytes=0)


def test_a_head_seen_before_is_a_request_of_its_own() -> None:
    """Each connection's own addresses, and nothing of what an application did to the last one's scope."""
    known = Known()
    head = b"GET /a?b HTTP/1.1\r\nhost: x\r\nx-one: 1\r\n\r\n"
    scopes = []
    for client in (("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)):
        reader = RequestReader(HttpLimits(), {**BASE, "client": client}, known)
        reader.feed(head)
        request = reader.head()
        assert request is not None
        scopes.append(dict(request.scope, headers=list(request.scope["headers"])))
        request.scope["headers"].append((b"x-two", b"2"))
        request.scope["path"] = "/elsewhere"
        request.scope["state"] = {}
    assert [scope.pop("client") for scope in scopes] == [("10.0.0.1", 1), ("10.0.0.2", 2), ("10.0.0.3", 3)]
    assert scopes[0] == scopes[1] == scopes[2]


@given(st.lists(st.sampled_from(range(4)), max_size=12))
def test_heads_seen_before_mean_what_they_meant(picked: list[int]) -> None:
    """Bodies, versions and closes too, in any order on any connection."""
    several = [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    ]
    bodies = [b"", b"ab", b"0\r\n\r\n", b""]
    known = Known()
    for number in picked:
        told = []
        for shared in (known, Known()):
            reader = RequestReader(HttpLimits(), BASE, shared)
            reader.feed(several[number] + bodies[number])
            request = reader.head()
            assert request is not None
            told.append((request.scope, reader.body(), reader.body_done, request.keep_alive, request.http11))
            told[-1] += (request.expects_continue, request.chunked, request.body_length)  # type: ignore[assignment]
        assert told[0] == told[1]


def test_heads_that_are_remembered_are_few_and_short() -> None:
    """Requests that never come again do not fill the memory, nor do long ones."""
    known = Known()
    reader = RequestReader(HttpLimits(), BASE, known)
    for number in range(3 * KNOWN_MAX):
        reader.feed(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
        assert reader.head() is not None
        assert len(known) <= KNOWN_MAX
    for long in (False, True):
        known = Known()
        reader = RequestReader(HttpLimits(), BASE, known)
        for _ in range(3):
            reader.feed(b"GET / HTTP/1.1\r\nhost: x\r\nx-a: %b\r\n\r\n" % (b"a" * KNOWN_BYTES_MAX * long))
            assert reader.head() is not None
        assert len(known) == (not long)
