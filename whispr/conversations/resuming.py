"""Joining a conversation: who may, and what they missed, in as few questions to the database as can be.

Joiners of one conversation that come while it is being read are served together by the next read, and for
`KEPT_S` after a read by its `Tail`, without one. What waits is read together, up to `TOGETHER` conversations in one
statement, and `LANES` statements at a time: a storm of joins takes few turns, and leaves connections to those who
send.

Admission rests on the statement that reads: whoever has no seat in its answer is refused, and remembered as refused
for `REFUSED_S`, so that asking again and again costs the asker and not the database.

While the database is away, members who are known join by the last good read, marked as stale: a tail that is served
no more is kept for that, until something happens that it would have had to hear of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import msgspec
import structlog
import trio
from prometheus_client import Counter

from whispr.conversations import snapshots
from whispr.conversations.database import Database
from whispr.conversations.domain import Limits, not_a_member
from whispr.conversations.paging import from_token
from whispr.conversations.snapshots import ROSTER_MAX, Ask, Snapshot
from whispr.conversations.tails import Cursor, Missed, Tail
from whispr.conversations.topics import PREFIXES, topic_of
from whispr.errors import Code, WhisprError, internal, invalid, not_found, unavailable
from whispr.realtime.hub import Hub
from whispr.resilience.fallback import AWAY, LastGood

KEPT_S = 10.0
"""How long a read serves those who join after it."""
TAILS_MAX = 10_000
"""Conversations whose tails are kept; the oldest goes first."""
LANES = 2
TOGETHER = 16
"""A replay of each may have `PAGE_BYTES_MAX`."""
REFUSED_S = 1.0
REFUSED_MAX = 10_000
BUSY_ROSTER_MAX = 50_000
"""Members whose roles are read when a conversation is joined by more than one person within `KEPT_S`."""
PAGE_ATTEMPTS = 3
STALE_S_MAX = 900.0
"""How old a read may be that stands in."""
STALE_MAX = 5_000
STALE_BYTES_MAX = 32 * 1024 * 1024
"""Of all of them."""
SWEEP_S = 5.0

JOINS = Counter("whispr_conversations_joins_total", "Joins of conversations that were admitted")
READS = Counter("whispr_conversations_join_reads_total", "Reads of the database that joins needed")


log = structlog.get_logger("whispr.conversations")


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
        self._past: LastGood[str, Tail] = LastGood(
            "joins", trio.current_time, len_max=STALE_MAX, age_s_max=STALE_S_MAX, bytes_max=STALE_BYTES_MAX
        )
        """Topic → its last tail."""
        self._large: OrderedDict[str, float] = OrderedDict()
        """Topics of conversations too large to read everybody's role for one joiner → when one joined last."""
        self._asking: dict[str, list[_Asker]] = {}
        """Topic → who waits for it to be read."""
        self._reading: set[str] = set()
        """Topics that are being read."""
        self._lanes = trio.lowlevel.ParkingLot()
        self._refused: OrderedDict[tuple[str, str], tuple[float, Code]] = OrderedDict()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve joins until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(LANES):
                nursery.start_soon(self._serve)
            task_status.started()
            while True:
                await trio.sleep(SWEEP_S)
                before = trio.current_time() - KEPT_S
                for topic in [topic for topic, tail in self._tails.items() if tail.read_at < before]:
                    self._retire(topic)

    async def join(self, topic: str, user_id: str, since_seq: int | None, since_change: int | None) -> Missed:
        """Admit a member to the topic they have subscribed to; say what they missed. Raises WhisprError."""
        tail = self._tail(topic)
        if tail is not None and tail.covers(since_seq, since_change):
            return self._judged(tail, topic, user_id, since_seq, since_change)
        self._check_refused(topic, user_id)
        asker = _Asker(user_id, since_seq, since_change)
        self._asking.setdefault(topic, []).append(asker)
        self._lanes.unpark()
        await asker.done.wait()
        if isinstance(asker.outcome, WhisprError):
            return self._stood_in(topic, asker, asker.outcome)
        return asker.outcome

    async def page(self, topic: str, user_id: str, token: str) -> Missed:
        """Go on with a replay that did not fit, from its cursor. Raises INVALID_ARGUMENT, and as `join`.

        What it tells is never older than what the member has heard live: else an earlier state would come last.
        """
        cursor = from_token(token, Cursor)
        if cursor is None or min(cursor.seq, cursor.change) < 0:
            raise invalid({"cursor": "is not one that a join returned"})
        for _ in range(PAGE_ATTEMPTS):
            ask = Ask(_id_of(topic), cursor.seq, cursor.change)
            READS.inc()
            read = await snapshots.read_one(self._db, ask, (user_id,), self._limits.resume_len)
            seq, change = self._hub.place(topic)
            if read.seq >= seq and read.change >= change:
                break
        tail = Tail(trio.current_time())
        tail.begin(read)
        return self._judged(tail, topic, user_id, cursor.seq, cursor.change)

    def forget(self, conversation_id: str, user_ids: Iterable[str]) -> None:
        """Forget that these people were refused: something about them changed."""
        self.unsay(conversation_id)
        for user_id in user_ids:
            for prefix in PREFIXES:
                self._refused.pop((f"{prefix}:{conversation_id}", user_id), None)

    def unsay(self, conversation_id: str) -> None:
        """Forget what would stand in for a read of a conversation: it must not be told as it was."""
        self._past.forget(conversation_id)

    def missed(self, topic: str) -> None:
        """Forget what is remembered of a topic: broadcasts of other nodes have been lost."""
        self._drop(topic)
        self.unsay(_id_of(topic))

    def forget_all(self) -> None:
        """Forget everything, as after a time in which nothing was heard of changes."""
        self._refused.clear()
        self._past.forget_all()
        for topic in list(self._tails):
            self._drop(topic)

    # Reading

    async def _serve(self) -> NoReturn:
        """Read what waits, again and again."""
        while True:
            topics = self._take()
            if topics:
                try:
                    await self._read(topics)
                finally:
                    self._reading.difference_update(topics)
            else:
                await self._lanes.park()

    def _take(self) -> dict[str, list[_Asker]]:
        """Take what is to be read together; who may be served from a tail meanwhile is."""
        taken: dict[str, list[_Asker]] = {}
        for topic in list(self._asking):
            if topic in self._reading:
                continue
            askers = self._asking.pop(topic)
            tail = self._tail(topic)
            if tail is not None:
                served = [asker for asker in askers if tail.covers(asker.seq, asker.change)]
                self._settle(tail, topic, served)
                askers = [asker for asker in askers if not asker.done.is_set()]
            if askers:
                taken[topic] = askers
                self._reading.add(topic)
            if len(taken) == TOGETHER:
                break
        return taken

    async def _read(self, asked: dict[str, list[_Asker]]) -> None:
        """Read these topics' conversations in one statement, and answer everybody."""
        tails: dict[str, Tail] = {}
        for topic in asked:
            tails[topic] = tail = Tail(trio.current_time())
            tail.stop = self._hub.follow(topic, tail.hear)
        people = {asker.user_id for askers in asked.values() for asker in askers}
        asks = [self._ask(topic, askers) for topic, askers in asked.items()]
        READS.inc(len(asks))
        error: WhisprError | None = unavailable("the server is stopping")
        found: Mapping[str, Snapshot] = {}
        try:
            found = await snapshots.read(self._db, asks, people, self._limits.resume_len)
            error = None
        except WhisprError as failed:
            error = failed
        except Exception:
            # A defect of ours, in what one of them asked: the others must be able to join all the same.
            log.exception("conversations_not_read", conversations=len(asks))
            error = internal("the conversation could not be read")
        finally:
            for topic, askers in asked.items():
                self._answer(topic, askers, tails[topic], found.get(_id_of(topic)), error)

    def _ask(self, topic: str, askers: list[_Asker]) -> Ask:
        lately = self._large.get(topic, -KEPT_S) > trio.current_time() - KEPT_S
        return Ask(
            _id_of(topic),
            min((asker.seq for asker in askers if asker.seq is not None), default=None),
            min((asker.change for asker in askers if asker.change is not None), default=None),
            BUSY_ROSTER_MAX if lately or len(askers) > 1 else ROSTER_MAX,
        )

    def _answer(
        self, topic: str, askers: list[_Asker], tail: Tail, read: Snapshot | None, error: WhisprError | None
    ) -> None:
        if read is not None and topic == topic_of(read.kind, _id_of(topic)):
            tail.begin(read)
            self._settle(tail, topic, askers)
            self._keep(topic, tail)
            return
        tail.stop()
        if error is None:
            error = not_found("conversation", _id_of(topic))
            for asker in askers:
                self._refuse(topic, asker.user_id, Code.NOT_FOUND)
        for asker in askers:
            asker.outcome = error
            asker.done.set()

    def _settle(self, tail: Tail, topic: str, askers: list[_Asker]) -> None:
        for asker in askers:
            try:
                asker.outcome = self._judged(tail, topic, asker.user_id, asker.seq, asker.change)
            except WhisprError as error:
                asker.outcome = error
            asker.done.set()

    def _judged(self, tail: Tail, topic: str, user_id: str, seq: int | None, change: int | None) -> Missed:
        if user_id not in tail.roles:
            self._refuse(topic, user_id, Code.PERMISSION_DENIED)
            raise not_a_member()
        JOINS.inc()
        return tail.missed(user_id, seq, change)

    def _stood_in(self, topic: str, asker: _Asker, error: WhisprError) -> Missed:
        """Serve a known member from the last good read; raise the `error` of the present one if that cannot be.

        What is known to be behind what has been heard since is none: the joiner would miss what lies between.
        """
        found = self._past.stand_in(topic) if error.code in AWAY and self.hears() else None
        if found is None:
            raise error
        tail, (seq, change) = found[0], self._hub.place(topic)
        behind = tail.seq < seq or tail.change < change
        if behind or asker.user_id not in tail.roles or not tail.covers(asker.seq, asker.change):
            raise error
        JOINS.inc()
        return msgspec.structs.replace(tail.missed(asker.user_id, asker.seq, asker.change), stale=True)

    # What is remembered

    def _tail(self, topic: str) -> Tail | None:
        tail = self._tails.get(topic)
        if tail is None:
            return None
        if not tail.lasting or not self.hears() or tail.read_at < trio.current_time() - KEPT_S:
            self._retire(topic)
            return None
        return tail

    def _keep(self, topic: str, tail: Tail) -> None:
        self._drop(topic)
        if not tail.shared:
            self._large[topic] = tail.read_at
            if len(self._large) > TAILS_MAX:
                self._large.popitem(last=False)
        if not tail.lasting:
            tail.stop()
            return
        self._tails[topic] = tail
        if len(self._tails) > TAILS_MAX:
            self._retire(next(iter(self._tails)))

    def _retire(self, topic: str) -> None:
        """Serve nobody from a tail any more, unless there is nothing else."""
        tail = self._tails[topic]
        self._drop(topic)
        if tail.shared and not tail.unsaid and self.hears():
            self._past.keep(topic, tail, 0.0, (_id_of(topic),), self._past.changes, size=tail.size)

    def _drop(self, topic: str) -> None:
        tail = self._tails.pop(topic, None)
        if tail is not None:
            tail.stop()

    def _refuse(self, topic: str, user_id: str, code: Code) -> None:
        self._refused[topic, user_id] = trio.current_time() + REFUSED_S, code
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    def _check_refused(self, topic: str, user_id: str) -> None:
        until, code = self._refused.get((topic, user_id), (0.0, Code.OK))
        if until > trio.current_time():
            raise not_found("conversation", _id_of(topic)) if code is Code.NOT_FOUND else not_a_member()


def _id_of(topic: str) -> str:
    return topic.partition(":")[2]
