"""What `whispr events` does, on whatever backends the settings or the data folder lead to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple, TypeAlias

import msgspec
import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.migrations import Owner, pending
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import find_running, run_children
from whispr.errors import WhisprError, conflict, not_found, unavailable
from whispr.events import MIGRATIONS, dead_letters
from whispr.events.dead_letters import Choice, Letter
from whispr.events.lag import read as read_lag

REACH_S = 20.0
"""How long the backends may take to answer."""
ERROR_CHARS = 70
"""Of an error, in a list."""


class Backends(NamedTuple):
    """What the commands work on."""

    db: Postgres
    jetstream: JetStream | None


Work: TypeAlias = Callable[[Backends], Awaitable[Sequence[str]]]


async def reach(settings: Settings, work: Work, nats: bool) -> Sequence[str]:
    """Do the work on the backends. Raises UNAVAILABLE when they do not answer within REACH_S."""
    with trio.move_on_after(REACH_S):
        async with _open(settings, nats) as backends:
            if await pending(backends.db, [Owner("events", MIGRATIONS)]):
                raise conflict("the database has no events yet: run `whispr migrate`", "not_migrated")
            return await work(backends)
    raise unavailable(f"PostgreSQL{' and NATS' if nats else ''} did not answer within {REACH_S:g} s")


@asynccontextmanager
async def _open(settings: Settings, nats: bool) -> AsyncIterator[Backends]:
    async with AsyncExitStack() as stack:
        urls = await stack.enter_async_context(servers(settings, nats))
        bridge = await stack.enter_async_context(open_bridge())
        db = await stack.enter_async_context(open_postgres(bridge, urls["postgres"], pool_size=1))
        if not nats:
            yield Backends(db, None)
            return
        bus = await stack.enter_async_context(open_bus(bridge, urls["nats"]))
        await bus.wait_connected()
        yield Backends(db, JetStream(bus))


@asynccontextmanager
async def servers(settings: Settings, nats: bool) -> AsyncIterator[Mapping[str, str]]:
    """Where the backends are: as set, run by the process that uses the data folder, or run by us meanwhile."""
    urls = {"postgres": settings.postgres.url} | ({"nats": settings.nats.url} if nats else {})
    wanted = [name for name, url in urls.items() if not url]
    if not wanted:
        yield urls
        return
    async with trio.open_nursery() as nursery:
        try:
            ours = await nursery.start(run_children, settings.data_dir, wanted)
        except WhisprError as error:
            if error.reason != "data_dir_in_use":
                raise
            urls |= await find_running(settings.data_dir, wanted)
        else:
            own = {"postgres": ours.postgres_url, "nats": ours.nats_url}
            urls |= {name: str(own[name]) for name in wanted}
        yield urls
        nursery.cancel_scope.cancel(reason="nobody uses them any more")


async def lag(backends: Backends) -> Sequence[str]:
    """Say what waits: in the outbox, in the streams, before each consumer."""
    assert backends.jetstream is not None
    found = await read_lag(backends.db, backends.jetstream)
    lines = [f"outbox: {found.outbox_rows} waiting, the oldest for {found.outbox_age_s:.0f} s", ""]
    lines.append(f"{'STREAM':<18} {'EVENTS':>10} {'MIB':>8}")
    for stream in found.streams:
        size = f"{stream.bytes / 2**20:.1f}" if stream.events is not None else ""
        held = "none" if stream.events is None else str(stream.events)
        lines.append(f"{stream.name:<18} {held:>10} {size:>8}".rstrip())
    lines += ["", f"{'CONSUMER':<32} {'LAG':>10} {'DEAD':>6}  {'STATE':<10}"]
    lines += [f"{c.name:<32} {c.lag:>10} {c.dead:>6}  {c.state:<10}" for c in found.consumers]
    return lines


def listing(consumer: str, limit: int) -> Work:
    """List dead letters."""

    async def work(backends: Backends) -> Sequence[str]:
        letters = await dead_letters.page(backends.db, consumer, limit)
        if not letters:
            return ["no dead letters"]
        head = f"{'ID':>6}  {'DIED':<19}  {'CONSUMER':<24} {'EVENT':<32} {'TRIES':>5}  ERROR"
        return [head, *map(_line, letters)]

    return work


def _line(letter: Letter) -> str:
    error = " ".join(letter.error.split())
    short = error if len(error) <= ERROR_CHARS else f"{error[:ERROR_CHARS]}…"
    again = "(to be replayed) " if letter.to_replay else ""
    return (
        f"{letter.id:>6}  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.consumer:<24} {letter.event:<32}"
        f" {letter.attempts:>5}  {again}{short}"
    )


def showing(number: int) -> Work:
    """Show one dead letter."""

    async def work(backends: Backends) -> Sequence[str]:
        letter, event_id, payload = await dead_letters.one(backends.db, number)
        facts = {
            "id": letter.id,
            "consumer": letter.consumer,
            "event": letter.event,
            "event id": event_id,
            "about": letter.about,
            "died": f"{letter.died_at:%Y-%m-%d %H:%M:%S %Z}",
            "attempts": letter.attempts,
            "to replay": "yes" if letter.to_replay else "no",
            "error": letter.error,
        }
        return [*(f"{name:<10} {value}" for name, value in facts.items()), "", _payload(payload)]

    return work


def _payload(payload: bytes) -> str:
    """Show JSON laid out, anything else as it is."""
    try:
        return msgspec.json.format(payload, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return repr(payload)


def replaying_dead(choice: Choice) -> Work:
    """Mark dead letters to be tried again; those of the relay go back into the outbox."""

    async def work(backends: Backends) -> Sequence[str]:
        return [f"{await dead_letters.replay(backends.db, choice)} to be handled again"]

    return work


def dropping(choice: Choice) -> Work:
    """Delete dead letters."""

    async def work(backends: Backends) -> Sequence[str]:
        return [f"{await dead_letters.drop(backends.db, choice)} dropped"]

    return work


def replaying(consumer: str) -> Work:
    """Have a consumer start over."""

    async def work(backends: Backends) -> Sequence[str]:
        tag = await backends.db.execute(
            "UPDATE events.consumers SET replay_at = now() WHERE name = $1", consumer
        )
        if tag.endswith(" 0"):
            names = await backends.db.fetch("SELECT name FROM events.consumers ORDER BY name")
            known = ", ".join(row["name"] for row in names) or "none yet"
            raise not_found("consumer", f"{consumer} (there are: {known})")
        return [f"{consumer} starts over within a second of running"]

    return work
