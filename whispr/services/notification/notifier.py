"""Telling people: from what happened to inbox entries and deliveries.

Who is told is decided outside the transaction, for that asks Redis and other services; what is decided is written in
one transaction, with what it was decided about removed in the same. So a process that dies has told everybody or
nobody, and another one begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Postgres, Transaction
from whispr.conversations.domain import Kind
from whispr.conversations.topics import topic_of, user_topic
from whispr.ids import new_id
from whispr.services.notification import inbox as inboxes
from whispr.services.notification.bursts import Burst, Bursts, NewMessage
from whispr.services.notification.deliveries import Deliveries
from whispr.services.notification.devices import Devices
from whispr.services.notification.domain import Notice, Priority, Why, why_not
from whispr.services.notification.entries import (
    CLEAR,
    MENTION,
    MESSAGE,
    Recipient,
    Telling,
    burst_entry,
    event_of,
    priority_of,
    push_of,
    told_entry,
)
from whispr.services.notification.inbox import Entry, Inbox
from whispr.services.notification.senders.port import Push
from whispr.services.notification.surroundings import Announce, Neighbours, Presence
from whispr.services.notification.wishes import Standing, Wishes
from whispr.telemetry import tracing

RECIPIENTS_MAX = 1_000
"""People told by one call, and members of a conversation who are told of everything by default."""
YIELD_EVERY = 32
"""People looked at before others get their turn."""
CLEARS_MAX = 20
"""Collapse keys cleared from a device at once."""

log = structlog.get_logger("whispr.notification")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set."""

    batch_s: float = 2.0
    """How long messages of one conversation are gathered into one push."""
    push_ttl_s: float = 24 * 3600.0
    """How long push services keep trying to reach a device."""
    inbox_length: int = 500
    inbox_days: int = 90
    user_devices: int = 20
    everyone_max: int = RECIPIENTS_MAX
    """Members of a conversation up to which everybody is told of everything by default."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a Telling."""

    notification_id: str
    about: str
    skipped: Mapping[str, Why]
    devices: Sequence[tuple[str, str]]
    """(user, device) of those who are pushed."""


