"""A database of any earlier version, with people and messages in it, comes up to date and loses nothing.

The first release had one migration each of auth, conversations and users. Its database is made by SQL, and brought
up to date: at once, and from where an upgrade that was killed halfway, or before its last step, left it.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.conftest import database_url
from tests.world import PASSWORD, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.migrations import Migration, Owner, load, migrate
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.app import MIGRATIONS
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.services.auth.passwords import owasp_hasher

FIRST = ("auth", "conversations", "users")
ALICE = "018f0000-0000-7000-8000-00000000000a"
BOB = "018f0000-0000-7000-8000-00000000000b"
DIRECT = "018f0000-0000-7000-8000-0000000000d1"
GROUP = "018f0000-0000-7000-8000-0000000000e1"

DATA = f"""
INSERT INTO auth.accounts (id, username, email, display_name, password_hash) VALUES
    ('{ALICE}', 'alice', 'alice@example.org', 'Alice', $1), ('{BOB}', 'bob', NULL, 'Bob', $1);
"""  # noqa: S608  # constants of this file
MORE = f"""
INSERT INTO conversations.conversations
    (id, kind, name, created_by, last_seq, last_message_at, member_count, direct_key) VALUES
    ('{DIRECT}', 'direct', '', '{ALICE}', 0, NULL, 2, '{ALICE}:{BOB}'),
    ('{GROUP}', 'group', 'old friends', '{ALICE}', 5, now(), 2, NULL);
INSERT INTO conversations.members (conversation_id, user_id, role, read_seq, own_after_read) VALUES
    ('{DIRECT}', '{ALICE}', 'member', 0, 0), ('{DIRECT}', '{BOB}', 'member', 0, 0),
    ('{GROUP}', '{ALICE}', 'owner', 1, 2), ('{GROUP}', '{BOB}', 'member', 0, 2);
INSERT INTO conversations.messages (conversation_id, seq, id, sender_id, message_type, content, sent_at)
    SELECT '{GROUP}', n, gen_random_uuid(), CASE WHEN n % 2 = 1 THEN '{ALICE}'::uuid ELSE '{BOB}'::uuid END, 'text',
        convert_to('message ' || n, 'UTF8'), now() FROM generate_series(1, 5) n;
INSERT INTO users.blocks (user_id, blocked_id) VALUES ('{BOB}', '{ALICE}');
"""  # noqa: S608  # constants of this file
UNREAD = {ALICE: 2, BOB: 3}

_numbers = count(1)


def later() -> list[Migration]:
    """Every migration since the first release, in the order in which they are applied."""
    found = [migration for owner in MIGRATIONS for migration in load(owner)]
    return [m for m in found if not (m.owner in FIRST and m.version == 1)]


@asynccontextmanager
async def empty_database(bridge: Bridge, backends: Backends) -> AsyncIterator[Postgres]:
    """Make a database with nothing in it."""
    name = f"upgrade_{next(_numbers)}"
    async with open_postgres(bridge, database_url(backends), pool_size=1) as admin:
        await admin.execute(f"CREATE DATABASE {name}")
        async with open_postgres(bridge, database_url(backends, name)) as db:
            yield db
        with trio.CancelScope(shield=True):
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def owners_with(migrations: Sequence[Migration], folder: Path) -> list[Owner]:
    """Lay out owners that have the first release's migrations and these."""
    owners = []
    for owner in MIGRATIONS:
        versions = {m.version for m in migrations if m.owner == owner.name} | (
            {1} if owner.name in FIRST else set()
        )
        if not versions:
            continue
        (folder / owner.name).mkdir()
        for path in owner.folder.glob("*.sql"):
            if int(path.name[:4]) in versions:
                shutil.copy(path, folder / owner.name)
        owners.append(Owner(owner.name, folder / owner.name))
    return owners


@pytest.mark.parametrize("applied", [0, len(later()) // 2, len(later()) - 1])
async def test_from_any_version(
    applied: int, bridge: Bridge, backends: Backends, cache: Cache, bus: Bus, tmp_path: Path
) -> None:
    """People sign in with their old passwords, find their messages and unread counts, and go on."""
    (tmp_path / "first").mkdir()
    (tmp_path / "between").mkdir()
    async with empty_database(bridge, backends) as db:
        await migrate(db, owners_with((), tmp_path / "first"))
        await db.execute(DATA, owasp_hasher().hash(PASSWORD))
        for statement in MORE.split(";\n"):
            if statement.strip():
                await db.execute(statement)
        await migrate(db, owners_with(later()[:applied], tmp_path / "between"))
        assert len(await migrate(db, MIGRATIONS)) == len(later()) - applied
        async with open_world(db, cache, bus, tmp_path / "node") as world:
            for username, user_id in (("alice", ALICE), ("bob", BOB)):
                body = {"username": username, "password": PASSWORD}
                token = (await world.call("AuthService/Login", body, "anonymous")).access_token
                listed = await world.call_with("MessagingService/ListConversations", {}, token)
                (group,) = [c for c in listed.conversations if c.id == GROUP]
                assert group.unread_count == UNREAD[user_id]
                page = await world.call_with(
                    "MessagingService/GetMessages", {"conversation_id": GROUP}, token
                )
                assert [m.content for m in page.messages][:5] == [b"message %d" % n for n in range(1, 6)]
            sent = {"conversation_id": GROUP, "content": "bmV4dA=="}
            assert (await world.call_with("MessagingService/SendMessage", sent, token)).message.seq == 6
            blocked = await world.call_with("UserService/ListBlocks", {}, token)
            assert [block.user_id for block in blocked.blocks] == [ALICE]
