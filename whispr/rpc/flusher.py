"""Has what calls of many connections say written, once for all that is said in one round of Trio's loop.

A writer for each connection would be a task, which takes 2 KiB, for something that hardly ever has to wait:
only what a socket does not take at once needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whispr.rpc.lodger import Lodger

if TYPE_CHECKING:
    from whispr.rpc.transport import Transport


class Flusher(Lodger):
    """Writes for the connections that have something to say."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: dict[Transport[Any], None] = {}

    def ask(self, connection: Transport[Any]) -> None:
        """Have what a connection has to say written soon."""
        self._asking[connection] = None
        self._changed.wake()

    async def work(self) -> None:
        """Write, and wait for more to write."""
        if self._asking:
            asking, self._asking = self._asking, {}
            for connection in asking:
                try:
                    connection.write_now()
                except Exception as error:  # noqa: BLE001  # a defect met on one connection must not end the others
                    connection.fail(error)
        else:
            await self._changed.wait()
