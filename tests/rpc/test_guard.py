"""Calls through the policies of their channel: retries, pushback, breakers, bulkheads, deadlines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rpc.raw_server import RawServer
from whispr.errors import Code, WhisprError, denied, unavailable
from whispr.http2.headers import encode
from whispr.resilience.breaker import BreakerRules, State
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.retry import Backoff, RetryRules
from whispr.resilience.target import CallRules, Rules, Target, TargetRules
from whispr.rpc.call import Metadata, current_call
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.guard import allowed
from whispr.rpc.health import SERVING, HealthCheckRequest, HealthServicer, HealthStub
from whispr.rpc.server import RpcServer
from whispr.testing import MemoryNetwork
from whispr.v1 import auth_pb2, messaging_pb2

CALLS = CallRules(retry=RetryRules(attempts=3, backoff=Backoff(0.1, 0.2)))
TRIPPING = TargetRules(breaker=BreakerRules(failures_in_a_row=3, open_s=1, open_s_max=1), hung_s=0)
AWAY = unavailable("away", retry_after_s=0)


@dataclass
class Guarded:
    """A channel with policies, and a server in memory behind it."""

    channel: Channel
    target: Target
    network: MemoryNetwork

    def state(self) -> State:
        """Of the breaker."""
        return self.target.breaker.state


@pytest.fixture
def serve(echo: Any) -> Callable[..., Any]:
    """A server of which Say and Ask are one function, and a guarded channel to it."""

    @asynccontextmanager
    async def make(
        function: Callable[[Any], Awaitable[Any]], calls: CallRules = CALLS, rules: TargetRules = TRIPPING
    ) -> AsyncIterator[Guarded]:
        class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
            async def Say(self, input_message: Any) -> Any:  # noqa: N802
                return await function(input_message)

            async def Ask(self, input_message: Any) -> Any:  # noqa: N802
                return await function(input_message)

            async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
                yield await function(input_message)

        health = HealthServicer()
        health.set("", SERVING)
        async with trio.open_nursery() as nursery:
            network = MemoryNetwork(RpcServer([Handlers(), health]), nursery)
            target = Target("echo", rules)
            async with open_channel(
                "memory", connect=network.connect, guarding=target, rules=Rules(call=calls)
            ) as channel:
                yield Guarded(channel, target, network)
            nursery.cancel_scope.cancel()

    return make


def ending(*outcomes: BaseException | None) -> Callable[[Any], Awaitable[Any]]:
    """A handler that ends like this, one call after another, and then well."""
    left = list(outcomes)

    async def handle(message: Any) -> Any:
        await trio.lowlevel.checkpoint()
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return message

    return handle


async def hang(_: Any) -> Any:
    await trio.sleep_forever()


async def test_what_is_idempotent_is_tried_again(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Two UNAVAILABLEs are not seen by the caller of a method that may be asked twice; of any other, the first is."""
    async with serve(ending(AWAY, AWAY)) as guarded:
        assert (await echo.Stub(guarded.channel).Ask(echo.Message(text="hi"))).text == "hi"
    async with serve(ending(AWAY)) as guarded:
        with pytest.raises(WhisprError, match="away"):
            await echo.Stub(guarded.channel).Say(echo.Message())


@pytest.mark.parametrize("hedge_s", [0.0, 60.0])
async def test_a_server_is_told_how_often_before(
    autojump_clock: MockClock, echo: Any, serve: Any, hedge_s: float
) -> None:
    """The first attempt says nothing, those after it their number: `grpc-previous-rpc-attempts` (gRFC A6)."""
    told: list[str | None] = []
    answer = ending(AWAY, AWAY)

    async def handle(message: Any) -> Any:
        told.append(current_call().metadata.text("grpc-previous-rpc-attempts"))
        return await answer(message)

    rules = CallRules(retry=RetryRules(attempts=3, backoff=Backoff(0.1, 0.2)), hedge_s=hedge_s)
    async with serve(handle, rules) as guarded:
        await echo.Stub(guarded.channel).Ask(echo.Message())
        await echo.Stub(guarded.channel).Ask(echo.Message())
    assert told == [None, "1", "2", None]


