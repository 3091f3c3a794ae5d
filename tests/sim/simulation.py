"""One deterministic run of a server and a channel over a faulty network, from a seed.

The seed decides everything: what calls are made, what the handlers do, what happens to the bytes, in which order
tasks run. Time is mocked. `simulate` returns how each call ended, so that two runs of a seed can be compared.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import purerpc
import structlog.testing
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import StringValue

from whispr.errors import Code, WhisprError
from whispr.http2.limits import Limits
from whispr.rpc.call import current_call
from whispr.rpc.channel import Channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.stubs import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from whispr.testing import Faults, open_rpc_pair

SERVICE = "whispr.test.Simulated"
CALLS = 40
PATIENCE_S = 600.0
"""How long everything may take, on the mocked clock, before it counts as hanging."""
DEADLINE_S = 30.0

GENTLE = (Faults(), Faults(delay_s=0.5), Faults(split=0.9), Faults(delay_s=0.5, split=0.9))
"""What loses nothing: every call ends as if there were no faults."""

ROUGH = (
    Faults(delay_s=0.2, split=0.5, drop=0.02),
    Faults(delay_s=0.2, split=0.5, cut=0.02),
    Faults(delay_s=0.2, split=0.5, garble=0.02),
    Faults(delay_s=0.2, split=0.5, drop=0.01, cut=0.01, garble=0.01),
    Faults(drop=0.2),
    Faults(cut=0.2),
    Faults(garble=0.2),
)


@dataclass
class Trace:
    """What happened."""

    ended: dict[int, str] = field(default_factory=dict)
    """How each call ended; "wrong: …" for a success with the wrong answer."""
    unexpected: list[str] = field(default_factory=list)
    """Calls that ended twice, or in what is no documented error."""
    crashed: int = 0
    """Handlers that crashed, as asked; each is logged, and nothing else is."""
    errors_logged: int = 0
    handlers_started: int = 0
    handlers_ended: int = 0
    tasks_left: int = 0
    ended_at: float = 0.0

    def end(self, call: int, how: str) -> None:
        if call in self.ended:
            self.unexpected.append(f"call {call} ended twice: {self.ended[call]}, {how}")
        self.ended[call] = how


class Simulated(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
    """Does what each message says: "sleep 3", "fail 5", "crash", or anything else to be echoed."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    @property
    def service(self) -> purerpc.Service:
        service = purerpc.Service(SERVICE)
        for kind in ("UNARY_UNARY", "UNARY_STREAM", "STREAM_UNARY", "STREAM_STREAM"):
            signature = purerpc.RPCSignature(purerpc.Cardinality[kind], StringValue, StringValue)
            service.add_method(kind, getattr(self, kind.lower()), signature)
        return service

    async def _do(self, message: StringValue) -> StringValue:
        try:
            return await self._done(message)
        except (ValueError, AssertionError):
            # A garbled number: the handler crashes of its own accord.
            self._trace.crashed += 1
            raise

    async def _done(self, message: StringValue) -> StringValue:
        verb, _, number = message.value.partition(" ")
        if verb == "sleep":
            await trio.sleep(int(number))
        elif verb == "fail":
            raise WhisprError(Code(int(number)), "as asked")
        elif verb == "crash":
            self._trace.crashed += 1
            raise RuntimeError("as asked")
        return message

    async def unary_unary(self, message: StringValue) -> StringValue:
        with _counted(self._trace):
            return await self._do(message)

    async def unary_stream(self, message: StringValue) -> AsyncIterator[StringValue]:
        with _counted(self._trace):
            for part in message.value.split(","):
                yield await self._do(StringValue(value=part))

    async def stream_unary(self, messages: Any) -> StringValue:
        with _counted(self._trace):
            parts = [(await self._do(message)).value async for message in messages]
            return StringValue(value=",".join(parts))

    async def stream_stream(self, messages: Any) -> AsyncIterator[StringValue]:
        with _counted(self._trace):
            async for message in messages:
                yield await self._do(message)


class _counted:  # noqa: N801  # a context manager, used like a function
    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __enter__(self) -> None:
        assert current_call().method.startswith(f"/{SERVICE}/")
        self._trace.handlers_started += 1

    def __exit__(self, *_: object) -> None:
        self._trace.handlers_ended += 1


# --- Calls ------------------------------------------------------------------------------------------------

Parts = list[str]


async def _unary_unary(channel: Channel, parts: Parts) -> Parts:
    method = UnaryUnary[StringValue, StringValue](channel, f"/{SERVICE}/UNARY_UNARY", StringValue)
    return [(await method(StringValue(value=parts[0]))).value]


