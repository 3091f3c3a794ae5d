"""The envelope every event travels in, and the streams it may go to. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

STREAMS: Mapping[str, str] = {
    "chat": "CHAT_EVENTS",
    "stream": "STREAM_EVENTS",
    "user": "USER_EVENTS",
    "messaging": "MESSAGING_EVENTS",
}
"""First word of a subject → the stream that keeps it."""

_SUBJECT = re.compile(r"(chat|stream|user|messaging)\.events\.([a-z][a-z0-9_]*|\*)")


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened. Ids are UUIDs in canonical form."""

    id: str
    """The same however often it is delivered."""
    type: str
    """What happened, such as "message_sent"."""
    version: int = 1
    """Of the shape of `data`."""
    time: datetime
    """When it was emitted."""
    source: str
    """Whose event it is: the first word of its subject, such as "messaging"."""
    subject: str
    """What it is about, and what is ordered: a conversation's, a user's or a medium's id."""
    actor: str = ""
    """Who did it; empty for the system."""
    trace: str = ""
    """W3C traceparent of the call that caused it; empty for none."""
    data: dict[str, Any] = {}

    @property
    def stream_subject(self) -> str:
        """Where it is published, such as "messaging.events.message_sent"."""
        return f"{self.source}.events.{self.type}"


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Event).decode
"""Raises msgspec.MsgspecError for what is no envelope."""


def parts(stream_subject: str) -> tuple[str, str]:
    """Split "messaging.events.message_sent" into source and type. Raises ValueError for another shape."""
    match = _SUBJECT.fullmatch(stream_subject)
    if match is None:
        raise ValueError(f"{stream_subject!r} is no subject of an event, such as user.events.profile_updated")
    return match[1], match[2]


def stream_of(stream_subject: str) -> str:
    """Return the name of the stream a subject belongs to. Raises ValueError for a subject of none."""
    return STREAMS[parts(stream_subject)[0]]
