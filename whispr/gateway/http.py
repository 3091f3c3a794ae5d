"""HTTP for the gateway: bodies within their limit, answers and errors in JSON, who the client is."""

from __future__ import annotations

import ipaddress
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope

from whispr.asgi.conditions import matches
from whispr.asgi.errors import HttpError
from whispr.asgi.wire import ClientGoneError as ClientGoneError
from whispr.errors import Code, WhisprError, conflict
from whispr.gateway.transcode import HTTP_STATUS, MethodNotAllowedError, error_body

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JSON_TYPE = re.compile(r"application/(json|[a-z0-9.+-]+\+json)", re.IGNORECASE)

_BAD_TOKEN = frozenset({"unauthorized", "token_expired", "session_revoked"})

API_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Answers hold tokens and messages: nobody on the way keeps them."""


TAGGED_HEADERS = {
    "cache-control": "private, no-cache",
    "vary": "authorization",
    "x-content-type-options": "nosniff",
}
"""Of answers that their reader may keep, asking each time whether they are still so."""


class NoTokenError(HttpError):
    """A request that needs an access token came without one."""

    def __init__(self) -> None:
        message = "no access token: send `Authorization: Bearer <token>`"
        super().__init__(401, Code.UNAUTHENTICATED, message, reason="unauthorized")


async def read_body(receive: Receive, headers: Headers, bytes_max: int) -> bytes:
    """Read a JSON body of at most `bytes_max` (0: any). Raises 413, 415, or ClientGoneError."""
    declared = headers.get("content-length", "")
    if declared.isdecimal() and bytes_max and int(declared[:20]) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError("the client left in the middle of its request")
        chunk = event.get("body", b"")
        if chunk:
            if not chunks:
                _check_type(headers)
            chunks.append(chunk)
            size += len(chunk)
            if bytes_max and size > bytes_max:
                raise _too_large(bytes_max)
        if not event.get("more_body", False):
            return b"".join(chunks)


def _too_large(bytes_max: int) -> HttpError:
    return HttpError(
        413, Code.INVALID_ARGUMENT, f"the body is over {bytes_max} bytes", reason="body_too_large"
    )


def _check_type(headers: Headers) -> None:
    """A body is JSON in UTF-8, uncompressed; a missing content type is taken to mean that."""
    media_type, _, parameters = headers.get("content-type", "application/json").partition(";")
    if not _JSON_TYPE.fullmatch(media_type.strip()):
        raise _unsupported(f"send application/json, not {media_type.strip()[:100]}")
    charset = re.search(r'charset="?([\w-]+)', parameters)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise _unsupported(f"send UTF-8, not {charset[1][:50]}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise _unsupported("send the body uncompressed")


def _unsupported(message: str) -> HttpError:
    return HttpError(415, Code.INVALID_ARGUMENT, message, reason="unsupported_media_type")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] = API_HEADERS) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(value), status, dict(headers), media_type="application/json")


def tagged_response(value: Any, if_none_match: str | None) -> Response:
    """Answer with JSON of one thing, which its reader may keep and ask about again; 304 if it is the same still."""
    body = msgspec.json.encode(value)
    etag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
    headers = {**TAGGED_HEADERS, "etag": etag}
    if if_none_match is not None and matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, 200, headers, media_type="application/json")


def error_response(error: WhisprError) -> Response:
    """Answer with an error: its HTTP status, `{code, message, details}`, and the headers that it calls for."""
    headers = dict(API_HEADERS)
    status = HTTP_STATUS[error.code]
    if isinstance(error, HttpError):
        status = error.status
        headers |= error.headers
    if isinstance(error, MethodNotAllowedError):
        status = 405
        headers["allow"] = ", ".join(error.allowed)
    if error.retry_after_s is not None or status in (429, 503):
        # Whole seconds (RFC 9110, section 10.2.3), rounded up: coming early would be refused again.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 0)))
    if status == 401:
        headers.setdefault("www-authenticate", _challenge(error))
    return json_response(error_body(error), status, headers)


def _challenge(error: WhisprError) -> str:
    """RFC 6750, section 3.1: `invalid_token` for a token that did not do, no error for none at all."""
    bad_token = error.reason in _BAD_TOKEN and not isinstance(error, NoTokenError)
    return 'Bearer realm="whispr"' + (', error="invalid_token"' if bad_token else "")


def request_id(headers: Headers) -> str:
    """Return the client's id of the request when it is a sane one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class Proxies:
    """The proxies in front of us whose `X-Forwarded-For` is believed."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """Addresses or networks. Raises FAILED_PRECONDITION (bad_setting) for anything else."""
        try:
            self._networks = [ipaddress.ip_network(entry, strict=False) for entry in trusted]
        except ValueError as error:
            raise conflict(f"WHISPR_GATEWAY_TRUSTED_PROXIES: {error}", "bad_setting") from None

    def client_address(self, scope: Scope, headers: Headers) -> str:
        """Return the nearest address that is not one of our proxies'."""
        return self._nearest(scope["client"][0] if scope.get("client") else "", headers)

    def address_behind(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """Do the same for a connection from `peer` and the headers on it, with names in lower case."""
        return self._nearest(peer, Headers(raw=list(headers)))

    def trusts(self, address: str) -> bool:
        """Tell whether an address is a proxy's of ours."""
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def _nearest(self, peer: str, headers: Headers) -> str:
        hops = [hop.strip() for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
        for hop in reversed(hops):
            if not self.trusts(peer):
                break
            if _address(hop) is None:
                break
            peer = hop
        return peer


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
