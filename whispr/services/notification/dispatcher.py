"""The dispatcher: takes deliveries that are due, sends them, and records what became of them.

Any number of processes may run it: each delivery is claimed by one. It is claimed ('sending') before the request is
made and settled after it; what a process leaves in between by dying counts as lost and is not sent again, for a
phone that rings twice for one message is worse than one that does not ring for what its app shows anyway. A process
that stops in order gives what is under way a few seconds to come to its end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import structlog
import trio
from prometheus_client import Counter as CounterMetric
from prometheus_client import Histogram

from whispr.errors import WhisprError
from whispr.services.notification.deliveries import Claim, Deliveries
from whispr.services.notification.domain import Platform, pause_s
from whispr.services.notification.senders.port import Delivered, Gone, Later, Outcome, Refused, Sender
from whispr.telemetry import tracing
from whispr.telemetry.live import LiveGauge

SEND_S = 10.0
"""How long a push service may take over one push."""
SETTLE_S = 5.0
"""How long recording an outcome may take."""
GRACE_S = 3.0
"""How long pushes under way may go on when the process stops."""
FLIGHTS_MAX = 64
"""Pushes under way at once."""
HOST_FLIGHTS_MAX = 8
"""Of these to one host that users named: however slow it is, it does not take the others' places."""
CROWDED_S = 1.0
"""When a push is looked at again whose host has as many under way as it may."""
ATTEMPTS_MAX = 6
POLL_S = 1.0
"""How often what other processes left is looked for."""
AWAY_S = 1.0
SWEEP_EVERY_S = 300.0

PUSHES = CounterMetric(
    "whispr_pushes_total", "Attempts to push, by platform and outcome.", ["platform", "outcome"]
)
SECONDS = Histogram("whispr_push_seconds", "Time that a push service took over one push.", ["platform"])

FLIGHTS = LiveGauge("whispr_pushes_in_flight", "Pushes under way to push services")

log = structlog.get_logger("whispr.notification")


class Bell:
    """Wakes a loop when there is work, or after a while. `ring` may come at any time, also before the wait."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or will."""
        self._rung.set()

    async def wait(self, at_most_s: float) -> None:
        """Wait until it rang or the time is over."""
        with trio.move_on_after(at_most_s):
            await self._rung.wait()
        self._rung = trio.Event()


