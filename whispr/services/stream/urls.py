"""Signed URLs to listen by, and the tokens of HLS sessions: who has one may do what it says. Pure.

The query of a listening URL is the same whatever the path, so one is signed for all transports. It names the stream,
when it ends, and for whom it was made: a person (then their standing counts when they come with it), or nobody (then
it lets whoever has it listen, as an invitation does).
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from whispr.adapters.signing import MARK, Signer
from whispr.audio.packets import Quality
from whispr.errors import denied

Clock = Callable[[], float]
"""Unix time in seconds."""

_FOR: Final = "listen?"


class Granted(msgspec.Struct, frozen=True):
    """What a signed query allows its bearer."""

    stream_id: str
    expires_at: int
    """Unix time at which listening by it ends."""
    user_id: str = ""
    """Empty: whoever has it."""
    session_id: str = ""
    """The sign-in in which it was made."""
    premium: bool = False
    """Whether the person was one then."""
    trusted: bool = False
    """Whether they moderated streams then."""
    quality: Quality | None = None


class HlsPass(msgspec.Struct, frozen=True, array_like=True):
    """What a session's token says of an HLS listener, for any process to go on with."""

    stream_id: str
    listener_id: str
    user_id: str
    session_id: str
    premium: bool
    trusted: bool
    let_in: bool
    """Whether the URL that it came by lets anybody in."""
    quality: str
    joined_at: float
    ends_at: float
    """Unix time; 0 for never."""


class ListenUrls:
    """Signs and checks."""

    def __init__(self, signer: Signer, clock: Clock = time.time) -> None:
        self._signer = signer
        self._clock = clock

    def query(self, granted: Granted) -> str:
        """Return the signed query."""
        facts = {"stream": granted.stream_id, "expires": str(granted.expires_at)}
        facts |= {"user": granted.user_id} if granted.user_id else {}
        facts |= {"session": granted.session_id} if granted.session_id else {}
        facts |= {"premium": "1"} if granted.premium else {}
        facts |= {"trusted": "1"} if granted.trusted else {}
        facts |= {"quality": granted.quality.value} if granted.quality else {}
        return self._signer.sign(_FOR + urlencode(facts)).removeprefix(_FOR)

    def check(self, query: str, stream_id: str) -> Granted:
        """Return what a query allows. What follows the signature is not part of it.

        Raises PERMISSION_DENIED (bad_signature, url_expired).
        """
        signed_part, _, rest = query.partition(MARK)
        signed = self._signer.checked(f"{_FOR}{signed_part}{MARK}{rest.partition('&')[0]}")
        facts = dict(parse_qsl(signed.removeprefix(_FOR))) if signed is not None else {}
        if facts.get("stream") != stream_id:
            raise denied("the URL is not signed for this, or was changed", reason="bad_signature")
        expires_at = int(facts["expires"])
        if expires_at <= self._clock():
            raise denied("the URL has expired: ask for a new one", reason="url_expired")
        quality = facts.get("quality")
        return Granted(
            stream_id,
            expires_at,
            facts.get("user", ""),
            facts.get("session", ""),
            "premium" in facts,
            "trusted" in facts,
            Quality(quality) if quality else None,
        )

    def recording_token(self, recording_id: str, expires_at: int) -> str:
        """Return a token, which fits into a path, that lets whoever has it have a recording until then."""
        signed = self._signer.sign(f"recording?{recording_id}&expires={expires_at}")
        return f"{expires_at}.{signed.rpartition('&key=')[2].replace(MARK, '.')}"

    def check_recording(self, token: str, recording_id: str) -> None:
        """Return if a token is good for a recording. Raises PERMISSION_DENIED (bad_signature, url_expired)."""
        expires, _, rest = token.partition(".")
        key, _, signature = rest.partition(".")
        text = f"recording?{recording_id}&expires={expires}&key={key}{MARK}{signature}"
        if not expires.isdecimal() or self._signer.checked(text) is None:
            raise denied("the URL is not signed for this, or was changed", reason="bad_signature")
        if int(expires) <= self._clock():
            raise denied("the URL has expired: ask for a new one", reason="url_expired")

    def until(self, lasts_s: float) -> int:
        """Return when a URL that is made now ends."""
        return math.ceil(self._clock() + lasts_s)

    def hls_token(self, own: HlsPass) -> str:
        """Return a session's token, which fits into a path."""
        packed = base64.urlsafe_b64encode(msgspec.json.encode(own)).decode().rstrip("=")
        signed = self._signer.sign(f"hls?{packed}").removeprefix("hls?")
        body, _, signature = signed.partition(MARK)
        return f"{body.replace('&key=', '.')}.{signature}"

    def hls_pass(self, token: str, stream_id: str) -> HlsPass:
        """Return what a session's token says. Raises PERMISSION_DENIED (bad_signature, url_expired)."""
        refused = denied("the session is not one of this stream", reason="bad_signature")
        parts = token.split(".")
        if len(parts) != 3:
            raise refused
        packed, key, signature = parts
        if self._signer.checked(f"hls?{packed}&key={key}{MARK}{signature}") is None:
            raise refused
        try:
            own = msgspec.json.decode(
                base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4)), type=HlsPass
            )
        except (ValueError, binascii.Error, msgspec.MsgspecError):
            raise refused from None
        if own.stream_id != stream_id:
            raise refused
        if 0 < own.ends_at <= self._clock():
            raise denied("the session has expired: ask for a new URL", reason="url_expired")
        return own
