"""An answer on the wire: the head, and how the end of the body is marked. Pure.

The application's messages go in, bytes come out. A body given in one piece gets a Content-Length; one that
comes in parts is chunked, or to HTTP/1.0 ends with the connection (RFC 9112, section 6.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum, auto
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from whispr.asgi.refusals import Refusal, Renderer

_OURS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"date", b"server"})
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class AppError(RuntimeError):
    """The application has sent what no answer is made of."""


class _Framing(Enum):
    NONE = auto()
    """No body, whatever the headers say: HEAD, 204, 304."""
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()


class _Fields(NamedTuple):
    """The application's headers, and what they mean for the server."""

    lines: bytes
    """Without those that are the server's matter."""
    declared: int | None
    """The length in Content-Length."""
    closes: bool
    dated: bool
    has_server: bool


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> _Fields:
    """Read the headers of an answer. Raises AppError for what is no header."""
    given = tuple(headers)
    try:
        known = _KNOWN.get(given)
    except TypeError:  # ASGI allows lists for pairs, which have no hash
        return _read(given)
    if known is None:
        known = _read(given)
        if len(known.lines) <= _KNOWN_BYTES_MAX:
            if len(_KNOWN) >= _KNOWN_MAX:
                _KNOWN.clear()
            _KNOWN[given] = known
    return known


_KNOWN: dict[tuple[tuple[bytes, bytes], ...], _Fields] = {}
"""Headers of answers lately: an application says the same again and again."""
_KNOWN_MAX = 256
_KNOWN_BYTES_MAX = 1024


def _read(headers: Iterable[tuple[bytes, bytes]]) -> _Fields:
    lines: list[bytes] = []
    declared: int | None = None
    closes = dated = has_server = False
    for given, value in headers:
        name = given if given.islower() else given.lower()
        if name in _OURS:
            if name == b"content-length":
                if not value.isdigit() or declared not in (None, int(value)):
                    raise AppError("Content-Length is malformed, or there are several")
                declared = int(value)
            elif name == b"connection" and value.lower() == b"close":
                closes = True
            if name not in (b"date", b"server"):
                continue
            dated = dated or name == b"date"
            has_server = has_server or name == b"server"
        lines.append(b"%b: %b\r\n" % (name, value))
    written, count = b"".join(lines), len(lines)
    # Whatever a header smuggles in, it would take a line of its own, or a NUL.
    if written.count(b"\n") != count or written.count(b"\r") != count or b"\0" in written:
        raise AppError("a header holds a line break or a NUL")
    return _Fields(written, declared, closes, dated, has_server)


@lru_cache(maxsize=64)
def _status_line(status: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b""))


class ResponseWriter:
    """One answer. `keep_alive` may be cleared until the head is written, and says afterwards what was said."""

    __slots__ = (
        "_date", "_declared", "_framing", "_head_only", "_headers", "_http11", "_remaining", "_server",
        "_status", "complete", "keep_alive", "started",
    )  # fmt: skip

    def __init__(self, *, http11: bool, head_only: bool, date: Callable[[], bytes], server: bytes) -> None:
        """`head_only`: the request is HEAD. `date`: returns the Date header's line. `server`: the Server header."""
        self._http11 = http11
        self._head_only = head_only
        self._date = date
        self._server = server
        self._status = 0
        self._headers: Iterable[tuple[bytes, bytes]] = ()
        self._framing = _Framing.NONE
        self._declared: int | None = None
        self._remaining = 0
        self.keep_alive = True
        self.started = False
        """Whether a head has been written."""
        self.complete = False

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Note the head; it is written with the body's first part. Raises AppError."""
        if self._status:
            raise AppError("an answer begins once")
        if not 200 <= status <= 999:
            raise AppError(f"{status} is not the status of an answer")
        self._status = status
        self._headers = headers

    def body(self, data: bytes, *, more: bool) -> bytes:
        """Return what to send for a part of the body, the head included. Raises AppError."""
        if not self._status:
            raise AppError("an answer begins with its head")
        if self.complete:
            raise AppError("the answer is complete already")
        head = b"" if self.started else self._head(None if more else len(data))
        framed = self._framed(data, more)
        self.complete = not more
        return head + framed if framed else head

    def answered(self) -> None:
        """Note that the head has been written by somebody else, and that no body goes with it."""
        assert not self._status, "an answer begins once"
        self._status, self.started, self.keep_alive = 200, True, False

    def file(self, size: int) -> tuple[bytes, int]:
        """Return the head for a file of `size` bytes, and how many of them to send. Raises AppError."""
        if not self._status or self.started:
            raise AppError("a file is all of an answer's body, after its head")
        head = self._head(size)
        if self._framing is not _Framing.LENGTH:
            return head, 0
        if self._remaining > size:
            raise AppError("the file is shorter than Content-Length says")
        return head, self._remaining

    def _head(self, size: int | None) -> bytes:
        """Write the head, of a body of `size` bytes if that is known. Raises AppError."""
        fields = _fields(self._headers)
        if fields.closes:
            self.keep_alive = False
        self._declared = fields.declared
        lines = [_status_line(self._status), fields.lines, self._frame(size)]
        if self._server and not fields.has_server:
            lines.append(b"server: %b\r\n" % self._server)
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif not self._http11:
            lines.append(b"connection: keep-alive\r\n")
        if not fields.dated:
            lines.append(self._date())
        lines.append(b"\r\n")
        self.started = True
        return b"".join(lines)

    def _frame(self, size: int | None) -> bytes:
        """Decide how the body's end is known; return the header that says so."""
        declared = self._declared
        if self._head_only or self._status in (204, 304):
            # HEAD shows the length that GET would have; nothing is known of one that comes in parts.
            if declared is None or self._status == 204:
                return b""
            return b"content-length: %d\r\n" % declared
        if declared is None and size is not None:
            declared = size
        if declared is not None:
            self._framing, self._remaining = _Framing.LENGTH, declared
            return b"content-length: %d\r\n" % declared
        if self._http11:
            self._framing = _Framing.CHUNKED
            return b"transfer-encoding: chunked\r\n"
        self._framing = _Framing.CLOSE
        self.keep_alive = False
        return b""

    def _framed(self, data: bytes, more: bool) -> bytes:
        if self._framing is _Framing.LENGTH:
            self._remaining -= len(data)
            if self._remaining < 0:
                raise AppError("the body is longer than Content-Length says")
            if not more and self._remaining:
                raise AppError("the body is shorter than Content-Length says")
            return data
        if self._framing is _Framing.CHUNKED:
            chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            return chunk if more else chunk + b"0\r\n\r\n"
        return b"" if self._framing is _Framing.NONE else data


def refusal_bytes(refusal: Refusal, render: Renderer, date: bytes, *, head_only: bool = False) -> bytes:
    """Return the whole answer to a request that is refused; the connection is closed after it."""
    kind, body = render(refusal)
    later = b"retry-after: 1\r\n" if refusal.status == 503 else b""
    head = b"%bcontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n%b%b\r\n" % (
        _status_line(refusal.status), kind, len(body), later, date,
    )  # fmt: skip
    return head if head_only else head + body
