"""The signing keys on disk: made on first start, read by every process that shares the data folder.

`<data>/keys/0001.pem`, 0002.pem, …: all of them verify, and the highest number signs once it has been there for
`PUBLISH_S`. By then every process has seen it (they look every few seconds), so nobody meets a token under a key
it does not know. So a key is rotated by adding a file, and the rotation is completed by removing the old one
after the last token under it has expired: within a minute nobody trusts it. `whispr keys` does both.

With shared secrets configured (HS256), the first of them signs at once, and the rest verify, as do the keys of
the folder: switching over, in either direction, leaves nobody's token behind.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from whispr.tokens import Clock, PublicKey, SharedSecret, Signer, VerifyingKey, service_claims

SERVICE_TOKEN_LIFETIME_S = 3600.0

PUBLISH_S = 60.0
"""How long a new key is made known before it signs; every process looks for keys several times in that."""

_PATTERN = "[0-9][0-9][0-9][0-9].pem"

Secrets = Callable[[], tuple[SharedSecret, ...]]
"""Reads the shared secrets that are configured now. Raises KeyFolderError when they cannot be used."""

log = structlog.get_logger("whispr.auth")


class KeyFolderError(Exception):
    """The key folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys as they were at one moment: `signer` signs, `keys` verify."""

    signer: Signer
    keys: tuple[VerifyingKey, ...]

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Those of the keys that may be published."""
        return tuple(key for key in self.keys if isinstance(key, PublicKey))


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key of the folder, and when its file was made (Unix time)."""

    number: int
    path: Path
    signer: Signer
    made_at: float


def no_secrets() -> tuple[SharedSecret, ...]:
    """Where none are configured."""
    return ()


def read_keys(folder: Path) -> list[KeyFile]:
    """Read the keys in `folder`, oldest first. Raises KeyFolderError for one that others may read."""
    found = []
    for path in sorted(folder.glob(_PATTERN)):
        with suppress(FileNotFoundError):  # Retired since we looked.
            found.append(_read(path))
    return found


def signing(files: list[KeyFile], now: float) -> KeyFile:
    """Choose the key that signs: the newest that has been published for long enough, else the oldest."""
    ready = [file for file in files if now - file.made_at >= PUBLISH_S]
    return ready[-1] if ready else files[0]


def load_keys(folder: Path, secrets: Secrets = no_secrets, clock: Clock = time.time) -> KeyRing:
    """Read the keys in `folder`. Raises KeyFolderError when there are none or others may read them."""
    shared = secrets()
    files = read_keys(folder)
    if not files and not shared:
        raise KeyFolderError(f"no signing keys in {folder}: start the auth service once to make them")
    signer = Signer(shared[0]) if shared else signing(files, clock()).signer
    return KeyRing(signer, (*(file.signer.public_key for file in files), *shared))


def ensure_keys(folder: Path, secrets: Secrets = no_secrets, clock: Clock = time.time) -> KeyRing:
    """Read the keys in `folder`, making the folder (0700) and a first key (0600) when there are none.

    Any number of processes may do so at once: all of them end up with the same key.
    """
    if not secrets() and not any(folder.glob(_PATTERN)):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        _write(folder, 1)
    return load_keys(folder, secrets, clock)


class Keys:
    """The keys of a running process: those of the last `reload` that could be read."""

    def __init__(self, folder: Path, secrets: Secrets = no_secrets, *, clock: Clock = time.time) -> None:
        """Read the keys. Raises KeyFolderError."""
        self._folder = folder
        self._secrets = secrets
        self._clock = clock
        self._ring = load_keys(folder, secrets, clock)

    @property
    def signer(self) -> Signer:
        """Signs, now."""
        return self._ring.signer

    @property
    def keys(self) -> tuple[VerifyingKey, ...]:
        """All that verify."""
        return self._ring.keys

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Those of them that may be published."""
        return self._ring.public_keys

    def reload(self) -> None:
        """Read the keys again. Unreadable ones are logged, and the last good ones kept."""
        try:
            ring = load_keys(self._folder, self._secrets, self._clock)
        except (KeyFolderError, OSError) as error:
            log.error("keys_unreadable", error=str(error))
            return
        if ring.signer.kid != self._ring.signer.kid:
            log.info("signing_key_changed", kid=ring.signer.kid)
        self._ring = ring


