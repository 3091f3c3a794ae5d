"""Editing and deleting messages.

All of it happens under the conversation's lock, so an edit, a deletion and a reaction never decide on each
other's stale state: what comes after a deletion finds the message gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from whispr.conversations import domain, seats, targets
from whispr.conversations.announcer import Announcer
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import Draft, Kind, Limits, Message, NewContent
from whispr.conversations.message_rules import check_may_edit, check_may_erase, no_message, not_editable
from whispr.conversations.rows import encode_map
from whispr.conversations.wire import message_json

_EDIT = """
    UPDATE conversations.messages SET content = $3, metadata = $4::jsonb, signature = $5, sender_public_key = $6,
        edited_at = clock_timestamp()
    WHERE conversation_id = $1 AND seq = $2 RETURNING edited_at
"""
_ERASE = "SELECT id, seq, sender_id, deleted_at, media_ids FROM conversations.erase($1, $2, $3)"
_HIDE = """
    INSERT INTO conversations.hidden (conversation_id, user_id, seq, hidden_at)
    VALUES ($1, $2, $3, clock_timestamp()) ON CONFLICT DO NOTHING
"""
# The member's row is changed by its own condition: a read that is under way has the row first, and then its
# watermark is past the message (see conversations.mark_read).
_UNCOUNT = """
    UPDATE conversations.members SET uncounted = uncounted + CASE WHEN $4 AND read_seq < $3 THEN 1 ELSE 0 END,
        changed_at = clock_timestamp()
    WHERE conversation_id = $1 AND user_id = $2
"""

_decode = msgspec.json.decode


class Editing:
    """Changes what messages say, and takes them away; tells everybody."""

    def __init__(self, db: Database, announcer: Announcer, limits: Limits) -> None:
        self._db = db
        self._announcer = announcer
        self._limits = limits

    async def edit(self, conversation_id: str, message_id: str, actor_id: str, new: NewContent) -> Message:
        """Replace what the actor's own message says; saying the same again changes nothing.

        Raises PERMISSION_DENIED (not_editable, muted, not_a_member), INVALID_ARGUMENT, NOT_FOUND.
        """
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            target.check_may_speak()
            check_may_edit(target.message, actor_id, target.now, self._limits)
            self._check(target.message, new)
            edited, change = await self._replace(tx, target.message, new, actor_id)
        if change is not None:
            self._announcer.changed(change, message=message_json(edited))
        return edited

    async def rewrite(
        self, tx: Transaction, message: Message, text: str, actor_id: str, **why: str
    ) -> Change:
        """Replace a message's text by a moderator, under the lock; the caller has judged that they may.

        The signature goes: it was not made for this text. `why` goes into the change. Tell with `announcer.changed`.
        """
        new = NewContent(text.encode(), {})
        domain.check_content(new.content, message.message_type, self._limits)
        _, change = await self._replace(tx, message, new, actor_id, **why)
        if change is None:
            raise not_editable("the message says that already")
        return change

    async def delete(
        self, conversation_id: str, message_id: str, actor_id: str, *, for_everyone: bool
    ) -> None:
        """Delete a message for the actor alone or for everyone; again changes nothing.

        Raises PERMISSION_DENIED (not_deletable, not_a_member), NOT_FOUND.
        """
        if not for_everyone:
            await self._hide(conversation_id, message_id, actor_id)
            return
        async with self._db.transaction() as tx:
            target = await targets.find(tx, conversation_id, message_id, actor_id)
            message, limits = target.message, self._limits
            if message.deleted_at is not None:
                return
            check_may_erase(message, actor_id, target.role, target.sender_role, target.now, limits)
            changes = await erase(tx, conversation_id, [message.seq], actor_id)
        for change in changes:
            self._announcer.changed(change)

    async def _hide(self, conversation_id: str, message_id: str, actor_id: str) -> None:
        async with self._db.transaction() as tx:
            conversation = await seats.lock(tx, conversation_id)
            await seats.seat_of(tx, conversation_id, actor_id)
            row = await tx.fetchrow(
                "SELECT seq, sender_id, deleted_at FROM conversations.messages"
                " WHERE id = $1 AND conversation_id = $2",
                *(message_id, conversation_id),
            )
            if row is None:
                raise no_message(message_id)
            done = await tx.execute(_HIDE, conversation_id, actor_id, row["seq"])
            if done.endswith(" 0"):
                return
            counts = row["deleted_at"] is None and str(row["sender_id"]) != actor_id
            await tx.execute(_UNCOUNT, conversation_id, actor_id, row["seq"], counts)
        event = {
            "conversation_id": conversation_id,
            "message_id": message_id,
            "seq": row["seq"],
            "for_everyone": False,
        }
        self._announcer.hid(Kind(conversation["kind"]), conversation_id, actor_id, row["seq"])
        self._announcer.tell(actor_id, "message_deleted", event)

    def _check(self, message: Message, new: NewContent) -> None:
        """Refuse what could not have been sent. Raises INVALID_ARGUMENT."""
        draft = Draft(
            id=message.id,
            conversation_id=message.conversation_id,
            sender_id=message.sender_id,
            content=new.content,
            message_type=message.message_type,
            metadata=dict(new.metadata),
            signature=new.signature,
            sender_public_key=new.sender_public_key,
        )
        domain.check_draft(draft, self._limits)

    async def _replace(
        self, tx: Transaction, message: Message, new: NewContent, actor_id: str, **why: str
    ) -> tuple[Message, Change | None]:
        metadata = dict(new.metadata) or message.metadata
        said = (message.content, message.metadata, message.signature, message.sender_public_key)
        if said == (new.content, metadata, new.signature, new.sender_public_key):
            return message, None
        edited_at = await tx.fetchval(
            _EDIT,
            *(message.conversation_id, message.seq, new.content),
            encode_map(metadata).decode() if metadata else None,
            *(new.signature or None, new.sender_public_key or None),
        )
        data: dict[str, Any] = {
            "message_id": message.id,
            "sender_id": message.sender_id,
            "edited_by": actor_id,
            "edited_at": edited_at,
            **why,
        }
        change = await record(
            tx, message.conversation_id, "message_edited", actor_id=actor_id, data=data, seq=message.seq
        )
        edited = msgspec.structs.replace(
            message,
            content=new.content,
            metadata=metadata,
            signature=new.signature,
            sender_public_key=new.sender_public_key,
            edited_at=edited_at,
        )
        return edited, change


async def erase(
    tx: Transaction, conversation_id: str, seqs: Sequence[int], actor_id: str | None, **why: str
) -> list[Change]:
    """Delete messages for everyone, under the conversation's lock; those gone already change nothing.

    `actor_id` is None for those that expire; `why` goes into each change. Tell with `announcer.changed`.
    """
    rows = await tx.fetch(_ERASE, conversation_id, list(seqs), actor_id)
    changes = []
    for row in rows:
        data: dict[str, Any] = {
            "message_id": str(row["id"]),
            "sender_id": str(row["sender_id"]),
            "deleted_by": actor_id,
            "deleted_at": row["deleted_at"],
            "for_everyone": True,
            **why,
        }
        if media_ids := _decode(row["media_ids"]):
            data["media_ids"] = media_ids
        changes.append(
            await record(tx, conversation_id, "message_deleted", actor_id=actor_id, data=data, seq=row["seq"])
        )
    return changes
