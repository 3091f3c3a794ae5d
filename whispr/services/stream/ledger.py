"""Who came and who went, written in groups: a row for each listening, and the events of it.

A listening is told of when it begins and when it ends. What is told waits in memory, at most `WAITING_MAX` entries of
it, for `GATHER_S`; when PostgreSQL is away it waits longer, and beyond the bound the oldest is forgotten and counted.
Listeners of a process that died are settled from what Redis had of them, by any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Postgres, Transaction
from whispr.errors import WhisprError
from whispr.resilience.retry import Backoff
from whispr.services.stream import metrics

GATHER_S: Final = 0.5
WAITING_MAX: Final = 50_000
GROUP_MAX: Final = 1_000
CLOSE_S: Final = 3.0
_AGAIN = Backoff(0.5, 10.0)

_JOIN = """
    INSERT INTO streams.sessions (id, listener_id, stream_id, user_id, transport, country, joined_at)
    SELECT j.* FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::timestamptz[])
        AS j (id, listener_id, stream_id, user_id, transport, country, joined_at)
    WHERE EXISTS (SELECT FROM streams.streams s WHERE s.id = j.stream_id)
    ON CONFLICT (id) DO NOTHING
"""
_LEAVE = """
    UPDATE streams.sessions s SET left_at = greatest(l.left_at, s.joined_at), reason = l.reason,
        qualities = l.qualities::jsonb, rebuffers = l.rebuffers, dropped_frames = l.dropped,
        bytes_sent = l.bytes
    FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::int[], $6::int[], $7::bigint[])
        AS l (id, left_at, reason, qualities, rebuffers, dropped, bytes)
    WHERE s.id = l.id AND s.left_at IS NULL
    RETURNING s.id, s.listener_id, s.stream_id, s.user_id,
        extract(epoch FROM s.left_at - s.joined_at)::float8 AS listened_s
"""
_LOCK = "SELECT id FROM streams.streams WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE"
_TELL = """
    SELECT events.emit($1, e.about, e.actor, e.data::jsonb)
    FROM unnest($2::text[], $3::uuid[], $4::text[]) WITH ORDINALITY AS e (about, actor, data, place) ORDER BY e.place
"""

log = structlog.get_logger("whispr.stream")


class Coming(msgspec.Struct, frozen=True):
    """A listening that has begun. Times are Unix seconds."""

    id: str
    listener_id: str
    """Who listens: the same when an HLS session goes on after silence."""
    stream_id: str
    user_id: str
    transport: str
    country: str
    joined_at: float


class Going(msgspec.Struct, frozen=True):
    """A listening that has ended."""

    id: str
    stream_id: str
    left_at: float
    reason: str
    qualities: dict[str, float]
    rebuffers: int
    dropped_frames: int
    bytes_sent: int


class Changing(msgspec.Struct, frozen=True):
    """Another quality that a listener prefers."""

    listener_id: str
    stream_id: str
    user_id: str
    quality: str
    """As the API names it; AUTO for none."""


Entry = Coming | Going | Changing


class Ledger:
    """Writes them."""

    def __init__(self, db: Postgres) -> None:
        self._db = db
        self._waiting: deque[Entry] = deque()
        self._some = trio.Event()

    def came(self, coming: Coming) -> None:
        """Note that somebody listens."""
        self._put(coming)

    def went(self, going: Going) -> None:
        """Note that somebody has left. Again changes nothing."""
        self._put(going)

    def changed(self, changing: Changing) -> None:
        """Note that a listener prefers another quality."""
        self._put(changing)

    def _put(self, entry: Entry) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            metrics.FORGOTTEN.inc()
        self._waiting.append(entry)
        self._some.set()

    async def run(self) -> None:
        """Write until cancelled; then what is left, if PostgreSQL is there."""
        failures = 0
        try:
            while True:
                await self._some.wait()
                await trio.sleep(GATHER_S)
                try:
                    await self.flush()
                except WhisprError as error:
                    failures += 1
                    log.warning("listening_not_written", error=str(error), waiting=len(self._waiting))
                    await trio.sleep(_AGAIN.pause_s(failures))
                else:
                    failures = 0
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                try:
                    await self.flush()
                except WhisprError as error:
                    log.warning("listening_not_written", error=str(error), waiting=len(self._waiting))

    async def flush(self) -> None:
        """Write all that waits. Raises UNAVAILABLE, and it goes on waiting."""
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))]
            try:
                await self._write(group)
            except BaseException:
                self._waiting.extendleft(reversed(group))
                raise
        self._some = trio.Event()

    async def _write(self, group: Sequence[Entry]) -> None:
        came = [each for each in group if isinstance(each, Coming)]
        went = [each for each in group if isinstance(each, Going)]
        changed = [each for each in group if isinstance(each, Changing)]
        async with self._db.transaction() as tx:
            await tx.fetch(_LOCK, sorted({each.stream_id for each in group}))
            if came:
                await _write_came(tx, came)
            await _write_changed(tx, changed)
            if went:
                await _write_went(tx, went)
            tx.ring_after_commit()


async def _write_came(tx: Transaction, came: Sequence[Coming]) -> None:
    await tx.execute(
        _JOIN,
        [each.id for each in came],
        [each.listener_id for each in came],
        [each.stream_id for each in came],
        [each.user_id or None for each in came],
        [each.transport for each in came],
        [each.country for each in came],
        [datetime.fromtimestamp(each.joined_at, UTC) for each in came],
    )
    rows = [
        (each.stream_id, each.user_id, {"listener_id": each.listener_id, "transport": each.transport})
        for each in came
    ]
    await _tell(tx, "listener_joined", rows)


async def _write_changed(tx: Transaction, changed: Sequence[Changing]) -> None:
    rows = [
        (each.stream_id, each.user_id, {"listener_id": each.listener_id, "quality": each.quality})
        for each in changed
    ]
    await _tell(tx, "quality_changed", rows)


async def _write_went(tx: Transaction, went: Sequence[Going]) -> None:
    closed = await tx.fetch(
        _LEAVE,
        [each.id for each in went],
        [datetime.fromtimestamp(each.left_at, UTC) for each in went],
        [each.reason for each in went],
        [msgspec.json.encode(each.qualities).decode() for each in went],
        [each.rebuffers for each in went],
        [each.dropped_frames for each in went],
        [each.bytes_sent for each in went],
    )
    reasons = {each.id: each.reason for each in went}
    rows = [
        (
            str(row["stream_id"]),
            str(row["user_id"] or ""),
            {
                "listener_id": str(row["listener_id"]),
                "reason": reasons[str(row["id"])],
                "listened_s": round(row["listened_s"], 1),
            },
        )
        for row in closed
    ]
    await _tell(tx, "listener_left", rows)


async def _tell(tx: Transaction, kind: str, rows: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Emit an event for each row: about which stream, by whom, what."""
    if rows:
        await tx.fetch(
            _TELL,
            f"stream.events.{kind}",
            [about for about, _, _ in rows],
            [actor or None for _, actor, _ in rows],
            [msgspec.json.encode(data).decode() for _, _, data in rows],
        )
