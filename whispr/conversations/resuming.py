"""Joining a conversation: who may, and what they missed, in as few questions to the database as can be.

Joiners of one conversation that come while it is being read are served together by the next read, and for
`KEPT_S` after a read by its `Tail`, without one. At most `READS_MAX` conversations are read at a time, so that a
storm of joins leaves connections to those who send.

Admission rests on the statement that reads: whoever has no seat in its answer is refused, and remembered as refused
for `REFUSED_S`, so that asking again and again costs the asker and not the database.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import trio
from prometheus_client import Counter

from whispr.conversations import snapshots
from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, not_a_member
from whispr.conversations.paging import from_token
from whispr.conversations.snapshots import ROSTER_MAX, Snapshot
from whispr.conversations.tails import Cursor, Missed, Tail
from whispr.conversations.topics import topic_of
from whispr.errors import Code, WhisprError, invalid, not_found, unavailable
from whispr.realtime.hub import Hub

KEPT_S = 10.0
"""How long a read serves those who join after it."""
TAILS_MAX = 10_000
"""Conversations whose tails are kept; the oldest goes first."""
READS_MAX = 4
REFUSED_S = 1.0
REFUSED_MAX = 10_000
BUSY_ROSTER_MAX = 50_000
"""Members whose roles are read when a conversation is joined by more than one person within `KEPT_S`."""
PAGE_ATTEMPTS = 3
SWEEP_S = 5.0

JOINS = Counter("whispr_conversations_joins_total", "Joins of conversations that were admitted")
READS = Counter("whispr_conversations_join_reads_total", "Reads of the database that joins needed")


class _Asker:
    """Somebody who waits for a read."""

    __slots__ = ("change", "done", "outcome", "seq", "user_id")

    def __init__(self, user_id: str, seq: int | None, change: int | None) -> None:
        self.user_id = user_id
        self.seq = seq
        self.change = change
        self.done = trio.Event()
        self.outcome: Missed | WhisprError = unavailable("the conversation could not be read")


class Resuming:
    """Serves joins of one process. `run` must be running."""

    def __init__(self, db: Database, hub: Hub, limits: Limits) -> None:
        self._db = db
        self._hub = hub
        self._limits = limits
        self.hears: Callable[[], bool] = lambda: True
        """Whether what other nodes broadcast arrives now; while it does not, nothing is served from memory."""
        self._tails: OrderedDict[str, Tail] = OrderedDict()
        self._large: OrderedDict[str, float] = OrderedDict()
        """Conversations too large to read everybody's role for one joiner, and when one joined last."""
        self._asking: dict[str, list[_Asker]] = {}
        self._reading: set[str] = set()
        self._refused: OrderedDict[tuple[str, str], tuple[float, Code]] = OrderedDict()
        self._slots = trio.Semaphore(READS_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve joins until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(SWEEP_S)
                before = trio.current_time() - KEPT_S
                for conversation_id in [id_ for id_, tail in self._tails.items() if tail.read_at < before]:
                    self._drop(conversation_id)

    async def join(self, topic: str, user_id: str, since_seq: int | None, since_change: int | None) -> Missed:
        """Admit a member to the topic they have subscribed to; say what they missed. Raises WhisprError."""
        conversation_id = topic.partition(":")[2]
        tail = self._tail(conversation_id)
        if tail is not None and tail.covers(since_seq, since_change):
            return self._judged(tail, conversation_id, user_id, since_seq, since_change)
        self._check_refused(conversation_id, user_id)
        if self._nursery is None:
            raise unavailable("the server is not ready")
        asker = _Asker(user_id, since_seq, since_change)
        self._asking.setdefault(conversation_id, []).append(asker)
        if conversation_id not in self._reading:
            self._reading.add(conversation_id)
            self._nursery.start_soon(self._read, conversation_id, topic)
        await asker.done.wait()
        if isinstance(asker.outcome, WhisprError):
            raise asker.outcome
        return asker.outcome

    async def page(self, topic: str, user_id: str, token: str) -> Missed:
        """Go on with a replay that did not fit, from its cursor. Raises INVALID_ARGUMENT, and as `join`.

        What it tells is never older than what the member has heard live: else an earlier state would come last.
        """
        cursor = from_token(token, Cursor)
        if cursor is None or min(cursor.seq, cursor.change) < 0:
            raise invalid({"cursor": "is not one that a join returned"})
        conversation_id = topic.partition(":")[2]
        for _ in range(PAGE_ATTEMPTS):
            read = await self._snapshot(conversation_id, [user_id], cursor.seq, cursor.change, 0)
            seq, change = self._hub.place(topic)
            if read.seq >= seq and read.change >= change:
                break
        tail = Tail(trio.current_time())
        tail.begin(read)
        return self._judged(tail, conversation_id, user_id, cursor.seq, cursor.change)

    def forget(self, conversation_id: str, user_ids: Iterable[str]) -> None:
        """Forget that these people were refused: something about them changed."""
        for user_id in user_ids:
            self._refused.pop((conversation_id, user_id), None)

    def missed(self, topic: str) -> None:
        """Forget what is remembered of a topic: broadcasts of other nodes have been lost."""
        self._drop(topic.partition(":")[2])

    def forget_all(self) -> None:
        """Forget everything, as after a time in which nothing was heard of changes."""
        self._refused.clear()
        for conversation_id in list(self._tails):
            self._drop(conversation_id)

    # Reading

    async def _read(self, conversation_id: str, topic: str) -> None:
        """Read for everybody who asks, until nobody does."""
        try:
            async with self._slots:
                while askers := self._asking.pop(conversation_id, None):
                    tail = self._tail(conversation_id)
                    left = [each for each in askers if tail is None or not tail.covers(each.seq, each.change)]
                    if tail is not None:
                        self._settle(tail, conversation_id, [each for each in askers if each not in left])
                    if left:
                        await self._read_for(left, conversation_id, topic)
        finally:
            self._reading.discard(conversation_id)
            for asker in self._asking.pop(conversation_id, ()):
                asker.done.set()

    async def _read_for(self, askers: list[_Asker], conversation_id: str, topic: str) -> None:
        busy = len(askers) > 1 or self._large.get(conversation_id, -KEPT_S) > trio.current_time() - KEPT_S
        tail = Tail(trio.current_time())
        tail.stop = self._hub.follow(topic, tail.hear)
        try:
            read = await self._snapshot(
                conversation_id,
                [asker.user_id for asker in askers],
                min((asker.seq for asker in askers if asker.seq is not None), default=None),
                min((asker.change for asker in askers if asker.change is not None), default=None),
                BUSY_ROSTER_MAX if busy else ROSTER_MAX,
            )
            if topic != topic_of(read.kind, conversation_id):
                raise not_found("conversation", conversation_id)
            tail.begin(read)
            self._settle(tail, conversation_id, askers)
            self._keep(conversation_id, tail)
        except WhisprError as error:
            tail.stop()
            if error.code is Code.NOT_FOUND:
                for asker in askers:
                    self._refuse(conversation_id, asker.user_id, Code.NOT_FOUND)
            for asker in askers:
                asker.outcome = error
        finally:
            for asker in askers:
                asker.done.set()

    async def _snapshot(
        self, conversation_id: str, user_ids: list[str], seq: int | None, change: int | None, roster_max: int
    ) -> Snapshot:
        READS.inc()
        length = self._limits.resume_len
        return await snapshots.read(self._db, conversation_id, user_ids, seq, change, length, roster_max)

    def _settle(self, tail: Tail, conversation_id: str, askers: list[_Asker]) -> None:
        for asker in askers:
            try:
                asker.outcome = self._judged(tail, conversation_id, asker.user_id, asker.seq, asker.change)
            except WhisprError as error:
                asker.outcome = error
            asker.done.set()

    def _judged(
        self, tail: Tail, conversation_id: str, user_id: str, seq: int | None, change: int | None
    ) -> Missed:
        if user_id not in tail.roles:
            self._refuse(conversation_id, user_id, Code.PERMISSION_DENIED)
            raise not_a_member()
        JOINS.inc()
        return tail.missed(user_id, seq, change)

    # What is remembered

    def _tail(self, conversation_id: str) -> Tail | None:
        tail = self._tails.get(conversation_id)
        if tail is None:
            return None
        if not tail.lasting or not self.hears() or tail.read_at < trio.current_time() - KEPT_S:
            self._drop(conversation_id)
            return None
        return tail

    def _keep(self, conversation_id: str, tail: Tail) -> None:
        self._drop(conversation_id)
        if not tail.shared:
            self._large[conversation_id] = tail.read_at
            if len(self._large) > TAILS_MAX:
                self._large.popitem(last=False)
        if not tail.lasting:
            tail.stop()
            return
        self._tails[conversation_id] = tail
        if len(self._tails) > TAILS_MAX:
            self._drop(next(iter(self._tails)))

    def _drop(self, conversation_id: str) -> None:
        tail = self._tails.pop(conversation_id, None)
        if tail is not None:
            tail.stop()

    def _refuse(self, conversation_id: str, user_id: str, code: Code) -> None:
        self._refused[conversation_id, user_id] = trio.current_time() + REFUSED_S, code
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    def _check_refused(self, conversation_id: str, user_id: str) -> None:
        until, code = self._refused.get((conversation_id, user_id), (0.0, Code.OK))
        if until > trio.current_time():
            raise not_found("conversation", conversation_id) if code is Code.NOT_FOUND else not_a_member()
