"""The signing keys on disk: made on first start, read by every process that shares the data folder.

`<data>/keys/0001.pem`, 0002.pem, …: the highest number signs, all of them verify. Adding a file is therefore
how a key is rotated, and removing the old one after the last token under it has expired completes it.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from whispr.tokens import Clock, PublicKey, Signer, service_claims

SERVICE_TOKEN_LIFETIME_S = 3600.0


class KeyFolderError(Exception):
    """The key folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of one folder: `signer` signs, `public_keys` verify."""

    signer: Signer
    public_keys: tuple[PublicKey, ...]


def load_keys(folder: Path) -> KeyRing:
    """Read the keys in `folder`. Raises KeyFolderError when there are none or others may read them."""
    paths = sorted(folder.glob("[0-9][0-9][0-9][0-9].pem"))
    if not paths:
        raise KeyFolderError(f"no signing keys in {folder}: start the auth service once to make them")
    signers = [_read(path) for path in paths]
    return KeyRing(signers[-1], tuple(signer.public_key for signer in signers))


def ensure_keys(folder: Path) -> KeyRing:
    """Read the keys in `folder`, making the folder (0700) and a first key (0600) when there are none.

    Any number of processes may do so at once: all of them end up with the same key.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not any(folder.glob("[0-9][0-9][0-9][0-9].pem")):
        folder.chmod(0o700)
        _write_first(folder)
    return load_keys(folder)


def _write_first(folder: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = folder / f".{secrets.token_hex(8)}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A link is refused when its name is taken: the first of several processes wins, whole file or none.
        os.link(draft, folder / "0001.pem")
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read(path: Path) -> Signer:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFolderError(f"{path} may be read by others (mode {mode:04o}): chmod 600 it")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise KeyFolderError(f"{path} is not a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFolderError(f"{path} is not an Ed25519 key")
    return Signer(key)


def mint_service_token(
    signer: Signer,
    name: str,
    *,
    services: tuple[str, ...] = ("*",),
    lifetime_s: float = SERVICE_TOKEN_LIFETIME_S,
    clock: Clock = time.time,
) -> str:
    """Sign a token for the service called `name`, good for calling `services`."""
    return signer.sign(service_claims(name, now=clock(), lifetime_s=lifetime_s, services=services))


class ServiceToken:
    """A callable that returns a service token with life left in it, minting anew when half has gone."""

    def __init__(self, signer: Signer, name: str, clock: Clock = time.time) -> None:
        self._signer = signer
        self._name = name
        self._clock = clock
        self._token = ""
        self._renew_at = 0.0

    def __call__(self) -> str:
        """Return the token."""
        now = self._clock()
        if now >= self._renew_at:
            self._token = mint_service_token(self._signer, self._name, clock=self._clock)
            self._renew_at = now + SERVICE_TOKEN_LIFETIME_S / 2
        return self._token
