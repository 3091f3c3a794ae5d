"""Who calls MessagingService, and what they name: the parts that its servicers share."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from whispr.conversations.core import Conversations
from whispr.errors import denied, invalid
from whispr.identity import current_actor
from whispr.ids import parse_id
from whispr.v1.messaging_grpc import MessagingServiceServicer


class Servicer(MessagingServiceServicer):
    """Answers for the caller, or for the person a service acts for. The actor is never a field."""

    def __init__(self, core: Conversations) -> None:
        super().__init__()
        self._core = core
        self._operations = core.operations
        self._store = core.store


def acting() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    return parse_id(current_actor().person, "x-whispr-actor")


def whose(user_id: str) -> str | None:
    """Return whose counters are asked for: the caller's, another's only by a service, or nobody's."""
    actor = current_actor()
    if user_id in ("", "me"):
        return None if actor.is_service and not actor.user_id else acting()
    asked = parse_id(user_id, "user_id")
    if asked != actor.user_id and not actor.is_service:
        raise denied("user_id is somebody else")
    return asked


def conversation_of(conversation_id: str) -> str:
    """Return a conversation's id in canonical form. Raises INVALID_ARGUMENT."""
    return parse_id(conversation_id, "conversation_id")


def message_of(message_id: str) -> str:
    """Return a message's id in canonical form. Raises INVALID_ARGUMENT."""
    return parse_id(message_id, "message_id")


def timestamp_of(timestamp: Timestamp, field: str) -> datetime:
    """Return a moment. Raises INVALID_ARGUMENT for one out of the range of years 1 to 9999."""
    try:
        return timestamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid({field: "is no moment of the years 1 to 9999"}) from None
