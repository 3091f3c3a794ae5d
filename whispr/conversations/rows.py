"""Rows of PostgreSQL ⇄ the domain's values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from whispr.conversations.domain import Kind, Member, Message, Role

encode_map = msgspec.json.Encoder().encode
_decode_map = msgspec.json.Decoder(dict[str, str]).decode

Row = Mapping[str, Any]
"""A record of asyncpg, by column."""

KINDS = {kind.value: kind for kind in Kind}

MESSAGE_COLUMNS = (
    "id, conversation_id, seq, sender_id, message_type, content, metadata, client_id, reply_to_id, signature,"
    " sender_public_key, sent_at, edited_at, deleted_at, expires_at"
)


def map_of(json: str | None) -> dict[str, str]:
    """Decode a jsonb column that holds a map of strings; NULL is an empty one."""
    return _decode_map(json) if json else {}


def message_of(row: Row, kind: str) -> Message:
    """Build a message from the columns of `conversations.messages`, and of the kind of its conversation.

    One that has expired is shown as erased, though it may be a moment until it is.
    """
    expires_at: datetime | None = row["expires_at"]
    if expires_at is not None and row["deleted_at"] is None and expires_at <= datetime.now(UTC):
        row = {**row, "content": b"", "metadata": None, "signature": None, "sender_public_key": None}
        row["deleted_at"] = expires_at
    return Message(
        id=str(row["id"]),
        conversation_id=str(row["conversation_id"]),
        seq=row["seq"],
        sender_id=str(row["sender_id"]),
        message_type=row["message_type"],
        content=row["content"],
        metadata=map_of(row["metadata"]),
        client_id=row["client_id"] or "",
        reply_to_id=str(row["reply_to_id"]) if row["reply_to_id"] else "",
        signature=row["signature"] or b"",
        sender_public_key=row["sender_public_key"] or b"",
        sent_at=row["sent_at"],
        kind=KINDS[kind],
        edited_at=row["edited_at"],
        deleted_at=row["deleted_at"],
        expires_at=expires_at,
    )


def member_of(row: Row) -> Member:
    """Build a member from the columns of `conversations.members` and `auth.people`."""
    joined_at: datetime = row["joined_at"]
    return Member(
        user_id=str(row["user_id"]),
        username=row["username"] or "",
        display_name=row["display_name"] or "",
        role=Role(row["role"]),
        joined_at=joined_at,
        delivered_seq=row["delivered_seq"],
        read_seq=row["read_seq"],
    )
