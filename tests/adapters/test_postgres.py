from __future__ import annotations

import asyncpg
import pytest
import trio
import trio.testing

from whispr.adapters.postgres import Conflict, Postgres, Retryable, Violation, open_postgres
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import Code, WhisprError


@pytest.fixture
async def table(db: Postgres) -> str:
    await db.execute("CREATE TABLE public.t (id int CONSTRAINT t_key PRIMARY KEY, n int CHECK (n >= 0))")
    return "public.t"


async def test_statements_of_every_kind(db: Postgres, table: str) -> None:
    """fetch, fetchrow, fetchval, execute and executemany do what they say."""
    await db.executemany("INSERT INTO t VALUES ($1, $2)", [(n, n * n) for n in range(4)])
    assert [row["n"] for row in await db.fetch("SELECT n FROM t ORDER BY id")] == [0, 1, 4, 9]
    row = await db.fetchrow("SELECT * FROM t WHERE id = $1", 3)
    assert row is not None
    assert dict(row) == {"id": 3, "n": 9}
    assert await db.fetchrow("SELECT * FROM t WHERE id = 77") is None
    assert await db.fetchval("SELECT count(*) FROM t") == 4
    assert await db.execute("DELETE FROM t WHERE id < $1", 2) == "DELETE 2"


async def test_executemany_is_all_or_nothing(db: Postgres, table: str) -> None:
    """A row that fails takes the rows before it along."""
    with pytest.raises(Conflict):
        await db.executemany("INSERT INTO t VALUES ($1, 0)", [(1,), (2,), (1,)])
    assert await db.fetchval("SELECT count(*) FROM t") == 0


async def test_a_unique_violation_is_a_conflict_that_names_its_constraint(db: Postgres, table: str) -> None:
    """ALREADY_EXISTS, with `.constraint` to tell which of several it was."""
    await db.execute("INSERT INTO t VALUES (1, 0)")
    with pytest.raises(Conflict) as caught:
        await db.execute("INSERT INTO t VALUES (1, 0)")
    assert caught.value.code is Code.ALREADY_EXISTS
    assert caught.value.constraint == "t_key"


async def test_a_check_violation_names_its_constraint(db: Postgres, table: str) -> None:
    """FAILED_PRECONDITION, with `.constraint`."""
    with pytest.raises(Violation) as caught:
        await db.execute("INSERT INTO t VALUES (1, -1)")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.constraint == "t_n_check"


async def test_a_mistake_in_sql_stays_asyncpgs_error(db: Postgres) -> None:
    """Our bugs are not dressed up as expected failures, and the connection survives them."""
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.fetch("SELECT * FROM no_such_table")
    assert await db.fetchval("SELECT 1") == 1
    assert db.connects == 1


async def test_a_transaction_commits_at_its_end(db: Postgres, table: str) -> None:
    """What the block wrote is visible to others after it, and not before."""
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO t VALUES (1, 0)")
        assert await tx.fetchval("SELECT count(*) FROM t") == 1
        assert await db.fetchval("SELECT count(*) FROM t") == 0
    assert await db.fetchval("SELECT count(*) FROM t") == 1


async def test_a_transaction_rolls_back_on_an_exception(db: Postgres, table: str) -> None:
    """An exception of the block passes through and nothing is kept; the connection is used again."""
    with pytest.raises(KeyError):
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1, 0)")
            raise KeyError("mine")
    assert await db.fetchval("SELECT count(*) FROM t") == 0
    assert db.connects == 1


async def test_a_transaction_rolls_back_after_a_failed_statement(db: Postgres, table: str) -> None:
    """A database error inside the block comes out translated, and the connection is clean."""
    with pytest.raises(Conflict):
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1, 0)")
            await tx.execute("INSERT INTO t VALUES (1, 0)")
    assert await db.fetchval("SELECT count(*) FROM t") == 0
    assert db.connects == 1


