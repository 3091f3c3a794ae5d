"""Access tokens: what they carry, and every way in which a false one is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from whispr import tokens
from whispr.errors import Code, WhisprError
from whispr.tokens import Claims, PublicKey, SharedSecret, Signer, UnknownKeyError, Verifier

NOW = 1_800_000_000.0
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
SIGNER = Signer(PRIVATE)


def person(**changes: Any) -> Claims:
    claims = tokens.user_claims(
        user_id="u1", session_id="s1", username="ada", role="user", now=NOW, lifetime_s=900
    )
    return dataclasses.replace(claims, **changes)


def verifier(now: float = NOW) -> Verifier:
    return Verifier([SIGNER.public_key], clock=lambda: now)


def refusal(token: str, now: float = NOW, service: str | None = None) -> WhisprError:
    with pytest.raises(WhisprError) as caught:
        verifier(now).verify(token, service)
    return caught.value


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: dict[str, Any], signature: bytes | None = None) -> str:
    """A token with the true payload under a header of the forger's choice."""
    payload = SIGNER.sign(person()).split(".")[1]
    head = b64(json.dumps(header).encode())
    return f"{head}.{payload}.{b64(signature) if signature is not None else ''}"


def payload_with(**changes: Any) -> str:
    """A token with a good signature over a changed payload; None removes a claim."""
    payload = jwt.decode(SIGNER.sign(person()), options={"verify_signature": False})
    payload |= changes
    payload = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(payload, PRIVATE, "EdDSA", headers={"kid": SIGNER.kid, "typ": "at+jwt"})


def test_claims_survive_the_trip() -> None:
    """A verified token says exactly what was signed."""
    claims = person()
    assert verifier().verify(SIGNER.sign(claims)) == claims


def test_a_service_token_survives_the_trip() -> None:
    """A service's token names the service, has no session, and says that it is no person."""
    claims = tokens.service_claims("messaging", now=NOW, lifetime_s=60, services=["user"])
    seen = verifier().verify(SIGNER.sign(claims))
    assert seen == claims
    assert seen.is_service
    assert (seen.user_id, seen.session_id) == ("service:messaging", "")
    assert not person().is_service


@pytest.mark.parametrize(
    ("offset_s", "good"), [(0, True), (900 + 4.9, True), (900 + 5, False), (-5, True), (-5.1, False)]
)
def test_time_is_checked_with_a_small_leeway(offset_s: float, good: bool) -> None:
    """A token lives from its issue to its expiry, five seconds of clock difference allowed, no more."""
    token = SIGNER.sign(person())
    if good:
        verifier(NOW + offset_s).verify(token)
    else:
        expected = "token_expired" if offset_s > 0 else "unauthorized"
        assert refusal(token, NOW + offset_s).reason == expected


def test_alg_none_is_refused() -> None:
    """A token that claims to need no signature is not believed, whatever the spelling."""
    for name in ("none", "None", "NONE", "nOnE", ""):
        error = refusal(forged({"alg": name, "kid": SIGNER.kid, "typ": "at+jwt"}))
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "unauthorized")


def test_algorithm_confusion_is_refused() -> None:
    """An HMAC under the public key's bytes does not pass for a signature of the private key."""
    for secret in (SIGNER.public_key.raw, json.dumps(SIGNER.public_key.to_jwk()).encode()):
        unsigned = forged({"alg": "HS256", "kid": SIGNER.kid, "typ": "at+jwt"}).rstrip(".")
        mac = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
        assert refusal(f"{unsigned}.{b64(mac)}").reason == "unauthorized"


SECRET = SharedSecret(b"a secret that all services share")


def test_a_shared_secret_signs_and_verifies() -> None:
    """With HS256 the claims survive the trip, beside EdDSA keys, and also from a holder who names no key."""
    both = Verifier([SIGNER.public_key, SECRET], clock=lambda: NOW)
    claims = person()
    token = Signer(SECRET).sign(claims)
    assert both.verify(token) == both.verify(SIGNER.sign(claims)) == claims
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    payload = jwt.decode(token, options={"verify_signature": False})
    nameless = jwt.encode(payload, SECRET.raw, "HS256", headers={"typ": "at+jwt"})
    assert both.verify(nameless).user_id == "u1"
    two = Verifier([SECRET, SharedSecret(b"b" * 32)], clock=lambda: NOW)
    assert two.verify(token).user_id == "u1"
    with pytest.raises(WhisprError, match="names no key"):
        two.verify(nameless)


def test_algorithms_are_never_confused() -> None:
    """A key does one algorithm: neither the public key as a secret nor the secret's name on EdDSA is believed."""
    both = Verifier([SIGNER.public_key, SECRET], clock=lambda: NOW)
    payload = jwt.decode(SIGNER.sign(person()), options={"verify_signature": False})
    for secret in (SIGNER.public_key.raw, json.dumps(SIGNER.public_key.to_jwk()).encode()):
        for kid in (SIGNER.kid, SECRET.kid, None):
            header = {"alg": "HS256", "typ": "at+jwt"} | ({"kid": kid} if kid else {})
            unsigned = forged(header).rstrip(".")
            mac = hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
            with pytest.raises(WhisprError) as caught:
                both.verify(f"{unsigned}.{b64(mac)}")
            assert caught.value.reason == "unauthorized"
    crossed = jwt.encode(payload, PRIVATE, "EdDSA", headers={"kid": SECRET.kid, "typ": "at+jwt"})
    with pytest.raises(WhisprError, match="does not do EdDSA"):
        both.verify(crossed)
    with pytest.raises(UnknownKeyError) as unknown:
        verifier().verify(Signer(SECRET).sign(person()))
    assert unknown.value.algorithm == "HS256"


