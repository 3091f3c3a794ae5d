"""What the processes that serve streams tell each other, at once and at most once, over the bus.

News (started, metadata_updated, …) go on to readers of SubscribeToStreamEvents and, from the process where they
happen, to the sockets that joined the stream. Orders are for the processes that have listeners or the source. What
an order is about is in PostgreSQL before it is given, and looked at again every `RECHECK_S` by who must obey: an
order that is lost delays, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog
import trio

from whispr.adapters.bus import Bus

SUBJECT: Final = "whispr.streams.notices"

PUT_OUT: Final = "put_out"
"""Order: end the listeners that `data` names by listener_id or user_id, for its reason."""
WISH: Final = "wish"
"""Order: a person's listeners want another quality or volume."""
LOOK: Final = "look"
"""Order: what the source's process must do has changed: read the stream again."""
RECONSIDER: Final = "reconsider"
"""Order: who may listen has changed: check everybody again."""
BARRED: Final = "barred"
"""Order: an address, called `mark`, may not come back to the stream for a while."""
ORDERS: Final = frozenset({PUT_OUT, WISH, LOOK, RECONSIDER, BARRED})

log = structlog.get_logger("whispr.stream")


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """One thing said of a stream."""

    stream_id: str
    kind: str
    data: Mapping[str, Any] = {}


OnNotice = Callable[[Notice], None]


class Notices:
    """The mouth and the ears of one process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._callbacks: list[OnNotice] = []

    def on(self, callback: OnNotice) -> None:
        """Call `callback` with each notice, of this process too; it must not block or raise."""
        self._callbacks.append(callback)

    def tell(self, notice: Notice) -> None:
        """Tell every process, this one at once."""
        self._hear(notice)
        self._bus.publish(SUBJECT, msgspec.json.encode(notice))

    def _hear(self, notice: Notice) -> None:
        for callback in self._callbacks:
            callback(notice)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the others until cancelled. Started once it hears them."""
        async with self._bus.subscribe(SUBJECT) as messages:
            task_status.started()
            async for message in messages:
                try:
                    self._hear(msgspec.json.decode(message.payload, type=Notice))
                except (msgspec.MsgspecError, ValueError, TypeError) as error:
                    # Also what a process of another version means by it.
                    log.warning("notice_unreadable", error=str(error))
