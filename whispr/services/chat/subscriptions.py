"""Live events of rooms for readers of SubscribeRoomEvents, from the hub of this process.

Each reader has a bounded queue that a tap on the room's topic fills. It ends with an error that says why: the
reader was put out, the room was closed, the session ended, the token ran out, or the reader did not keep up; then
the error says from which seq to go on. So that a bus that was away hides no removal for long, membership is
asked for again now and then.

Numbered events come in their order, whichever node they happened on, with those that the bus has lost.

With `since_seq` the reader first gets messages from the history. Messages that arrive meanwhile may be dropped
from the queue, for the history is read until it has passed them: no gap, no duplicate.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec
import trio

from whispr.conversations.announcer import LEAVING_EVENTS
from whispr.conversations.domain import MessagePage
from whispr.conversations.wire import encoded
from whispr.errors import WhisprError, conflict, denied, exhausted, unauthenticated, unavailable
from whispr.realtime.hub import Hub

RECHECK_S = 30.0
"""How often a quiet reader's membership is asked for again."""
PAGE_LEN = 100
ENDED_MAX = 1000
"""Ended sessions that are remembered here; calls of others are refused before they come here."""

_REASONS = {"user_kicked": "kicked", "user_banned": "banned"}


class RoomEvent(msgspec.Struct, frozen=True):
    """One event: its payload is JSON; `seq` is 0 for what is no message."""

    type: str
    seq: int
    time: datetime
    payload: bytes


class _About(msgspec.Struct):
    user_id: str = ""


_about = msgspec.json.Decoder(_About).decode


def _whose(payload: bytes) -> str:
    """Return whom an event is about; nobody, when another node sent something else."""
    try:
        return _about(payload).user_id
    except msgspec.MsgspecError:
        return ""


class Reader:
    """One reader's queue."""

    def __init__(self, user_id: str, session_id: str, types: Collection[str], queue_len_max: int) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.floor = -1
        """Messages up to this seq have been read from the history."""
        self.replaying = False
        self._types = frozenset(types)
        self._queue: deque[RoomEvent] = deque()
        self._queue_len_max = queue_len_max
        self._dropped_to = -1
        self._error: WhisprError | None = None
        self._overflowed = False
        self._some = trio.Event()

    @property
    def behind(self) -> bool:
        """Whether the history has to be read on, up to messages that were dropped from the queue."""
        return self._dropped_to > self.floor

    def hear(self, event: str, payload: bytes, seq: int | None) -> None:
        """Take an event of the room."""
        if self._error is not None or self._overflowed:
            return
        if self.wants(event) and (seq is None or seq > self.floor):
            self._put(RoomEvent(event, seq or 0, datetime.now(UTC), payload))
        if event in LEAVING_EVENTS and _whose(payload) == self.user_id:
            reason = _REASONS.get(event, "not_a_member")
            self.end(denied("you are no longer in this room", reason=reason))
        elif event == "room_closed":
            self.end(conflict("the room is closed", "room_closed"))

    def fell_behind(self) -> None:
        """End: what the room has missed is too much to be read before what comes."""
        self.end(unavailable("too many of the room's events were missed; go on from the last seq"))

    def wants(self, event: str) -> bool:
        """Tell whether the reader asked for this type of event."""
        return not self._types or event in self._types

    def end(self, error: WhisprError) -> None:
        """Have the reader get what is queued, then the error."""
        if self._error is None:
            self._error = error
            self._some.set()

    def _put(self, event: RoomEvent) -> None:
        if len(self._queue) >= self._queue_len_max and self.replaying:
            self._drop_messages()
        if len(self._queue) >= self._queue_len_max:
            self._overflowed = True
        else:
            self._queue.append(event)
        self._some.set()

    def _drop_messages(self) -> None:
        """Make room by leaving messages to the history."""
        self._dropped_to = max((event.seq for event in self._queue if event.seq), default=self._dropped_to)
        self._queue = deque(event for event in self._queue if not event.seq)

    async def next(self, sent_to: int) -> RoomEvent | None:
        """Return the next event, None when a while has passed without one.

        Raises what the reader is ended with; RESOURCE_EXHAUSTED (slow_consumer) once what was queued is given.
        """
        while True:
            while self._queue:
                event = self._queue.popleft()
                if not event.seq or event.seq > self.floor:
                    await trio.lowlevel.checkpoint()
                    return event
            if self._error is not None:
                raise self._error
            if self._overflowed:
                raise exhausted(
                    f"too many events waited to be read; go on from since_seq {sent_to}",
                    reason="slow_consumer",
                    facts={"since_seq": str(sent_to)},
                )
            self._some = trio.Event()
            with trio.move_on_after(RECHECK_S) as quiet:
                await self._some.wait()
            if quiet.cancelled_caught:
                return None


