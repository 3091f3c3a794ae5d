"""Signed, expiring URLs: whoever holds one may do what it says, until then. Pure but for the keys' files.

The signature is an HMAC-SHA256 over the path and the query before it, so nothing of either can be changed. It is
as good as a password for as long as it lasts: what logs requests leaves the query out.

Keys are files of a folder, `0001.key`, 0002.key, …: the highest number signs, all of them verify. Adding one is
how keys are rotated, and removing the old one after the last URL under it has expired completes it. Processes
that serve the same media share the folder, or have copies of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode

from whispr.errors import WhisprError, conflict, denied

Clock = Callable[[], float]
"""Unix time in seconds."""

KEY_BYTES: Final = 32
PREFIX: Final = "/v1/media"
ORIGINAL: Final = "original"

_MARK = "&signature="
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


@dataclass(frozen=True, slots=True)
class Granted:
    """What a URL allows its bearer."""

    media_id: str
    expires_at: int
    variant: str = ""
    """Empty for an upload."""
    as_attachment: bool = False


class SignedUrls:
    """Makes and checks URLs of the byte endpoints."""

    def __init__(self, keys: Sequence[bytes], base: Callable[[], str], clock: Clock) -> None:
        """`base` returns where clients reach the endpoints, such as `https://media.example.org`."""
        self._keys = {hashlib.sha256(key).hexdigest()[:8]: key for key in keys}
        self._signing = next(reversed(self._keys))
        self._base = base
        self._clock = clock

    def upload(self, media_id: str, expires_at: float) -> str:
        """Return a URL that takes a medium's bytes."""
        return self._url(f"{PREFIX}/uploads/{media_id}", {"expires": str(math.floor(expires_at))})

    def content(self, media_id: str, variant: str, expires_at: float, *, as_attachment: bool = False) -> str:
        """Return a URL that gives a medium's bytes."""
        query = {"variant": variant, "expires": str(math.floor(expires_at))}
        return self._url(f"{PREFIX}/{media_id}/content", query | ({"download": "1"} if as_attachment else {}))

    def _url(self, path: str, query: dict[str, str]) -> str:
        signed = f"{path}?{urlencode(query)}&key={self._signing}"
        return f"{self._base()}{signed}{_MARK}{_signature(self._keys[self._signing], signed)}"

    def check(self, path: str, query: str) -> Granted:
        """Return what the URL of a request allows. Raises PERMISSION_DENIED (bad_signature, url_expired)."""
        signed, mark, signature = f"{path}?{query}".rpartition(_MARK)
        facts = dict(parse_qsl(signed.partition("?")[2]))
        key = self._keys.get(facts.get("key", ""))
        if not mark or key is None or not hmac.compare_digest(_signature(key, signed), _plain(signature)):
            raise denied("the URL is not signed, or was changed", reason="bad_signature")
        granted = _granted(path, facts)
        if granted.expires_at <= self._clock():
            raise _expired()
        return granted


def _expired() -> WhisprError:
    return denied("the URL has expired: ask for a new one", reason="url_expired")


def _granted(path: str, facts: dict[str, str]) -> Granted:
    parts = path.removeprefix(PREFIX + "/").split("/")
    expires_at = int(facts["expires"])
    if parts[0] == "uploads":
        return Granted(parts[1], expires_at)
    return Granted(parts[0], expires_at, facts.get("variant", ORIGINAL), "download" in facts)


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
