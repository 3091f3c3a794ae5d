"""PostgreSQL through asyncpg on the bridge: a pool with Trio's manners, and errors of ours.

The pool is ours rather than asyncpg's: waiting for a connection is then a Trio wait (fair, cancelled at
once), and a connection goes back without the extra round trip that asyncpg's pool spends on resetting
session state. Statements here must therefore leave no session state behind: no SET outside a transaction
(SET LOCAL is fine), no session advisory locks, no LISTEN.

Time is the caller's: nothing here times out. While the server is away a call waits for a connection,
trying again with growing pauses, until the caller's deadline; nothing has been sent by then. Where the server is
watched (`backend`, see `resilience.backend`) it is not waited for: once the breaker has tripped, what waits for the
server fails with UNAVAILABLE, and what comes is refused at once. A connection lost under a statement raises
UNAVAILABLE: whether it took effect is unknown, so only callers whose statement is idempotent retry. A cancelled
statement is cancelled on the server too, and its connection is used again only after the server has confirmed.

`json` and `jsonb` are text both ways, so that the caller's own typed codec reads them. `uuid` accepts strings
and returns `uuid.UUID`; `timestamptz` is an aware `datetime`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import asyncpg
import structlog
import trio

from whispr.adapters.postgres_errors import Conflict, Retryable, Violation, never_sent, refuses_us, translated
from whispr.bridge import Bridge, CancelledByAsyncio
from whispr.errors import WhisprError, unavailable
from whispr.resilience.backend import Backend
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.retry import BREAKER_OPEN, Backoff
from whispr.telemetry.live import LiveGauge

__all__ = ["Conflict", "Postgres", "Retryable", "Transaction", "Violation", "open_postgres"]

Record = asyncpg.Record
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECTING = Backoff(0.01, 0.5, low=0.5)
"""Pauses between attempts to connect."""

SETTLE_S = 1.0
"""How long a cancelled or failed statement may take to settle before its connection is thrown away."""

WAITING_MAX = 10_000
"""Callers that wait for a connection; further ones are refused with RESOURCE_EXHAUSTED."""

_CONNECTION_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    CancelledByAsyncio,
)

POOL_SIZE = LiveGauge("whispr_postgres_pool_size", "Connections to PostgreSQL that there may be")
POOL_IN_USE = LiveGauge("whispr_postgres_pool_in_use", "Connections to PostgreSQL at work now")
POOL_WAITING = LiveGauge("whispr_postgres_pool_waiting", "Tasks that wait for a connection to PostgreSQL")

log = structlog.get_logger("whispr.postgres")


class _Queries:
    """The query methods, the same on the pool and in a transaction.

    All raise `Conflict`, `Retryable`, `Violation`, or UNAVAILABLE when the connection is lost; an error in
    the statement itself is asyncpg's exception, for it is our bug.
    """

    async def _on_connection(self, method: str, *args: Any) -> Any:
        raise NotImplementedError

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        """Return all rows."""
        rows: list[Record] = await self._on_connection("fetch", sql, *args)
        return rows

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        """Return the first row, or None."""
        row: Record | None = await self._on_connection("fetchrow", sql, *args)
        return row

    async def fetchval(self, sql: str, *args: object) -> Any:
        """Return the first column of the first row, or None."""
        return await self._on_connection("fetchval", sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement, or without arguments a script of several; return the command tag."""
        tag: str = await self._on_connection("execute", sql, *args)
        return tag

    async def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement for each row of arguments, all of them or none."""
        await self._on_connection("executemany", sql, rows)


class Transaction(_Queries):
    """A transaction in progress, made by `Postgres.transaction`. Use it from one task at a time."""

    def __init__(self, bridge: Bridge, backend: Backend, connection: Connection) -> None:
        self._bridge = bridge
        self._backend = backend
        self._connection = connection
        self.rings = False
        """Whether the commit rings the pool's bell."""

    def ring_after_commit(self) -> None:
        """Ring the pool's bell once this transaction is committed."""
        self.rings = True

    async def _on_connection(self, method: str, *args: Any) -> Any:
        try:
            return await self._backend.operate_lean(
                partial(_made, self._bridge, self._connection, method, *args)
            )
        except Exception as error:
            if ours := translated(error):
                raise ours from error
            raise


