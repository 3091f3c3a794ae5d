"""What lets this process speak for itself: the signing keys of its data folder, or a token it was given."""

from __future__ import annotations

from pathlib import Path

from whispr.config import Settings
from whispr.errors import conflict
from whispr.services.auth.keys import (
    KeyFolderError,
    KeyRing,
    ServiceToken,
    ensure_keys,
    load_keys,
    mint_service_token,
)
from whispr.tokens import PublicKey

NAME = "whispr"
"""The subject of the tokens that our own processes show each other."""


def key_folder(settings: Settings) -> Path:
    """Where the signing keys are."""
    return settings.data_dir / "keys"


class Credentials:
    """Keys, made on first start where tokens are issued; elsewhere keys that are there, or a service token."""

    def __init__(self, settings: Settings, *, issues: bool) -> None:
        self._folder = key_folder(settings)
        self._token_file = settings.auth.service_token_file
        self._ring = self._find(issues)
        self._minted = ServiceToken(self._ring.signer, NAME) if self._ring is not None else None

    def _find(self, issues: bool) -> KeyRing | None:
        try:
            if issues:
                return ensure_keys(self._folder)
            return load_keys(self._folder) if self._folder.is_dir() else None
        except KeyFolderError as error:
            raise conflict(str(error), "keys_unusable") from error

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Keys that verify tokens without asking the auth service; none when there is no key folder."""
        return self._ring.public_keys if self._ring is not None else ()

    def key_ring(self) -> KeyRing:
        """The keys that sign."""
        assert self._ring is not None, "asked for where tokens are issued"
        return self._ring

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


def mint(settings: Settings, service: str, ttl_s: float) -> str:
    """Sign a token for a service. Raises FAILED_PRECONDITION when there are no keys here."""
    try:
        return mint_service_token(load_keys(key_folder(settings)).signer, service, lifetime_s=ttl_s)
    except KeyFolderError as error:
        raise conflict(str(error), "keys_unusable") from error
