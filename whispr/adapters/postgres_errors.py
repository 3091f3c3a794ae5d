"""Where PostgreSQL's and asyncpg's errors become ours: the one place that knows SQLSTATEs.

Classes are PostgreSQL's (documentation, appendix A): 08 connection, 40 rollback, 53 out of resources,
57 operator intervention, 23 integrity.
"""

from __future__ import annotations

import asyncpg

from whispr.bridge import CancelledByAsyncio
from whispr.errors import Code, WhisprError, unavailable


class Conflict(WhisprError):  # noqa: N818 - reads as what is the matter, like WhisprError's codes
    """ALREADY_EXISTS: a unique or exclusion constraint, named by `constraint`, is in the way."""

    def __init__(self, constraint: str) -> None:
        super().__init__(Code.ALREADY_EXISTS, f"already exists ({constraint})")
        self.constraint = constraint


class Violation(WhisprError):  # noqa: N818 - reads as what is the matter, like WhisprError's codes
    """FAILED_PRECONDITION: a foreign key or check constraint, named by `constraint`, forbids it."""

    def __init__(self, constraint: str) -> None:
        super().__init__(Code.FAILED_PRECONDITION, f"not possible in the present state ({constraint})")
        self.constraint = constraint


class Retryable(WhisprError):  # noqa: N818 - reads as what is the matter, like WhisprError's codes
    """ABORTED: a serialization failure or deadlock; nothing was done, and the same again may succeed."""

    def __init__(self, why: str) -> None:
        super().__init__(Code.ABORTED, why)


_RETRYABLE_STATES = frozenset({"40001", "40P01", "55P03"})
_AWAY_CLASSES = frozenset({"08", "53", "57", "58"})
_ALIVE_CLASSES = frozenset({"53", "58"})
"""Of these, what a server says that goes on: the disk is full, there are too many connections."""
_ALIVE_STATES = frozenset({"57014"})
"""The statement was cancelled, as by a limit of the database's own."""
_REFUSAL_CLASSES = frozenset({"28", "3D", "42"})


def translated(error: BaseException) -> WhisprError | None:
    """Map an exception of a statement to ours, or None when it is not the database's state but a bug."""
    if isinstance(error, asyncpg.PostgresError):
        return _from_server(error)
    if never_sent(error) or isinstance(error, (OSError, CancelledByAsyncio)):
        return _lost(error)
    return None


def never_sent(error: BaseException) -> bool:
    """Whether asyncpg refused to send the statement, finding its connection dead or dying.

    A server that goes down tells its idle clients so before it hangs up; in between the connection looks
    alive but takes no statement, which shows as InternalClientError.
    """
    if isinstance(error, asyncpg.InternalClientError):
        return True
    return isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError)


def _from_server(error: asyncpg.PostgresError) -> WhisprError | None:
    state: str = getattr(error, "sqlstate", None) or "08000"
    constraint = str(getattr(error, "constraint_name", None) or "unnamed constraint")
    if state in ("23505", "23P01"):
        return Conflict(constraint)
    if state in ("23503", "23514", "23001"):
        return Violation(constraint)
    if state in _RETRYABLE_STATES or isinstance(error, asyncpg.InvalidCachedStatementError):
        return Retryable(str(error))
    if state[:2] in _AWAY_CLASSES:
        lost = _lost(error)
        lost.by_peer = state[:2] in _ALIVE_CLASSES or state in _ALIVE_STATES
        return lost
    return None


def _lost(error: BaseException) -> WhisprError:
    return unavailable(f"the connection to PostgreSQL was lost; the outcome is unknown ({error})")


def refuses_us(error: BaseException) -> bool:
    """Whether a failed attempt to connect will fail the same way until somebody changes something."""
    if isinstance(error, asyncpg.PostgresError):
        return (getattr(error, "sqlstate", None) or "")[:2] in _REFUSAL_CLASSES
    return isinstance(error, (asyncpg.ClientConfigurationError, ValueError))
