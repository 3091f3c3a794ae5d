"""Page tokens: where a keyset page ended, opaque to clients."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

import msgspec

from whispr.errors import invalid


class Place(msgspec.Struct, array_like=True, frozen=True):
    """The sort key of the last row of a page: a time, then an id for rows of the same time."""

    at: datetime
    id: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Place).decode


def to_token(place: Place) -> str:
    """Pack a place into a token that is safe in a URL."""
    return base64.urlsafe_b64encode(_encode(place)).decode()


def from_token(token: str) -> Place | None:
    """Unpack a token; an empty one is the beginning. Raises INVALID_ARGUMENT."""
    if not token:
        return None
    try:
        place = _decode(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise invalid({"page_token": "is not one that an earlier page returned"}) from None
    if place.at.tzinfo is None:
        raise invalid({"page_token": "is not one that an earlier page returned"})
    return place