async def _unary_stream(channel: Channel, parts: Parts) -> Parts:
    method = UnaryStream[StringValue, StringValue](channel, f"/{SERVICE}/UNARY_STREAM", StringValue)
    async with method(StringValue(value=",".join(parts))) as call:
        return [reply.value async for reply in call]


async def _stream_unary(channel: Channel, parts: Parts) -> Parts:
    method = StreamUnary[StringValue, StringValue](channel, f"/{SERVICE}/STREAM_UNARY", StringValue)
    async with method() as call:
        for part in parts:
            await call.send(StringValue(value=part))
        return (await call.response()).value.split(",")


async def _stream_stream(channel: Channel, parts: Parts) -> Parts:
    method = StreamStream[StringValue, StringValue](channel, f"/{SERVICE}/STREAM_STREAM", StringValue)
    async with method() as call, trio.open_nursery() as nursery:

        async def send() -> None:
            for part in parts:
                await call.send(StringValue(value=part))
            await call.done_sending()

        nursery.start_soon(send)
        return [reply.value async for reply in call]


KINDS: tuple[Callable[[Channel, Parts], Awaitable[Parts]], ...] = (
    _unary_unary,
    _unary_stream,
    _stream_unary,
    _stream_stream,
)


@dataclass(frozen=True)
class Plan:
    """One call: when, what, and how long its caller waits."""

    starts_s: float
    kind: int
    parts: Parts
    deadline_s: float


def plan(chance: Random, orderly: bool) -> Plan:
    """A random call; an `orderly` one is bound to succeed."""
    kind = chance.randrange(len(KINDS))
    parts = [
        f"{chance.randrange(1000)}" + "x" * chance.choice((0, 10, 30_000))
        for _ in range(chance.randrange(1, 5))
    ]
    if not orderly:
        parts[-1] = chance.choice((parts[-1], "sleep 1", "sleep 100", "fail 5", "fail 9", "crash"))
    deadline_s = DEADLINE_S * 10 if orderly else chance.choice((0.0, 0.1, 1.0, DEADLINE_S))
    if kind == 0:
        parts = parts[-1:]
    return Plan(chance.uniform(0, 5), kind, parts, deadline_s)


async def make_call(channel: Channel, number: int, planned: Plan, garbled: bool, trace: Trace) -> None:
    """Make a call and note how it ended."""
    await trio.sleep(planned.starts_s)
    how = "deadline"
    with trio.move_on_after(planned.deadline_s):
        try:
            replies = await KINDS[planned.kind](channel, planned.parts)
            how = "ok" if replies == planned.parts or garbled else f"wrong: {replies} for {planned.parts}"
        except* WhisprError as errors:
            how = ",".join(
                sorted({error.code.name for error in errors.exceptions if isinstance(error, WhisprError)})
            )
        except* Exception as errors:  # noqa: BLE001  # whatever it is, it is what the test is looking for
            trace.unexpected.append(f"call {number}: {errors.exceptions!r}")
            how = "unexpected"
    trace.end(number, how)


async def _run(seed: int, faults: Faults, orderly: bool, trace: Trace) -> None:
    chance = Random(seed)
    # Few streams, so that some calls wait in line; small windows, so that large messages wait too.
    limits = RpcLimits(http2=Limits(streams_max=chance.choice((3, 1000))), backoff_s=0.5, backoff_s_max=2.0)
    tasks_before = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(PATIENCE_S):
        async with open_rpc_pair(
            [Simulated(trace)], server_limits=limits, channel_limits=limits, faults=faults, seed=seed
        ) as pair:
            async with trio.open_nursery() as calls:
                for number in range(CALLS):
                    planned = plan(chance, orderly)
                    calls.start_soon(make_call, pair.channel, number, planned, faults.garble > 0, trace)
            pair.network.faults = None
            with trio.move_on_after(DEADLINE_S):
                await pair.server.drain()
    await trio.testing.wait_all_tasks_blocked()
    trace.tasks_left = trio.lowlevel.current_statistics().tasks_living - tasks_before
    trace.ended_at = trio.current_time()


def simulate(seed: int, faults: Faults, *, orderly: bool = False) -> Trace:
    """Run one seed from beginning to end."""
    trace = Trace()
    # Trio shuffles the tasks of each turn, and channels jitter their backoff: both from the seed too.
    runner: Any = trio._core._run
    random.seed(seed)
    runner._ALLOW_DETERMINISTIC_SCHEDULING = True
    runner._r.seed(seed)
    try:
        with structlog.testing.capture_logs() as logged:
            trio.run(_run, seed, faults, orderly, trace, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        runner._ALLOW_DETERMINISTIC_SCHEDULING = False
        runner._r.seed()
        random.seed()
    trace.errors_logged = sum(entry["log_level"] == "error" for entry in logged)
    return trace
