"""Media linked to messages, kept in agreement with the media service though either side may fail.

A link is written first, `pending`; then the media service is asked to link too, which checks that the sender may
pass the medium on; its word makes the link `linked`, and everybody is told, or takes it away. While the media
service is away the link stays pending, and `run` asks again. Asking twice is harmless on both sides. A message
that is deleted takes its links with it, and its event tells the media service, which then also refuses links to it
that are still on their way; a medium that is deleted tells us. The media service also tells of every link that it
makes: one whose answer was lost is taken up from that, and one that another service had it make is entered here, or
the media service told that there is no such message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog
import trio

from whispr.conversations import seats, targets
from whispr.conversations.announcer import Announcer
from whispr.conversations.changes import Change, record
from whispr.conversations.database import Database, Transaction
from whispr.conversations.domain import METADATA_BYTES_MAX, METADATA_KEYS_MAX, Attachment, map_problem
from whispr.conversations.message_rules import no_message
from whispr.conversations.permissions import Metadata
from whispr.conversations.rows import encode_map, map_of
from whispr.errors import Code, WhisprError, denied, exhausted, invalid, unavailable
from whispr.events import Consumer, Event, emit
from whispr.ids import new_id
from whispr.v1 import media_pb2

if TYPE_CHECKING:
    from whispr.rpc.stubs import UnaryUnary

MEDIA_TYPES = ("image", "video", "audio", "document")
ATTACHMENTS_MAX = 20
"""Media on one message."""
CALL_S = 2.0
"""How long the media service may take before the link stays pending."""
LOOK_S = 5.0
TOGETHER = 20

_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.RESOURCE_EXHAUSTED})

_PUT = """
    INSERT INTO conversations.attachments AS a (id, conversation_id, seq, media_id, media_type, metadata, state,
        linked_by, created_at, retry_at)
    VALUES ($1, $2, $3, $4, $5, $6::jsonb, 'pending', $7, clock_timestamp(), clock_timestamp() + interval '10 s')
    ON CONFLICT (conversation_id, seq, media_id) DO UPDATE SET media_type = a.media_type
    RETURNING id, media_type, metadata, state
"""
_LINKED = """
    UPDATE conversations.attachments SET state = 'linked', linked_at = clock_timestamp(), retry_at = NULL
    WHERE id = $1 AND state = 'pending' RETURNING seq, media_id, media_type, metadata, linked_by
"""
_LOCK = "SELECT FROM conversations.conversations WHERE id = $1 FOR NO KEY UPDATE"
_MESSAGE = """
    SELECT seq, sender_id FROM conversations.messages
    WHERE conversation_id = $1 AND id = $2 AND deleted_at IS NULL
"""
_ALL_DUE = (
    "UPDATE conversations.attachments SET retry_at = now() WHERE state = 'pending' AND retry_at > now()"
)
_PENDING = f"""
    UPDATE conversations.attachments a SET attempts = a.attempts + 1,
        retry_at = clock_timestamp() + least(interval '10 s' * 2 ^ least(a.attempts, 8), interval '15 min')
    FROM (
        SELECT id FROM conversations.attachments WHERE state = 'pending' AND retry_at <= now()
        ORDER BY retry_at LIMIT {TOGETHER} FOR UPDATE SKIP LOCKED
    ) due
    JOIN conversations.attachments x ON x.id = due.id
    JOIN conversations.messages m ON m.conversation_id = x.conversation_id AND m.seq = x.seq
    WHERE a.id = due.id
    RETURNING a.id, a.conversation_id, a.media_id, a.linked_by, m.id AS message_id
"""  # noqa: S608  # a constant of ours

_log = structlog.get_logger("whispr.conversations")


class MediaStub(Protocol):
    """What is needed of the generated `MediaServiceStub`."""

    @property
    def LinkMediaToMessage(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[media_pb2.LinkMediaToMessageRequest, media_pb2.LinkMediaToMessageResponse]:
        """Link on the media service's side."""