@pytest.mark.parametrize(
    "raw", [b"", b"x" * 31, b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----"]
)
def test_a_weak_secret_is_refused(raw: bytes) -> None:
    """Shorter than the hash, or a key that is no secret."""
    with pytest.raises(ValueError, match="secret"):
        SharedSecret(raw)


def test_a_secret_does_not_show() -> None:
    """Neither its text nor its key's name gives it away."""
    assert "share" not in repr(SECRET)
    assert SECRET.kid != SharedSecret(b"b" * 32).kid
    assert SECRET.kid == SharedSecret(SECRET.raw).kid


def test_another_kind_of_jwt_is_refused() -> None:
    """A JWT that was signed for another purpose is not an access token."""
    payload = jwt.decode(SIGNER.sign(person()), options={"verify_signature": False})
    other = jwt.encode(payload, PRIVATE, "EdDSA", headers={"kid": SIGNER.kid})
    assert refusal(other).reason == "unauthorized"


@given(position=st.integers(min_value=0), replacement=st.characters(codec="ascii"))
def test_tampering_anywhere_is_refused(position: int, replacement: str) -> None:
    """Change one character anywhere and the token is refused, unless it still encodes the same bytes."""
    token = SIGNER.sign(person(token_id="fixed"))
    at = position % len(token)
    changed = token[:at] + replacement + token[at + 1 :]
    same_bytes = [_bytes_of(part) for part in changed.split(".")] == [_bytes_of(p) for p in token.split(".")]
    if same_bytes:
        return
    assert refusal(changed).code is Code.UNAUTHENTICATED


def _bytes_of(part: str) -> bytes | None:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_")
    except ValueError:
        return None


@given(st.one_of(st.text(max_size=60), st.just("[" * 6000).map(lambda deep: f"{b64(deep.encode())}.e30.")))
def test_noise_is_refused(noise: str) -> None:
    """Whatever is not a token is UNAUTHENTICATED and nothing worse."""
    assert refusal(noise).reason == "unauthorized"


def test_a_very_long_token_is_refused_unread() -> None:
    """The length is checked before anything is parsed."""
    assert "8192" in refusal("a" * 8193).message


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "kind"])
def test_every_registered_claim_is_required(claim: str) -> None:
    """A good signature over a payload that lacks a claim is not enough."""
    assert refusal(payload_with(**{claim: None})).reason == "unauthorized"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody"},
        {"aud": "another-product"},
        {"sub": 7},
        {"exp": "soon"},
        {"role": "emperor"},
        {"role": "service"},
        {"kind": "service"},
        {"sid": None},
        {"services": "*"},
        {"services": [1]},
        {"permissions": None},
    ],
)
def test_contradictory_or_foreign_claims_are_refused(changes: dict[str, Any]) -> None:
    """Another issuer or audience, wrong types, and a person who says to be a service are refused."""
    assert refusal(payload_with(**changes)).reason == "unauthorized"


def test_an_unknown_key_says_which() -> None:
    """A token under a key we do not hold is refused so that the caller can fetch keys and try again."""
    other = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(UnknownKeyError) as caught:
        verifier().verify(other.sign(person()))
    assert caught.value.kid == other.kid
    assert caught.value.reason == "unauthorized"


def test_keys_can_be_replaced() -> None:
    """After a rotation the new key's tokens pass and the retired key's do not."""
    other = Signer(Ed25519PrivateKey.generate())
    subject = verifier()
    subject.replace_keys([other.public_key])
    assert subject.verify(other.sign(person())).user_id == "u1"
    with pytest.raises(UnknownKeyError):
        subject.verify(SIGNER.sign(person()))


def test_a_service_must_be_granted() -> None:
    """An empty `services` claim grants none, `*` grants all, names grant themselves."""
    assert not person(services=()).grants_service("user")
    assert person(services=("*",)).grants_service("anything")
    narrow = SIGNER.sign(person(services=("user",)))
    assert verifier().verify(narrow, "user").user_id == "u1"
    error = refusal(narrow, service="messaging")
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "service_not_granted")


@pytest.mark.parametrize(
    ("role", "permission", "allowed"),
    [
        ("user", "chat:write", True),
        ("user", "stream:write", False),
        ("premium", "stream:write", True),
        ("premium", "chat:moderate", False),
        ("moderator", "room:moderate", True),
        ("moderator", "stream:write", False),
        ("admin", "anything:at_all", True),
    ],
)
def test_roles_allow_what_the_api_says(role: str, permission: str, allowed: bool) -> None:
    """Roles map to the permissions of the API, and `*:*` to all of them."""
    claims = tokens.user_claims(user_id="u", session_id="s", username="n", role=role, now=0, lifetime_s=1)
    assert claims.allows(permission) is allowed


def test_wildcards_cover_one_side_only() -> None:
    """`chat:*` is every action on chat and on nothing else."""
    claims = person(permissions=("chat:*", "*:read"))
    assert claims.allows("chat:moderate")
    assert claims.allows("room:read")
    assert not claims.allows("room:write")


def test_a_jwk_names_the_same_key_everywhere() -> None:
    """The key id is the thumbprint of RFC 8037, appendix A.3, and a JWK round-trips."""
    key = PublicKey.from_x("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
    assert key.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert PublicKey.from_x(key.to_jwk()["x"]) == key
    for bad in ("", "AAAA", "!" * 43):
        with pytest.raises(ValueError):
            PublicKey.from_x(bad)
