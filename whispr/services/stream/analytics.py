"""Counting what listeners do: here as it happens, in Redis by the hour, in PostgreSQL for good.

Each process adds what its listeners did since its last beat to the counters of the hour in Redis. Any process copies
hours that have changed to PostgreSQL, as they are: doing so twice changes nothing. The counters carry an id that is
made with them (`born`), so that counters that begin anew, when Redis was emptied, add to what was kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Postgres
from whispr.errors import WhisprError
from whispr.services.stream.ledger import Going, Ledger
from whispr.services.stream.listener import COUNT_MAX, Figures, Listener
from whispr.services.stream.livestate import Facts, LiveState

HOUR_S: Final = 3600
ROLL_UP_S: Final = 15.0
AT_ONCE: Final = 100
HOURS_MAX: Final = 24 * 366
"""The longest time that analytics are asked about."""
_QUALITY: Final = "quality:"

_KEEP = """
    INSERT INTO streams.hours
        (stream_id, hour, born, peak, joined, departed, listen_ms, rebuffers, bytes_sent, qualities)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb
    WHERE EXISTS (SELECT FROM streams.streams WHERE id = $1)
    ON CONFLICT (stream_id, hour, born) DO UPDATE SET
        peak = greatest(hours.peak, excluded.peak), joined = greatest(hours.joined, excluded.joined),
        departed = greatest(hours.departed, excluded.departed),
        listen_ms = greatest(hours.listen_ms, excluded.listen_ms),
        rebuffers = greatest(hours.rebuffers, excluded.rebuffers),
        bytes_sent = greatest(hours.bytes_sent, excluded.bytes_sent),
        qualities = CASE WHEN excluded.listen_ms >= hours.listen_ms THEN excluded.qualities ELSE hours.qualities END
"""
_HOURS = """
    SELECT hour, max(peak) AS peak, sum(joined) AS joined, sum(departed) AS departed, sum(listen_ms) AS listen_ms,
        sum(rebuffers) AS rebuffers, sum(bytes_sent) AS bytes_sent,
        json_agg(qualities)::text AS qualities
    FROM streams.hours WHERE stream_id = $1 AND hour >= $2 AND hour <= $3 GROUP BY hour ORDER BY hour
"""
_PEOPLE = """
    SELECT count(DISTINCT coalesce(user_id, listener_id)) AS people,
        avg(extract(epoch FROM coalesce(left_at, now()) - joined_at))::float8 AS average_s,
        sum(extract(epoch FROM coalesce(left_at, now()) - joined_at))::float8 AS total_s
    FROM streams.sessions WHERE stream_id = $1 AND joined_at < $3 AND coalesce(left_at, now()) >= $2
"""
_COUNTRIES = """
    SELECT country, count(DISTINCT listener_id) AS listeners FROM streams.sessions
    WHERE stream_id = $1 AND joined_at < $3 AND coalesce(left_at, now()) >= $2 AND country <> ''
    GROUP BY country ORDER BY 2 DESC, 1 LIMIT 250
"""
_OPEN = """
    UPDATE streams.sessions s SET left_at = greatest(s.joined_at, t.ended_at), reason = 'stream_ended'
    FROM streams.streams t WHERE t.id = s.stream_id AND s.left_at IS NULL AND t.ended_at < now() - interval '1 minute'