async def test_a_response_brings_its_head_along(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Whoever gets only the response may ask for the initial metadata beside it."""

    async def handle(message: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if message.text:
            current_call().set_initial([("whispr-stale", message.text)])
        return message

    async with serve(handle) as guarded:
        for text, expected in (("7", ["7"]), ("", [])):
            heads: list[Metadata] = []
            await echo.Stub(guarded.channel).Ask(echo.Message(text=text), heads=heads)
            assert [head.text("whispr-stale") for head in heads] == expected


async def test_a_refusal_is_final(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Only retryable codes are tried again, whatever the method."""
    async with serve(ending(denied("no"))) as guarded:
        with pytest.raises(WhisprError, match="no"):
            await echo.Stub(guarded.channel).Ask(echo.Message())


@pytest.mark.parametrize(("pushback", "calls", "waited_s"), [("1500", 2, 1.5), ("-1", 1, 0), ("soon", 1, 0)])
async def test_pushback_of_any_server_is_obeyed(
    autojump_clock: MockClock, echo: Any, pushback: str, calls: int, waited_s: float
) -> None:
    """`grpc-retry-pushback-ms` says when to come back, to the millisecond, or not to (gRFC A6)."""
    trailers = [("grpc-status", "14"), ("grpc-retry-pushback-ms", pushback)]
    head = [(":status", "200"), ("content-type", "application/grpc"), *trailers]
    server = RawServer(lambda core, stream_id, _: core.send_headers(stream_id, encode(head), end_stream=True))
    rules = Rules(call=CallRules(retry=RetryRules(attempts=2)))
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, far)
            await trio.lowlevel.checkpoint()
            return near

        async with open_channel("memory", connect=connect, guarding=Target("raw"), rules=rules) as channel:
            with pytest.raises(WhisprError):
                await echo.Stub(channel).Ask(echo.Message())
        nursery.cancel_scope.cancel()
    assert len(server.heads) == calls
    assert trio.current_time() == pytest.approx(waited_s)


async def test_a_call_has_the_deadline_of_its_rules(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """A caller without a deadline has one of five seconds: the server is told, and a silent one is not waited for."""
    told: list[float] = []

    async def handle(_: Any) -> Any:
        told.append(trio.current_effective_deadline() - trio.current_time())
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with serve(handle) as guarded:
        with pytest.raises(WhisprError) as late:
            await echo.Stub(guarded.channel).Ask(echo.Message())
    assert late.value.code is Code.DEADLINE_EXCEEDED
    assert told == [pytest.approx(5, abs=0.01)]
    assert trio.current_time() <= 60


async def test_a_silent_server_is_given_up(autojump_clock: MockClock, echo: Any) -> None:
    """Nothing comes back at all: the call fails within half a second of its limit, and counts against the server."""
    server = RawServer(lambda *_: None)
    target = Target("silent", TargetRules(breaker=BreakerRules(failures_in_a_row=1)))
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, far)
            await trio.lowlevel.checkpoint()
            return near

        async with open_channel("memory", connect=connect, guarding=target) as channel:
            with pytest.raises(WhisprError) as late:
                await echo.Stub(channel).Ask(echo.Message())
        nursery.cancel_scope.cancel()
    assert late.value.code is Code.DEADLINE_EXCEEDED
    assert 5 <= trio.current_time() <= 5.5
    assert target.breaker.state is State.OPEN


