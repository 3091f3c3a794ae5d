"""Signed, expiring URLs: whoever holds one may do what it says, until then. Pure.

The signature is over the path and the query before it (`whispr.adapters.signing`), and as good as a password for as
long as it lasts: what logs requests leaves the query out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlencode

from whispr.adapters.signing import Signer
from whispr.errors import WhisprError, denied

Clock = Callable[[], float]
"""Unix time in seconds."""

PREFIX: Final = "/v1/media"
ORIGINAL: Final = "original"


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
        self._signer = Signer(keys)
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
        return self._base() + self._signer.sign(f"{path}?{urlencode(query)}")

    def check(self, path: str, query: str) -> Granted:
        """Return what the URL of a request allows. Raises PERMISSION_DENIED (bad_signature, url_expired)."""
        signed = self._signer.checked(f"{path}?{query}")
        if signed is None:
            raise denied("the URL is not signed, or was changed", reason="bad_signature")
        facts = dict(parse_qsl(signed.partition("?")[2]))
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
