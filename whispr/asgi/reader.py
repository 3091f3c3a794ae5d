"""What a client sends, in order: a head, its body, the next head. Pure: bytes in, requests out.

The buffer holds what has come and not been asked for; whoever feeds it decides when to stop.
"""

from __future__ import annotations

import re
from typing import Any

from whispr.asgi.body import BodyDecoder, ChunkedBody, EndlessBody, LengthBody
from whispr.asgi.limits import HttpLimits
from whispr.asgi.refusals import Refusal, bad_request
from whispr.asgi.request import HeadParser, Known, RequestHead

_NOT_HTTP = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|(?<!\r)\n|\r(?=[^\n])")
"""Found in a head, it will never be one: better said now than when the time for it is up."""

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")

_OVERLAP = 3
"""How much of the empty line at the end may have come before."""


class RequestReader:
    """Cuts a connection's bytes into requests, within the limits."""

    __slots__ = ("_body", "_body_bytes", "_buffer", "_limits", "_parser", "_scanned")

    def __init__(self, limits: HttpLimits, base: dict[str, Any], known: Known | None = None) -> None:
        """`base`: what is the same in the scope of every request. `known`: shared by readers of the same limits."""
        self._limits = limits
        self._parser = HeadParser(base, limits.headers, Known() if known is None else known)
        self._buffer = b""
        self._scanned = 0
        self._body: BodyDecoder | None = None
        self._body_bytes = 0

    @property
    def buffered(self) -> int:
        """How many bytes have come that nobody asked for yet."""
        return len(self._buffer)

    @property
    def body_done(self) -> bool:
        """Whether the body of the last head has all been taken."""
        return self._body is None

    def feed(self, data: bytes) -> None:
        """Take what has been received."""
        self._buffer = self._buffer + data if self._buffer else data

    def head(self) -> RequestHead | None:
        """Return the next request once its head is complete. Raises Refusal."""
        assert self._body is None, "the last request's body comes first"
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end <= 0:
            if buffer[:2] == b"\r\n":
                return self._skip_empty_line()
            self._check_unfinished()
            return None
        if buffer[:2] == b"\r\n":
            return self._skip_empty_line()
        size = end + 4
        self._check_size(buffer, size)
        if size == len(buffer):
            head, self._buffer = buffer, b""
        else:
            head, self._buffer = buffer[:size], buffer[size:]
        self._scanned = 0
        request = self._parser.parse(head)
        if request.chunked or request.body_length:
            self._begin_body(request)
        return request

    def _skip_empty_line(self) -> RequestHead | None:
        """Empty lines before a request are ignored (RFC 9112, section 2.2)."""
        empty = _EMPTY_LINES.match(self._buffer)
        self._buffer = self._buffer[empty.end() if empty else 0 :]
        self._scanned = 0
        return self.head() if self._buffer else None

    def _check_unfinished(self) -> None:
        buffer = self._buffer
        begin = self._scanned
        self._scanned = max(0, len(buffer) - _OVERLAP)
        if _NOT_HTTP.search(buffer, begin):
            raise bad_request("bad_request", "this is not HTTP")
        self._check_size(buffer, len(buffer))

    def _check_size(self, buffer: bytes, size: int) -> None:
        limits = self._limits
        if limits.line_bytes and size > limits.line_bytes:
            line = buffer.find(b"\r\n", 0, limits.line_bytes + 2)
            if line < 0:
                raise Refusal(414, "line_too_long", f"the request line is over {limits.line_bytes} bytes")
        if limits.head_bytes and size > limits.head_bytes:
            raise Refusal(431, "head_too_large", f"the headers are over {limits.head_bytes} bytes")

    def _begin_body(self, request: RequestHead) -> None:
        maximum = self._limits.body_bytes
        if maximum and request.body_length > maximum:
            raise _too_large(maximum)
        self._body_bytes = 0
        if request.chunked:
            self._body = ChunkedBody(self._limits.head_bytes)
        else:
            self._body = LengthBody(request.body_length)

    def begin_endless(self) -> None:
        """Take all that comes from now on for the body of the last head, which said of none."""
        assert self._body is None, "it has a body"
        self._body = EndlessBody()
        self._body_bytes = 0

    def end(self) -> None:
        """Take it that the client has sent the last of an endless body."""
        assert isinstance(self._body, EndlessBody), "others say themselves where they end"
        self._body.done = True

    def body(self) -> bytes:
        """Take what has come of the body; nothing if more has to come first. Raises Refusal."""
        decoder = self._body
        if decoder is None:
            return b""
        body, self._buffer = decoder.take(self._buffer)
        self._body_bytes += len(body)
        maximum = self._limits.body_bytes
        if maximum and self._body_bytes > maximum and not isinstance(decoder, EndlessBody):
            raise _too_large(maximum)
        if decoder.done:
            self._body = None
        return body


def _too_large(maximum: int) -> Refusal:
    return Refusal(413, "body_too_large", f"the body is over {maximum} bytes")
