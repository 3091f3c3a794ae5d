"""A task that serves many connections and belongs to none: it lives with one of them, and moves when that ends.

So it needs no owner of its own, and there is none while there are no connections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from whispr.rpc.inbox import Waker

if TYPE_CHECKING:
    from whispr.rpc.transport import Transport


class Lodger(ABC):
    """Runs `work` as long as there are connections."""

    def __init__(self) -> None:
        self._homes: dict[Transport[Any], None] = {}
        self._host: Transport[Any] | None = None
        self._changed = Waker()

    def join(self, connection: Transport[Any]) -> None:
        """Serve a connection, which is running, until it leaves."""
        self._homes[connection] = None
        if self._host is None:
            self._live_with(connection)

    def leave(self, connection: Transport[Any]) -> None:
        """Serve it no longer."""
        self._homes.pop(connection, None)
        if connection is self._host:
            self._move()
            self._changed.wake()

    @abstractmethod
    async def work(self) -> None:
        """Do what there is to do, then wait on `_changed` for more."""

    def _move(self) -> None:
        self._host = None
        for other in self._homes:
            self._live_with(other)
            break

    def _live_with(self, connection: Transport[Any]) -> None:
        self._host = connection
        connection.nursery.start_soon(self._run, connection, name=type(self).__name__)

    async def _run(self, host: Transport[Any]) -> None:
        try:
            while self._host is host:
                await self.work()
        finally:
            if self._host is host:
                # The connection is being cancelled, and may take its time over it: others need not wait for that.
                self._homes.pop(host, None)
                self._move()
