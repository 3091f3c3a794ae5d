"""The message log: appends from many callers, written to PostgreSQL in groups.

Theory of operation. `append` puts a draft on a bounded queue and returns a `Ticket` at once. A conversation
belongs to one *lane*; a lane is one task that takes what has gathered, writes it with one call of
`conversations.append` (`appending`: one statement, one round trip, one commit), and repeats. While a batch
is being written the next one gathers, so batches grow with the load and an idle log writes at once; there is
no timer. One writer per conversation keeps append order, and the statement numbers under a lock on the
conversation, so several processes may append to the same one.

**Acknowledged means durable.** A ticket is settled after the commit. `on_committed` is called with the new
messages of a batch before their tickets are settled, so a broadcast leaves before the sender's reply, in seq
order per conversation.

**When the outcome is unknown** (the connection broke, or the statement was cut off by a deadline), the same
batch is sent again. Its ids were made here, so the statement finds what the earlier attempt stored and
reports it as `found`, which is new to listeners. A sender whose deadline passes meanwhile is told UNAVAILABLE;
its message is not inserted by later attempts but still looked up, for it may be on disk, and then listeners
must hear of it. The lane goes on only when the outcome is known, hence no gap in what listeners see.

**While PostgreSQL is away**, and its breaker says so, nobody waits: whatever is under way is told UNAVAILABLE, and
so is what comes, until the breaker has closed and outcomes that are unknown have been looked up.

**A poison message** (one that PostgreSQL refuses for a reason no retry mends) fails alone: its batch is split
until it stands by itself.

**Repeats.** A `client_id` that is under way already makes the later ticket follow the earlier one; one that is
stored makes the statement return the original. Either way another body is ALREADY_EXISTS (duplicate_mismatch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
import trio
from prometheus_client import Histogram

from whispr.conversations.appending import Database, append, mismatch, outcome_of, too_late
from whispr.conversations.domain import Draft, Message, same_message
from whispr.conversations.tickets import Ticket
from whispr.errors import Code, WhisprError, internal, unavailable
from whispr.resilience.retry import BREAKER_OPEN, Backoff
from whispr.telemetry.live import LiveGauge

LANES = 1
"""Batches in flight at once; a conversation belongs to one lane. Two cores, tests/bench/bench_log.py, 50 appends
in flight: one lane 21.0k/s, p99 3.2 ms, 20 µs of our CPU a message; two 21.1k/s, 4.7 ms, 27 µs; four 9.8k/s,
10.8 ms, 38 µs. Only with 500 in flight do two lanes gain (38.5k/s against 32.8k/s)."""
BATCH_LEN_MAX = 256
BATCH_BYTES_MAX = 2 * 1024 * 1024
QUEUE_LEN_MAX = 10_000
QUEUE_BYTES_MAX = 64 * 1024 * 1024
DEADLINE_S = 5.0
"""How long an append may take when its caller sets no earlier deadline."""
SWEEP_S = 0.25
"""How often appends past their deadline are told so, while a lane waits for PostgreSQL."""
LOOKUP_S = 2.0
"""How long one attempt may take that only looks for messages whose senders have gone."""
RETRY = Backoff(0.02, 0.5, low=0.5)
CONFLICTS_MAX = 3
"""Unique violations in a row after which a batch is split."""

_RETRIED = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.ALREADY_EXISTS})
QUEUED = LiveGauge("whispr_messages_queued", "Messages taken and not yet written or refused")
BATCH_LEN = Histogram(
    "whispr_message_batch_len",
    "Messages written by one statement",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
WRITE_SECONDS = Histogram(
    "whispr_message_write_seconds",
    "Time of one statement that writes messages",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

_log = structlog.get_logger(__name__)


class _Lane:
    __slots__ = ("queue", "wake")

    def __init__(self) -> None:
        self.queue: deque[Ticket] = deque()
        self.wake = trio.Event()


class MessageLog:
    """Appends messages; `run` is its task. See the module's text."""

    def __init__(
        self,
        db: Database,
        *,
        on_committed: Callable[[list[Message]], None],
        settling: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_stored: Callable[[], None] | None = None,
        lanes: int = LANES,
        batch_len_max: int = BATCH_LEN_MAX,
        queue_len_max: int = QUEUE_LEN_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        assert lanes > 0
        assert 0 < batch_len_max <= queue_len_max
        self._db = db
        self._on_committed = on_committed
        # Entered around the announcing and settling of a batch: a place to gather what they send.
        self._settling = settling
        # Called after a batch with new messages: its events are in the outbox.
        self._on_stored = on_stored
        self._lanes = [_Lane() for _ in range(lanes)]
        self._batch_len_max = batch_len_max
        self._queue_len_max = queue_len_max
        self._queue_bytes_max = queue_bytes_max
        self._open: dict[str, Ticket] = {}
        self._open_bytes = 0
        self._leaders: dict[tuple[str, str], Ticket] = {}
        self._idle = trio.Event()
        self._idle.set()
        self._closed = False
        self._away: WhisprError | None = None
        """Why nothing can be written now, while a lane is held up by it."""

    def append(self, draft: Draft, *, deadline: float | None = None) -> Ticket:
        """Queue a message; appends of one conversation are stored in the order of these calls.

        `deadline` is absolute, on Trio's clock; at most `DEADLINE_S` from now. Raises UNAVAILABLE when the
        queue is full, or PostgreSQL is away.
        """
        if self._away is not None:
            raise self._away
        size = len(draft.content)
        if len(self._open) >= self._queue_len_max or self._open_bytes + size > self._queue_bytes_max:
            raise unavailable("too many messages are waiting to be written")
        if self._closed:
            raise unavailable("the server is stopping")
        latest = trio.current_time() + DEADLINE_S
        ticket = Ticket(draft, latest if deadline is None else min(deadline, latest), self._forget)
        if not self._open:
            self._idle = trio.Event()
        self._open[draft.id] = ticket
        self._open_bytes += size
        self._enqueue(ticket)
        return ticket

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        await self._idle.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write batches until cancelled; appends left over then fail with UNAVAILABLE."""
        try:
            with QUEUED.watching(lambda: len(self._open)):
                async with trio.open_nursery() as nursery:
                    for lane in self._lanes:
                        nursery.start_soon(self._run_lane, lane)
                    nursery.start_soon(self._sweep)
                    task_status.started()
        finally:
            self._closed = True
            for ticket in list(self._open.values()):
                ticket.fail(unavailable("the server is stopping"))

    # Queueing

    def _enqueue(self, ticket: Ticket) -> None:
        draft = ticket.draft
        if draft.client_id:
            leader = self._leaders.setdefault((draft.sender_id, draft.client_id), ticket)
            if leader is not ticket:
                leader.followers += (ticket,)
                return
        lane = self._lanes[hash(draft.conversation_id) % len(self._lanes)]
        lane.queue.append(ticket)
        lane.wake.set()

    def _forget(self, ticket: Ticket) -> None:
        """Give back what a settled ticket held."""
        del self._open[ticket.draft.id]
        self._open_bytes -= len(ticket.draft.content)
        if not self._open:
            self._idle.set()

    async def _sweep(self) -> None:
        """Tell callers whose deadline has passed, wherever their message stands."""
        while True:
            await trio.sleep(SWEEP_S)
            now = trio.current_time()
            for ticket in [ticket for ticket in self._open.values() if ticket.deadline <= now]:
                ticket.fail(too_late())

    # Writing

    async def _run_lane(self, lane: _Lane) -> None:
        while True:
            if not lane.queue:
                lane.wake = trio.Event()
                await lane.wake.wait()
            batch = self._take(lane.queue)
            await self._write(batch)
            for ticket in batch:
                self._release(ticket)

    def _take(self, queue: deque[Ticket]) -> list[Ticket]:
        batch: list[Ticket] = []
        size = 0
        now = trio.current_time()
        while queue and len(batch) < self._batch_len_max:
            size += len(queue[0].draft.content)
            if batch and size > BATCH_BYTES_MAX:
                break
            ticket = queue.popleft()
            if ticket.deadline <= now:
                ticket.fail(too_late())
            if ticket.settled:
                self._release(ticket)
            else:
                batch.append(ticket)
        return batch

    async def _write(self, batch: list[Ticket], *, conflicts: int = 0) -> None:
        """Write a batch and settle its tickets, however many attempts that takes."""
        failures = 0
        while batch:
            unknown = any(ticket.tried for ticket in batch)
            BATCH_LEN.observe(len(batch))
            with WRITE_SECONDS.time():
                rows = await self._attempt(batch)
            self._away = None
            if not isinstance(rows, Exception):
                with self._settling():
                    self._settle(batch, rows)
                return
            if isinstance(rows, WhisprError) and rows.reason == BREAKER_OPEN:
                self._turn_away(rows)
                if not unknown and rows.facts.get("processed") == "no":
                    return
                self._away = rows
            code = rows.code if isinstance(rows, WhisprError) else None
            conflicts += code is Code.ALREADY_EXISTS
            if code not in _RETRIED or conflicts > CONFLICTS_MAX:
                await self._split(batch, rows)
                return
            if code is not Code.ALREADY_EXISTS:
                failures += 1
                await trio.sleep(RETRY.pause_s(failures))

    async def _attempt(self, batch: list[Ticket]) -> Sequence[Any] | Exception:
        """Send the statement once. Returns its rows, or why it failed or may have failed."""
        waiting = [ticket.deadline for ticket in batch if not ticket.settled]
        deadline = max(waiting) if waiting else trio.current_time() + LOOKUP_S
        with trio.move_on_at(deadline):
            try:
                return await append(self._db, batch)
            except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop the other messages
                return error
        return unavailable("PostgreSQL did not answer in time")

    def _turn_away(self, error: WhisprError) -> None:
        """Tell everybody who waits that PostgreSQL is away."""
        for ticket in list(self._open.values()):
            ticket.fail(error)

    async def _split(self, batch: list[Ticket], error: Exception) -> None:
        """Find the message that the statement fails on; the others go through."""
        if len(batch) > 1:
            half = len(batch) // 2
            await self._write(batch[:half])
            await self._write(batch[half:])
            return
        _log.error("a message could not be stored", message_id=batch[0].draft.id, exc_info=error)
        batch[0].fail(internal("the message could not be stored"))

    def _settle(self, batch: list[Ticket], rows: Sequence[Any]) -> None:
        new: list[Message] = []
        outcomes: list[Message | WhisprError] = []
        for ticket, row in zip(batch, rows, strict=True):
            outcome = outcome_of(ticket.draft, row)
            outcomes.append(outcome)
            if row["outcome"] == "repeated":
                ticket.original = False
            elif isinstance(outcome, Message):
                new.append(outcome)
        if new:
            try:
                self._on_committed(new)
            except Exception:  # noqa: BLE001  # what is stored is stored; its sender hears so
                _log.exception("a listener of committed messages failed")
            if self._on_stored is not None:
                self._on_stored()
        for ticket, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Message):
                ticket.succeed(outcome)
            else:
                ticket.fail(outcome)

    def _release(self, leader: Ticket) -> None:
        """Let those go on that waited for this ticket's client_id."""
        if not leader.draft.client_id:
            return
        self._leaders.pop((leader.draft.sender_id, leader.draft.client_id), None)
        for follower in leader.followers:
            if leader.error is not None:
                self._enqueue(follower)
            elif same_message(follower.draft, leader.draft):
                follower.original = False
                follower.succeed(leader.result())
            else:
                follower.fail(mismatch())
