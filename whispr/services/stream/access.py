"""Who may send a stream's sound, and who may hear it.

A source shows the stream's key, or an access token of the streamer. A listener shows an access token, a signed
URL's query, or nothing where the stream is open to anybody. `shown_by` reads all of that off an HTTP request.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from whispr.errors import denied, not_found, unauthenticated
from whispr.identity import Identity
from whispr.ids import is_id
from whispr.services.stream.domain import WRITE, Stream, not_running
from whispr.services.stream.store import KEY_PREFIX, StreamStore, digest


@dataclass(frozen=True, slots=True)
class Shown:
    """The credentials of one request: at most one of them counts, the first that is there."""

    token: str = ""
    """From `Authorization: Bearer`, or `?token=`: an access token, or from a source its stream key."""
    password: str = ""
    """From `Authorization: Basic`, as Icecast sources send their stream key; or from `?key=`."""
    query: str = ""
    """The whole query, when it holds a signature (`&signature=…` at its end)."""


def shown_by(scope: Any) -> Shown:
    """Read the credentials off an ASGI scope. What is malformed counts as not there."""
    query = scope.get("query_string", b"").decode("latin-1")
    facts = dict(parse_qsl(query))
    token, password = facts.get("token", ""), facts.get("key", "")
    for name, value in scope.get("headers", ()):
        if name.lower() == b"authorization":
            kind, _, rest = value.decode("latin-1").strip().partition(" ")
            if kind.lower() == "bearer":
                token = rest.strip()
            elif kind.lower() == "basic":
                password = _basic_password(rest.strip())
    return Shown(token, password, query if "signature" in facts else "")


def _basic_password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


class Access:
    """Decides about sources, and knows what streams are."""

    def __init__(self, store: StreamStore, identity: Identity) -> None:
        self._store = store
        self._identity = identity

    async def describe(self, stream_id: str) -> Stream:
        """Return what a stream is. Raises NOT_FOUND, of what is no id too."""
        if not is_id(stream_id):
            raise not_found("stream", stream_id)
        return await self._store.find(stream_id)

    async def source(self, stream_id: str, shown: Shown) -> Stream:
        """Return the stream that a source may send to.

        Raises UNAUTHENTICATED without a credential or with a wrong one, PERMISSION_DENIED (not_the_streamer,
        forbidden without stream:write), NOT_FOUND, FAILED_PRECONDITION (not_started, stream_ended).
        """
        offered = shown.token or shown.password
        if not offered:
            raise unauthenticated("a source shows the stream's key, or its streamer's token")
        stream = await self.describe(stream_id)
        if offered.startswith(KEY_PREFIX) or not shown.token:
            await self._check_key(stream, offered)
        else:
            await self._check_token(stream, offered)
        refused = not_running(stream)
        if refused is not None:
            raise refused
        return stream

    async def _check_key(self, stream: Stream, key: str) -> None:
        if not hmac.compare_digest(digest(key), await self._store.key_sha256(stream.id)):
            raise unauthenticated("this is not the stream's key", reason="wrong_key")

    async def _check_token(self, stream: Stream, token: str) -> None:
        claims = await self._identity.authenticate(token, "stream")
        if claims.user_id != stream.streamer_id:
            raise denied("only its streamer sends to a stream", reason="not_the_streamer")
        if not claims.allows(WRITE):
            raise denied("your role may not stream: it needs stream:write")
