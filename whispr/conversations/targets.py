"""A message that somebody wants to change, found under the conversation's lock with who they are there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from whispr.conversations import domain, seats
from whispr.conversations.database import Transaction
from whispr.conversations.domain import Kind, Message, Role
from whispr.conversations.message_rules import gone, no_message
from whispr.conversations.rows import MESSAGE_COLUMNS, Row, message_of

_TARGET = f"""
    SELECT s.role, s.muted_until, {", ".join("m." + name.strip() for name in MESSAGE_COLUMNS.split(","))},
        (SELECT x.role FROM conversations.members x WHERE x.conversation_id = $1 AND x.user_id = m.sender_id
            AND x.left_at IS NULL) AS sender_role
    FROM conversations.members s
    LEFT JOIN conversations.messages m ON m.id = $2 AND m.conversation_id = $1 AND NOT EXISTS (
        SELECT FROM conversations.hidden h
        WHERE h.conversation_id = $1 AND h.user_id = $3 AND h.seq = m.seq)
    WHERE s.conversation_id = $1 AND s.user_id = $3 AND s.left_at IS NULL
"""  # noqa: S608  # constants of ours


@dataclass(frozen=True, slots=True)
class Target:
    """The message, its conversation, and the seat of whoever wants to change it."""

    message: Message
    kind: Kind
    role: Role
    sender_role: Role | None
    muted_until: datetime | None
    is_active: bool
    now: datetime

    def check_may_speak(self) -> None:
        """Refuse those who may not write here now. Raises PERMISSION_DENIED (muted), FAILED_PRECONDITION."""
        if not self.is_active:
            raise domain.inactive()
        if self.muted_until is not None and self.muted_until > self.now:
            raise domain.muted(self.muted_until)

    def check_there(self) -> None:
        """Refuse a message that is gone. Raises NOT_FOUND."""
        if gone(self.message, self.now):
            raise no_message(self.message.id)


async def find(tx: Transaction, conversation_id: str, message_id: str, actor_id: str) -> Target:
    """Take the conversation's lock and find a message that its member `actor_id` may see.

    Raises NOT_FOUND for either, also for a message the member has hidden; not_a_member.
    """
    conversation = await seats.lock(tx, conversation_id)
    row: Row | None = await tx.fetchrow(_TARGET, conversation_id, message_id, actor_id)  # type: ignore[assignment]  # a Record is a Mapping
    if row is None:
        raise domain.not_a_member()
    if row["id"] is None:
        raise no_message(message_id)
    until: datetime | None = row["muted_until"]
    return Target(
        message=message_of(row, conversation["kind"]),
        kind=Kind(conversation["kind"]),
        role=Role(row["role"]),
        sender_role=Role(row["sender_role"]) if row["sender_role"] else None,
        muted_until=until if until is None else until.replace(tzinfo=UTC),
        is_active=conversation["is_active"],
        now=datetime.now(UTC),
    )