async def test_tripping_ends_what_waits(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Calls in progress, unary and streaming, fail at once as the breaker trips: UNAVAILABLE, breaker_open."""
    reasons: list[str] = []
    async with serve(hang) as guarded:
        stub = echo.Stub(guarded.channel)

        async def wait(method: Any) -> None:
            with pytest.raises(WhisprError) as ended:
                await method(echo.Message())
            assert ended.value.code is Code.UNAVAILABLE
            reasons.append(ended.value.reason)

        async def wait_stream() -> None:
            with pytest.raises(WhisprError) as ended:
                async with stub.Repeat(echo.Message()) as call:
                    async for _ in call:
                        pass
            reasons.append(ended.value.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait, stub.Ask)
                nursery.start_soon(wait, stub.Say)
            nursery.start_soon(wait_stream)
            await wait_all_tasks_blocked()
            for _ in range(3):
                guarded.target.breaker.failed(guarded.target.breaker.ticket)
        assert reasons == ["breaker_open"] * 7
        assert trio.current_time() < 1
        assert guarded.target.bulkhead.in_flight == 0
        with pytest.raises(WhisprError) as refused:
            async with stub.Repeat(echo.Message()):
                pass
        assert refused.value.reason == "breaker_open"


async def test_a_server_that_is_gone_trips_and_comes_back(
    autojump_clock: MockClock, echo: Any, serve: Any
) -> None:
    """Refused connections trip the breaker; a probe, once the server is there again, lets everybody in."""
    async with serve(ending()) as guarded:
        stub = echo.Stub(guarded.channel)
        guarded.network.reachable = False
        for _ in range(3):
            with pytest.raises(WhisprError):
                await stub.Say(echo.Message())
        assert guarded.state() is State.OPEN
        guarded.network.reachable = True
        with pytest.raises(WhisprError) as refused:
            await stub.Say(echo.Message())
        assert refused.value.reason == "breaker_open"
        await trio.sleep(2)
        await stub.Say(echo.Message())
        assert guarded.state() is State.CLOSED


async def test_deadlines_of_callers_trip(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """A server that hangs trips by its callers' deadlines; a caller that is cancelled otherwise says nothing."""
    async with serve(hang) as guarded:
        stub = echo.Stub(guarded.channel)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(stub.Say, echo.Message())
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert guarded.state() is State.CLOSED
        for _ in range(3):
            with trio.move_on_after(1):
                await stub.Say(echo.Message())
        assert guarded.state() is State.OPEN


async def test_a_server_that_answers_stays(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """What a server says of things behind it trips no breaker: its other methods may do well."""
    async with serve(ending(*[AWAY] * 20)) as guarded:
        for _ in range(20):
            with pytest.raises(WhisprError):
                await echo.Stub(guarded.channel).Say(echo.Message())
        assert guarded.state() is State.CLOSED


async def test_a_full_bulkhead_refuses(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Two in progress, one in line, and the fourth is refused; a place that is left is taken at once."""
    rules = TargetRules(bulkhead=BulkheadRules(in_flight_max=2, queue_len_max=1))
    go = trio.Event()

    async def handle(message: Any) -> Any:
        await go.wait()
        return message

    async with serve(handle, rules=rules) as guarded, trio.open_nursery() as nursery:
        stub = echo.Stub(guarded.channel)
        for _ in range(3):
            nursery.start_soon(stub.Say, echo.Message())
            await wait_all_tasks_blocked()
        with pytest.raises(WhisprError) as refused:
            await stub.Say(echo.Message())
        assert refused.value.reason == "bulkhead_full"
        go.set()
    assert guarded.target.bulkhead.in_flight == 0


async def test_a_slow_read_is_hedged(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """Where the rules say so, a method without side effects is asked again beside a slow answer; others never."""
    pauses = [30.0, 0.0, 1.0]
    calls = 0

    async def handle(message: Any) -> Any:
        nonlocal calls
        calls += 1
        await trio.sleep(pauses.pop(0))
        return message

    async with serve(handle, CallRules(hedge_s=0.1)) as guarded:
        await echo.Stub(guarded.channel).Ask(echo.Message())
        assert trio.current_time() == pytest.approx(0.1)
        await echo.Stub(guarded.channel).Say(echo.Message())
    assert calls == 3


async def test_health_is_asked_past_the_breaker(autojump_clock: MockClock, echo: Any, serve: Any) -> None:
    """An open breaker does not keep anybody from finding out how the server is."""
    async with serve(ending()) as guarded:
        for _ in range(3):
            guarded.target.breaker.failed(guarded.target.breaker.ticket)
        assert guarded.state() is State.OPEN
        assert (await HealthStub(guarded.channel).Check(HealthCheckRequest())).status == SERVING


def test_the_proto_says_what_may_be_done_twice() -> None:
    """Without a word of the proto a method is called once; idempotent ones are retried, and only reads hedged."""
    rules = CallRules(hedge_s=1)
    assert {auth_pb2, messaging_pb2}, "imported so that their services are registered"
    read = allowed(rules, "/whispr.v1.MessagingService/GetMessages")
    assert (read.retry.attempts, read.hedge_s) == (3, 1)
    again = allowed(rules, "/whispr.v1.MessagingService/MarkRead")
    assert (again.retry.attempts, again.hedge_s) == (3, 0)
    for once in (
        "/whispr.v1.MessagingService/SendMessage",
        "/whispr.v1.AuthService/Login",
        "/no.Such/Method",
    ):
        assert (allowed(rules, once).retry.attempts, allowed(rules, once).hedge_s) == (1, 0)