def rotate(folder: Path, *, at_once: bool = False) -> KeyFile:
    """Add a key, which signs in PUBLISH_S seconds or, for a leak, at once; return it. Raises KeyFolderError."""
    files = read_keys(folder)
    if not files:
        raise KeyFolderError(f"no signing keys in {folder}: start the auth service once to make them")
    path = _write(folder, files[-1].number + 1)
    if at_once:
        made_at = time.time() - PUBLISH_S
        os.utime(path, (made_at, made_at))
    return _read(path)


def retire(folder: Path, kid: str, tokens_live_s: float, *, at_once: bool = False) -> KeyFile:
    """Remove a key: within a minute no process trusts its tokens; return it.

    Raises KeyFolderError for a key that is not there, for the one that signs, and, unless `at_once`, while
    tokens under it may be alive: until `tokens_live_s` after its successor began to sign.
    """
    files = read_keys(folder)
    found = [file for file in files if file.signer.kid == kid or f"{file.number:04}" == kid]
    if not found:
        raise KeyFolderError(f"no key {kid} in {folder}")
    file, now = found[0], time.time()
    current = signing(files, now)
    if file == current:
        raise KeyFolderError(f"{file.path.name} is the key that signs: rotate first")
    quiet_at = current.made_at + PUBLISH_S + tokens_live_s
    if not at_once and file.number < current.number and now < quiet_at:
        left_s = quiet_at - now
        raise KeyFolderError(f"tokens under {file.path.name} may be alive for {left_s:.0f} s more")
    file.path.unlink()
    return file


def _write(folder: Path, number: int) -> Path:
    """Write a new key with at least this number. A number 1 that is there already is kept: see `ensure_keys`."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = folder / f".{token_hex(8)}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        while number <= 9999:
            path = folder / f"{number:04}.pem"
            try:
                # A link is refused when its name is taken: the first of several processes wins, whole or none.
                os.link(draft, path)
            except FileExistsError:
                if number == 1:
                    return path
                number += 1
            else:
                return path
    finally:
        draft.unlink()
    raise KeyFolderError(f"{folder} has no number left for a key: renumber its files")


def _read(path: Path) -> KeyFile:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise KeyFolderError(f"{path} may be read by others (mode {mode:04o}): chmod 600 it")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise KeyFolderError(f"{path} is not a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFolderError(f"{path} is not an Ed25519 key")
    return KeyFile(int(path.stem), path, Signer(key), status.st_mtime)


def mint_service_token(
    signer: Signer,
    name: str,
    *,
    services: tuple[str, ...] = ("*",),
    permissions: tuple[str, ...] = (),
    lifetime_s: float = SERVICE_TOKEN_LIFETIME_S,
    clock: Clock = time.time,
) -> str:
    """Sign a token for the service called `name`, good for calling `services`."""
    return signer.sign(
        service_claims(name, now=clock(), lifetime_s=lifetime_s, services=services, permissions=permissions)
    )


class ServiceToken:
    """A callable that returns a service token with life left in it, minting anew when half has gone.

    And when another key signs: the old one may be retired before its tokens have expired. And when the clock is
    before the time of minting: it was set back, and by it the token is not valid yet.
    """

    def __init__(self, signer: Signer | Callable[[], Signer], name: str, clock: Clock = time.time) -> None:
        self._signer = signer
        self._name = name
        self._clock = clock
        self._token = ""
        self._kid = ""
        self._minted_at = 0.0
        self._renew_at = 0.0

    def __call__(self) -> str:
        """Return the token."""
        now = self._clock()
        signer = self._signer if isinstance(self._signer, Signer) else self._signer()
        if not self._minted_at <= now < self._renew_at or signer.kid != self._kid:
            self._token = mint_service_token(signer, self._name, clock=self._clock)
            self._kid = signer.kid
            self._minted_at = now
            self._renew_at = now + SERVICE_TOKEN_LIFETIME_S / 2
        return self._token
