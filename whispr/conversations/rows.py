"""Rows of PostgreSQL ⇄ the domain's values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from whispr.conversations.domain import REACTION_USERS_MAX, Attachment, Kind, Member, Message, Reaction, Role

encode_map = msgspec.json.Encoder().encode
_decode_map = msgspec.json.Decoder(dict[str, str]).decode

Row = Mapping[str, Any]
"""A record of asyncpg, by column."""

KINDS = {kind.value: kind for kind in Kind}

MESSAGE_COLUMNS = (
    "id, conversation_id, seq, sender_id, message_type, content, metadata, client_id, reply_to_id, signature,"
    " sender_public_key, sent_at, edited_at, deleted_at, expires_at"
)

EXTRA_COLUMNS = f"""
    (SELECT json_agg(json_build_object('emoji', g.emoji, 'user_ids', g.user_ids, 'count', g.count)
            ORDER BY g.first_at, g.emoji)::text
        FROM (
            SELECT r.emoji, count(*) AS count, min(r.reacted_at) AS first_at,
                (array_agg(r.user_id ORDER BY r.reacted_at, r.user_id))[1:{REACTION_USERS_MAX}] AS user_ids
            FROM conversations.reactions r
            WHERE r.conversation_id = m.conversation_id AND r.seq = m.seq GROUP BY r.emoji
        ) g
    ) AS reactions,
    (SELECT json_agg(json_build_object('link_id', a.id, 'media_id', a.media_id, 'media_type', a.media_type,
            'metadata', coalesce(a.metadata, jsonb_build_object()), 'state', a.state)
            ORDER BY a.created_at, a.id)::text
        FROM conversations.attachments a WHERE a.conversation_id = m.conversation_id AND a.seq = m.seq
    ) AS attachments
"""  # noqa: S608  # constants of ours
"""What hangs on a message `m`, as two columns of JSON that `message_of` reads when they are there."""

_decode_reactions = msgspec.json.Decoder(tuple[Reaction, ...]).decode
_decode_attachments = msgspec.json.Decoder(tuple[Attachment, ...]).decode


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
        row |= {"deleted_at": expires_at, "reactions": None, "attachments": None}
    reactions, attachments = row.get("reactions"), row.get("attachments")
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
        reactions=_decode_reactions(reactions) if reactions else (),
        attachments=_decode_attachments(attachments) if attachments else (),
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
