"""The relay: from the outbox to JetStream, in order, each event once.

Theory of operation. Every process runs one; they take turns. A *turn* is one short transaction: it tries for an
advisory lock, which PostgreSQL gives back when the transaction ends however it ends, reads the first rows,
publishes their events, and deletes the rows that JetStream has stored. So at most one relay is at work, and any
of them can be killed anywhere:

* before the publish: nothing has happened;
* between publish and delete: the next turn publishes the same ids, and JetStream knows them;
* a relay that lives on without knowing that its transaction has died publishes what the next one publishes too,
  in the same order, and the first of each counts.

A turn sends all its events before it waits (`JetStream.publish`), each naming its predecessor, so that none can
overtake one that was lost. After a failure turns go one event at a time until all is well again: then an event
that JetStream will never take is told from trouble, and goes to the dead letters instead of blocking the rest.

A row may stand for many events: its *expander* makes them when it is published, the same ones each time.
A process that does not know the expander of the row at the head leaves it, and what is behind, to one that does.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
import trio

from whispr.adapters.jetstream import JetStream, Outgoing
from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import WhisprError, unavailable
from whispr.events import metrics
from whispr.events.consumer import RESERVED
from whispr.events.envelope import Event, encode, parts, stream_of
from whispr.events.outbox import Batch, Expander
from whispr.events.pace import Pace
from whispr.events.streams import Streams
from whispr.resilience.retry import Backoff

LOCK_KEY = 0x77686F75
"""Of the advisory lock; any constant that nothing else in this database uses."""
POLL_S = 1.0
"""How often the outbox is looked at for what other processes committed."""
GATHER_S = 0.04
"""Pause after being woken: what is committed at about the same time is published together."""
EVENTS_MAX = 128
"""Events of one turn, unless its last rows stand for more: to make, send and see them confirmed keeps the loop from
others for some 2 ms each time."""
TOGETHER_MAX = 16
"""Rows that an expander makes events of at once."""
CAREFUL_MAX = 16
"""Events of a turn that goes one by one."""
FRESH_S, BEHIND_S = 0.2, 0.5
"""Ages of the newest and the oldest row that together mean heavy traffic: events come in faster than they leave."""
TAKEN = -1
"""What a turn returns when another relay is at work."""
TAKEN_S = 0.1
"""Pause before the next try then."""
TURN_S = 8.0
"""Of one transaction; PostgreSQL ends ours after 10 s without a statement."""
LIGHT = 16
"""To publish an event takes a fraction of what it takes to handle one."""
RETRY = Backoff(0.05, 2.0, low=0.5)
EXPAND_ATTEMPTS_MAX = 8
"""Failures in a row of one row's expander, after which the row becomes a dead letter."""
MEASURE_S = 5.0
"""How often the gauges are set."""

# Losing the commit in a crash means publishing again, which JetStream notices.
# Statements of a turn run many times a second, with arrays whose lengths make no better plan.
_LOCK = (
    "SELECT pg_try_advisory_xact_lock($1), set_config('synchronous_commit', 'off', true),"
    " set_config('plan_cache_mode', 'force_generic_plan', true)"
)
_HEAD = (
    "SELECT position, id, stream_subject, expander, about, actor, version, data, trace, emitted_at"
    " FROM events.outbox ORDER BY position LIMIT $1"
)
_WAITING = """
SELECT (SELECT count(*) FROM (SELECT FROM events.outbox LIMIT 10000) AS counted) AS waiting,
    (SELECT extract(epoch FROM clock_timestamp() - emitted_at)::float8 FROM events.outbox ORDER BY position LIMIT 1)
        AS age_s
"""
_HEAVY = """
SELECT (SELECT emitted_at > clock_timestamp() - make_interval(secs => $1) FROM events.outbox
        ORDER BY position DESC LIMIT 1)
    AND (SELECT emitted_at < clock_timestamp() - make_interval(secs => $2) FROM events.outbox
        ORDER BY position LIMIT 1)
"""
_BURY = (
    "INSERT INTO events.dead_letters (consumer, event_id, stream_subject, about, payload, error, attempts)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (consumer, event_id)"
    " DO UPDATE SET error = excluded.error, died_at = now(), replay_at = NULL"
)

_json = msgspec.json.Encoder().encode

log = structlog.get_logger("whispr.relay")


@dataclass(slots=True)
class _Row:
    """A row of the outbox and the events it stands for."""

    record: Any
    events: list[Outgoing] = field(default_factory=list)


