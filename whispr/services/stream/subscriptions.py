"""Live events of streams for readers of SubscribeToStreamEvents, from the notices that every process hears.

Each reader has a bounded queue. It ends with an error that says why: the stream ended, access to it did, the session
ended, the token ran out, or the reader did not keep up. Access is asked for again now and then, and whenever who may
listen has changed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import trio

from whispr.errors import WhisprError, conflict, exhausted, unauthenticated, unavailable
from whispr.services.stream.notices import ORDERS, PUT_OUT, RECONSIDER, Notice, Notices

RECHECK_S: Final = 30.0
ENDED_MAX: Final = 1000
"""Ended sessions that are remembered here; calls of others are refused before they come here."""
FOR_THE_STREAMER: Final = frozenset({"listener_joined", "listener_left", "quality_changed"})
"""Who comes and goes, and how they listen, is nobody else's business."""


class StreamNews(msgspec.Struct, frozen=True):
    """One event."""

    kind: str
    time: datetime
    data: Mapping[str, Any]


class Reader:
    """One reader's queue."""

    def __init__(
        self,
        stream_id: str,
        user_id: str,
        session_id: str,
        kinds: Collection[str],
        *,
        own: bool,
        len_max: int,
    ) -> None:
        self.stream_id, self.user_id, self.session_id = stream_id, user_id, session_id
        self._kinds = frozenset(kinds)
        self._own = own
        self._len_max = len_max
        self._queue: deque[StreamNews] = deque()
        self._error: WhisprError | None = None
        self.doubtful = False
        """Whether access is to be asked for again."""
        self._some = trio.Event()

    def hear(self, notice: Notice) -> None:
        """Take a notice of the stream."""
        if notice.kind in ORDERS:
            if notice.kind in (RECONSIDER, PUT_OUT):
                self.doubtful = True
                self._some.set()
            return
        theirs = notice.kind == "quality_changed" and notice.data.get("user_id") == self.user_id
        hidden = notice.kind in FOR_THE_STREAMER and not self._own and not theirs
        if self._error is None and not hidden and (not self._kinds or notice.kind in self._kinds):
            if len(self._queue) >= self._len_max:
                self.end(exhausted("too many events waited to be read: begin again", reason="slow_consumer"))
            else:
                self._queue.append(StreamNews(notice.kind, datetime.now(UTC), notice.data))
                self._some.set()
        if notice.kind == "stream_stopped":
            reason = str(notice.data.get("reason", ""))
            self.end(conflict("the stream has ended", "stream_ended", {"end_reason": reason}))

    def end(self, error: WhisprError) -> None:
        """Have the reader get what is queued, then the error."""
        if self._error is None:
            self._error = error
            self._some.set()

    async def next(self) -> StreamNews | None:
        """Return the next event; None when access is to be asked for again. Raises what the reader ends with."""
        while True:
            if self.doubtful and self._error is None:
                self.doubtful = False
                return None  # before what is queued: more may come as fast as it is read
            if self._queue:
                await trio.lowlevel.checkpoint()
                return self._queue.popleft()
            if self._error is not None:
                raise self._error
            self._some = trio.Event()
            with trio.move_on_after(RECHECK_S) as quiet:
                await self._some.wait()
            if quiet.cancelled_caught:
                return None


class Subscriptions:
    """The readers of one process."""

    def __init__(self, notices: Notices, *, queue_len_max: int, per_user: int) -> None:
        self._queue_len_max = queue_len_max
        self._per_user = per_user
        self._readers: set[Reader] = set()
        self._ended: deque[tuple[str, str]] = deque(maxlen=ENDED_MAX)
        """Sessions that ended lately, and why: a call of theirs may have been let in, and be on its way here."""
        self._draining = False
        notices.on(self._heard)

    def __len__(self) -> int:
        return len(self._readers)

    def _heard(self, notice: Notice) -> None:
        for reader in self._readers:
            if reader.stream_id == notice.stream_id:
                reader.hear(notice)

    def session_ended(self, session_id: str, reason: str) -> None:
        """End the readers of a session."""
        if not session_id:
            return
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
        stream_id: str,
        user_id: str,
        session_id: str,
        expires_at: float,
        *,
        own: bool,
        check: Callable[[], Awaitable[object]],
        kinds: Collection[str],
    ) -> AsyncGenerator[StreamNews, None]:
        """Yield what happens to a stream until access to it ends, which raises; `check` raises who may not read.

        `own`: whether the reader is told who comes and goes.
        """
        self._check(user_id, session_id)
        reader = Reader(stream_id, user_id, session_id, kinds, own=own, len_max=self._queue_len_max)
        self._readers.add(reader)
        try:
            await check()
            yield StreamNews("", datetime.now(UTC), {})
            while True:
                found = await reader.next()
                if time.time() >= expires_at:
                    raise unauthenticated("the token has run out", "token_expired")
                if found is None:
                    await check()
                else:
                    yield found
        finally:
            self._readers.discard(reader)

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
