"""The key this installation shows to push services of browsers (VAPID, RFC 8292)."""

from __future__ import annotations

import base64
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from whispr.errors import conflict

TOKEN_S = 12 * 3600
"""How long a token is valid; RFC 8292, section 2, allows 24 h."""
RENEW_S = 3600
"""A token with less than this to live is replaced."""
ORIGINS_MAX = 256
"""Push services whose token is kept."""


def b64url(data: bytes) -> str:
    """Encode without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Vapid:
    """Signs the `Authorization` of pushes."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, contact: str, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._contact = contact
        self._clock = wall_clock
        self._tokens: OrderedDict[str, tuple[str, float]] = OrderedDict()
        point = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        self.public_key = b64url(point)
        """What browsers subscribe with: `applicationServerKey`."""

    def authorization(self, endpoint: str) -> str:
        """Return the header for a push to this endpoint (RFC 8292, section 3)."""
        parts = urlsplit(endpoint)
        origin = f"{parts.scheme}://{parts.netloc}"
        now = self._clock()
        token, expires_at = self._tokens.get(origin, ("", 0.0))
        if expires_at - now < RENEW_S:
            expires_at = now + TOKEN_S
            claims = {"aud": origin, "exp": int(expires_at), "sub": self._contact}
            token = jwt.encode(claims, self._key, algorithm="ES256")
            self._tokens[origin] = (token, expires_at)
            if len(self._tokens) > ORIGINS_MAX:
                self._tokens.popitem(last=False)
        return f"vapid t={token}, k={self.public_key}"


def load_or_make(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the key; make it on first start, for the owner's eyes only.

    Raises FAILED_PRECONDITION when the file is there but is no P-256 key or is readable by others.
    """
    if not path.exists():
        _make(path)
    if path.stat().st_mode & 0o077:
        raise conflict(f"{path} may be read by others; chmod 600 it", "keys_unusable")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise conflict(f"{path} holds no private key: {error}", "keys_unusable") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise conflict(f"{path} holds no P-256 key", "keys_unusable")
    return key


def _make(path: Path) -> None:
    """Write a new key, whole or not at all; the first of several processes that try wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
