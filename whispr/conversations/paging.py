"""Page tokens: where a keyset page ended, opaque to clients."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec

from whispr.errors import invalid
from whispr.ids import UUID_PATTERN

KeyT = TypeVar("KeyT")


class Place(msgspec.Struct, array_like=True, frozen=True):
    """The sort key of the last row of a page: a time, then an id for rows of the same time."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]


class After(msgspec.Struct, array_like=True, frozen=True):
    """The id of the last row of a page that goes by ids."""

    id: Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]


class Position(msgspec.Struct, array_like=True, frozen=True):
    """The number of the last row of a page that goes by numbers."""

    number: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


_encode = msgspec.json.Encoder().encode


def to_token(key: object) -> str:
    """Pack the sort key of a page's last row into a token that is safe in a URL."""
    return base64.urlsafe_b64encode(_encode(key)).decode()


def from_token(token: str, kind: type[KeyT]) -> KeyT | None:
    """Unpack a token; an empty one is the beginning. Raises INVALID_ARGUMENT."""
    if not token:
        return None
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token.encode()), type=kind)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise invalid({"page_token": "is not one that an earlier page returned"}) from None