class Notifier:
    """Decides who is told, and writes it down."""

    def __init__(
        self,
        db: Postgres,
        *,
        online: Presence,
        neighbours: Neighbours,
        announce: Announce,
        options: Options,
    ) -> None:
        self.wishes = Wishes(db)
        self.inbox = Inbox(db, options.inbox_length)
        self.devices = Devices(db, options.user_devices)
        self.deliveries = Deliveries(db)
        self.bursts = Bursts(db)
        self.options = options
        self._db = db
        self._online = online
        self._neighbours = neighbours
        self._announce = announce

    # Bursts of messages

    def everybody_reads(self, conversation_id: str, kind: Kind, sender_id: str, member_count: int) -> bool:
        """Tell whether all members but the sender have a message on a live socket of this process already."""
        readers = self._online.readers_here(topic_of(kind, conversation_id))
        return 0 < member_count <= len(readers | {sender_id})

    async def tell_burst(self, burst: Burst) -> None:
        """Tell people of the messages of a burst. Raises UNAVAILABLE; nothing is told then."""
        messages = await self.bursts.messages(burst)
        # One push tells of them all: it is of one's trace.
        trace = tracing.chosen(message.trace for message in messages)
        with tracing.continued("notification-burst", tracing.Kind.INTERNAL, trace):
            await self._tell_burst(burst, messages)

    async def _tell_burst(self, burst: Burst, messages: Sequence[NewMessage]) -> None:
        recipients = await self._recipients(burst, messages) if messages else []
        senders = await self.wishes.names({m.sender_id for r in recipients for m in r.messages})
        group = ""
        if recipients:
            group = await self._neighbours.name_of(burst.conversation_id, burst.kind, recipients[0].user_id)
        async with self._db.transaction() as tx:
            if not await self.bursts.hold(tx, burst):
                return
            entries = await self._write_burst(tx, burst, recipients, senders, group)
            await self.bursts.done(tx, burst, messages, self.options.batch_s)
        await self._announce_new(entries)

    async def _recipients(self, burst: Burst, messages: Sequence[NewMessage]) -> list[Recipient]:
        """Find who is to be told of which of the messages, and who of them aloud."""
        people, large = await self._audience(burst.conversation_id, messages)
        reading = await self._online.reading(topic_of(burst.kind, burst.conversation_id), among=people)
        people = [user_id for user_id in people if user_id not in reading]
        standings = await self.wishes.standings(burst.conversation_id, people)
        blocked = await self._blocks(messages, people)
        now = inboxes.now()
        found = []
        for number, user_id in enumerate(people):
            if number % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()  # a thousand people times hundreds of messages take a while
            standing = standings[user_id]
            unseen = [
                message
                for message in messages
                if message.sender_id != user_id
                and message.seq > standing.read_seq
                and user_id not in blocked[message.sender_id]
            ]
            if not unseen or not standing.is_member:
                continue
            recipient = Recipient(user_id, standing, None, unseen)
            notice = Notice(
                MENTION if recipient.mentioned else MESSAGE,
                priority_of(burst.kind, recipient.mentioned),
                mentioned=recipient.mentioned,
                large=large,
            )
            why = why_not(notice, standing.own, standing.there, now)
            if why is None or why.leaves_inbox:
                found.append(msgspec.structs.replace(recipient, why=why))
        return found

    async def _audience(self, conversation_id: str, messages: Sequence[NewMessage]) -> tuple[list[str], bool]:
        """Return who may have to be told, and whether the conversation is a large one, where few are."""
        limit = self.options.everyone_max
        members = await self.wishes.members(conversation_id, limit + 1)
        if len(members) <= limit:
            return list(members), False
        eager = await self.wishes.who_want_everything(conversation_id, limit)
        mentioned = {user_id for message in messages for user_id in message.mentions}
        return sorted({*eager, *mentioned}), True

    async def _blocks(self, messages: Sequence[NewMessage], people: Sequence[str]) -> dict[str, set[str]]:
        """Return for each sender between whom and them a block stands."""
        senders = {message.sender_id for message in messages}
        if not people:
            return {sender: set() for sender in senders}
        return {sender: await self._neighbours.blocked(sender, people) for sender in senders}

    async def _write_burst(
        self,
        tx: Transaction,
        burst: Burst,
        recipients: Sequence[Recipient],
        names: Mapping[str, str],
        group: str,
    ) -> list[Entry]:
        """Write the entries and deliveries of a burst."""
        if not recipients:
            return []
        before = await self.inbox.gathering(tx, burst.conversation_id, [r.user_id for r in recipients])
        at = inboxes.now()
        entries = [
            burst_entry(each, burst, before.get(each.user_id), names, group, at) for each in recipients
        ]
        await self.inbox.add(tx, entries, gathers=True)
        await self.inbox.trim(tx, [entry.user_id for entry in entries if entry.user_id not in before])
        # Not all see the same message as the last: each is told of the one they see.
        for message_id in sorted({entry.message_id for entry in entries}):
            same = {entry.user_id: entry for entry in entries if entry.message_id == message_id}
            loud = [r for r in recipients if r.why is None and r.user_id in same]
            silent = {r.user_id for r in loud if all(message.silent for message in r.messages)}
            await self._push(tx, f"message:{message_id}", same, [r.user_id for r in loud], silent)
        return entries

    # What services tell

    async def tell(self, telling: Telling) -> Told:
        """Write what people are to be told; the deliveries are due at once. Raises UNAVAILABLE."""
        people = list(telling.recipient_ids)
        if not people:
            people = list(await self.wishes.members(telling.conversation_id, RECIPIENTS_MAX))
        standings = await self.wishes.standings(telling.conversation_id or None, people)
        skipped = await self._skipped(telling, standings)
        told = {user_id for user_id in people if user_id not in skipped or skipped[user_id].leaves_inbox}
        loud = [user_id for user_id in people if user_id not in skipped]
        names = await self.wishes.names([telling.actor_id] if telling.actor_id else [])
        at = inboxes.now()
        async with self._db.transaction() as tx:
            again = await self.inbox.sent_for(tx, telling.message_id) if telling.message_id else None
            notification_id = again or telling.id or new_id()
            about = f"message:{telling.message_id}" if telling.message_id else f"sent:{notification_id}"
            entries = {
                user_id: told_entry(telling, notification_id, user_id, standings[user_id], names, at)
                for user_id in people
                if user_id in told
            }
            await self.inbox.add(tx, list(entries.values()), gathers=False)
            await self.inbox.trim(tx, list(entries))
            silent = set(loud) if telling.silent else set()
            devices = await self._push(tx, about, entries, loud, silent)
        have_device = {user_id for user_id, _ in devices}
        skipped |= {user_id: Why.NO_DEVICE for user_id in loud if user_id not in have_device}
        if again is None:
            await self._announce_new(entries.values())
        return Told(notification_id=notification_id, about=about, skipped=skipped, devices=devices)

    async def name_of(self, conversation_id: str, kind: Kind, member_id: str) -> str:
        """Return what a conversation is called, empty when nobody says so."""
        return await self._neighbours.name_of(conversation_id, kind, member_id)

    async def _skipped(self, telling: Telling, standings: Mapping[str, Standing]) -> dict[str, Why]:
        """Find who is not pushed, and why."""
        skipped: dict[str, Why] = {}
        of_message = bool(telling.message_id)
        if telling.actor_id in standings:
            skipped[telling.actor_id] = Why.SENDER
        if of_message:
            for user_id, standing in standings.items():
                if not standing.is_member:
                    skipped.setdefault(user_id, Why.NOT_A_MEMBER)
        rest = [user_id for user_id in standings if user_id not in skipped]
        if telling.actor_id and rest:
            for user_id in await self._neighbours.blocked(telling.actor_id, rest):
                skipped.setdefault(user_id, Why.BLOCKED)
        if of_message:
            for kind in Kind:
                topic = topic_of(kind, telling.conversation_id)
                for user_id in await self._online.reading(topic, among=rest):
                    skipped.setdefault(user_id, Why.READING)
        now = inboxes.now()
        for user_id, standing in standings.items():
            notice = Notice(
                telling.type,
                telling.priority,
                mentioned=user_id in telling.mentions,
                from_conversation=of_message,
            )
            why = why_not(notice, standing.own, standing.there, now)
            if why is not None:
                skipped.setdefault(user_id, why)
        return skipped

    # Reading

    async def mark_read(
        self,
        user_id: str,
        at: datetime,
        *,
        ids: Collection[str] = (),
        conversation_id: str = "",
        device_id: str = "",
    ) -> int:
        """Mark entries as read, on every device; return how many were unread."""
        async with self._db.transaction() as tx:
            read = await self.inbox.read(tx, user_id, at, ids=ids, conversation_id=conversation_id)
            await self.clear(tx, user_id, read, device_id)
        await self.announce_read(user_id, read)
        return len(read)

    async def clear(
        self, tx: Transaction, user_id: str, read: Sequence[tuple[str, str]], device_id: str = ""
    ) -> None:
        """Take what was read off the screens of the user's devices, but for the one where it was read."""
        if not read:
            return
        shown = await self.deliveries.read(tx, user_id, [notification_id for notification_id, _ in read])
        badge = (await self.inbox.unread([user_id], on=tx))[user_id]
        for collapse_key, where in list(shown.items())[:CLEARS_MAX]:
            ids = sorted(where.notification_ids)[:CLEARS_MAX]
            push = Push(
                type=CLEAR,
                notification_id=ids[0],
                data={"notification_ids": ",".join(ids)},
                collapse_key=collapse_key,
                priority=Priority.LOW,
                silent=True,
                badge=badge,
            )
            pushes = [(user_id, each, push) for each in sorted(where.device_ids) if each != device_id]
            about = f"clear:{new_id()}"
            await self.deliveries.add(tx, about, collapse_key, self.options.push_ttl_s, pushes)

    async def announce_read(self, user_id: str, read: Sequence[tuple[str, str]]) -> None:
        """Tell the user's sockets what was read."""
        if not read or not await self._online.connected([user_id]):
            return
        unread = (await self.inbox.unread([user_id]))[user_id]
        conversations = {conversation_id for _, conversation_id in read if conversation_id}
        event = {
            "type": "read",
            "notification_ids": [notification_id for notification_id, _ in read],
            "conversation_ids": sorted(conversations),
            "unread_count": unread,
        }
        self._announce(user_topic(user_id), "notification", event)

    # Both

    async def _push(
        self,
        tx: Transaction,
        about: str,
        entries: Mapping[str, Entry],
        loud: Sequence[str],
        silent: Collection[str],
    ) -> list[tuple[str, str]]:
        """Write a delivery for each device of those who are pushed; return (user, device)."""
        if not loud:
            return []
        devices = await self.devices.ids_of(loud, on=tx)
        badges = await self.inbox.unread({user_id for user_id, _ in devices}, on=tx)
        pushes = [
            (user_id, device_id, push_of(entries[user_id], badges[user_id], silent=user_id in silent))
            for user_id, device_id in devices
        ]
        if pushes:
            key = pushes[0][2].collapse_key
            await self.deliveries.add(tx, about, key, self.options.push_ttl_s, pushes)
        return devices

    async def _announce_new(self, entries: Iterable[Entry]) -> None:
        """Tell the sockets of those who are connected."""
        by_user = {entry.user_id: entry for entry in entries}
        connected = await self._online.connected(by_user) if by_user else set()
        unread = await self.inbox.unread(connected) if connected else {}
        for user_id in connected:
            event = event_of(by_user[user_id], unread[user_id])
            self._announce(user_topic(user_id), "notification", event)
