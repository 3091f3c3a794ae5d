"""Runs one consumer while this process holds its lease.

Theory of operation. JetStream is read as a log: a *reader* per stream brings events in the order of their
sequence numbers, and where the consumer has come to is kept in PostgreSQL beside what its handlers derive, so
that one backup holds both and a failover resumes exactly there. An event goes

    reader → window (at most WINDOW_LEN) → schedule → its own task and scope → position

The schedule lets one event per key run at a time; a consumer that handles many at once gets up to TOGETHER_MAX of
what waits in one task instead, and only when that fails each event by itself. One that failed waits for its next
attempt with its key behind it; other keys go on, until the window is full of what waits. An event is *done* when its
handler has returned, or when it has become a dead letter. Positions are written a moment after events are done: who
takes over handles again what was done in that moment, which `once` makes harmless.

Everything runs in one cancel scope whose deadline is the end of the lease. Whoever cannot renew it stops by that
time, before somebody else can have it; should a handler's commit be under way even then, it and the new
holder's meet in the row of `once`, and one of them is a repeat.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
import structlog
import trio

from whispr.adapters.jetstream import JetStream, Reader, Stored, StreamState
from whispr.errors import WhisprError
from whispr.events import metrics
from whispr.events.consumer import Consumer
from whispr.events.envelope import Event, decode, stream_of
from whispr.events.ledger import Ledger, Letter
from whispr.events.outbox import handling
from whispr.events.pace import Pace
from whispr.events.position import Position
from whispr.events.schedule import Schedule, Work
from whispr.events.streams import Streams
from whispr.resilience.retry import Backoff
from whispr.telemetry import tracing

WINDOW_LEN = 1024
"""Events read and not done, at most."""
TOGETHER_MAX = 128
"""Events handled together: their share of the loop is then a millisecond or two at a stretch. In one transaction with
`once_each` an event takes 27 µs of our CPU, in one of its own 390 (tests/bench/bench_events.py)."""
KEEP_S = 0.5
"""How long what is done is gathered before the position is written."""
CLOSE_S = 0.01
"""How long events gather at most while more of them are under way from the stream."""
LIGHT = 32
"""To handle an event among others takes a fraction of what it takes by itself."""
READ_RETRY = Backoff(0.1, 2.0, low=0.5)
BURY_S = 2.0
"""How long PostgreSQL may take to keep a dead letter; then the event is tried once more instead."""
LAG_S = 2.0
"""How often the lag is measured."""

log = structlog.get_logger("whispr.consumer")


class Runner:
    """One consumer in this process. `run` works in the scope it is given until that is cancelled."""

    def __init__(
        self, consumer: Consumer, ledger: Ledger, jetstream: JetStream, streams: Streams, pace: Pace
    ) -> None:
        self.consumer = consumer
        self._ledger = ledger
        self._jetstream = jetstream
        self._streams = streams
        self._pace = pace
        self.began_at = 0.0
        """When it last began to run, on Trio's clock."""
        self._subjects: dict[str, list[str]] = {}
        for subject in consumer.subjects:
            self._subjects.setdefault(stream_of(subject), []).append(subject)
        self._draining = False
        self._begin()

    def _begin(self) -> None:
        self.began_at = trio.current_time()
        self._schedule = Schedule()
        self._positions: dict[str, Position] = {}
        self._attempts: dict[str, dict[int, int]] = {}
        self._readers: dict[str, Reader] = {}
        self._letters: set[int] = set()
        self._running = 0
        self._behind = 0
        """How many more events there were in its stream behind the last one that came."""
        self._changed = trio.Event()
        self._dirty = trio.Event()

    @property
    def streams(self) -> list[str]:
        """The streams it reads."""
        return list(self._subjects)

    async def run(self) -> None:
        """Read, handle and keep the positions. Ends when the lease turns out to be somebody else's."""
        self._begin()
        try:
            async with trio.open_nursery() as nursery:
                for stream in self._subjects:
                    nursery.start_soon(self._read, stream)
                nursery.start_soon(self._dispatch, nursery)
                nursery.start_soon(self._measure)
                await self._keep_positions()
                nursery.cancel_scope.cancel(reason="the lease is somebody else's")
        finally:
            with trio.CancelScope(shield=True):
                await self._attempted(self._keep_once())

    async def drain(self) -> None:
        """Take up nothing more, and wait for what runs."""
        self._draining = True
        self._tell()
        while self._running:
            await self._changed.wait()

    def revive(self, letters: Iterable[Letter]) -> None:
        """Try dead letters again, as if their events had just come."""
        for letter in letters:
            if letter.id not in self._letters and len(self._schedule) < 2 * WINDOW_LEN:
                self._letters.add(letter.id)
                work = _work(letter.event_id, letter.stream_subject, letter.payload)
                work.letter, work.alone = letter.id, True
                self._schedule.add(work)
        self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for the schedule to change."""
        self._changed.set()
        self._changed = trio.Event()

    # Reading

    async def _read(self, stream: str) -> None:
        """Bring a stream's events into the window, opening readers as often as that takes."""
        failures = 0
        while True:
            try:
                await self._streams.ensure()
                position = await self._place(stream)
                subjects = self._subjects[stream]
                opened = self._jetstream.read(stream, self.consumer.name, subjects, position.last + 1)
                async with opened as reader:
                    self._readers[stream] = reader
                    failures = 0
                    while True:
                        for stored in await reader.gathered():
                            await self._admit(stream, stored, position)
                        self._tell()
            except WhisprError as error:
                log.info("consumer_waits", consumer=self.consumer.name, stream=stream, why=error.message)
            self._readers.pop(stream, None)
            self._streams.forget()
            failures += 1
            await trio.sleep(READ_RETRY.pause_s(failures))

    async def _place(self, stream: str) -> Position:
        """Find where to read on: where we are, where somebody stopped, or the start of a new incarnation."""
        state = await self._streams.state(stream)
        position = self._positions.get(stream)
        if position is None or position.incarnation != state.created:
            position = self._positions[stream] = await self._kept(stream, state)
            await self._ledger.listens(self.consumer.name, stream, self._subjects[stream])
        if 0 < position.last < state.first_seq - 1:
            missed = state.first_seq - 1 - position.last
            metrics.MISSED.labels(self.consumer.name).inc(missed)
            log.error("events_missed", consumer=self.consumer.name, stream=stream, count_max=missed)
        return position

    async def _kept(self, stream: str, state: StreamState) -> Position:
        """Read the position that was kept, or begin one."""
        name = self.consumer.name
        kept = await self._ledger.position(name, stream)
        if kept is not None and kept.position.incarnation == state.created:
            self._attempts[stream] = {int(seq): count for seq, count in kept.attempts.items()}
            return kept.position
        new = kept is None and not self.consumer.from_start
        position = Position(state.created, state.last_seq if new else 0)
        await self._ledger.begin(name, stream, position)
        return position

    async def _admit(self, stream: str, stored: Stored, position: Position) -> None:
        """Put an event into the window, once there is room."""
        if len(self._schedule) >= WINDOW_LEN:
            self._tell()  # of those that came before it
        while len(self._schedule) >= WINDOW_LEN:
            await self._changed.wait()
        if not position.take_up(stored.seq):
            return
        event_id = stored.message_id or f"{position.incarnation}/{stored.seq}"
        work = _work(event_id, stored.subject, stored.payload)
        work.seq, work.position, self._behind = stored.seq, position, stored.pending
        work.attempts = self._attempts.get(stream, {}).pop(stored.seq, 0)
        work.alone = work.alone or work.attempts > 0
        self._schedule.add(work)

    # Handling

    async def _dispatch(self, nursery: trio.Nursery) -> None:
        """Start a task for each event that may run, or for many, as many tasks at once as the consumer allows."""
        while True:
            works = self._next()
            if not works:
                with trio.move_on_at(self._schedule.next_due):
                    await self._changed.wait()
                continue
            self._running += 1
            nursery.start_soon(self._run, works)
            await self._pace.did(1 + (len(works) - 1) / LIGHT)
            if len(works) < TOGETHER_MAX:
                await trio.sleep(min(self.consumer.gather_s, CLOSE_S if self._behind else math.inf))

    def _next(self) -> list[Work]:
        if self._draining or self._running >= self.consumer.concurrency:
            return []
        together = TOGETHER_MAX if self.consumer.handle_many is not None else 1
        return self._schedule.take(trio.current_time(), together)

    async def _run(self, works: Sequence[Work]) -> None:
        """Handle what was taken; then it is done, waits to be tried again, or is a dead letter."""
        try:
            if len(works) > 1:
                await self._run_many(works)
            else:
                await self._run_one(works[0])
        finally:
            self._running -= 1
            self._tell()

    async def _run_many(self, works: Sequence[Work]) -> None:
        """Handle events together; when that fails, let each have its own attempt."""
        handle, events = self.consumer.handle_many, [work.event for work in works if work.event is not None]
        assert handle is not None
        assert len(events) == len(works), "what is no envelope runs alone"
        with tracing.continued_together(self.consumer.name, tracing.Kind.CONSUMER, [e.trace for e in events]):
            error = await self._attempt(lambda: handle(events))
        if error is None:
            metrics.HANDLED.labels(self.consumer.name, "ok").inc(len(works))
            self._close(works)
        else:
            log.info("handled_one_by_one", consumer=self.consumer.name, count=len(works), error=error)
            self._schedule.apart(works)

    async def _run_one(self, work: Work) -> None:
        event = work.event
        if event is None:
            await self._failed(work, "not an event's envelope")
            return
        handling.set(event)
        with structlog.contextvars.bound_contextvars(event_id=work.event_id, trace=event.trace):
            error = await self._attempt(lambda: self._handle(event))
        if error is None:
            await self._finished(work)
        else:
            await self._failed(work, error)

    async def _handle(self, event: Event) -> None:
        """Run the handler, in a span of the trace that the event is of."""
        name = f"{self.consumer.name} {event.stream_subject}"
        about = {"messaging.system": "nats", "messaging.message.id": event.id}
        with tracing.continued(name, tracing.Kind.CONSUMER, event.trace, about):
            await self.consumer.handle(event)

    async def _attempt(self, handle: Callable[[], Awaitable[None]]) -> str | None:
        """Run the handler in a scope of its own; return why it failed, or None."""
        consumer = self.consumer
        error: str | None = None
        with (
            metrics.DURATION.labels(consumer.name).time(),
            trio.move_on_after(consumer.deadline_s) as scope,
        ):
            try:
                await handle()
            except WhisprError as failure:
                error = str(failure)
            except Exception as failure:
                log.exception("handler_failed", consumer=consumer.name)
                error = repr(failure)
        if scope.cancelled_caught:
            return f"not handled within {consumer.deadline_s:g} s"
        return error

    async def _finished(self, work: Work) -> None:
        metrics.HANDLED.labels(self.consumer.name, "ok").inc()
        if work.letter is not None and not await self._attempted(self._ledger.revived(work.letter)):
            self._schedule.again(work, trio.current_time() + self.consumer.retry_min_s)
            return
        self._close([work])

    async def _failed(self, work: Work, error: str) -> None:
        """Try again later, or give up."""
        consumer = self.consumer
        work.attempts += 1
        if work.event is not None and work.attempts < consumer.attempts_max:
            pause_s = Backoff(consumer.retry_min_s, consumer.retry_max_s, low=0.5).pause_s(work.attempts)
            metrics.HANDLED.labels(consumer.name, "failed").inc()
            log.warning(
                "event_failed",
                consumer=consumer.name, event_id=work.event_id, attempt=work.attempts, error=error, again_s=pause_s,
            )  # fmt: skip
            self._dirty.set()
            self._schedule.again(work, trio.current_time() + pause_s)
            return
        bury = self._ledger.bury(
            consumer.name, work.event_id, work.subject, work.key, work.payload, error, work.attempts
        )
        if not await self._attempted(bury):
            # Without PostgreSQL hardly any handler succeeds: that is not the event's fault.
            work.attempts -= 1
            self._schedule.again(work, trio.current_time() + consumer.retry_min_s)
            return
        metrics.HANDLED.labels(consumer.name, "dead").inc()
        log.error("event_dead", consumer=consumer.name, event_id=work.event_id, error=error)
        self._close([work])

    async def _attempted(self, writing: Awaitable[object]) -> bool:
        """Write something, if PostgreSQL is there."""
        with trio.move_on_after(BURY_S):
            try:
                await writing
            except WhisprError as error:
                log.warning("consumer_cannot_write", consumer=self.consumer.name, error=error.message)
                return False
            return True
        return False

    def _close(self, works: Sequence[Work]) -> None:
        """Be done with events."""
        self._schedule.done(works)
        for work in works:
            if work.letter is not None:
                self._letters.discard(work.letter)
            if work.position is not None:
                work.position.finish(work.seq)
                self._dirty.set()

    # Keeping

    async def _keep_positions(self) -> None:
        """Write positions whenever something is done; return when the lease is lost."""
        while True:
            await self._dirty.wait()
            await trio.sleep(KEEP_S)
            self._dirty = trio.Event()
            try:
                if not await self._keep_once():
                    return
            except WhisprError as error:
                log.info("position_not_kept", consumer=self.consumer.name, error=error.message)
                self._dirty.set()

    async def _keep_once(self) -> bool:
        rows = [(stream, at, self._schedule.attempts(at)) for stream, at in self._positions.items()]
        return not rows or await self._ledger.keep(self.consumer.name, rows)

    async def _measure(self) -> None:
        """Set the lag: what is behind the readers, in them, and in the window."""
        gauge = metrics.LAG.labels(self.consumer.name)
        while True:
            behind = 0
            for reader in list(self._readers.values()):
                try:
                    behind += await reader.pending()
                except WhisprError as error:
                    log.debug("lag_unknown", consumer=self.consumer.name, error=error.message)
            gauge.set(behind + len(self._schedule))
            await trio.sleep(LAG_S)


def _work(event_id: str, subject: str, payload: bytes) -> Work:
    """Open an envelope. What is none is about nothing but itself."""
    try:
        event = decode(payload)
    except msgspec.MsgspecError:
        return Work(f"\0{event_id}", None, event_id, subject, payload, alone=True)
    return Work(event.subject, event, event.id, subject, payload)
