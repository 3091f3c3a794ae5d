"""Access tokens: signed claims about who is calling. Pure: no I/O, the clock is passed in.

An access token is a JWT (RFC 7519) signed with Ed25519 (RFC 8037) or, where an operator says so, with a secret
that all services share (HS256; RFC 7518, section 3.2). Three rules keep verification safe:

- The key decides the algorithm, never the token's header (RFC 8725, section 3.1). A token that says `none`,
  or HS256 over a public key, meets a key that only does EdDSA and is refused; and the other way round.
- Every registered claim is required and checked: `iss`, `aud`, `sub`, `exp`, `nbf`, `iat`, `jti`.
- Clocks of two machines may differ by `LEEWAY_S` seconds, no more.

A user's token carries the session it belongs to (`sid`), so that revoking the session refuses every token of
it. A service's token has no session: it is short-lived, minted by whoever holds the keys, and revoked by its id.

`services` says where a token may be shown: none when empty, everywhere with `*`. `permissions` says what its
role may do there, as `resource:action`, either side of which may be `*`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from whispr.errors import WhisprError, denied, unauthenticated

ISSUER = "whispr"
AUDIENCE = "whispr"
ALGORITHM = "EdDSA"
SHARED_ALGORITHM = "HS256"
TYPE = "at+jwt"
"""RFC 9068, section 2.1: keeps an access token from being taken for another kind of JWT."""

SECRET_BYTES_MIN = 32
"""A shared secret is at least as long as the hash (RFC 7518, section 3.2)."""

LEEWAY_S = 5.0
"""How far two machines' clocks may disagree."""

TOKEN_LEN_MAX = 8192
"""Longer tokens are refused unread; ours are about 700 characters."""

USER_SERVICES = ("auth", "user", "messaging", "chat", "stream", "media", "notification")
"""The services that people call. Named one by one: a service added for machines alone is not in it."""

ADMINISTER = "auth:admin"
"""The permission to change accounts of others and to issue service tokens; administrators have it by `*:*`."""

SERVICE_ROLE = "service"
SERVICE_PREFIX = "service:"

_USER_PERMISSIONS = (
    "chat:read",
    "chat:write",
    "stream:read",
    "room:read",
    "room:write",
    "room:create_public",
)
ROLE_PERMISSIONS: Mapping[str, tuple[str, ...]] = {
    "user": _USER_PERMISSIONS,
    "premium": (*_USER_PERMISSIONS, "stream:write", "room:create_premium"),
    "moderator": (*_USER_PERMISSIONS, "chat:moderate", "room:moderate"),
    "admin": ("*:*",),
}

Clock = Callable[[], float]
"""Unix time in seconds."""

_REQUIRED = ("iss", "aud", "sub", "exp", "nbf", "iat", "jti", "kind")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. Times are Unix seconds."""

    user_id: str
    """The account's id; of a service `service:<name>`."""
    session_id: str
    """Empty for a service."""
    username: str
    role: str
    services: tuple[str, ...]
    permissions: tuple[str, ...]
    issued_at: float
    expires_at: float
    token_id: str

    @property
    def is_service(self) -> bool:
        """Whether a service, not a person, holds the token."""
        return self.role == SERVICE_ROLE

    def grants_service(self, service: str) -> bool:
        """Whether the token may be shown to `service` (such as "messaging")."""
        return "*" in self.services or service in self.services

    def allows(self, permission: str) -> bool:
        """Whether the role may do `permission` (such as "room:moderate")."""
        return permits(self.permissions, permission)


def permits(permissions: Iterable[str], wanted: str) -> bool:
    """Whether `permissions` cover `wanted` ("room:moderate"), either side of each of which may be `*`."""
    resource, _, action = wanted.partition(":")
    return not {wanted, f"{resource}:*", f"*:{action}", "*:*"}.isdisjoint(permissions)


def user_claims(
    *, user_id: str, session_id: str, username: str, role: str, now: float, lifetime_s: float
) -> Claims:
    """Claims of a person's session: the services people call, the permissions of the role."""
    return Claims(
        user_id=user_id,
        session_id=session_id,
        username=username,
        role=role,
        services=USER_SERVICES,
        permissions=ROLE_PERMISSIONS[role],
        issued_at=now,
        expires_at=now + lifetime_s,
        token_id=uuid.uuid4().hex,
    )


