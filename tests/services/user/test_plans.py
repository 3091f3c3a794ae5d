"""What the user service asks of the database stays cheap when there are many people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.conversations.kit import NOBODY
from whispr.adapters.postgres import Postgres
from whispr.services.auth import store as auth_store
from whispr.services.user import relations, store

PEOPLE = 10_000

_FILL = (
    "INSERT INTO auth.accounts (id, username, display_name, password_hash)"
    " SELECT gen_random_uuid(), 'user' || n, 'Person ' || n, 'x' FROM generate_series(1, $1) n",
    "INSERT INTO users.profiles (user_id) SELECT id FROM auth.accounts WHERE $1 > 0",
    "INSERT INTO users.contacts (user_id, contact_id)"
    " SELECT a.id, b.id FROM (SELECT id FROM auth.accounts LIMIT 200) a,"
    " (SELECT id FROM auth.accounts ORDER BY id DESC LIMIT 100) b WHERE a.id <> b.id AND $1 > 0",
    "INSERT INTO users.blocks (user_id, blocked_id)"
    " SELECT a.id, b.id FROM (SELECT id FROM auth.accounts LIMIT 200) a,"
    " (SELECT id FROM auth.accounts ORDER BY id LIMIT 100) b WHERE a.id <> b.id AND $1 > 0",
    "INSERT INTO auth.sessions (id, account_id, expires_at)"
    " SELECT gen_random_uuid(), id, now() + interval '1 day' FROM auth.accounts WHERE $1 > 0",
)
_ID = f"'{NOBODY}'::uuid"
_TIME = "NULL::timestamptz"
STATEMENTS = {
    "search": (store._SEARCH, "'user1', 'user2', 51, -1, '', " + _ID),
    "search, a later page": (store._SEARCH, "'person 1', 'person 2', 51, 2, E'person 15\\t', " + _ID),
    "standing": (store._STANDING, f"{_ID}, {_ID}"),
    "between": (store._BLOCKS_BETWEEN, f"{_ID}, ARRAY[{_ID}]"),
    "visible": (store._VISIBLE, f"{_ID}, ARRAY[{_ID}]"),
    "contacts": (relations._CONTACTS, f"{_ID}, 51, {_TIME}, NULL::uuid"),
    "visible contacts": (relations._VISIBLE_CONTACTS, f"{_ID}, 51, NULL::uuid, NULL::uuid[]"),
    "blocks": (relations._BLOCKS, f"{_ID}, 51, {_TIME}, NULL::uuid"),
    "signing in": (auth_store._BY_USERNAME_AT, "'user7', '192.0.2.1'"),
    "sessions": (auth_store._SESSIONS, _ID),
}


def scans(node: Mapping[str, Any]) -> Iterator[str]:
    """Name the tables that a plan reads from end to end."""
    if node["Node Type"] == "Seq Scan":
        yield node["Relation Name"]
    for inner in node.get("Plans", ()):
        yield from scans(inner)


def rows_read(node: Mapping[str, Any]) -> float:
    """Count the rows that a plan's scans have looked at."""
    own = 0.0
    if "Relation Name" in node:
        own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return own + sum(rows_read(inner) for inner in node.get("Plans", ()))


async def test_no_request_reads_a_table_from_end_to_end(db: Postgres) -> None:
    """Neither with the values at hand nor with a plan made for any; a page of thousands that match reads a page."""
    for statement in _FILL:
        await db.execute(statement, PEOPLE)
    await db.execute("ANALYZE")
    found: dict[str, set[str]] = {}
    for mode in ("force_custom_plan", "force_generic_plan"):
        for number, (name, (statement, values)) in enumerate(STATEMENTS.items()):
            async with db.transaction() as tx:
                await tx.execute(f"SET LOCAL plan_cache_mode = {mode}")
                await tx.execute(f"PREPARE q{number} AS {statement}")
                plan = await tx.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE q{number}({values})")
                await tx.execute(f"DEALLOCATE q{number}")
            if read := set(scans(json.loads(plan)[0]["Plan"])):
                found[f"{name}, {mode}"] = read
    assert found == {}
    for prefix, end in (("user1", "user2"), ("person", "persoo")):
        values = f"'{prefix}', '{end}', 51, -1, '', {_ID}"
        async with db.transaction() as tx:
            await tx.execute(f"PREPARE page AS {store._SEARCH}")
            plan = await tx.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page({values})")
            await tx.execute("DEALLOCATE page")
        assert rows_read(json.loads(plan)[0]["Plan"]) < 1000, f"a page of {prefix} reads more than a page"
