"""All consumers of one process: which of them it may run, and running them.

Any number of processes share a consumer by taking turns at it: one of them holds its lease and runs it, the others
look every second whether it has become free. A process that stops gives its leases back, so that another goes on
at once; one that dies is followed after LEASE_S at the latest. So an event is never handled in two places, and the
order of what it is about holds over all of them. It is handlers that scale, by `concurrency`, and consumers, which
different processes may hold; a single consumer is as fast as one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import structlog
import trio

from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.errors import WhisprError
from whispr.events import metrics
from whispr.events.consumer import Consumer
from whispr.events.ledger import Ledger
from whispr.events.pace import Pace
from whispr.events.runner import Runner
from whispr.events.streams import Streams

LEASE_S = 5.0
"""How long a consumer stays with a process that says nothing more."""
RENEW_S = 1.0
"""How often leases are renewed, and sought."""
MARGIN_S = 0.5
"""How long before its lease ends a process stops, should it not have been renewed."""
PRUNE_S = 30.0
RELEASE_S = 1.0

assert 2 * RENEW_S + MARGIN_S < LEASE_S, "one renewal may fail"

log = structlog.get_logger("whispr.consumers")


class Consumers:
    """This process's consumers; `run` is their task."""

    def __init__(
        self,
        db: Postgres,
        jetstream: JetStream,
        streams: Streams,
        consumers: Sequence[Consumer],
        *,
        pace: Pace | None = None,
    ) -> None:
        names = [consumer.name for consumer in consumers]
        assert len(names) == len(set(names)), f"two consumers of one name in {names}"
        self._db = db
        self._ledger = Ledger(db, str(uuid4()))
        self._pace = pace or Pace(0)
        self._runners = {
            consumer.name: Runner(consumer, self._ledger, jetstream, streams, self._pace)
            for consumer in consumers
        }
        self._scopes: dict[str, trio.CancelScope] = {}
        self._rounds: dict[str, trio.CancelScope] = {}
        self._draining = False

    @property
    def held(self) -> list[str]:
        """Names of the consumers that run here now."""
        return list(self._scopes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the consumers whose leases this process gets, until cancelled; then give the leases back."""
        task_status.started()
        if not self._runners:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._prune)
                while True:
                    await self._renew(nursery)
                    await trio.sleep(RENEW_S)
        finally:
            with trio.move_on_after(RELEASE_S, shield=True):
                await self._released()

    def runner(self, name: str) -> Runner:
        """Return what runs a consumer of this process."""
        return self._runners[name]

    async def drain(self) -> None:
        """Take up no more events, and wait for the handlers that run."""
        self._draining = True
        async with trio.open_nursery() as nursery:
            for name in self._scopes:
                nursery.start_soon(self._runners[name].drain)

    async def _released(self) -> None:
        try:
            await self._ledger.release()
        except WhisprError as error:
            log.info("leases_not_released", error=error.message)

    async def _renew(self, nursery: trio.Nursery) -> None:
        """Renew and seek leases once; start what came, and see to what operators ask for."""
        asked_at = trio.current_time()
        try:
            with trio.fail_after(LEASE_S):
                held = await self._ledger.lease(list(self._runners), LEASE_S)
                letters = await self._ledger.to_revive(held.names)
                dead = await self._ledger.dead(held.names)
        except (WhisprError, trio.TooSlowError) as error:
            log.info("leases_not_renewed", error=str(error))
            return
        for name in held.names:
            metrics.DEAD_LETTERS.labels(name).set(dead.get(name, 0))
            self._keep_running(name, asked_at + LEASE_S - MARGIN_S, nursery)
            self._runners[name].revive(letter for letter in letters if letter.consumer == name)
        for name in held.replays & self._rounds.keys():
            self._rounds[name].cancel(reason="it is to start over")

    def _keep_running(self, name: str, until: float, nursery: trio.Nursery) -> None:
        scope = self._scopes.get(name)
        if scope is not None:
            scope.deadline = until
        elif not self._draining:
            scope = self._scopes[name] = trio.CancelScope(deadline=until)
            nursery.start_soon(self._run_held, name, scope)

    async def _run_held(self, name: str, scope: trio.CancelScope) -> None:
        """Run a consumer until its lease ends, from the start again when somebody asks for that."""
        log.info("consumer_held", consumer=name)
        gauge = metrics.HELD.labels(name)
        gauge.set(1)
        try:
            with scope:
                while True:
                    await self._round(name)
        except Exception:
            # A consumer that fails must not take the process with it; the next renewal tries again.
            log.exception("consumer_failed", consumer=name)
        finally:
            gauge.set(0)
            del self._scopes[name]
            log.info("consumer_left", consumer=name)

    async def _round(self, name: str) -> None:
        """Run a consumer until it is to start over, or has lost its lease."""
        runner = self._runners[name]
        async with self._db.transaction() as tx:
            if await self._ledger.start_over(tx, name, runner.streams):
                log.info("consumer_starts_over", consumer=name)
                if runner.consumer.reset is not None:
                    await runner.consumer.reset(tx)
        with trio.CancelScope() as self._rounds[name]:
            await runner.run()
        if not self._rounds.pop(name).cancelled_caught:
            self._scopes[name].cancel(reason="somebody else has it")

    async def _prune(self) -> None:
        while True:
            await trio.sleep(PRUNE_S)
            try:
                while await self._ledger.prune():
                    await self._pace.did(1)
            except WhisprError as error:
                log.info("not_pruned", error=error.message)