async def _made(bridge: Bridge, connection: Connection, method: str, *args: Any) -> Any:
    """Make a statement. What was never sent is left to the caller, who may have another connection for it."""
    try:
        return await bridge.call(getattr(connection, method), *args)
    except Exception as error:
        if not never_sent(error) and (ours := translated(error)):
            raise ours from error
        raise


class Postgres(_Queries):
    """A pool of connections to one database. Made by `open_postgres`."""

    def __init__(self, bridge: Bridge, url: str, pool_size: int) -> None:
        assert pool_size > 0
        self.bridge = bridge
        """The loop it runs on, for other adapters to run beside it."""
        self._bridge = bridge
        self._url = url
        self.backend = Backend("postgres", BulkheadRules(pool_size, WAITING_MAX))
        """Its breaker, and its bulkhead: a place is a connection."""
        self.backend.on_trip = self._cut
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._probing: Connection | None = None
        """A connection for probes alone: how the server is must not depend on how busy the others are."""
        self._on_ring: list[Callable[[], None]] = []
        self.connects = 0
        """Connections made so far, for metrics and tests."""

    @property
    def in_use(self) -> int:
        """Connections at work now."""
        return self.backend.bulkhead.in_flight

    @property
    def waiting(self) -> int:
        """Tasks waiting for a connection now."""
        return self.backend.bulkhead.queued

    def ring(self) -> None:
        """Tell whoever listens that something was committed here that waits to be taken, as from an outbox."""
        for callback in list(self._on_ring):
            callback()

    def on_ring(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` at each ring. Returns its undoing."""
        self._on_ring.append(callback)
        return lambda: self._on_ring.remove(callback)

    async def ping(self) -> None:
        """Return once the database answers. Raises UNAVAILABLE if it refuses us or goes away meanwhile."""
        await self.fetchval("SELECT 1")

    async def probe(self) -> None:
        """Ask the server how it is, on a connection of its own. Raises UNAVAILABLE, at once if it is not there.

        One at a time; a second one at the same time has another connection made.
        """
        connection, self._probing = self._probing, None
        try:
            if connection is None or connection.is_closed():
                connection = await self._dialled()
            await _made(self._bridge, connection, "execute", "SELECT 1")
        except BaseException as error:
            if connection is not None:
                connection.terminate()
            if isinstance(error, Exception) and (ours := translated(error)):
                raise ours from error
            raise
        if self._probing is not None:
            self._probing.terminate()
        self._probing = connection

    async def _on_connection(self, method: str, *args: Any) -> Any:
        while True:
            connection = await self._acquire()
            try:
                return await self.backend.operate_lean(
                    partial(_made, self._bridge, connection, method, *args)
                )
            except BaseException as error:
                await self._settle(connection, error)
                if never_sent(error):
                    continue  # the connection had died in the pool; it is gone now, and the next is newer
                if ours := translated(error):
                    raise ours from error
                raise
            finally:
                self._release(connection)

    @asynccontextmanager
    async def transaction(self, isolation: str = "READ COMMITTED") -> AsyncIterator[Transaction]:
        """Run the block in a transaction: committed at its end, rolled back by an exception or a cancel.

        A commit whose answer is lost raises UNAVAILABLE, its outcome unknown. With isolation
        "REPEATABLE READ" or "SERIALIZABLE" expect `Retryable`, and run the whole block again.
        """
        assert isolation in _ISOLATIONS
        connection = await self._begun(f"BEGIN ISOLATION LEVEL {isolation}")
        transaction = Transaction(self._bridge, self.backend, connection)
        try:
            yield transaction
            await transaction.execute("COMMIT")
        except BaseException as error:
            await self._settle(connection, error)
            if ours := translated(error):
                raise ours from error
            raise
        finally:
            self._release(connection)
        if transaction.rings:
            self.ring()

    async def _begun(self, begin: str) -> Connection:
        """Take a connection and begin a transaction on it. Nothing is lost yet: a dead one is replaced."""
        while True:
            connection = await self._acquire()
            try:
                await self.backend.operate_lean(partial(_made, self._bridge, connection, "execute", begin))
            except BaseException as error:
                await self._settle(connection, error)
                self._release(connection)
                ours = error if isinstance(error, WhisprError) else translated(error)
                if ours is None or ours.reason == BREAKER_OPEN:
                    raise
                if not connection.is_closed():
                    raise ours from error
                log.debug("postgres_begin_failed", error=repr(error))
            else:
                return connection

    async def _acquire(self) -> Connection:
        """Take a live connection, waiting for a free place and for the server to be there."""
        self.backend.check()
        await self.backend.limiting.enter()
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                self._busy.add(connection)
                return connection
        try:
            connection = await self._connect()
        except BaseException:
            self.backend.limiting.leave()
            raise
        self._busy.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if not connection.is_closed():
            self._idle.append(connection)
        self.backend.limiting.leave()

    def _cut(self) -> None:
        """End the statements under way, and part with connections that may be as dead as the server seems to be."""
        while self._idle:
            self._idle.pop().terminate()
        for connection in self._busy:
            connection.terminate()

    async def _connect(self) -> Connection:
        """Connect, trying again while the server is away. Raises UNAVAILABLE if it refuses us for good."""
        attempt = 0
        while True:
            try:
                connection = await self.backend.operate(self._dialled)
            except WhisprError as error:
                if error.by_peer or error.reason == BREAKER_OPEN:
                    raise
                log.debug("postgres_away", attempt=attempt, error=error.message)
            else:
                self.connects += 1
                return connection
            attempt += 1
            await trio.sleep(CONNECTING.pause_s(attempt))

    async def _dialled(self) -> Connection:
        """Connect once. Raises UNAVAILABLE: `by_peer` if the server refuses us for good."""
        try:
            return await self._bridge.call(_connected, self._url)
        except (*_CONNECTION_ERRORS, ValueError) as error:  # ValueError: a malformed URL
            refused = refuses_us(error)
            told = (
                f"PostgreSQL refuses the connection: {error}" if refused else f"PostgreSQL is away: {error}"
            )
            away = unavailable(told)
            away.by_peer = refused
            raise away from error

    async def _settle(self, connection: Connection, error: BaseException) -> None:
        """Bring a connection back to rest after a failure or a cancel, or throw it away.

        A statement cut short by a cancel may still run: asyncpg has asked the server to stop it, and lets
        the next statement wait for the answer. An error that the server itself reported leaves nothing
        to wait for.
        """
        in_transaction = not connection.is_closed() and connection.is_in_transaction()
        told = error.__cause__ if isinstance(error, WhisprError) else error
        if connection.is_closed() or (isinstance(told, asyncpg.PostgresError) and not in_transaction):
            return
        if never_sent(error) or self.backend.away:
            connection.terminate()
            return
        settled = False
        with trio.move_on_after(SETTLE_S, shield=True):
            try:
                await self._bridge.call(connection.execute, "ROLLBACK" if in_transaction else "SELECT 1")
                settled = not connection.is_in_transaction()
            except _CONNECTION_ERRORS as failed:
                log.debug("postgres_connection_dropped", error=repr(failed))
        if not settled:
            connection.terminate()

    async def _close(self) -> None:
        """Say goodbye on every idle connection, bounded; then cut what is left."""
        if self._probing is not None:
            self._idle.append(self._probing)
        with trio.move_on_after(SETTLE_S, shield=True):
            while self._idle:
                connection = self._idle.pop()
                with contextlib.suppress(*_CONNECTION_ERRORS):
                    await self._bridge.call(connection.close)
        while self._idle:
            self._idle.pop().terminate()


@asynccontextmanager
async def open_postgres(bridge: Bridge, url: str, pool_size: int = 8) -> AsyncIterator[Postgres]:
    """Open a pool of at most `pool_size` connections, made when first needed: opening never fails."""
    db = Postgres(bridge, url, pool_size)
    try:
        with (
            POOL_SIZE.watching(lambda: pool_size),
            POOL_IN_USE.watching(lambda: db.in_use),
            POOL_WAITING.watching(lambda: db.waiting),
        ):
            yield db
    finally:
        await db._close()


SESSION = {
    "application_name": "whispr",
    # Statements are planned once per connection. A plan made while a table had one page would scan it for as
    # long as the connection lives, or until the next ANALYZE; every request path has an index to use instead.
    "enable_seqscan": "off",
    # Compiling costs more than any statement of ours takes.
    "jit": "off",
    # A node that stops in the middle of a transaction must not keep its locks from the others.
    "idle_in_transaction_session_timeout": "10s",
}
"""Settings of every connection."""

_ISOLATIONS = frozenset({"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"})


async def _connected(url: str) -> Connection:
    """Connect, without asyncpg's own time limit."""
    connection: Connection = await asyncpg.connect(  # type: ignore[call-overload]  # stubs forget timeout=None
        url, timeout=None, server_settings=SESSION
    )
    return connection
