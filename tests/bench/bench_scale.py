"""Every RPC on a large database: `just bench-scale`. Fails when one reads too much of it, or is slow.

10,000 people, 1,000 rooms, 5,000 groups and 10 million messages (`--messages`), a tenth of them in the one
conversation that is asked about. Each RPC of `tests/calls.py` is called as somebody it is for:

- once with PostgreSQL's `auto_explain` logging every statement's plan, functions' too: no plan may scan a
  large table, or read more than `ROWS_MAX` rows of one;
- then many times with plain clocks: `FAST` names the calls that have to stay under `FAST_MS` in the median.

It takes some minutes to make the data; `--folder F` keeps it there and finds it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from tests.bench.scale_data import fill
from tests.calls import ROWS, Row
from tests.world import PEOPLE, Person, World, open_world
from whispr.adapters.bus import open_bus
from whispr.adapters.cache import open_cache
from whispr.adapters.migrations import migrate
from whispr.adapters.postgres import open_postgres
from whispr.app import MIGRATIONS
from whispr.bridge import Bridge, open_bridge
from whispr.errors import WhisprError

ROWS_MAX = 5_000
"""Rows of one table that one statement may read. A page of a hundred with what belongs to it is well below."""
LARGE = 20_000
"""A table with more rows than this is large."""
FAST_MS = 5.0
REPEATS = 200
FAST = (
    "MessagingService/GetMessages",
    "MessagingService/ListConversations",
    "MessagingService/GetConversation",
    "MessagingService/GetConversationStats",
    "MessagingService/MarkRead",
    "ChatService/GetMessageHistory",
    "ChatService/GetRoomStats",
    "ChatService/GetUserActivity",
    "ChatService/ListRooms",
)
"""Histories, unread counts and statistics."""


@dataclass
class BigWorld(World):
    """A world in which everybody is in the big conversations already, and asks about those."""

    big_group: str = ""
    big_room: str = ""
    small: bool = False
    """Whether the next room is a new one: it will be closed."""

    async def group(self, *more: str) -> str:
        """The big group."""
        for user_id in more:
            await _enter(self, self.big_group, user_id, "member")
        return self.big_group

    async def room(self, *more: Person) -> str:
        """The big room, unless a new one was asked for."""
        if self.small:
            self.small = False
            super().renew()
            return await super().room(*more)
        for person in more:
            await _enter(self, self.big_room, person.user_id, "member")
        return self.big_room

    def renew(self) -> None:
        """Let the next room be a new one."""
        self.small = True

    async def seat(self) -> None:
        """Put everybody back in their places."""
        for conversation in (self.big_group, self.big_room):
            for role in ("member", "moderator", "owner"):
                await _enter(self, conversation, self.id(role), role)


@contextmanager
def backends(folder: Path) -> Iterator[Mapping[str, str]]:
    """Run the engines in a folder; yields their URLs."""
    command = [sys.executable, "-m", "whispr.embed", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        try:
            yield json.loads(servers.stdout.readline())
        finally:
            servers.stdin.close()
            servers.wait(30)


async def measure(urls: Mapping[str, str], folder: Path, messages: int) -> list[str]:
    """Fill the database if it is empty, call everything; return what was wrong."""
    async with open_bridge() as bridge:
        await _prepare(bridge, urls["postgres_url"], messages)
        await _explaining(bridge, urls["postgres_url"], on=True)
        plans = Plans(folder / "logs" / "postgres.log")
        wrong = await _every_call(bridge, urls, folder, plans)
        await _explaining(bridge, urls["postgres_url"], on=False)
        return wrong + await _times(bridge, urls, folder)


async def _prepare(bridge: Bridge, url: str, messages: int) -> None:
    async with open_postgres(bridge, url) as db:
        await migrate(db, MIGRATIONS)
        if await db.fetchval("SELECT 1 FROM conversations.messages LIMIT 1") is None:
            began = time.monotonic()
            await fill(db, messages)
            print(f"filled in {time.monotonic() - began:.0f} s")
        size = await db.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
        count = await db.fetchval("SELECT count(*) FROM conversations.messages")
        print(f"{count:,} messages, {size}")


async def _explaining(bridge: Bridge, url: str, *, on: bool) -> None:
    """Have every new connection log the plans of what it runs, or not."""
    values = {
        "session_preload_libraries": "auto_explain",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_nested_statements": "on",
        "auto_explain.log_format": "json",
    }
    async with open_postgres(bridge, url, pool_size=1) as db:
        await db.execute("LOAD 'auto_explain'")
        for key, value in values.items():
            change = f"SET {key} = '{value}'" if on else f"RESET {key}"
            await db.execute(f"ALTER DATABASE whispr {change}")


class Plans:
    """The plans in PostgreSQL's log since one last looked."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0

    def new(self) -> Iterator[Mapping[str, Any]]:
        """Read what has been added."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read().decode(errors="replace")
            self._offset = file.tell()
        decoder = json.JSONDecoder()
        for part in text.split("plan:\n")[1:]:
            yield decoder.raw_decode(part.lstrip())[0]


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Walk a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def rows_read(node: Mapping[str, Any]) -> float:
    """How many rows a node of a plan took from its table."""
    thrown_away = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
    return float((node.get("Actual Rows", 0) + thrown_away) * node.get("Actual Loops", 0))


def greedy(plan: Mapping[str, Any], large: Collection[str]) -> list[str]:
    """Say which nodes of a plan scan a large table, or read too much of one."""
    found = []
    for node in nodes(plan["Plan"]):
        table = node.get("Relation Name", "")
        if table not in large:
            continue
        if node["Node Type"] == "Seq Scan" and node.get("Actual Loops", 0):
            found.append(f"scans {table}")
        elif rows_read(node) > ROWS_MAX:
            found.append(f"reads {rows_read(node):,.0f} rows of {table}")
    return found


async def _big(world: World) -> BigWorld:
    """Seat everybody in the largest group and the largest room."""
    largest = (
        "SELECT id::text FROM conversations.conversations WHERE kind = $1 ORDER BY last_seq DESC LIMIT 1"
    )
    big = BigWorld(**vars(world))
    big.big_group = await world.db.fetchval(largest, "group")
    big.big_room = await world.db.fetchval(largest, "room")
    await big.seat()
    return big


async def _enter(world: World, conversation: str, user_id: str, role: str) -> None:
    await world.db.execute(
        "INSERT INTO conversations.members (conversation_id, user_id, role) VALUES ($1, $2, $3)"
        " ON CONFLICT (conversation_id, user_id) DO UPDATE SET left_at = NULL, role = excluded.role",
        conversation,
        user_id,
        role,
    )


def caller(row: Row) -> str:
    """Who calls it: the owner if it is for members, else the first it is for."""
    order = ("owner", *PEOPLE, "service", "anonymous")
    return next(role for role in order if role in row.allowed)


async def _every_call(bridge: Bridge, urls: Mapping[str, str], folder: Path, plans: Plans) -> list[str]:
    wrong: list[str] = []
    seen = 0
    async with _worlds(bridge, urls, folder) as world:
        tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > $1"
        large = {row["relname"] for row in await world.db.fetch(tables, LARGE)}
        for method, row in ROWS.items():
            role = caller(row)
            await world.seat()
            request = await row.request(world, role)
            list(plans.new())
            token = await world.new_token(role) if row.own_session else world.token(role)
            problem = await _attempt(world, method, request, token, row)
            wrong += [f"{method}: {problem}"] if problem else []
            for plan in plans.new():
                seen += 1
                wrong += [f"{method} {what}: {plan['Query Text'][:200]}" for what in greedy(plan, large)]
    print(f"{len(ROWS)} RPCs, {seen} plans")
    return wrong if seen else [*wrong, "PostgreSQL logged no plans"]


async def _attempt(world: World, method: str, request: Mapping[str, Any], token: str, row: Row) -> str:
    try:
        await world.call_with(method, request, token)
    except WhisprError as error:
        return "" if error.code in row.codes else f"{error.code.name} {error.message}"
    return ""


async def _times(bridge: Bridge, urls: Mapping[str, str], folder: Path) -> list[str]:
    """Time each call; return those of `FAST` that are not."""
    wrong: list[str] = []
    async with _worlds(bridge, urls, folder) as world:
        for method in FAST:
            if method not in ROWS:
                continue
            row = ROWS[method]
            role = caller(row)
            request = await row.request(world, role)
            delays = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                await world.call(method, request, role)
                delays.append((time.perf_counter() - began) * 1e3)
            delays.sort()
            p50, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
            print(f"{method:45} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
            if p50 > FAST_MS:
                wrong.append(f"{method} takes {p50:.1f} ms, over {FAST_MS:g}")
    return wrong


@asynccontextmanager
async def _worlds(bridge: Bridge, urls: Mapping[str, str], folder: Path) -> AsyncIterator[BigWorld]:
    async with (
        open_postgres(bridge, urls["postgres_url"]) as db,
        open_cache(bridge, urls["redis_url"]) as cache,
        open_bus(bridge, urls["nats_url"]) as bus,
    ):
        await bus.wait_connected()
        async with open_world(db, cache, bus, folder / "node") as world:
            yield await _big(world)


def main() -> None:
    """Parse the command line, measure, and say what was wrong."""
    parser = argparse.ArgumentParser(description="every RPC on a large database")
    parser.add_argument("--messages", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the data is kept; a temporary folder without it")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="whispr-scale-"))
    try:
        with backends(folder) as urls:
            wrong = trio.run(measure, urls, folder, arguments.messages)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(wrong) or "no plan scans a large table")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
