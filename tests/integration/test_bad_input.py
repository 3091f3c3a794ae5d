"""Bad input, each with the error it gets, against the running product."""

from __future__ import annotations

import base64
import itertools
import json
import time
from http.client import HTTPConnection
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.product import Product
from whispr.realtime.client import Refused, open_phoenix
from whispr.realtime.upgrade import Rejected

_names = itertools.count()


@pytest.fixture
def alice(product: Product) -> tuple[str, str]:
    """Somebody new: id and token."""
    return product.sign_up(f"bad-input-{next(_names)}")


@pytest.fixture
def conversation(product: Product, alice: tuple[str, str]) -> str:
    """A conversation of Alice's."""
    other, _ = product.sign_up(f"bad-input-{next(_names)}")
    return product.conversation(alice[1], "direct", other)


def reason(reply: Any) -> str:
    """The ErrorInfo reason of a REST error."""
    return next(str(d["reason"]) for d in reply["details"] if "reason" in d)


def raw(product: Product, path: str, body: bytes, token: str) -> tuple[int, Any]:
    """POST bytes that need not be JSON."""
    connection = HTTPConnection("127.0.0.1", product.ports["gateway"], timeout=10)
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    reply = json.loads(response.read())
    connection.close()
    return response.status, reply


def forged(product: Product, token: str, **changes: object) -> str:
    """A token like `token` with other claims, signed with the product's own key."""
    key = load_pem_private_key((product.data_dir / "keys" / "0001.pem").read_bytes(), None)
    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    headers = jwt.get_unverified_header(token)
    return jwt.encode(claims, key, algorithm="EdDSA", headers=headers)  # type: ignore[arg-type]  # Ed25519 it is


def tokens(product: Product, token: str) -> dict[str, tuple[str, str]]:
    """Bad tokens by what is wrong with them, and the reason each is refused with."""
    head, body, signature = token.split(".")
    now = int(time.time())
    claims = jwt.decode(token, options={"verify_signature": False})
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return {
        "expired": (forged(product, token, exp=now - 3600, iat=now - 7200, nbf=now - 7200), "token_expired"),
        "tampered": (f"{head}.{body}.{signature[:-4]}AAAA", "unauthorized"),
        "wrong audience": (forged(product, token, aud="somebody-else"), "unauthorized"),
        "alg none": (f"{unsigned}.{body}.", "unauthorized"),
        "HMAC with a public key": (jwt.encode(claims, "k" * 32, algorithm="HS256"), "unauthorized"),
        "not a token": ("nonsense", "unauthorized"),
    }


async def test_bad_tokens(product: Product, alice: tuple[str, str]) -> None:
    """An expired, tampered, wrong-audience or unsigned token opens nothing, over REST or WebSocket."""
    for what, (token, why) in tokens(product, alice[1]).items():
        status, reply = product.call("GET", "/v1/users/me", token=token)
        assert (what, status, reason(reply)) == (what, 401, why)
        with pytest.raises(Rejected) as rejected:
            async with open_phoenix(product.websocket_url, token):
                pass
        assert (what, rejected.value.status, rejected.value.reason) == (what, 403, why)
    assert product.call("GET", "/v1/users/me")[0] == 401


def test_sign_up(product: Product, alice: tuple[str, str]) -> None:
    """A taken name, a short password and a bad name are refused, the latter two together by field."""
    _, me = product.call("GET", "/v1/users/me", token=alice[1])
    taken = {"username": me["profile"]["username"].upper(), "password": "long enough"}
    status, reply = product.call("POST", "/v1/auth/register", taken)
    assert (status, reason(reply)) == (409, "username_taken")
    status, reply = product.call("POST", "/v1/auth/register", {"username": "a!", "password": "1234567"})
    assert status == 400
    violations = next(d["field_violations"] for d in reply["details"] if "field_violations" in d)
    assert {v["field"] for v in violations} == {"username", "password"}
    assert "8" in next(v["description"] for v in violations if v["field"] == "password")


def test_rest_bodies(product: Product, alice: tuple[str, str], conversation: str) -> None:
    """Malformed, mistyped, unknown and oversized bodies are each named for what they are."""
    path = f"/v1/conversations/{conversation}/messages"
    status, reply = raw(product, path, b'{"text": "hi"', alice[1])
    assert status == 400
    assert "not valid JSON" in reply["message"]
    status, reply = raw(product, path, b'{"txt": "hi"}', alice[1])
    assert status == 400
    assert "txt" in reply["message"]
    status, reply = raw(product, path, b'{"text": 7}', alice[1])
    assert status == 400
    assert "text" in reply["message"]
    status, reply = product.call("POST", path, {"text": "x" * (64 * 1024 + 1)}, alice[1])
    assert (status, reason(reply)) == (400, "message_too_large")
    assert raw(product, path, b"x" * (1024 * 1024 + 1), alice[1])[0] == 413
    status, page = product.call("GET", path, token=alice[1])
    assert (status, page["messages"]) == (200, [])


def test_strangers(product: Product, conversation: str) -> None:
    """Who is not a member can neither read nor write, and learns nothing."""
    _, stranger = product.sign_up(f"bad-input-{next(_names)}")
    path = f"/v1/conversations/{conversation}/messages"
    for method, body in (("GET", None), ("POST", {"text": "let me in"})):
        status, reply = product.call(method, path, body, stranger)
        assert (status, reason(reply)) == (403, "not_a_member")


async def test_channels(product: Product, alice: tuple[str, str], conversation: str) -> None:
    """Unknown topics, other people's topics and bad payloads are refused with their reasons."""
    _, stranger = product.sign_up(f"bad-input-{next(_names)}")
    async with open_phoenix(product.websocket_url, stranger) as phoenix:
        for topic, why in (
            ("nonsense:1", "unmatched topic"),
            (f"user:{alice[0]}", "forbidden"),
            (f"conversation:{conversation}", "not_a_member"),
            ("conversation:nonsense", "not_found"),
        ):
            with pytest.raises(Refused) as refused:
                await phoenix.join(topic)
            assert (topic, refused.value.reason) == (topic, why)
    async with open_phoenix(product.websocket_url, alice[1]) as phoenix:
        channel = await phoenix.join(f"conversation:{conversation}")
        for event, payload, why in (
            ("nonsense", {}, "invalid_payload"),
            ("send_message", {"text": 7}, "invalid_payload"),
            ("send_message", {"text": "x" * (64 * 1024 + 1)}, "message_too_large"),
            ("mark_read", {"seq": -1}, "invalid_payload"),
        ):
            with pytest.raises(Refused) as refused:
                await channel.push(event, payload)
            assert (event, refused.value.reason) == (event, why)
        await channel.push("send_message", {"text": "first", "client_id": "once"})
        with pytest.raises(Refused) as refused:
            await channel.push("send_message", {"text": "second", "client_id": "once"})
        assert refused.value.reason == "duplicate_mismatch"


def test_unknown_paths_and_methods(product: Product) -> None:
    """A path nobody serves is 404, a method nobody serves there 405, both in the API's error form."""
    assert product.call("GET", "/v1/nonsense")[0] == 404
    status, reply = product.call("DELETE", "/v1/auth/login")
    assert status == 405
    assert set(reply) == {"code", "message", "details"}
