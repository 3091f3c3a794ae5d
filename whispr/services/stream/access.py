"""Who may send a stream's sound, and who may hear it.

A source shows the stream's key, or an access token of the streamer. A listener shows an access token, a signed
URL's query, or nothing where the stream is open to anybody. `shown_by` reads all of that off an HTTP request.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from whispr.services.stream.domain import Stream


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


class Access(Protocol):
    """Decides about sources."""

    async def source(self, stream_id: str, shown: Shown) -> Stream:
        """Return the stream that a source may send to.

        Raises UNAUTHENTICATED without a credential or with a wrong one, PERMISSION_DENIED (not_the_streamer,
        forbidden without stream:write), NOT_FOUND, FAILED_PRECONDITION (not_started, stream_ended).
        """