class Attachments:
    """Links media to messages; `run` is its task, `consumer` what it listens to."""

    def __init__(
        self, db: Database, announcer: Announcer, media: MediaStub | None, metadata: Metadata
    ) -> None:
        self._db = db
        self._announcer = announcer
        self._media = media
        self._metadata = metadata
        self._hurry = trio.Event()
        told = ("user.events.media_linked", "user.events.media_deleted")
        self.consumer = Consumer("messaging-media", told, self.told)

    async def link(
        self,
        message_id: str,
        actor_id: str | None,
        media_id: str,
        media_type: str,
        metadata: Mapping[str, str],
    ) -> Attachment:
        """Link a medium to a message, for its sender, or for a service (`actor_id` None); again changes nothing.

        Raises INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED (forbidden, not_a_member, media_forbidden),
        RESOURCE_EXHAUSTED (too_many_attachments).
        """
        if media_type not in MEDIA_TYPES:
            raise invalid({"media_type": f"must be one of {', '.join(MEDIA_TYPES)}"})
        if why := map_problem(metadata, METADATA_KEYS_MAX, METADATA_BYTES_MAX):
            raise invalid({"metadata": why})
        row = await self._db.fetchrow(
            "SELECT conversation_id, sender_id FROM conversations.messages WHERE id = $1", message_id
        )
        if row is None:
            raise no_message(message_id)
        conversation_id, sender_id = str(row["conversation_id"]), str(row["sender_id"])
        if actor_id is not None and actor_id != sender_id:
            await seats.check_reader(self._db, conversation_id, actor_id)
            raise denied("only its sender links media to a message")
        async with self._db.transaction() as tx:
            kept = await _put(tx, conversation_id, message_id, sender_id, media_id, media_type, metadata)
        if kept.state == "linked":
            return kept
        return await self._settle(kept, conversation_id, message_id, sender_id)

    async def run(self) -> None:
        """Settle pending links, for ever."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._hurry.wait()
            try:
                if self._hurry.is_set():
                    self._hurry = trio.Event()
                    await self._db.execute(_ALL_DUE)
                while await self.retry():
                    pass
            except WhisprError as error:
                _log.warning("pending_links_wait", error=str(error))

    def hurry(self) -> None:
        """Say that the media service is back: what is pending need not wait any longer."""
        self._hurry.set()

    async def retry(self) -> bool:
        """Ask again for the pending links that are due; tell whether there may be more."""
        rows = await self._db.fetch(_PENDING)
        for row in rows:
            ids = (str(row[name]) for name in ("conversation_id", "message_id", "linked_by"))
            link = Attachment(
                link_id=str(row["id"]),
                media_id=str(row["media_id"]),
                media_type="",
                metadata={},
                state="pending",
            )
            try:
                await self._settle(link, *ids)
            except WhisprError as error:
                _log.info("link_refused", link_id=link.link_id, media_id=link.media_id, reason=error.reason)
        return len(rows) == TOGETHER

    async def told(self, event: Event) -> None:
        """Hear what the media service tells, in the order of each medium."""
        await (self.media_linked(event) if event.type == "media_linked" else self.media_deleted(event))

    async def media_linked(self, event: Event) -> None:
        """Enter a link that the media service has made. Harmless when repeated, or when it was ours."""
        made = msgspec.convert(event.data, _Made)
        async with self._db.transaction() as tx:
            await tx.execute(_LOCK, made.conversation_id)
            row = await tx.fetchrow(_MESSAGE, made.conversation_id, made.message_id)
            if row is None:
                data = {**msgspec.to_builtins(made), "reason": "no_message"}
                await emit(tx, "messaging.events.media_unlinked", about=made.media_id, data=data)
                return
            kept = await tx.fetchrow(
                _PUT,
                *(made.link_id, made.conversation_id, row["seq"], made.media_id, made.kind, None),
                event.actor or row["sender_id"],
            )
            assert kept is not None, "an upsert returns its row"
            confirmed = await _confirm(tx, str(kept["id"]), made.conversation_id, made.message_id)
        if confirmed is not None:
            self._announcer.changed(confirmed[1])

    async def media_deleted(self, event: Event) -> None:
        """Take a deleted medium off every message. Harmless when repeated."""
        rows = await self._db.fetch(
            "SELECT id, conversation_id FROM conversations.attachments WHERE media_id = $1", event.subject
        )
        for row in rows:
            change = await self._unlink(str(row["conversation_id"]), str(row["id"]), "media_deleted")
            if change is not None:
                self._announcer.changed(change)

    async def _settle(
        self, link: Attachment, conversation_id: str, message_id: str, sender_id: str
    ) -> Attachment:
        """Ask the media service, and do what it says; a link it does not answer for stays pending."""
        try:
            await self._ask(link, conversation_id, message_id, sender_id)
        except WhisprError as error:
            if error.code in _AWAY:
                return link
            await self._unlink(conversation_id, link.link_id, error.reason, told=False)
            raise
        async with self._db.transaction() as tx:
            await seats.lock(tx, conversation_id)
            confirmed = await _confirm(tx, link.link_id, conversation_id, message_id)
            if confirmed is None:
                # Somebody else has settled it, or the message was deleted meanwhile, which its event tells.
                return Attachment(
                    link_id=link.link_id,
                    media_id=link.media_id,
                    media_type=link.media_type,
                    metadata=link.metadata,
                    state="linked",
                )
        self._announcer.changed(confirmed[1])
        return confirmed[0]

    async def _ask(self, link: Attachment, conversation_id: str, message_id: str, sender_id: str) -> None:
        if self._media is None:
            raise unavailable("there is no media service")
        request = media_pb2.LinkMediaToMessageRequest(
            media_id=link.media_id,
            message_id=message_id,
            conversation_id=conversation_id,
            link_id=link.link_id,
        )
        try:
            with trio.fail_after(CALL_S):
                await self._media.LinkMediaToMessage(request, metadata=self._metadata(sender_id))
        except trio.TooSlowError:
            raise unavailable("the media service did not answer in time") from None

    async def _unlink(
        self, conversation_id: str, link_id: str, reason: str, *, told: bool = True
    ) -> Change | None:
        async with self._db.transaction() as tx:
            await seats.lock(tx, conversation_id)
            row = await tx.fetchrow(
                "DELETE FROM conversations.attachments WHERE id = $1 RETURNING seq, media_id, state", link_id
            )
            if row is None or not told or row["state"] != "linked":
                return None
            data = {"link_id": link_id, "media_id": str(row["media_id"]), "reason": reason}
            return await record(
                tx, conversation_id, "media_unlinked", actor_id=None, data=data, seq=row["seq"]
            )


class _Made(msgspec.Struct, frozen=True):
    """What the media service tells of a link."""

    link_id: str
    media_id: str
    message_id: str
    conversation_id: str
    kind: str


async def _confirm(
    tx: Transaction, link_id: str, conversation_id: str, message_id: str
) -> tuple[Attachment, Change] | None:
    """Make a pending link linked, under the conversation's lock; None when it is that already, or gone."""
    row = await tx.fetchrow(_LINKED, link_id)
    if row is None:
        return None
    linked = Attachment(
        link_id=link_id,
        media_id=str(row["media_id"]),
        media_type=row["media_type"],
        metadata=map_of(row["metadata"]),
        state="linked",
    )
    data = {"message_id": message_id, **_facts(linked)}
    by = str(row["linked_by"])
    change = await record(tx, conversation_id, "media_linked", actor_id=by, data=data, seq=row["seq"])
    return linked, change


