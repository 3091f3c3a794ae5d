"""Listens to events, and tells people of messages when their burst is due."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Postgres
from whispr.conversations.domain import Kind
from whispr.errors import WhisprError
from whispr.events import Consumer, Event, once_each
from whispr.ids import UUID_PATTERN
from whispr.services.notification import inbox as inboxes
from whispr.services.notification.bursts import Burst, NewMessage
from whispr.services.notification.dispatcher import POLL_S, Bell, Dispatcher, forever
from whispr.services.notification.domain import TITLE_CHARS_MAX, mentioned_in, one_line, preview_of
from whispr.services.notification.entries import Telling
from whispr.services.notification.notifier import RECIPIENTS_MAX, Notifier
from whispr.services.notification.personal import erase

STALE_S = 3600.0
"""Messages older than this are not told of: an outage has ended, or a stream is being replayed."""
CONCURRENCY = 4
"""Messages and watermarks handled at once: connections to the database are shared with those who wait for them."""
GATHER_S = 0.1
"""Messages are noted together, at most ten times a second."""
BURSTS_MAX = 4
"""Bursts told of at once."""
TELL_S = 30.0
AGAIN_S = 5.0
"""When a burst is tried again that could not be told of."""

MESSAGES = "notification-messages"
DELETED = "This message was deleted"
EDITED = "This message was edited"

_ID = re.compile(UUID_PATTERN)

log = structlog.get_logger("whispr.notification")


class MessageSent(msgspec.Struct):
    """The data of `message_sent`, as far as it matters here."""

    message_id: str
    conversation_id: str
    conversation_kind: Kind
    seq: int
    sender_id: str
    message_type: str
    sent_at: datetime
    metadata: dict[str, str] = {}
    text: str | None = None
    encrypted: bool = False
    deleted: bool = False
    member_count: int = 0
    """When the event was made; 0 when it does not say."""


class Read(msgspec.Struct):
    """The data of `read`."""

    conversation_id: str
    user_id: str
    seq: int


class Changed(msgspec.Struct):
    """The data of `message_edited` and `message_deleted`."""

    message_id: str


class Invited(msgspec.Struct):
    """The data of `member_added`, `user_invited` and `conversation_created`."""

    user_id: str = ""
    member_ids: list[str] = []
    conversation_id: str = ""
    conversation_kind: Kind = Kind.ROOM
    room_id: str = ""
    name: str = ""


class SessionEnded(msgspec.Struct):
    """The data of `session_revoked`."""

    user_id: str
    session_id: str


class Teller:
    """The consumers, and the task that tells people of bursts."""

    def __init__(self, db: Postgres, notifier: Notifier, dispatcher: Dispatcher) -> None:
        self._db = db
        self._notifier = notifier
        self._dispatcher = dispatcher
        self._bell = Bell()
        self._looks_at = float("inf")
        """When bursts are looked at anyway."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """What is listened to."""
        both = [f"{source}.events.{{}}" for source in ("messaging", "chat")]
        return (
            Consumer(
                MESSAGES,
                tuple(subject.format("message_sent") for subject in both),
                self.message_sent,
                concurrency=CONCURRENCY,
                handle_many=self.messages_sent,
                gather_s=GATHER_S,
                from_start=False,
            ),
            Consumer(
                "notification-read",
                tuple(subject.format("read") for subject in both),
                self.read,
                concurrency=CONCURRENCY,
            ),
            Consumer(
                "notification-edited",
                tuple(subject.format("message_edited") for subject in both),
                self.edited,
            ),
            Consumer(
                "notification-deleted",
                tuple(subject.format("message_deleted") for subject in both),
                self.deleted,
            ),
            Consumer(
                "notification-invitations",
                (
                    "messaging.events.conversation_created",
                    "messaging.events.member_added",
                    "chat.events.user_invited",
                ),
                self.invited,
                from_start=False,
            ),
            Consumer("notification-sessions", ("user.events.session_revoked",), self.session_ended),
            Consumer("notification-accounts", ("user.events.account_deleted",), self.account_deleted),
        )

    async def message_sent(self, event: Event) -> None:
        """Keep a message until its burst is due."""
        await self.messages_sent((event,))

    async def messages_sent(self, events: Sequence[Event]) -> None:
        """Keep messages until their bursts are due, but for those that everybody has seen."""
        await trio.lowlevel.checkpoint()
        oldest = inboxes.now() - timedelta(seconds=STALE_S)
        new = {
            event.id: message
            for event in events
            if event.time >= oldest and (message := self._to_tell_of(event)) is not None
        }
        if not new:
            return
        batch_s = self._notifier.options.batch_s
        async with self._db.transaction() as tx:
            fresh = await once_each(tx, MESSAGES, new)
            if fresh:
                messages = [message for event_id, message in new.items() if event_id in fresh]
                await self._notifier.bursts.note(tx, messages, batch_s)
        if trio.current_time() + batch_s < self._looks_at:
            self._bell.ring()

    def _to_tell_of(self, event: Event) -> NewMessage | None:
        """Return the message of an event, None when nobody is to be told of it."""
        sent = msgspec.convert(event.data, MessageSent)
        there = sent.conversation_id, sent.conversation_kind
        if sent.deleted or self._notifier.everybody_reads(*there, sent.sender_id, sent.member_count):
            return None
        return NewMessage(
            message_id=sent.message_id,
            conversation_id=sent.conversation_id,
            kind=sent.conversation_kind,
            seq=sent.seq,
            sender_id=sent.sender_id,
            preview=preview_of(sent.message_type, sent.text, encrypted=sent.encrypted),
            mentions=mentioned_in(sent.metadata, _ID),
            silent=sent.metadata.get("silent") == "true" or sent.message_type == "system",
            sent_at=sent.sent_at,
            trace=event.trace,
        )

    async def read(self, event: Event) -> None:
        """Clear what a read watermark covers from the inbox and from screens."""
        read = msgspec.convert(event.data, Read)
        inbox = self._notifier.inbox
        async with self._db.transaction() as tx:
            entries = await inbox.read_up_to(tx, read.user_id, read.conversation_id, read.seq, event.time)
            await self._notifier.clear(tx, read.user_id, entries)
        if entries:
            self._dispatcher.wake()
            await self._notifier.announce_read(read.user_id, entries)

    async def edited(self, event: Event) -> None:
        """Show nothing of a message that says something else now."""
        changed = msgspec.convert(event.data, Changed)
        async with self._db.transaction() as tx:
            await self._notifier.bursts.hide(tx, changed.message_id)
            await self._notifier.inbox.forget(tx, changed.message_id, EDITED)

    async def deleted(self, event: Event) -> None:
        """Forget what a message that is deleted for everyone said."""
        changed = msgspec.convert(event.data, Changed)
        async with self._db.transaction() as tx:
            await self._notifier.bursts.forget(tx, changed.message_id)
            await self._notifier.inbox.forget(tx, changed.message_id, DELETED)

    async def invited(self, event: Event) -> None:
        """Tell people who were added to a group, or invited to a room, by somebody else."""
        facts = msgspec.convert(event.data, Invited)
        conversation_id = facts.conversation_id or facts.room_id
        people = [each for each in (facts.user_id, *facts.member_ids) if each and each != event.actor]
        fresh = event.time >= inboxes.now() - timedelta(seconds=STALE_S)
        if facts.conversation_kind is Kind.DIRECT or not people or not fresh:
            await trio.lowlevel.checkpoint()
            return
        room = event.type == "user_invited"
        name, who = facts.name, ""
        if event.actor:
            who = (await self._notifier.wishes.names([event.actor])).get(event.actor, "Somebody")
            name = name or await self._notifier.name_of(conversation_id, facts.conversation_kind, event.actor)
        telling = Telling(
            id=event.id,
            type="user_invited" if room else "member_added",
            conversation_id=conversation_id,
            actor_id=event.actor,
            recipient_ids=people[:RECIPIENTS_MAX],
            title=one_line(name, TITLE_CHARS_MAX) or ("A room" if room else "A group"),
            body=f"{who} {'invited' if room else 'added'} you" if who else "You were added",
            data={"conversation_kind": facts.conversation_kind.value},
        )
        await self._notifier.tell(telling)
        self._dispatcher.wake()

    async def session_ended(self, event: Event) -> None:
        """Push no more to the devices of a sign-in that has ended."""
        ended = msgspec.convert(event.data, SessionEnded)
        async with self._db.transaction() as tx:
            await self._notifier.devices.end_session(tx, ended.user_id, ended.session_id)

    async def account_deleted(self, event: Event) -> None:
        """Erase what is held about a person."""
        async with self._db.transaction() as tx:
            await erase(tx, event.subject)

    # Bursts

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell people of what is due, until cancelled."""
        task_status.started()
        await forever(self._look, self._bell)

    async def _look(self) -> float:
        """As `tell_due`, remembering when that is."""
        self._looks_at = float("-inf")  # it may be looking already: whoever notes a message now must ring
        pause_s = await self.tell_due()
        self._looks_at = trio.current_time() + pause_s
        return pause_s

    async def tell_due(self) -> float:
        """Tell people of the bursts that are due; return the seconds until the next one may be."""
        bursts = await self._notifier.bursts.take(BURSTS_MAX)
        async with trio.open_nursery() as nursery:
            for burst in bursts:
                nursery.start_soon(self._tell, burst)
        if bursts:
            self._dispatcher.wake()
            return 0.0
        return min(POLL_S, max(0.0, await self._notifier.bursts.seconds_to_next() or POLL_S))

    async def _tell(self, burst: Burst) -> None:
        try:
            with trio.fail_after(TELL_S):
                await self._notifier.tell_burst(burst)
        except Exception as error:  # the boundary to one burst: the others are to be told all the same
            expected = isinstance(error, WhisprError | trio.TooSlowError)
            log.warning(
                "burst_waits", conversation_id=burst.conversation_id, error=repr(error), exc_info=not expected
            )
            try:
                await self._notifier.bursts.put_back(burst, AGAIN_S)
            except WhisprError as also:
                log.warning("burst_not_put_back", error=str(also))  # its lease ends by itself
