"""Signed text, and the keys it is signed with.

The signature is an HMAC-SHA256 over all that stands before it, so nothing of that can be changed.

Keys are files of a folder, `0001.key`, 0002.key, …: the highest number signs, all of them verify. Adding one is
how keys are rotated, and removing the old one after the last text under it has expired completes it. Processes
that check each other's signatures share the folder, or have copies of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from whispr.errors import conflict

KEY_BYTES: Final = 32
MARK: Final = "&signature="
"""What stands between signed text and its signature."""

_NAMES = "[0-9][0-9][0-9][0-9].key"


def ensure_keys(folder: Path) -> list[bytes]:
    """Read the keys in `folder`, making the folder (0700) and a first key (0600) when there are none.

    Any number of processes may do so at once. Raises FAILED_PRECONDITION (keys_unusable).
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not any(folder.glob(_NAMES)):
        _write_first(folder)
    return [_read(path) for path in sorted(folder.glob(_NAMES))]


def _write_first(folder: Path) -> None:
    draft = folder / f".{secrets.token_hex(8)}.new"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link is refused when its name is taken: the first of several processes wins, whole file or none.
        os.link(draft, folder / "0001.key")
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _read(path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise conflict(f"{path} may be read by others (mode {mode:04o}): chmod 600 it", "keys_unusable")
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (ValueError, UnicodeDecodeError):
        key = b""
    if len(key) < KEY_BYTES:
        raise conflict(f"{path} does not hold {KEY_BYTES} bytes in hexadecimal", "keys_unusable")
    return key


class Signer:
    """Signs text that ends in a query, and checks it. Pure."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """The last key signs."""
        self._keys = {hashlib.sha256(key).hexdigest()[:8]: key for key in keys}
        self._signing = next(reversed(self._keys))

    def sign(self, text: str) -> str:
        """Return the text with the name of the key and the signature at its end."""
        signed = f"{text}&key={self._signing}"
        return f"{signed}{MARK}{_signature(self._keys[self._signing], signed)}"

    def checked(self, text: str) -> str | None:
        """Return what was signed, the key's name at its end; None when it was not signed, or was changed."""
        signed, mark, signature = text.rpartition(MARK)
        key = self._keys.get(signed.rpartition("&key=")[2])
        if not mark or key is None or not hmac.compare_digest(_signature(key, signed), _plain(signature)):
            return None
        return signed


def _signature(key: bytes, signed: str) -> str:
    digest = hmac.digest(key, signed.encode("utf-8", "surrogateescape"), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _plain(signature: str) -> str:
    """A signature in the alphabet that compare_digest takes; anything else is none."""
    try:
        base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    except (ValueError, binascii.Error):
        return ""
    return signature if signature.isascii() else ""
