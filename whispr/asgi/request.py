"""The head of a request: from bytes to an ASGI scope, or a refusal. Pure.

llhttp, in its strict mode, does the parsing: it refuses line folding, whitespace before a colon, bare CR and
LF, control characters, and several, malformed or contradicted Content-Lengths. What it lets pass although two
parties might read it differently is refused here: a request line with more than two spaces, versions other
than 1.0 and 1.1, Transfer-Encoding in a version that has none, no Host or several, a target that names
another host than Host does (RFC 9112, sections 3.2 and 6).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import httptools

from whispr.asgi.refusals import Refusal, bad_request

Headers = list[tuple[bytes, bytes]]

ASGI: Final = {"version": "3.0", "spec_version": "2.4"}
"""In 2.4, `send` raises OSError once the client is gone."""

EXTENSIONS: Final[dict[str, dict[str, object]]] = {
    "http.response.pathsend": {},
    "http.response.zerocopysend": {},
    "whispr.endless": {},
}

_SPECIAL: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]*)?")
_METHOD = re.compile(rb"[A-Z]{1,24} ")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(.*)", re.DOTALL)


KNOWN_MAX: Final = 256
KNOWN_BYTES_MAX: Final = 1024
"""How many heads are remembered, and how long each may be."""


class Known:
    """Heads that have come more than once lately: clients that keep asking send the same bytes again."""

    __slots__ = ("_heads", "_seen")

    def __init__(self) -> None:
        self._heads: dict[bytes, RequestHead] = {}
        self._seen: set[int] = set()
        """Hashes of heads that came once, most of which never come again."""

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, head: bytes) -> RequestHead | None:
        """What it was found to mean. It belongs to nobody: see `RequestHead.again`."""
        return self._heads.get(head)

    def note(self, head: bytes, request: RequestHead) -> None:
        """Remember a head, if it has come before and is short."""
        number = hash(head)
        if number not in self._seen:
            if len(self._seen) >= KNOWN_MAX:
                self._seen.clear()
            self._seen.add(number)
        elif len(head) <= KNOWN_BYTES_MAX:
            if len(self._heads) >= KNOWN_MAX:
                self._heads.clear()
            # The application may change what it is given.
            self._heads[head] = request.again(request.scope)


class RequestHead:
    """A request whose headers are all there."""

    __slots__ = ("body_length", "chunked", "expects_continue", "http11", "keep_alive", "scope")

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope
        self.http11 = True
        self.keep_alive = True
        self.expects_continue = False
        self.chunked = False
        self.body_length = 0
        """What Content-Length says."""

    def again(self, base: dict[str, Any]) -> RequestHead:
        """The same request, made anew on the connection of `base`."""
        request = RequestHead({**self.scope, **base, "headers": self.scope["headers"].copy()})
        request.http11 = self.http11
        request.keep_alive = self.keep_alive
        request.expects_continue = self.expects_continue
        request.chunked = self.chunked
        request.body_length = self.body_length
        if not self.http11:
            request.scope["http_version"] = "1.0"
        return request


class HeadParser:
    """Parses one head after another, each given whole. After a Refusal it is of no more use."""

    __slots__ = ("_base", "_headers", "_headers_max", "_known", "_parser", "_special", "_url")

    def __init__(self, base: dict[str, Any], headers_max: int, known: Known) -> None:
        """`base`: what is the same in the scope of every request. `headers_max`: 0 for any number.

        `known`: what parsers with the same `headers_max` share.
        """
        self._base = base
        self._known = known
        self._headers_max = headers_max
        self._headers: Headers = []
        self._special: dict[bytes, bytes] = {}
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = None

    def on_url(self, url: bytes) -> None:
        """Part of llhttp's interface."""
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Part of llhttp's interface."""
        name = name.lower()
        value = value.rstrip(b" \t")
        self._headers.append((name, value))
        if name in _SPECIAL:
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        special = self._special
        if name not in special:
            special[name] = value
        elif name == b"host":
            raise bad_request("bad_host", "there are several Host headers")
        else:
            special[name] += b", " + value

    def parse(self, head: bytes) -> RequestHead:
        """Return the request in `head`, which ends with the empty line. Raises Refusal."""
        known = self._known.get(head)
        if known is not None:
            return known.again(self._base)
        request = self._parsed(head)
        self._known.note(head, request)
        return request

    def _parsed(self, head: bytes) -> RequestHead:
        self._headers = []
        self._special.clear()
        parser = self._parser or httptools.HttpRequestParser(self)
        self._parser = parser
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserError as error:
            raise _refusal(error, head) from None
        if self._headers_max and len(self._headers) > self._headers_max:
            raise Refusal(431, "too_many_headers", f"there are over {self._headers_max} headers")
        method = parser.get_method()
        http11 = self._is_http11(method, head)
        request = RequestHead(self._scope(method))
        request.http11 = request.keep_alive = http11
        if not request.http11:
            request.scope["http_version"] = "1.0"
        self._apply(request)
        if not request.keep_alive or request.chunked or request.body_length:
            # llhttp now waits for a body, which is not its matter here, or for nothing at all.
            self._parser = None
        return request

    def _is_http11(self, method: bytes, head: bytes) -> bool:
        """Compare the request line with what was understood of it."""
        line = b"%b %b HTTP/1." % (method, self._url)
        if not head.startswith(line):
            if b" HTTP/1." in head[: head.find(b"\r\n")]:
                raise bad_request("bad_request", "the request line is malformed")
            raise _bad_version()
        return head[len(line)] == 0x31

    def _scope(self, method: bytes) -> dict[str, Any]:
        if method == b"CONNECT":
            raise Refusal(501, "connect", "this is not a proxy")
        target = self._url
        authority: bytes | None = None
        if target[:1] != b"/":
            authority, target = _split(target, method)
        raw_path, _, query = target.partition(b"?")
        try:
            path = raw_path.decode("ascii")
        except UnicodeDecodeError:
            raise bad_request("bad_target", "the target is not ASCII: percent-encode it") from None
        if b"#" in target:
            raise bad_request("bad_target", "the target has a fragment")
        self._check_host(authority)
        return {
            **self._base,
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
        }

    def _check_host(self, authority: bytes | None) -> None:
        host = self._special.get(b"host")
        if host is not None and not _is_host(host):
            raise bad_request("bad_host", "the Host header is malformed")
        if authority is not None:
            # A proxy in front may go by one, an application by the other.
            if host is not None and authority.lower() != host.lower():
                raise bad_request("bad_host", "the target and the Host header name different hosts")
            if not _is_host(authority):
                raise bad_request("bad_host", "the target's host is malformed")

    def _apply(self, request: RequestHead) -> None:
        """Read the headers that HTTP itself needs."""
        special = self._special
        if request.http11 and b"host" not in special:
            raise bad_request("bad_host", "there is no Host header")
        if len(special) == 1 and b"host" in special:
            return
        tokens = [token.strip().lower() for token in special.get(b"connection", b"").split(b",")]
        request.keep_alive = b"close" not in tokens if request.http11 else b"keep-alive" in tokens
        if b"upgrade" in tokens and special.get(b"upgrade", b"").lower() == b"websocket":
            raise Refusal(403, "websocket", "there are no WebSockets here: they have a port of their own")
        self._frame(request)
        if request.http11 and b"expect" in special:
            # Any other expectation may be answered 417 (RFC 9110, section 10.1.1), and is.
            if special[b"expect"].lower() != b"100-continue":
                raise Refusal(417, "bad_expectation", "only 100-continue can be expected")
            request.expects_continue = request.chunked or request.body_length > 0

    def _frame(self, request: RequestHead) -> None:
        special = self._special
        coding = special.get(b"transfer-encoding")
        if coding is not None:
            if b"content-length" in special:
                raise bad_request("bad_length", "Content-Length and Transfer-Encoding contradict each other")
            if not request.http11:
                raise bad_request("bad_length", "HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != b"chunked":
                raise Refusal(501, "bad_coding", "the only transfer coding is chunked")
            request.chunked = True
        elif (length := special.get(b"content-length")) is not None:
            if not length.isdigit() or len(length) > 18:
                raise bad_request("bad_length", "Content-Length is malformed")
            request.body_length = int(length)


@lru_cache(maxsize=256)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _split(target: bytes, method: bytes) -> tuple[bytes | None, bytes]:
    """Return the authority and the rest of a target that is no path (RFC 9112, section 3.2)."""
    if target == b"*" and method == b"OPTIONS":
        return None, target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise bad_request("bad_target", "the target is neither a path nor a URL")
    rest = absolute[2]
    return absolute[1], rest if rest[:1] == b"/" else b"/" + rest


def _bad_version() -> Refusal:
    return Refusal(505, "bad_version", "only HTTP/1.1 and HTTP/1.0 are spoken here")


def _refusal(error: httptools.HttpParserError, head: bytes) -> Refusal:
    """Say what llhttp found wrong, in its words, which are about the grammar and not the content."""
    if isinstance(error, httptools.HttpParserCallbackError) and isinstance(error.__context__, Refusal):
        return error.__context__
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(head):
        return Refusal(501, "bad_method", "there is no such method")
    if "HTTP version" in str(error):
        return _bad_version()
    reason = "bad_length" if "Length" in str(error) or "Encoding" in str(error) else "bad_request"
    return bad_request(reason, str(error) or "the request is malformed")