"""

log = structlog.get_logger("whispr.stream")


class _Told:
    """What of a listener has been counted."""

    __slots__ = ("country", "figures", "qualities")

    def __init__(self, country: str) -> None:
        self.country = country
        self.figures = Figures()
        self.qualities: dict[str, float] = {}
        """Seconds by quality, since they came."""


class Counting:
    """Counts for the listeners of one process."""

    def __init__(self, live: LiveState, clock: Callable[[], float] = time.time) -> None:
        self._live = live
        self._clock = clock
        self._told: dict[str, _Told] = {}
        self._more: dict[str, dict[str, int]] = {}
        """Stream → counter → what is to be added."""
        self._gone: dict[str, list[str]] = {}
        self._unread: set[tuple[str, int]] = set()
        """Hours that have been added to, and are yet to be read by who rolls up."""

    def begin(self, listener: Listener, country: str) -> None:
        """Count from now on."""
        self._told[listener.id] = _Told(country)
        self._add(listener.stream.id, "joined", 1)

    def end(self, listener: Listener) -> dict[str, float]:
        """Count to now and no further; return the seconds listened, by quality."""
        told = self._told.pop(listener.id)
        self._measure(listener, told)
        self._add(listener.stream.id, "departed", 1)
        self._gone.setdefault(listener.stream.id, []).append(listener.id)
        return {name: round(seconds, 3) for name, seconds in told.qualities.items()}

    def facts(self, listener: Listener) -> Facts:
        """Count to now; return what there is to say of a listener."""
        told = self._told[listener.id]
        self._measure(listener, told)
        return facts_of(listener, told.country, self._clock())

    def take_gone(self) -> dict[str, list[str]]:
        """Return those who have left since, by stream."""
        gone, self._gone = self._gone, {}
        return gone

    def put_back_gone(self, gone: Mapping[str, Sequence[str]]) -> None:
        """Return them again the next time."""
        for stream_id, ids in gone.items():
            self._gone.setdefault(stream_id, []).extend(ids)

    async def flush(self, counts: Mapping[str, int]) -> None:
        """Add to Redis; `counts` are how many listen now. Raises UNAVAILABLE, and it is added later."""
        hour = int(self._clock() // HOUR_S)
        for stream_id in list(self._more):
            more = self._more.pop(stream_id)
            try:
                await self._live.count(stream_id, hour, counts.get(stream_id, 0), more)
            except WhisprError:
                for name, number in more.items():
                    self._add(stream_id, name, number)
                raise
            self._unread.add((stream_id, hour))
        if self._unread:
            await self._live.put_back(self._unread)
            self._unread.clear()

    def _measure(self, listener: Listener, told: _Told) -> None:
        figures, before, stream_id = listener.figures, told.figures, listener.stream.id
        for name, heard_s in listener.take_heard().items():
            told.qualities[name] = told.qualities.get(name, 0.0) + heard_s
            heard_ms = round(heard_s * 1000)
            self._add(stream_id, "listen_ms", heard_ms)
            self._add(stream_id, _QUALITY + name, heard_ms)
        self._add(stream_id, "rebuffers", figures.rebuffers - before.rebuffers)
        self._add(stream_id, "bytes_sent", figures.bytes_sent - before.bytes_sent)
        told.figures = msgspec.structs.replace(figures)

    def _add(self, stream_id: str, name: str, number: int) -> None:
        if number:
            more = self._more.setdefault(stream_id, {})
            more[name] = more.get(name, 0) + number


def facts_of(listener: Listener, country: str, now: float) -> Facts:
    """Return what there is to say of a listener."""
    figures = listener.figures
    return Facts(
        id=listener.id,
        listening_id=listener.listening_id,
        user_id=listener.user_id,
        transport=listener.transport.value,
        rendition=listener.rendition,
        joined_at=listener.joined_at,
        country=country,
        buffer_ms=figures.buffer_ms,
        bandwidth_bps=figures.bandwidth_bps,
        latency_ms=figures.latency_ms,
        loss=figures.loss,
        rebuffers=figures.rebuffers,
        dropped_frames=figures.dropped_frames,
        bytes_sent=figures.bytes_sent,
        seen_at=now,
    )


class Hour(msgspec.Struct, frozen=True):
    """What came of one hour."""

    hour: datetime
    peak: int
    joined: int
    departed: int
    listen_s: int
    rebuffers: int
    bytes_sent: int
    qualities: Mapping[str, int]
    """Milliseconds."""


class Report(msgspec.Struct, frozen=True):
    """What came of a time."""

    start: datetime
    end: datetime
    hours: Sequence[Hour]
    people: int
    average_s: float
    total_s: float
    countries: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The most listeners at once."""
        return max((hour.peak for hour in self.hours), default=0)

    @property
    def qualities_s(self) -> Mapping[str, int]:
        """Seconds by quality."""
        total: dict[str, int] = {}
        for hour in self.hours:
            for name, listened_ms in hour.qualities.items():
                total[name] = total.get(name, 0) + listened_ms
        return {name: round(listened_ms / 1000) for name, listened_ms in total.items()}


