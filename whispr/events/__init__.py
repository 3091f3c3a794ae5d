"""Events: a transactional outbox, its relay to JetStream, and durable consumers.

    async with db.transaction() as tx:
        ...                                                   # what is to be told
        await emit(tx, "user.events.profile_updated", about=user_id, actor=user_id, data={...})

    Consumer("search-index", ("messaging.events.message_sent",), self.index)

    async def index(self, event: Event) -> None:
        async with self._db.transaction() as tx:
            if not await once(tx, "search-index", event.id):
                return                                        # a repeat
            ...

An event is published if and only if its transaction committed, and reaches each consumer at least once, in
order per `about`; with `once` its effect happens exactly once.
"""

from pathlib import Path

from whispr.events.consumer import Consumer
from whispr.events.envelope import Event
from whispr.events.outbox import Batch, Expander, emit, emit_batch, once, once_each

MIGRATIONS = Path(__file__).parent / "migrations"

__all__ = ["MIGRATIONS", "Batch", "Consumer", "Event", "Expander", "emit", "emit_batch", "once", "once_each"]