def service_claims(
    name: str,
    *,
    now: float,
    lifetime_s: float,
    services: Iterable[str] = ("*",),
    permissions: Iterable[str] = (),
) -> Claims:
    """Claims of a service called `name`, good for calling `services`."""
    return Claims(
        user_id=SERVICE_PREFIX + name,
        session_id="",
        username=name,
        role=SERVICE_ROLE,
        services=tuple(services),
        permissions=tuple(permissions),
        issued_at=now,
        expires_at=now + lifetime_s,
        token_id=uuid.uuid4().hex,
    )


def _unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class VerifyingKey(Protocol):
    """A key that verifies, and the one algorithm it does so with."""

    @property
    def kid(self) -> str:
        """Names the key in a token's header."""

    @property
    def algorithm(self) -> str:
        """As `alg` names it."""

    @property
    def material(self) -> Any:
        """What PyJWT verifies with."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 key that verifies. Its id is its RFC 7638 thumbprint, so equal keys have equal ids."""

    raw: bytes

    @cached_property
    def kid(self) -> str:
        """The thumbprint: SHA-256 over the required members in lexical order (RFC 7638, section 3)."""
        canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{_unpadded(self.raw)}"}}'
        return _unpadded(hashlib.sha256(canonical.encode()).digest())

    @property
    def algorithm(self) -> str:
        """EdDSA and nothing else."""
        return ALGORITHM

    @cached_property
    def material(self) -> Ed25519PublicKey:
        """The key as `cryptography` has it."""
        return Ed25519PublicKey.from_public_bytes(self.raw)

    @classmethod
    def from_x(cls, x: str) -> PublicKey:
        """Read the `x` of a JWK (RFC 8037, section 2). Raises ValueError when it is not an Ed25519 key."""
        raw = base64.b64decode(x + "=" * (-len(x) % 4), altchars=b"-_", validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
        return cls(raw)

    def to_jwk(self) -> dict[str, str]:
        """The key as a JSON Web Key (RFC 7517, section 4)."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _unpadded(self.raw),
            "kid": self.kid,
            "alg": ALGORITHM,
            "use": "sig",
        }


@dataclass(frozen=True)
class SharedSecret:
    """A secret that signs and verifies (HS256). It is never published; its id is an HMAC under it.

    Raises ValueError when it is shorter than SECRET_BYTES_MIN or looks like an asymmetric key: a public key is
    no secret.
    """

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) < SECRET_BYTES_MIN:
            raise ValueError(f"a shared secret has at least {SECRET_BYTES_MIN} bytes")
        try:
            jwt.get_algorithm_by_name(SHARED_ALGORITHM).prepare_key(self.raw)
        except jwt.InvalidKeyError as error:
            raise ValueError("a public or private key is no shared secret") from error

    @cached_property
    def kid(self) -> str:
        """Equal secrets have equal ids."""
        return "hs256-" + hmac.new(self.raw, b"whispr key id", hashlib.sha256).hexdigest()[:16]

    @property
    def algorithm(self) -> str:
        """HS256 and nothing else."""
        return SHARED_ALGORITHM

    @property
    def material(self) -> bytes:
        """The secret."""
        return self.raw


class Signer:
    """Signs claims with one key: an Ed25519 private key or a shared secret."""

    def __init__(self, key: Ed25519PrivateKey | SharedSecret) -> None:
        self.verifying_key: PublicKey | SharedSecret
        """What verifies its tokens."""
        if isinstance(key, SharedSecret):
            self._key: Any = key.raw
            self.verifying_key = key
        else:
            self._key = key
            self.verifying_key = PublicKey(key.public_key().public_bytes_raw())
        self.kid = self.verifying_key.kid

    @property
    def public_key(self) -> PublicKey:
        """The public half of an Ed25519 key."""
        assert isinstance(self.verifying_key, PublicKey), "a shared secret has no public half"
        return self.verifying_key

    def sign(self, claims: Claims) -> str:
        """Return `claims` as a signed token."""
        issued = math.floor(claims.issued_at)
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": claims.user_id,
            "iat": issued,
            "nbf": issued,
            "exp": math.ceil(claims.expires_at),
            "jti": claims.token_id,
            "kind": "service" if claims.is_service else "user",
            "username": claims.username,
            "role": claims.role,
            "services": list(claims.services),
            "permissions": list(claims.permissions),
        }
        if claims.session_id:
            payload["sid"] = claims.session_id
        header = {"kid": self.kid, "typ": TYPE}
        return jwt.encode(payload, self._key, self.verifying_key.algorithm, headers=header)


class UnknownKeyError(WhisprError):
    """The token names a key that the verifier does not hold: new keys may have to be fetched."""

    def __init__(self, kid: str, algorithm: str = ALGORITHM) -> None:
        error = unauthenticated("the token is signed with an unknown key")
        super().__init__(error.code, error.message, error.details)
        self.kid = kid
        self.algorithm = algorithm


class Verifier:
    """Verifies tokens against a set of keys."""

    def __init__(self, keys: Iterable[VerifyingKey], clock: Clock = time.time) -> None:
        self._clock = clock
        self._keys: dict[str, VerifyingKey] = {}
        self._secrets: list[VerifyingKey] = []
        self.replace_keys(keys)

    def replace_keys(self, keys: Iterable[VerifyingKey]) -> bool:
        """Trust `keys` and no others from now on; tell whether that changes anything."""
        trusted = {key.kid: key for key in keys}
        changed = trusted.keys() != self._keys.keys()
        self._keys = trusted
        self._secrets = [key for key in trusted.values() if key.algorithm == SHARED_ALGORITHM]
        return changed

    def verify(self, token: str, service: str | None = None) -> Claims:
        """Return what `token` says once it has proved itself; with `service`, it must grant that one too.

        Raises UNAUTHENTICATED with reason `token_expired`, or `unauthorized` for any other fault (an unknown
        key as UnknownKeyError), and PERMISSION_DENIED with reason `service_not_granted`.
        """
        key = self._key_of(token)
        try:
            payload = jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                audience=AUDIENCE,
                issuer=ISSUER,
                # The three times are checked below, against the clock that was passed in.
                options={
                    "require": list(_REQUIRED),
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError:
            raise unauthenticated("the token is meant for somebody else") from None
        except jwt.PyJWTError:
            raise unauthenticated("the token is not valid") from None
        claims = _claims_of(payload)
        check_times(claims, self._clock())
        if service is not None:
            check_service(claims, service)
        return claims

    def _key_of(self, token: str) -> VerifyingKey:
        if len(token) > TOKEN_LEN_MAX:
            raise unauthenticated(f"the token is longer than {TOKEN_LEN_MAX} characters")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise unauthenticated("the token is malformed") from None
        algorithm = header.get("alg")
        if algorithm not in (ALGORITHM, SHARED_ALGORITHM) or header.get("typ") != TYPE:
            raise unauthenticated(
                f"the token is not an access token signed with {ALGORITHM} or {SHARED_ALGORITHM}"
            )
        key = self._named(header.get("kid"), algorithm)
        if key.algorithm != algorithm:
            raise unauthenticated(f"the token's key does not do {algorithm}")
        return key

    def _named(self, kid: object, algorithm: str) -> VerifyingKey:
        """Return the key of this name. Other holders of a shared secret need not know our name for it."""
        if kid is None and algorithm == SHARED_ALGORITHM and len(self._secrets) == 1:
            return self._secrets[0]
        if not isinstance(kid, str):
            raise unauthenticated("the token names no key")
        try:
            return self._keys[kid]
        except KeyError:
            raise UnknownKeyError(kid, algorithm) from None


def check_times(claims: Claims, now: float) -> None:
    """Raise UNAUTHENTICATED unless `now` lies within the token's life, give or take the leeway."""
    if now >= claims.expires_at + LEEWAY_S:
        raise unauthenticated("the token has expired", reason="token_expired")
    if now < claims.issued_at - LEEWAY_S:
        raise unauthenticated("the token is not valid yet")


def check_service(claims: Claims, service: str) -> None:
    """Raise PERMISSION_DENIED (service_not_granted) unless the token may be shown to `service`."""
    if not claims.grants_service(service):
        raise denied(f"the token does not grant the {service} service", reason="service_not_granted")


def _claims_of(payload: Mapping[str, Any]) -> Claims:
    """Read a verified payload: checked, since what another version of us wrote must not crash this one."""
    try:
        claims = Claims(
            user_id=_text(payload["sub"]),
            session_id=_text(payload.get("sid", "")),
            username=_text(payload["username"]),
            role=_text(payload["role"]),
            services=_texts(payload["services"]),
            permissions=_texts(payload["permissions"]),
            issued_at=float(payload["nbf"]),
            expires_at=float(payload["exp"]),
            token_id=_text(payload["jti"]),
        )
    except (KeyError, TypeError, ValueError):
        raise unauthenticated("the token's claims are malformed") from None
    kind = "service" if claims.is_service else "user"
    person = bool(claims.session_id) and claims.role in ROLE_PERMISSIONS
    service = not claims.session_id and claims.user_id.startswith(SERVICE_PREFIX)
    if payload["kind"] != kind or not (service if claims.is_service else person):
        raise unauthenticated("the token's claims contradict each other")
    return claims


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a string: {value!r}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"not a list: {value!r}")
    return tuple(map(_text, value))