class _ExpandError(Exception):
    """An expander failed on a row."""

    def __init__(self, row: _Row, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.row = row


class Relay:
    """This process's relay; `run` is its task."""

    def __init__(
        self,
        db: Postgres,
        jetstream: JetStream,
        streams: Streams,
        *,
        expanders: Mapping[str, Expander] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._db = db
        self._jetstream = jetstream
        self._streams = streams
        self._expanders = dict(expanders or {})
        self._pace = pace or Pace(0)
        self._woken = trio.Event()
        self._expected = True
        """Whether there is likely something in the outbox, and no need to look before taking a turn."""
        self._emptied = False
        """Whether the last turn took all there was: what comes later wakes us, or waits for the next look."""
        self._careful = False
        self._failed_turns = 0
        self._failures: dict[int, int] = {}

    def wake(self) -> None:
        """Look at the outbox soon: something was committed."""
        self._woken.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish what comes into the outbox, until cancelled."""
        undo = self._db.on_ring(self.wake)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._measure)
                while True:
                    self._woken = trio.Event()
                    await self._once()
        finally:
            undo()

    async def _once(self) -> None:
        """Take one turn, and wait as its outcome asks."""
        try:
            published = await self._bounded_turn()
        except Exception as error:  # whatever it is, the outbox holds and the process goes on
            self._failed_turns += 1
            if not isinstance(error, WhisprError):
                log.exception("relay_failed")
            elif self._failed_turns.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: an outage may be long
                log.warning("relay_waits", error=error.message, times=self._failed_turns)
            metrics.PUBLISH_FAILURES.inc()
            await trio.sleep(RETRY.pause_s(self._failed_turns))
            return
        if self._failed_turns:
            log.info("relay_goes_on", after_failures=self._failed_turns)
            self._failed_turns = 0
        if published == TAKEN:
            await trio.sleep(TAKEN_S)
            return
        if published:
            await self._pace.did(published / LIGHT)
        if self._emptied or not published:
            await self._wait()

    async def _wait(self) -> None:
        """Wait until woken, or until it is time to look anyway."""
        with trio.move_on_after(POLL_S * random.uniform(0.8, 1.2)):  # noqa: S311  # jitter is no secret
            await self._woken.wait()
            self._expected = True
            await trio.sleep(GATHER_S)

    async def _bounded_turn(self) -> int:
        with trio.move_on_after(TURN_S):
            if not self._expected and not await self._db.fetchval(
                "SELECT EXISTS (SELECT FROM events.outbox)"
            ):
                self._emptied = True
                return 0
            await self._streams.ensure()
            published = await self._turn()
            self._expected = not self._emptied
            return published
        self._careful = True  # fewer events may be done in time
        raise unavailable(f"a turn of the relay took more than {TURN_S:g} s")

    async def _turn(self) -> int:
        """Publish the head of the outbox; return how many events that were. Raises WhisprError if some failed."""
        try:
            async with self._db.transaction() as tx:
                if not await tx.fetchval(_LOCK, LOCK_KEY):
                    return TAKEN
                rows = await self._head(tx)
                if not rows:
                    return 0
                count = sum(len(row.events) for row in rows)
                if count >= EVENTS_MAX and await tx.fetchval(_HEAVY, FRESH_S, BEHIND_S):
                    self._pace.press()
                failure = await (self._publish_one_by_one if self._careful else self._publish)(tx, rows)
        except _ExpandError as error:
            await self._give_up_expanding(error)
            raise unavailable(f"an expander failed: {error}") from error
        self._careful = failure is not None
        if failure is not None:
            self._streams.forget()
            raise failure
        return count or len(rows)

    async def _head(self, tx: Transaction) -> list[_Row]:
        """Read the first rows with their events, as many as make a turn."""
        limit = CAREFUL_MAX if self._careful else EVENTS_MAX
        waiting = deque(_Row(record) for record in await tx.fetch(_HEAD, limit))
        emptied = len(waiting) < limit
        rows: list[_Row] = []
        events = 0
        while waiting and events < limit:
            name = waiting[0].record["expander"]
            if name is not None and name not in self._expanders:
                log.warning("expander_unknown", expander=name, row=waiting[0].record["position"])
                break
            together = 1 if name is None or self._careful else TOGETHER_MAX
            part = _alike(waiting, name, together)
            if name is None:
                part[0].events = [_outgoing(part[0].record)]
            else:
                await self._expand(tx, part, self._expanders[name])
            events += sum(len(row.events) for row in part)
            rows += part
        self._emptied = emptied and not waiting
        return rows

    async def _expand(self, tx: Transaction, rows: Sequence[_Row], expander: Expander) -> None:
        """Make the events of batch rows. Raises `_ExpandError` for a failure that is the expander's own."""
        try:
            made = await expander(tx, [_batch(row.record) for row in rows])
            for row, events in zip(rows, made, strict=True):
                row.events = [_enveloped(event) for event in events]
        except WhisprError:
            raise
        except Exception as error:
            if len(rows) == 1:
                raise _ExpandError(rows[0], error) from error
            self._careful = True  # the next turn finds the row at fault
            raise unavailable(f"an expander failed with one of {len(rows)} rows: {error!r}") from error

    async def _publish(self, tx: Transaction, rows: Sequence[_Row]) -> WhisprError | None:
        """Publish all at once and delete the rows whose events are all stored; return why others are not."""
        events = [event for row in rows for event in row.events]
        outcomes = iter(await self._jetstream.publish(events))
        metrics.BATCH_LEN.observe(len(events))
        failure: WhisprError | None = None
        done: list[int] = []
        for row in rows:
            failed = [why for _ in row.events if (why := next(outcomes)) is not None]
            if failed:
                failure = failure or failed[0]
            else:
                done.append(row.record["position"])
        await self._delete(tx, [row for row in rows if row.record["position"] in set(done)])
        return failure

    async def _publish_one_by_one(self, tx: Transaction, rows: Sequence[_Row]) -> WhisprError | None:
        """Publish up to the first failure; return it. An event that will never be taken is buried, not a failure."""
        for row in rows:
            for event in row.events:
                (outcome,) = await self._jetstream.publish([event])
                if outcome is None:
                    continue
                if outcome.reason != "event_too_large":
                    return outcome
                await _bury(tx, event.message_id, event.subject, row, event.payload, outcome.message, 1)
            await self._delete(tx, [row])
        return None

    async def _delete(self, tx: Transaction, rows: Sequence[_Row]) -> None:
        await tx.execute(
            "DELETE FROM events.outbox WHERE position = ANY ($1)", [row.record["position"] for row in rows]
        )
        for stream, count in Counter(event.stream for row in rows for event in row.events).items():
            metrics.PUBLISHED.labels(stream).inc(count)

    async def _give_up_expanding(self, error: _ExpandError) -> None:
        """Count an expander's failures with a row; bury the row when there were too many."""
        record = error.row.record
        position = record["position"]
        log.error("expander_failed", expander=record["expander"], row=position, error=str(error))
        self._failures[position] = self._failures.get(position, 0) + 1
        if self._failures[position] < EXPAND_ATTEMPTS_MAX:
            return
        payload = _json({"expander": record["expander"], "data": msgspec.Raw(record["data"].encode())})
        async with self._db.transaction() as tx:
            await _bury(tx, str(record["id"]), "", error.row, payload, str(error), EXPAND_ATTEMPTS_MAX)
            await tx.execute("DELETE FROM events.outbox WHERE position = $1", position)
        del self._failures[position]

    async def _measure(self) -> None:
        """Set the gauges now and then, whether or not anything can be published."""
        while True:
            try:
                row = await self._db.fetchrow(_WAITING)
                assert row is not None
                metrics.OUTBOX_ROWS.set(row["waiting"])
                metrics.OUTBOX_LAG.set(row["age_s"] or 0)
            except WhisprError as error:
                log.debug("outbox_not_measured", error=error.message)
            await trio.sleep(MEASURE_S)


def _outgoing(record: Any) -> Outgoing:
    """Put a row into its envelope."""
    source, kind = parts(record["stream_subject"])
    payload = _json({
        "id": str(record["id"]),
        "type": kind,
        "version": record["version"],
        "time": record["emitted_at"],
        "source": source,
        "subject": record["about"],
        "actor": str(record["actor"] or ""),
        "trace": record["trace"] or "",
        "data": msgspec.Raw(record["data"].encode()),
    })  # fmt: skip
    return Outgoing(stream_of(record["stream_subject"]), record["stream_subject"], str(record["id"]), payload)


def _alike(waiting: deque[_Row], expander: str | None, len_max: int) -> list[_Row]:
    """Take the first rows that have the same expander, at most so many."""
    part = [waiting.popleft()]
    while waiting and len(part) < len_max and waiting[0].record["expander"] == expander:
        part.append(waiting.popleft())
    return part


def _batch(record: Any) -> Batch:
    return Batch(
        id=str(record["id"]),
        about=record["about"],
        actor=str(record["actor"] or ""),
        trace=record["trace"] or "",
        time=record["emitted_at"],
        data=msgspec.json.decode(record["data"]),
    )


def _enveloped(event: Event) -> Outgoing:
    subject = event.stream_subject
    return Outgoing(stream_of(subject), subject, event.id, encode(event))


async def _bury(
    tx: Transaction, event_id: str, subject: str, row: _Row, payload: bytes, error: str, attempts: int
) -> None:
    """Keep what could not be published for an operator."""
    log.error("event_not_published", id=event_id, subject=subject, error=error)
    await tx.execute(_BURY, RESERVED, event_id, subject, row.record["about"], payload, error, attempts)
