"""Passwords: argon2id in worker threads, as many at once as there are cores, with a bounded queue.

One hash costs about 20 ms of a core and 19 MiB (the OWASP minimum). Without a bound, a burst of logins would
take all memory and starve the event loop of CPU; so at most `cores` run, at most `waiting_max` wait, and
whoever comes after them is told to come back.
"""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Callable
from typing import TypeVar

import trio
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from whispr.errors import unavailable

ResultT = TypeVar("ResultT")

WAITING_MAX = 64
"""At 20 ms a hash on two cores, the last in the queue waits less than a second."""


def owasp_hasher() -> PasswordHasher:
    """argon2id with m = 19 MiB, t = 2, p = 1 (OWASP Password Storage Cheat Sheet)."""
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID)


class Passwords:
    """Hashes and verifies passwords without blocking the event loop."""

    def __init__(
        self,
        hasher: PasswordHasher | None = None,
        *,
        cores: int | None = None,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._hasher = hasher or owasp_hasher()
        self._limiter = trio.CapacityLimiter(cores or os.cpu_count() or 1)
        self._waiting_max = waiting_max
        self._decoy = ""

    async def hash(self, password: str) -> str:
        """Hash a new password. Raises UNAVAILABLE when too many are waiting."""
        return await self._run(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Say whether `password` is the one behind the hash. Raises UNAVAILABLE when too many are waiting.

        With no hash (there is no such account) the same work is done for nothing: the time that the answer
        takes does not tell who has an account.
        """
        return await self._run(lambda: self._verify(password_hash, password))

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a hash was made with other parameters than today's and should be made anew."""
        return self._hasher.check_needs_rehash(password_hash)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        try:
            self._hasher.verify(password_hash or self._decoy_hash(), _normal(password))
        except (VerificationError, InvalidHashError):
            return False
        return password_hash is not None

    def _decoy_hash(self) -> str:
        if not self._decoy:
            self._decoy = self._hasher.hash(secrets.token_hex())
        return self._decoy

    async def prepare(self) -> None:
        """Make the decoy, which otherwise the first stranger would wait for, twice as long as anybody."""
        await self._run(self._decoy_hash)

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        if self._limiter.statistics().tasks_waiting >= self._waiting_max:
            raise unavailable("too many sign-ins at once")
        # A caller who has left is not waited for; the thread ends its hash and then frees its place.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


def _normal(password: str) -> str:
    """NFKC: one password typed on two keyboards is one password (NIST SP 800-63B, section 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)
