"""How many sockets each user has, and whether there is room for one more: here, and on all nodes together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from whispr.errors import exhausted


class Elsewhere(Protocol):
    """What knows of the seats on other nodes (`whispr.seats`)."""

    async def admit(self, user_id: str) -> bool:
        """Tell whether the seat just taken here is not one too many; True, too, when nobody can tell."""

    def changed(self, user_id: str) -> None:
        """The user has fewer here than before. Never waits."""


class Seats:
    """Those of one hub."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Sockets of one user; 0 is no limit."""
        self.elsewhere: Elsewhere | None = None
        self._taken: dict[str, int] = {}

    @property
    def taken(self) -> Mapping[str, int]:
        """User → seats here, at least one."""
        return self._taken

    async def take(self, user_id: str) -> None:
        """Count a socket of the user in. Raises RESOURCE_EXHAUSTED `too_many_sockets` past the limit."""
        taken = self._taken.get(user_id, 0)
        if self.most and taken >= self.most:
            raise self._refusal()
        self._taken[user_id] = taken + 1
        if self.elsewhere is None or not self.most:
            return
        admitted = False
        try:
            admitted = await self.elsewhere.admit(user_id)
        finally:
            if not admitted:
                self.leave(user_id)
        if not admitted:
            raise self._refusal()

    def leave(self, user_id: str) -> None:
        """Count a socket of the user out."""
        self._taken[user_id] -= 1
        if not self._taken[user_id]:
            del self._taken[user_id]
        if self.elsewhere is not None and self.most:
            self.elsewhere.changed(user_id)

    def _refusal(self) -> Exception:
        return exhausted(f"a user may have at most {self.most} sockets", reason="too_many_sockets")
