"""What an upgrade request must say before a socket is opened. Pure; trio-websocket did the WebSocket part.

    GET /socket/websocket?vsn=2.0.0&token=<access token>

Without `vsn` it is version 1 of the protocol, as in Phoenix.

The token may ride in the query or, as phoenix.js's `authToken` option sends it, as the second of the
subprotocols `phoenix, base64url.bearer.phx.<token in base64>`, to which the server must answer `phoenix`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

PATH = "/socket/websocket"
LONGPOLL_PATH = "/socket/longpoll"
ANY_ORIGIN = "*"

_VERSION = re.compile(r"([12])\.0\.\d+")
_BEARER = "base64url.bearer.phx."
_HOST = re.compile(rb"^host:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Refused(Exception):  # noqa: N818  # an outcome of the handshake, answered with an HTTP response
    """The upgrade is answered with this HTTP status and a JSON body naming the reason."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> bytes:
        """`{"reason", "message"}` and, when coming back helps, `retry_after_ms`."""
        facts: dict[str, object] = {"reason": self.reason, "message": self.message}
        if self.retry_after_s is not None:
            facts["retry_after_ms"] = round(self.retry_after_s * 1000)
        return json.dumps(facts).encode()


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A request that may be authenticated: its token, the subprotocol to answer with, and the protocol's version."""

    token: str
    subprotocol: str | None
    version: int = 2


def check_upgrade(
    target: str,
    headers: Mapping[bytes, bytes],
    host: str,
    subprotocols: Sequence[str],
    origins: Collection[str] = (),
) -> Upgrade:
    """Check path, protocol version and origin, and find the token. `headers` has lower-case names.

    `origins` are full origins (`https://app.example`) accepted beside the server's own host; `*` accepts all.
    Raises Refused.
    """
    path, _, query_text = target.partition("?")
    if path != PATH:
        raise Refused(404, "not_found", f"WebSockets are served at {PATH}, long polls at {LONGPOLL_PATH}")
    check_origin(headers.get(b"origin"), host, origins)
    query = parse_qs(query_text)
    version = asked_version(query)
    token = query.get("token", [""])[0] or _bearer(subprotocols)
    if not token:
        raise Refused(
            403, "unauthorized", "a token is needed: token=<access token>, or authToken in phoenix.js"
        )
    return Upgrade(token, "phoenix" if "phoenix" in subprotocols else None, version)


def asked_version(query: Mapping[str, Sequence[str]]) -> int:
    """Read which version of the protocol is asked for, 1 or 2. Raises Refused."""
    asked = query.get("vsn", ["1.0.0"])[0]
    version = _VERSION.fullmatch(asked)
    if version is None:
        told = f"this server speaks vsn=2.0.0 and 1.0.0, the request asked for vsn={asked}"
        raise Refused(403, "unsupported_version", told)
    return int(version[1])


def bearer_subprotocol(token: str) -> str:
    """Wrap a token as phoenix.js's `authToken` option does, for the second subprotocol a client offers."""
    return _BEARER + base64.b64encode(token.encode()).decode().rstrip("=")


def host_of(head: bytes) -> str:
    """Read the Host header out of the bytes of a request head, which the WebSocket library keeps to itself."""
    found = _HOST.search(head)
    return found.group(1).decode("ascii", errors="replace") if found else ""


def check_origin(origin: bytes | None, host: str, origins: Collection[str]) -> None:
    """Let in what no browser sent, our own host on any port (as Phoenix does), and the listed origins.

    Raises Refused.
    """
    if origin is None or ANY_ORIGIN in origins:
        return
    text = origin.decode("ascii", errors="replace")
    if text in origins:
        return
    if (name := _hostname(text)) and name == _hostname(f"//{host}"):
        return
    raise Refused(403, "forbidden_origin", f"origin {text} is not allowed")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _bearer(subprotocols: Sequence[str]) -> str:
    """Decode phoenix.js's auth token: called base64url, really the standard alphabet unpadded; both are read."""
    for offered in subprotocols:
        if offered.startswith(_BEARER):
            text = offered.removeprefix(_BEARER).replace("-", "+").replace("_", "/").rstrip("=")
            try:
                return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise Refused(403, "unauthorized", "the bearer subprotocol is not base64") from None
    return ""
