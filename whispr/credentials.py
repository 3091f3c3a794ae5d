"""What lets this process speak for itself: the signing keys of its data folder, or a token it was given."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from whispr.config import AuthSettings, Settings
from whispr.errors import conflict
from whispr.services.auth.keys import (
    KeyFolderError,
    Keys,
    ServiceToken,
    ensure_keys,
    load_keys,
    mint_service_token,
)
from whispr.tokens import SharedSecret, VerifyingKey

NAME = "whispr"
"""The subject of the tokens that our own processes show each other."""


def key_folder(settings: Settings) -> Path:
    """Where the signing keys are."""
    return settings.data_dir / "keys"


def shared_secrets(auth: AuthSettings) -> tuple[SharedSecret, ...]:
    """Read the shared secrets, the one that signs first. Raises KeyFolderError when they cannot be used."""
    inline = auth.hs256_secret.get_secret_value()
    if inline:
        return (_secret(inline, "WHISPR_AUTH_HS256_SECRET"),)
    path = auth.hs256_secret_file
    if path is None:
        return ()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFolderError(f"cannot read {path}: {error}") from None
    if mode & 0o007:
        raise KeyFolderError(f"{path} may be read by anybody (mode {mode:04o}): chmod 600 it")
    if not lines:
        raise KeyFolderError(f"{path} holds no secret")
    return tuple(_secret(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))


def _secret(text: str, where: str) -> SharedSecret:
    try:
        return SharedSecret(text.encode())
    except ValueError as error:
        raise KeyFolderError(f"{where}: {error}") from None


class Credentials:
    """Keys, made on first start where tokens are issued; elsewhere keys that are there, or a service token."""

    def __init__(self, settings: Settings, *, issues: bool) -> None:
        self._folder = key_folder(settings)
        self._token_file = settings.auth.service_token_file
        self._secrets = partial(shared_secrets, settings.auth)
        self._keys = self._find(issues)
        self._minted = ServiceToken(lambda: self.keys().signer, NAME) if self._keys is not None else None

    def _find(self, issues: bool) -> Keys | None:
        try:
            if issues:
                ensure_keys(self._folder, self._secrets)
            elif not any(self._folder.glob("*.pem")) and not self._secrets():
                return None  # the folder may be there all the same, with keys of other kinds in folders of their own
            return Keys(self._folder, self._secrets)
        except KeyFolderError as error:
            raise conflict(str(error), "keys_unusable") from error

    @property
    def verifying_keys(self) -> tuple[VerifyingKey, ...]:
        """Keys that verify tokens without asking the auth service; none when there are none here."""
        return self._keys.keys if self._keys is not None else ()

    def trusted(self, published: Iterable[VerifyingKey] | None = None) -> list[VerifyingKey]:
        """Look again for the keys that are here; return those to trust.

        With what the auth service has published these are that and the shared secrets, which it never publishes.
        """
        if self._keys is not None:
            self._keys.reload()
        if published is None:
            return list(self.verifying_keys)
        return [*published, *(key for key in self.verifying_keys if isinstance(key, SharedSecret))]

    def keys(self) -> Keys:
        """The keys that sign."""
        assert self._keys is not None, "asked for where tokens are issued"
        return self._keys

    def service_token(self) -> str:
        """A token to call other services with. Raises FAILED_PRECONDITION when there is no way to have one."""
        if self._minted is not None:
            return self._minted()
        if self._token_file is None:
            raise conflict(
                f"no signing keys in {self._folder}, and WHISPR_AUTH_SERVICE_TOKEN_FILE is not set",
                "no_credentials",
            )
        try:
            return self._token_file.read_text().strip()
        except OSError as error:
            raise conflict(f"cannot read {self._token_file}: {error.strerror}", "no_credentials") from error


def mint(settings: Settings, service: str, ttl_s: float, permissions: tuple[str, ...] = ()) -> str:
    """Sign a token for a service. Raises FAILED_PRECONDITION when there are no keys here."""
    try:
        ring = load_keys(key_folder(settings), partial(shared_secrets, settings.auth))
    except KeyFolderError as error:
        raise conflict(str(error), "keys_unusable") from error
    return mint_service_token(ring.signer, service, lifetime_s=ttl_s, permissions=permissions)