class Analytics:
    """Rolls counters up, settles listeners that were lost, and reports."""

    def __init__(
        self, db: Postgres, live: LiveState, ledger: Ledger, clock: Callable[[], float] = time.time
    ) -> None:
        self._db = db
        self._live = live
        self._ledger = ledger
        self._clock = clock

    async def run(self) -> None:
        """Roll up until cancelled. Any number of processes may do so."""
        while True:
            await trio.sleep(ROLL_UP_S)
            try:
                await self.roll_up()
                await self.settle()
            except WhisprError as error:
                log.info("listening_not_rolled_up", error=str(error))

    async def roll_up(self) -> None:
        """Keep all counters that have changed. Raises UNAVAILABLE."""
        while hours := await self._live.take_dirty(AT_ONCE):
            try:
                for stream_id, hour in hours:
                    await self._keep(stream_id, hour, await self._live.counters(stream_id, hour))
            except WhisprError:
                await self._live.put_back(hours)
                raise

    async def _keep(self, stream_id: str, hour: int, counters: Mapping[str, str]) -> None:
        if "born" not in counters:
            return
        qualities = {
            name.removeprefix(_QUALITY): int(value)
            for name, value in counters.items()
            if name.startswith(_QUALITY)
        }
        numbers = {
            name: int(counters.get(name, 0))
            for name in ("peak", "joined", "departed", "listen_ms", "rebuffers", "bytes_sent")
        }
        # It is the sum of what listeners report, and they may report what they like.
        numbers["rebuffers"] = min(numbers["rebuffers"], COUNT_MAX)
        begins = datetime.fromtimestamp(hour * HOUR_S, UTC)
        packed = msgspec.json.encode(qualities).decode()
        await self._db.execute(_KEEP, stream_id, begins, counters["born"], *numbers.values(), packed)

    async def settle(self) -> None:
        """Close the listenings of processes that died. Raises UNAVAILABLE."""
        for stream_id in await self._live.all_counts():
            for facts in await self._live.lost(stream_id):
                self._ledger.went(
                    Going(
                        facts.listening_id or facts.id, stream_id, facts.seen_at, "lost", {}, facts.rebuffers,
                        facts.dropped_frames, facts.bytes_sent,
                    )
                )  # fmt: skip
                await self._live.leave(stream_id, [facts.id])
            await self._live.recount([stream_id])
        await self._db.execute(_OPEN)

    async def report(self, stream_id: str, start: datetime, end: datetime) -> Report:
        """Return what came of a stream between two times, in whole hours."""
        first = start.replace(minute=0, second=0, microsecond=0)
        after = end.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        await self._roll_up_if_there()
        rows = await self._db.fetch(_HOURS, stream_id, first, end)
        people = await self._db.fetchrow(_PEOPLE, stream_id, first, after)
        countries = await self._db.fetch(_COUNTRIES, stream_id, first, after)
        assert people is not None, "an aggregate has one row"
        return Report(
            first,
            after,
            [_hour(row) for row in rows],
            int(people["people"]),
            people["average_s"] or 0.0,
            people["total_s"] or 0.0,
            {row["country"]: int(row["listeners"]) for row in countries},
        )

    async def _roll_up_if_there(self) -> None:
        try:
            await self.roll_up()
        except WhisprError as error:
            log.info("listening_not_rolled_up", error=str(error))


def _hour(row: Any) -> Hour:
    total: dict[str, int] = {}
    for qualities in msgspec.json.decode(row["qualities"], type=list[dict[str, int]]):
        for name, listened_ms in qualities.items():
            total[name] = total.get(name, 0) + listened_ms
    return Hour(
        row["hour"],
        row["peak"],
        int(row["joined"]),
        int(row["departed"]),
        round(int(row["listen_ms"]) / 1000),
        int(row["rebuffers"]),
        int(row["bytes_sent"]),
        total,
    )