async def _put(
    tx: Transaction,
    conversation_id: str,
    message_id: str,
    sender_id: str,
    media_id: str,
    media_type: str,
    metadata: Mapping[str, str],
) -> Attachment:
    """Write a pending link under the lock, or find the one there is."""
    target = await targets.find(tx, conversation_id, message_id, sender_id)
    target.check_there()
    place = (conversation_id, target.message.seq)
    others = await tx.fetchval(
        "SELECT count(*) FROM conversations.attachments"
        " WHERE conversation_id = $1 AND seq = $2 AND media_id <> $3",
        *(*place, media_id),
    )
    if others >= ATTACHMENTS_MAX:
        raise exhausted(f"at most {ATTACHMENTS_MAX} media on a message", reason="too_many_attachments")
    encoded = encode_map(dict(metadata)).decode() if metadata else None
    row = await tx.fetchrow(_PUT, new_id(), *place, media_id, media_type, encoded, sender_id)
    assert row is not None, "an upsert returns its row"
    return Attachment(
        link_id=str(row["id"]),
        media_id=media_id,
        media_type=row["media_type"],
        metadata=map_of(row["metadata"]),
        state=row["state"],
    )


def _facts(link: Attachment) -> dict[str, Any]:
    return {
        "link_id": link.link_id,
        "media_id": link.media_id,
        "media_type": link.media_type,
        "metadata": link.metadata,
    }