async def test_a_transaction_rolls_back_on_a_cancel(db: Postgres, table: str) -> None:
    """A deadline inside the block undoes it."""
    with trio.move_on_after(0.05) as scope:
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1, 0)")
            await tx.fetch("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert await db.fetchval("SELECT count(*) FROM t") == 0


async def test_serialization_failure_is_retryable(db: Postgres, table: str) -> None:
    """Two serializable transactions that depend on each other: one is told to try again."""
    await db.execute("INSERT INTO t VALUES (1, 0)")

    async def both() -> None:
        async with db.transaction("SERIALIZABLE") as one, db.transaction("SERIALIZABLE") as two:
            await one.fetch("SELECT sum(n) FROM t")
            await two.fetch("SELECT sum(n) FROM t")
            await one.execute("INSERT INTO t VALUES (2, 1)")
            await two.execute("INSERT INTO t VALUES (3, 1)")

    with pytest.raises(Retryable) as caught:
        await both()
    assert caught.value.code is Code.ABORTED


async def test_deadlock_is_retryable(db: Postgres, table: str) -> None:
    """Of two transactions that wait for each other one is told to try again, and the other commits."""
    await db.executemany("INSERT INTO t VALUES ($1, 0)", [(1,), (2,)])
    victims = 0

    async def update(first: int, second: int, mine: trio.Event, other: trio.Event) -> None:
        nonlocal victims
        try:
            async with db.transaction() as tx:
                await tx.execute("SET LOCAL deadlock_timeout = '10ms'")
                await tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", first)
                mine.set()
                await other.wait()
                await tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", second)
        except Retryable:
            victims += 1

    one, two = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(update, 1, 2, one, two)
        nursery.start_soon(update, 2, 1, two, one)
    assert victims == 1
    assert await db.fetchval("SELECT sum(n) FROM t") == 2


async def test_cancelling_a_statement_stops_it_on_the_server(db: Postgres) -> None:
    """A cancelled query does not run on: its connection answers the next one at once."""
    pid = await db.fetchval("SELECT pg_backend_pid()")
    with trio.move_on_after(0.05) as scope:
        await db.fetch("SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    with trio.fail_after(5):
        assert await db.fetchval("SELECT pg_backend_pid()") == pid


async def test_many_cancels_leave_a_working_pool(db: Postgres) -> None:
    """A storm of short deadlines neither leaks slots nor leaves connections in a transaction."""

    async def one(n: int) -> None:
        with trio.move_on_after(0.001 * (n % 7)):
            if n % 2:
                await db.fetchval("SELECT pg_sleep(0.002)")
            else:
                async with db.transaction() as tx:
                    await tx.fetchval("SELECT pg_sleep(0.002)")

    async with trio.open_nursery() as nursery:
        for n in range(150):
            nursery.start_soon(one, n)
    assert db.in_use == 0
    assert (
        await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        == 0
    )


async def test_the_pool_bounds_connections_and_serves_in_order(bridge: Bridge, postgres_url: str) -> None:
    """No more than `pool_size` statements run at once; the others wait their turn."""
    async with open_postgres(bridge, postgres_url, pool_size=2) as db:
        order: list[int] = []

        async def one(n: int) -> None:
            await db.fetchval("SELECT pg_sleep(0.005)")
            order.append(n)

        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(one, n)
                await trio.testing.wait_all_tasks_blocked()
            assert db.in_use == 2
            assert db.waiting > 0
        assert db.connects == 2
        assert sorted(order) == list(range(6))
        assert db.in_use == 0


async def test_a_wait_for_a_connection_is_cancelled_at_once(bridge: Bridge, postgres_url: str) -> None:
    """A caller in the queue leaves it at its deadline, and the queue goes on."""
    async with open_postgres(bridge, postgres_url, pool_size=1) as db, db.transaction():
        with trio.move_on_after(0.01) as scope:
            await db.fetchval("SELECT 1")
        assert scope.cancelled_caught
        assert db.waiting == 0


TERMINATE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (state = 'idle' OR query LIKE '%pg_sleep(60)%')
"""


TERMINATE_SLEEPER = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event = 'PgSleep'
"""
"""Ends whoever sleeps: asleep, not about to be, for what was only prepared is made once more elsewhere."""


async def test_a_connection_lost_under_a_statement_is_unavailable(db: Postgres) -> None:
    """The caller learns that the outcome is unknown; the next statement has a new connection."""
    errors: list[WhisprError] = []

    async def sleep() -> None:
        with pytest.raises(WhisprError) as caught:
            await db.fetch("SELECT pg_sleep(60)")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await trio.testing.wait_all_tasks_blocked()
        while not await db.fetch(TERMINATE_SLEEPER):
            await trio.lowlevel.checkpoint()  # until the server has begun the statement
    assert [error.code for error in errors] == [Code.UNAVAILABLE]
    assert "outcome is unknown" in errors[0].message
    assert await db.fetchval("SELECT 1") == 1


async def test_a_transaction_that_lost_its_connection_is_unavailable(db: Postgres, table: str) -> None:
    """Statements and the commit of such a transaction fail; nothing of it is kept."""

    async def lose() -> None:
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO t VALUES (1, 0)")
            pid = await tx.fetchval("SELECT pg_backend_pid()")
            await db.fetch("SELECT pg_terminate_backend($1, 5000)", pid)

    with pytest.raises(WhisprError) as caught:
        await lose()
    assert caught.value.code is Code.UNAVAILABLE
    assert await db.fetchval("SELECT count(*) FROM t") == 0


async def test_connections_that_died_idle_are_not_used(db: Postgres) -> None:
    """A connection the server closed while nobody used it is replaced without anybody noticing."""
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(db.fetchval, "SELECT pg_sleep(0.01)")
    assert db.connects == 3
    assert len(await db.fetch(TERMINATE)) == 2
    await trio.testing.wait_all_tasks_blocked(0.01)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(db.fetchval, "SELECT pg_sleep(0.01)")
    assert db.connects == 5


async def test_waiting_for_a_server_that_is_away_lasts_until_the_deadline(bridge: Bridge) -> None:
    """Nothing listens there: the caller's own deadline decides, and opening the pool did not fail."""
    async with open_postgres(bridge, "postgresql://nobody@127.0.0.1:1/none") as db:
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
            await db.ping()
        assert db.in_use == 0


async def test_a_refusal_is_not_waited_out(bridge: Bridge, backends: Backends) -> None:
    """A database that does not exist, or a malformed URL, is UNAVAILABLE at once, saying why."""
    assert backends.postgres_url is not None
    for url, why in [
        (backends.postgres_url.replace("/whispr?", "/no_such_db?"), '"no_such_db" does not exist'),
        ("postgresql://host:port/x", "port"),
    ]:
        async with open_postgres(bridge, url) as db:
            with pytest.raises(WhisprError, match=why) as caught, trio.fail_after(5):
                await db.ping()
            assert caught.value.code is Code.UNAVAILABLE


async def test_values_cross_as_documented(db: Postgres) -> None:
    """JSON is text both ways, uuid takes strings, timestamps are aware."""
    row = await db.fetchrow(
        "SELECT $1::jsonb AS j, $2::uuid AS u, now() AS t, $3::bytea AS b",
        '{"a": 1}',
        "0190163d-8694-739b-aea5-966c26f8ad91",
        b"\x00\xff",
    )
    assert row is not None
    assert row["j"] == '{"a": 1}'
    assert str(row["u"]) == "0190163d-8694-739b-aea5-966c26f8ad91"
    assert row["t"].tzinfo is not None
    assert row["b"] == b"\x00\xff"
