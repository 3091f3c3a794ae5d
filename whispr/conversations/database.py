"""What this package needs of PostgreSQL: the shape of `whispr.adapters.postgres.Postgres`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from whispr.adapters.postgres import Transaction

__all__ = ["Database", "Queries", "Transaction"]


class Queries(Protocol):
    """Runs statements. All raise WhisprError: UNAVAILABLE when the server is away."""

    async def fetch(self, sql: str, /, *args: Any) -> Sequence[Any]:
        """Return all rows."""

    async def fetchrow(self, sql: str, /, *args: Any) -> Any:
        """Return the first row, or None."""

    async def fetchval(self, sql: str, /, *args: Any) -> Any:
        """Return the first column of the first row, or None."""

    async def execute(self, sql: str, /, *args: Any) -> Any:
        """Run a statement for its effect."""


class Database(Queries, Protocol):
    """The pool: each statement by itself, or several in a transaction."""

    def transaction(self, isolation: str = "READ COMMITTED") -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction: committed when the block ends, rolled back when it raises."""

    def ring(self) -> None:
        """Wake the relay: something was put into the outbox."""
