"""Answers on the wire, read by a client nobody here wrote."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.asgi.date import DateLine
from whispr.asgi.refusals import Refusal, plain
from whispr.asgi.response import AppError, ResponseWriter, refusal_bytes

DATE = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"


def writer(*, http11: bool = True, head_only: bool = False, server: bytes = b"") -> ResponseWriter:
    return ResponseWriter(http11=http11, head_only=head_only, date=lambda: DATE, server=server)


def answer(
    parts: list[bytes], status: int = 200, headers: Any = (), *, method: str = "GET", http11: bool = True
) -> tuple[h11.Response, bytes, ResponseWriter]:
    """What a client makes of an answer given in parts."""
    response = writer(http11=http11, head_only=method == "HEAD")
    response.start(status, headers)
    sent = [response.body(part, more=True) for part in parts[:-1]] + [response.body(parts[-1], more=False)]
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(b"".join(sent))
    if not response.keep_alive:
        client.receive_data(b"")
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        body += event.data
    return head, body, response


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_any_body_arrives_whole(parts: list[bytes], declared: bool, http11: bool) -> None:
    """However an application gives its body, the client knows where it ends."""
    body = b"".join(parts)
    headers = [(b"content-length", b"%d" % len(body))] if declared else []
    _, received, response = answer(parts, headers=headers, http11=http11)
    assert received == body
    assert response.complete
    assert response.keep_alive == (http11 or declared or len(parts) == 1)


def test_a_body_in_one_piece_has_a_length() -> None:
    """Nothing needs to be chunked that is known whole."""
    head, _, _ = answer([b"hello"])
    assert dict(head.headers)[b"content-length"] == b"5"


def test_parts_are_chunked_on_1_1_and_end_with_the_connection_on_1_0() -> None:
    """A client of HTTP/1.0 knows no chunks."""
    head, _, response = answer([b"a", b"b"])
    assert dict(head.headers)[b"transfer-encoding"] == b"chunked"
    assert response.keep_alive
    head, _, response = answer([b"a", b"b"], http11=False)
    assert b"transfer-encoding" not in dict(head.headers)
    assert dict(head.headers)[b"connection"] == b"close"
    assert not response.keep_alive


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_some_answers_have_no_body(method: str, status: int) -> None:
    """HEAD, 204 and 304 end with their head, whatever the application gives."""
    _, body, response = answer([b"ignored", b"", b"too"], status, method=method)
    assert body == b""
    assert response.keep_alive


def test_head_shows_the_length_that_get_has() -> None:
    """And 204 shows none (RFC 9110, section 8.6)."""
    length = [(b"content-length", b"7")]
    assert dict(answer([b""], headers=length, method="HEAD")[0].headers)[b"content-length"] == b"7"
    assert b"content-length" not in dict(answer([b""], 204, length)[0].headers)


def test_framing_is_not_the_applications() -> None:
    """Its Transfer-Encoding and Connection are replaced by what is true; `close` is respected."""
    headers = [(b"Transfer-Encoding", b"chunked"), (b"connection", b"close"), (b"x", b"y")]
    head, body, response = answer([b"a"], headers=headers)
    assert body == b"a"
    assert dict(head.headers) == {
        b"x": b"y",
        b"content-length": b"1",
        b"connection": b"close",
        b"date": DATE[6:-2],
    }
    assert not response.keep_alive


def test_date_and_server_can_be_the_applications() -> None:
    """They are added only where they are missing; no Server header unless there is to be one."""
    for given_headers, expected in (
        ([], b"server: ours\r\n" + DATE),
        ([(b"server", b"app"), (b"date", b"now")], b"server: app\r\ndate: now\r\n"),
    ):
        response = writer(server=b"ours")
        response.start(200, given_headers)
        sent = response.body(b"", more=False)
        assert (
            sorted(expected.split(b"\r\n"))
            == sorted(
                line for line in sent.split(b"\r\n") if line.startswith((b"server", b"date")) or not line
            )[1:]
        )


@pytest.mark.parametrize(
    "header",
    [(b"a", b"b\r\nc: d"), (b"a\r\nb", b"c"), (b"a", b"b\nc"), (b"a", b"b\rc"), (b"a", b"\0")],
)
def test_a_header_cannot_bring_another(header: tuple[bytes, bytes]) -> None:
    """A line break in a header, from whatever a client sent, splits no answer."""
    response = writer()
    response.start(200, [header])
    with pytest.raises(AppError):
        response.body(b"", more=False)


@pytest.mark.parametrize("value", [b"", b"-1", b"1, 1", b"x"])
def test_a_length_is_a_number(value: bytes) -> None:
    """A malformed Content-Length goes to nobody."""
    response = writer()
    response.start(200, [(b"content-length", value)])
    with pytest.raises(AppError):
        response.body(b"", more=False)


def test_a_body_is_as_long_as_it_says() -> None:
    """Longer or shorter than Content-Length is the application's defect, said to it."""
    for first, last in ((b"abcd", None), (b"ab", b""), (b"ab", b"cd")):
        response = writer()
        response.start(200, [(b"content-length", b"3")])
        with pytest.raises(AppError):
            response.body(first, more=True)
            assert last is not None
            response.body(last, more=False)


def test_an_answer_comes_in_order() -> None:
    """Head first, once; body then, until it is complete; no status that is none."""
    response = writer()
    with pytest.raises(AppError):
        response.body(b"", more=False)
    for status in (100, 199, 1000, 0):
        with pytest.raises(AppError):
            response.start(status, [])
    response.start(200, [])
    with pytest.raises(AppError):
        response.start(200, [])
    response.body(b"", more=False)
    with pytest.raises(AppError):
        response.body(b"", more=False)


def test_the_date_is_made_once_a_second() -> None:
    """RFC 9110's format, from the clock given."""
    now = [0.0]
    date = DateLine(lambda: now[0])
    assert date() == DATE
    now[0] = 0.9
    assert date() is date()
    now[0] = 1.0
    assert date() == b"date: Thu, 01 Jan 1970 00:00:01 GMT\r\n"


def test_a_refusal_closes_the_connection() -> None:
    """It says so, and what was wrong."""
    sent = refusal_bytes(Refusal(431, "x", "too many"), plain, DATE)
    assert sent.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"connection: close\r\n" in sent
    assert sent.endswith(b"too many\n")
    assert refusal_bytes(Refusal(431, "x", "too many"), plain, DATE, head_only=True).endswith(b"\r\n\r\n")


def test_a_file_is_as_long_as_it_says() -> None:
    """Its size is the length; a shorter declared length sends less of it, a longer one is a defect."""
    for headers, count in (([], 9), ([(b"content-length", b"4")], 4)):
        response = writer()
        response.start(200, headers)
        head, size = response.file(9)
        assert size == count
        assert b"content-length: %d\r\n" % count in head
    response = writer()
    response.start(200, [(b"content-length", b"10")])
    with pytest.raises(AppError):
        response.file(9)


def test_headers_said_before_are_said_again() -> None:
    """The same headers give the same head; those that differ in one value do not; lists for pairs are well."""
    for value in (b"1", b"2", b"1"):
        for headers in (
            [(b"x-a", value), (b"connection", b"close")],
            [[b"x-a", value], [b"connection", b"close"]],
        ):
            head, _, response = answer([b"hello"], headers=headers)
            assert dict(head.headers)[b"x-a"] == value
            assert not response.keep_alive
    for _ in range(2):
        with pytest.raises(AppError):
            answer([b""], headers=[(b"x-a", b"1\r\nx-b: 2")])
