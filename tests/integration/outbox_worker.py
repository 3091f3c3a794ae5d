"""A process with a relay and a consumer, in which something is killed at a step that the test chooses.

    python -m tests.integration.outbox_worker POSTGRES_URL NATS_URL STEP VICTIM_PID

At the first passing of STEP the process VICTIM_PID is killed with SIGKILL; 0 means this process itself. With the
step `none` nothing is killed. It runs until stdin ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import trio

from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream, Outgoing, StreamLimits
from whispr.adapters.postgres import Postgres, Transaction, open_postgres
from whispr.bridge import open_bridge
from whispr.errors import WhisprError
from whispr.events import Batch, Consumer, Event, consumers, once
from whispr.events.consumers import Consumers
from whispr.events.ledger import Ledger
from whispr.events.relay import Relay
from whispr.events.runner import Runner
from whispr.events.streams import Streams

STEPS = (
    "relay begins", "relay has the lock", "relay has read", "relay has published half", "relay has published",
    "relay has deleted", "relay has committed",
    "event has come", "handler begins", "handler has marked", "handler has its effect", "handler has committed",
    "event is done", "position is about to be kept", "position is kept",
)  # fmt: skip
CONSUMER = "effects"
SUBJECT = "messaging.events.counted"


class Steps:
    """Kills at the chosen step, the first time it is passed."""

    def __init__(self, chosen: str, victim: int) -> None:
        assert chosen == "none" or chosen in STEPS, chosen
        self._chosen, self._victim = chosen, victim

    def __call__(self, step: str) -> None:
        if step != self._chosen:
            return
        self._chosen = "none"
        os.kill(self._victim or os.getpid(), signal.SIGKILL)
        stat = Path(f"/proc/{self._victim}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            pass  # dead in a moment; the step must not be left before


class WatchedRelay(Relay):
    """A relay whose steps are seen."""

    steps: Steps

    async def _turn(self) -> int:
        self.steps("relay begins")
        published = await super()._turn()
        if published > 0:
            self.steps("relay has committed")
        return published

    async def _head(self, tx: Transaction) -> Any:
        self.steps("relay has the lock")
        rows = await super()._head(tx)
        self.steps("relay has read")
        return rows

    async def _delete(self, tx: Transaction, rows: Any) -> None:
        self.steps("relay has published")
        await super()._delete(tx, rows)
        self.steps("relay has deleted")


class WatchedJetStream(JetStream):
    """JetStream that is seen to publish one half, then the other."""

    steps: Steps

    async def publish(self, messages: Sequence[Outgoing]) -> list[WhisprError | None]:
        half = len(messages) // 2
        first = await super().publish(messages[:half])
        self.steps("relay has published half")
        # Within one publish each names the one before it, and is refused without it: so it is between halves.
        if lost := next((error for error in first if error is not None), None):
            return first + [lost] * (len(messages) - half)
        return first + await super().publish(messages[half:])


class WatchedRunner(Runner):
    """A runner whose steps are seen."""

    steps: Steps

    async def _admit(self, *args: Any) -> None:
        self.steps("event has come")
        await super()._admit(*args)

    def _close(self, work: Any) -> None:
        super()._close(work)
        self.steps("event is done")


class WatchedLedger(Ledger):
    """A ledger whose writing of positions is seen."""

    steps: Steps

    async def keep(self, *args: Any) -> bool:
        self.steps("position is about to be kept")
        kept = await super().keep(*args)
        self.steps("position is kept")
        return kept


def id_of(about: str, number: int) -> str:
    """The id of a numbered event, the same however often it is emitted."""
    return str(uuid5(NAMESPACE_OID, f"{about}/{number}"))


async def expand(tx: Transaction, batches: Sequence[Batch]) -> list[list[Event]]:
    """Make the events of batches."""
    await trio.lowlevel.checkpoint()
    return [
        [
            Event(
                id=id_of(batch.about, n), type="counted", time=batch.time, source="messaging",
                subject=batch.about, data={"n": n},
            )
            for n in batch.data["numbers"]
        ]
        for batch in batches
    ]  # fmt: skip


async def handle(db: Postgres, steps: Steps, event: Event) -> None:
    """Have an effect, once."""
    async with db.transaction() as tx:
        steps("handler begins")
        if not await once(tx, CONSUMER, event.id):
            return
        steps("handler has marked")
        await tx.execute("INSERT INTO effects (about, n) VALUES ($1, $2)", event.subject, event.data["n"])
        steps("handler has its effect")
    steps("handler has committed")


async def main(postgres_url: str, nats_url: str, step: str, victim: str) -> None:
    """Run until stdin ends."""
    steps = Steps(step, int(victim))
    for watched in (WatchedRelay, WatchedJetStream, WatchedRunner, WatchedLedger):
        watched.steps = steps
    consumers.LEASE_S, consumers.RENEW_S, consumers.MARGIN_S = 1.5, 0.2, 0.2
    vars(consumers).update(Ledger=WatchedLedger, Runner=WatchedRunner)
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, postgres_url, pool_size=4) as db,
        open_bus(bridge, nats_url) as bus,
        trio.open_nursery() as nursery,
    ):
        jetstream = WatchedJetStream(bus)
        streams = Streams(jetstream, StreamLimits(3600, 16 << 20, 600))
        await nursery.start(WatchedRelay(db, jetstream, streams, expanders={"numbers": expand}).run)
        handler = partial(handle, db, steps)
        consumer = Consumer(CONSUMER, (SUBJECT,), handler, retry_min_s=0.05, retry_max_s=1, attempts_max=100)
        await nursery.start(Consumers(db, jetstream, streams, [consumer]).run)
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            while await stdin.receive_some(4096):
                pass
        nursery.cancel_scope.cancel(reason="stdin ended")


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