ReadOn = Callable[[int], Awaitable[MessagePage]]
"""Reads the page of messages after a seq. Raises what fits a reader who may not."""


class Subscriptions:
    """The readers of one process."""

    def __init__(self, hub: Hub, *, queue_len_max: int, per_user: int) -> None:
        self._hub = hub
        self._queue_len_max = queue_len_max
        self._per_user = per_user
        self._readers: set[Reader] = set()
        self._ended: deque[tuple[str, str]] = deque(maxlen=ENDED_MAX)
        """Sessions that ended lately, and why: a call of theirs may have been let in, and be on its way here."""
        self._draining = False

    def __len__(self) -> int:
        return len(self._readers)

    def session_ended(self, session_id: str, reason: str) -> None:
        """End the readers of a session."""
        self._ended.append((session_id, reason))
        for reader in self._readers:
            if reader.session_id == session_id:
                reader.end(_revoked(reason))

    def drain(self) -> None:
        """End all readers, and whoever comes later, for the process is about to stop."""
        self._draining = True
        for reader in self._readers:
            reader.end(unavailable("the server is stopping"))

    async def events(
        self,
        topic: str,
        user_id: str,
        session_id: str,
        expires_at: float,
        *,
        read_on: ReadOn,
        last_seq: Callable[[], Awaitable[int]],
        since_seq: int | None,
        types: Collection[str],
    ) -> AsyncGenerator[RoomEvent, None]:
        """Yield the events of a room until access to it ends, which raises.

        `last_seq` says where the room is, and raises for who may not read it; it is asked again now and then.
        """
        self._check(user_id, session_id)
        reader = Reader(user_id, session_id, types, self._queue_len_max)
        reader.replaying = since_seq is not None
        stop = self._hub.listen(topic, reader)
        self._readers.add(reader)
        try:
            await self._hub.begin(topic)
            now_at = await last_seq()
            reader.floor = now_at if since_seq is None else since_seq
            yield RoomEvent("subscribed", 0, datetime.now(UTC), msgspec.json.encode({"seq": reader.floor}))
            if since_seq is not None:
                async with aclosing(self._replay(reader, read_on)) as missed:
                    async for event in missed:
                        yield event
            sent_to = reader.floor
            while True:
                found = await reader.next(sent_to)
                if time.time() >= expires_at:
                    raise unauthenticated("the token has run out", "token_expired")
                if found is None:
                    await last_seq()
                else:
                    sent_to = max(sent_to, found.seq)
                    yield found
        finally:
            stop()
            self._readers.discard(reader)

    async def _replay(self, reader: Reader, read_on: ReadOn) -> AsyncGenerator[RoomEvent, None]:
        """Yield messages from the history until it meets what is queued."""
        has_more = True
        while has_more or reader.behind:
            page = await read_on(reader.floor)
            for message in page.messages:
                if reader.wants("new_message"):
                    yield RoomEvent("new_message", message.seq, message.sent_at, bytes(encoded(message)))
                reader.floor = message.seq
            has_more = page.has_more
            if not page.messages:
                break
        reader.replaying = False

    def _check(self, user_id: str, session_id: str) -> None:
        """Refuse one reader too many, and whose session has ended, or the process begun to stop, on their way."""
        if self._draining:
            raise unavailable("the server is stopping")
        for ended, reason in self._ended:
            if ended == session_id:
                raise _revoked(reason)
        count = sum(reader.user_id == user_id for reader in self._readers)
        if self._per_user and count >= self._per_user:
            raise exhausted(
                f"at most {self._per_user} subscriptions at once", reason="too_many_subscriptions"
            )


def _revoked(reason: str) -> WhisprError:
    return unauthenticated(f"the session has been ended: {reason}", "session_revoked")
