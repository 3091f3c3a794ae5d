"""What an upgrade request must say: path, version, origin, token."""

from __future__ import annotations

import base64
import json

import pytest

from whispr.realtime.handshake import Refused, bearer_subprotocol, check_upgrade, host_of

GOOD = "/socket/websocket?vsn=2.0.0&token=T"
HOST = "chat.example:4000"


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("/", 404, "not_found"),
        ("//[", 404, "not_found"),
        ("/socket/longpoll?vsn=2.0.0&token=T", 404, "not_found"),
        ("/socket/websocket?vsn=3.0.0&token=T", 403, "unsupported_version"),
        ("/socket/websocket?vsn=2.1.0&token=T", 403, "unsupported_version"),
        ("/socket/websocket?vsn=2.0.0", 403, "unauthorized"),
        ("/socket/websocket?vsn=2.0.0&token=", 403, "unauthorized"),
    ],
)
def test_a_bad_target_is_refused_with_a_reason(target: str, status: int, reason: str) -> None:
    """Path, version and token are each refused with their own status and a body that says why."""
    with pytest.raises(Refused) as raised:
        check_upgrade(target, {}, HOST, ())
    assert raised.value.status == status
    body = json.loads(raised.value.body)
    assert body["reason"] == reason
    assert body["message"]


@pytest.mark.parametrize(("query", "version"), [("", 1), ("&vsn=1.0.0", 1), ("&vsn=2.0.0", 2)])
def test_the_version_is_the_one_asked_for_or_the_first(query: str, version: int) -> None:
    """A client of before `vsn` is understood, as by Phoenix."""
    assert check_upgrade(f"/socket/websocket?token=T{query}", {}, HOST, ()).version == version


def test_the_token_is_read_from_the_query() -> None:
    """`token=` is percent-decoded; no subprotocol is answered when none was offered."""
    upgrade = check_upgrade("/socket/websocket?token=a%2Eb&vsn=2.0.0", {}, HOST, ())
    assert (upgrade.token, upgrade.subprotocol) == ("a.b", None)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("token", ["a.b.c", "\u00ff\u00fe\u00fb>>>???~~", "x", "xx"])
def test_the_token_is_read_from_the_subprotocol(encode: object, token: str) -> None:
    """phoenix.js's authToken comes in the standard or the URL alphabet, unpadded; the answer is `phoenix`."""
    assert callable(encode)
    offered = "base64url.bearer.phx." + encode(token.encode()).decode().rstrip("=")
    upgrade = check_upgrade("/socket/websocket?vsn=2.0.0", {}, HOST, ["phoenix", offered])
    assert (upgrade.token, upgrade.subprotocol) == (token, "phoenix")
    assert check_upgrade(GOOD.replace("&token=T", ""), {}, HOST, [bearer_subprotocol(token)]).token == token


@pytest.mark.parametrize(
    "offered", ["base64url.bearer.phx.!!!!", "base64url.bearer.phx./w", "base64url.bearer.phx.a"]
)
def test_a_broken_bearer_subprotocol_is_refused(offered: str) -> None:
    """What is no base64 of a string is refused as unauthorized."""
    with pytest.raises(Refused) as raised:
        check_upgrade("/socket/websocket?vsn=2.0.0", {}, HOST, ["phoenix", offered])
    assert raised.value.reason == "unauthorized"


@pytest.mark.parametrize(
    ("origin", "origins", "allowed"),
    [
        (None, (), True),
        (b"https://chat.example", (), True),
        (b"http://chat.example:8080", (), True),
        (b"https://evil.example", (), False),
        (b"https://chat.example.evil", (), False),
        (b"null", (), False),
        (b"", (), False),
        (b"http://[broken", (), False),
        (b"https://app.example", ("https://app.example",), True),
        (b"http://app.example", ("https://app.example",), False),
        (b"https://anywhere.example", ("*",), True),
    ],
)
def test_a_foreign_origin_is_refused(origin: bytes | None, origins: tuple[str, ...], allowed: bool) -> None:
    """A browser page may connect from our own host, on any port, or from a listed origin; non-browsers send none."""
    headers = {} if origin is None else {b"origin": origin}
    if allowed:
        assert check_upgrade(GOOD, headers, HOST, (), origins).token == "T"
        return
    with pytest.raises(Refused) as raised:
        check_upgrade(GOOD, headers, HOST, (), origins)
    assert (raised.value.status, raised.value.reason) == (403, "forbidden_origin")


def test_the_host_is_read_from_the_request_head() -> None:
    """The Host header is found whatever its case and spacing; a request without one has none."""
    assert host_of(b"GET / HTTP/1.1\r\nhOsT:  a.example:80 \r\nX-Host: b\r\n\r\n") == "a.example:80"
    assert host_of(b"GET / HTTP/1.1\r\nX-Host: b\r\n\r\n") == ""