class Dispatcher:
    """Sends what is due. `run` it; `wake` it when there is something new."""

    def __init__(
        self,
        deliveries: Deliveries,
        senders: Mapping[Platform, Sender],
        *,
        host_flights_max: int = HOST_FLIGHTS_MAX,
        attempts_max: int = ATTEMPTS_MAX,
        jitter: random.Random | None = None,
    ) -> None:
        self._deliveries = deliveries
        self._senders = senders
        self._host_flights_max = host_flights_max
        self._attempts_max = attempts_max
        self._jitter = jitter or random.Random()  # noqa: S311  # spreads load, keeps no secret
        self._bell = Bell()
        self._flights: set[trio.CancelScope] = set()
        self._hosts: Counter[str] = Counter()
        """Pushes under way to each host that users named."""
        self._settled = trio.Event()

    def wake(self) -> None:
        """Say that there may be something to send."""
        self._bell.ring()

    async def settled(self) -> None:
        """Wait until the next delivery here has been tried."""
        await self._settled.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send what is due until cancelled; what is under way then has GRACE_S to end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_for_ever)
            task_status.started()
            try:
                with FLIGHTS.watching(lambda: len(self._flights)):
                    await forever(lambda: self._send_due(nursery), self._bell)
            finally:
                for flight in self._flights:
                    flight.deadline = min(flight.deadline, trio.current_time() + GRACE_S)

    async def _send_due(self, nursery: trio.Nursery) -> float:
        """Claim and start what is due; return the seconds until there is more to do."""
        free = FLIGHTS_MAX - len(self._flights)
        if free <= 0:
            return POLL_S  # a flight that lands rings the bell
        claims = await self._deliveries.claim(free)
        crowded = [claim for claim in claims if not self._start(claim, nursery)]
        if crowded:
            await self._deliveries.put_back(crowded, CROWDED_S)
        if len(claims) == free:
            return 0.0 if crowded else POLL_S
        return min(POLL_S, max(0.0, await self._deliveries.seconds_to_next() or POLL_S))

    def _start(self, claim: Claim, nursery: trio.Nursery) -> bool:
        """Begin an attempt; False when its host has enough to do."""
        host = _host_of(claim)
        if host and self._hosts[host] >= self._host_flights_max:
            return False
        self._hosts[host] += 1
        scope = trio.CancelScope(shield=True, deadline=trio.current_time() + SEND_S + SETTLE_S)
        self._flights.add(scope)
        nursery.start_soon(self._fly, claim, scope, host)
        return True

    async def _fly(self, claim: Claim, scope: trio.CancelScope, host: str) -> None:
        """Make one attempt. Shielded, within its deadline, because a request that was made is to be recorded."""
        try:
            with scope:
                await self._attempt(claim)
        except Exception as error:  # the boundary to one push: what breaks must not end the others'
            # It stays 'sending' until its lease ends, and counts as lost then.
            expected = isinstance(error, WhisprError)
            log.warning("push_not_recorded", delivery_id=claim.id, error=repr(error), exc_info=not expected)
        finally:
            self._flights.discard(scope)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
            self._bell.ring()
            self._settled.set()
            self._settled = trio.Event()

    async def _attempt(self, claim: Claim) -> None:
        if claim.ttl_s <= 0:
            await self._deliveries.expire(claim)
            return
        outcome = await self._send(claim)
        again_after_s = None
        if isinstance(outcome, Later) and claim.attempts < self._attempts_max:
            pause = pause_s(claim.attempts, outcome.after_s, self._jitter)
            again_after_s = pause if pause < claim.ttl_s else None
        await self._deliveries.settle(claim, outcome, again_after_s)

    async def _send(self, claim: Claim) -> Outcome:
        target = claim.target
        if target is None:
            return Gone("the device is registered no more")
        sender = self._senders.get(target.platform)
        if sender is None:
            return Refused(f"{target.platform} is not set up")
        outcome: Outcome = Later(f"no answer within {SEND_S:g} s")
        name, about = f"push {target.platform}", {"whispr.delivery.id": claim.id}
        traced = tracing.continued(name, tracing.Kind.CLIENT, claim.push.trace, about)
        with traced as span, SECONDS.labels(target.platform).time(), trio.move_on_after(SEND_S):
            try:
                outcome = await sender.send(target, claim.push, claim.id, claim.ttl_s)
            except Exception:  # the boundary to senders: one that breaks must not end the others' pushes
                log.exception("sender_broke", platform=target.platform.value, delivery_id=claim.id)
                outcome = Refused("internal")
            if span is not None:
                span.set("whispr.delivery.outcome", _NAMES[type(outcome)])
        PUSHES.labels(target.platform, _NAMES[type(outcome)]).inc()
        return outcome

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                await self._deliveries.sweep()
            except WhisprError as error:
                log.warning("deliveries_not_swept", error=str(error))
            await trio.sleep(SWEEP_EVERY_S)


def _host_of(claim: Claim) -> str:
    """Return the host that a user named; empty for the operator's push services."""
    target = claim.target
    named = target is not None and target.platform in (Platform.WEBPUSH, Platform.WEBHOOK)
    return urlsplit(target.token).netloc if target is not None and named else ""


_NAMES: Mapping[type, str] = {Delivered: "delivered", Gone: "gone", Refused: "refused", Later: "later"}


async def forever(work: Callable[[], Awaitable[float]], bell: Bell) -> None:
    """Do `work` again and again: when the bell rings, and after as many seconds as it returns."""
    while True:
        try:
            pause = await work()
        except WhisprError as error:
            log.warning("notifications_wait", error=str(error))
            pause = AWAY_S
            await trio.sleep(pause)
        await bell.wait(pause)
