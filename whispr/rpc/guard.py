"""What a channel's calls go through on their way out: the policies of `whispr.resilience`.

Every method has rules. Whether a call may be made again is the proto's to say (`idempotency_level`): a method that
does not say is called once, and only one without side effects is hedged.

Theory of operation. Nearly every call finds its target calm and a place free in the bulkhead. Such a call goes the
short way: it costs a few comparisons, and opens no scope. Its deadline goes out with it, the connection looks for
calls that are overdue all the same, and when the breaker trips the channel ends its calls itself. Any other call
goes through `Target.run`; what is left of one whose first attempt has failed, through `resume`.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import trio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from whispr.errors import WhisprError
from whispr.resilience.policy import Attempt, Deadline, compose
from whispr.resilience.target import CallRules, Rules, Target

if TYPE_CHECKING:
    from whispr.rpc.client_call import ClientCall

T = TypeVar("T")

_UNGUARDED = "/grpc."
"""Health checks find out how a server is: they go past its breaker, and so does whatever else is gRPC's own."""


class Guard:
    """The policies of one method's calls."""

    __slots__ = ("_rules", "in_flight_max", "limit_s", "target")

    def __init__(self, target: Target, rules: CallRules) -> None:
        self.target = target
        self._rules = rules
        self.in_flight_max = 0 if rules.hedge_s else target.bulkhead.rules.in_flight_max
        """Calls on the target up to which one goes the short way; none do where they are hedged."""
        self.limit_s = rules.deadline_s
        """What a call may take, however far the deadline of its caller is."""

    # --- The short way, of which the stub does the beginning and the end of a good call itself --------------

    def succeeded(self, ticket: int) -> None:
        """A call has been answered that went the short way, on a target that was not calm any more."""
        target = self.target
        target.limiting.leave()
        target.budget.succeeded()
        target.breaker.succeeded(ticket)
        target.settle()

    def failed(self, ticket: int, error: WhisprError) -> None:
        """A call that went the short way has failed."""
        target = self.target
        target.limiting.leave()
        target.breaking.ended(ticket, error)
        target.rejected(error)

    def given_up(self, ticket: int, call: ClientCall) -> None:
        """The caller of a call that went the short way waits no longer."""
        self.target.limiting.leave()
        late = trio.current_time() >= call.deadline
        self.target.breaking.given_up(ticket, perf_counter() - call.begun_at, late)

    async def resume(self, error: WhisprError, call: ClientCall, attempt: Attempt[T]) -> T:
        """Make a call again that failed on the short way, if there is a point in it; else raise its `error`."""
        target = self.target
        left_s = max(0.0, self.limit_s - (perf_counter() - call.begun_at))
        inner = compose(target.breaking, target.limiting)
        retry = target.retrying(self._rules)
        outer = Deadline(target.name, left_s)
        try:
            return await outer.run(lambda: retry.resume(error, lambda: inner.run(attempt)))
        finally:
            target.settle()

    # --- The long way -------------------------------------------------------------------------------------

    async def run(self, attempt: Attempt[T]) -> T:
        """Make a call. Raises as `Target.run`."""
        return await self.target.run(attempt, self._rules)

    # --- Streams ------------------------------------------------------------------------------------------

    def admit(self) -> int:
        """A ticket for a call that streams. Raises UNAVAILABLE (breaker_open)."""
        try:
            return self.target.breaking.admit()
        except WhisprError as error:
            self.target.rejected(error)
            raise

    def stream_ended(self, ticket: int, call: ClientCall) -> None:
        """A call that streams is over, or is about to be abandoned."""
        if call.error is not None:
            self.target.breaking.ended(ticket, call.error)
            self.target.rejected(call.error)
        elif call.ended or call.initial_metadata is not None:
            self.target.breaker.succeeded(ticket)
        else:
            self.target.breaker.abandoned(ticket)


def guard_of(target: Target | None, rules: Rules, method: str) -> Guard | None:
    """The guard of "/package.Service/Method"; None for calls that are not guarded."""
    if target is None or method.startswith(_UNGUARDED):
        return None
    short = method.rpartition(".")[2]
    return Guard(target, allowed(rules.of_call(target.name, short), method))


def allowed(rules: CallRules, method: str) -> CallRules:
    """The rules, as far as the proto's `idempotency_level` lets a method be called more than once."""
    level = _idempotency(method)
    if level == MethodOptions.NO_SIDE_EFFECTS:
        return rules
    if level == MethodOptions.IDEMPOTENT:
        return replace(rules, hedge_s=0.0)
    return replace(rules, retry=replace(rules.retry, attempts=1), hedge_s=0.0)


def _idempotency(method: str) -> int:
    service_name, _, method_name = method.removeprefix("/").rpartition("/")
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        return int(service.methods_by_name[method_name].GetOptions().idempotency_level)
    except KeyError:
        return int(MethodOptions.IDEMPOTENCY_UNKNOWN)
