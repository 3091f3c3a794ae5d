"""Deadlines, cancellation and lost connections, on a mock clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.errors import Code, WhisprError
from whispr.http2 import events
from whispr.http2.errors import ErrorCode
from whispr.http2.limits import Limits
from whispr.rpc.call import current_call
from whispr.rpc.channel import open_channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.testing import MemoryNetwork, open_rpc_pair

Connect = Callable[[RpcServer], Awaitable[Any]]
Unary = Callable[[Callable[[Any], Any]], Any]


class Watch:
    """A handler that waits for ever and notes how it ended."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.ended = trio.Event()
        self.deadline = 0.0
        self.error: BaseException | None = None

    async def __call__(self, _: Any) -> Any:
        self.deadline = trio.current_effective_deadline()
        self.started.set()
        try:
            await trio.sleep_forever()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


async def test_the_deadline_travels(autojump_clock: MockClock, echo: Any, unary: Unary) -> None:
    """`fail_after(5)` bounds the handler too: it runs under the same deadline, on its own side."""
    watch = Watch()
    async with open_rpc_pair([unary(watch)]) as pair:
        start = trio.current_time()
        with pytest.raises(trio.TooSlowError), trio.fail_after(5):
            await echo.Stub(pair.channel).Say(echo.Message())
        assert trio.current_time() - start == pytest.approx(5)
        assert watch.deadline - start == pytest.approx(5, abs=0.01)
        await watch.ended.wait()
        assert isinstance(watch.error, trio.Cancelled)


async def test_a_nested_call_inherits_what_is_left(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """Two seconds into a call of five, the next service gets three."""
    inner = Watch()
    async with open_rpc_pair([unary(inner)]) as behind:

        async def relay(message: Any) -> Any:
            await trio.sleep(2)
            return await echo.Stub(behind.channel).Say(message)

        async with open_rpc_pair([unary(relay)]) as front:
            start = trio.current_time()
            with trio.move_on_after(5):
                await echo.Stub(front.channel).Say(echo.Message())
            await inner.ended.wait()
        assert inner.deadline - start == pytest.approx(5, abs=0.01)
        assert isinstance(inner.error, trio.Cancelled)


async def test_the_server_enforces_the_deadline_itself(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """A client that does not cancel gets DEADLINE_EXCEEDED, and the handler Trio's Cancelled."""
    watch = Watch()
    client = await raw_client(RpcServer([unary(watch)]))
    fields = await client.outcome(await client.call({"grpc-timeout": "250m"}))
    assert fields["grpc-status"] == "4"
    assert isinstance(watch.error, trio.Cancelled)
    assert trio.current_time() == pytest.approx(0.25, abs=0.01)


async def test_a_stubs_call_gets_deadline_exceeded_from_the_server(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """When the server's deadline is the nearer one, its status is what the caller catches."""

    async def say(_: Any) -> Any:
        with trio.fail_after(1):
            await trio.sleep_forever()

    async with open_rpc_pair([unary(say)]) as pair:
        with pytest.raises(WhisprError) as caught, trio.fail_after(5):
            await echo.Stub(pair.channel).Say(echo.Message())
        assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_a_stream_has_a_deadline_too(autojump_clock: MockClock, echo: Any) -> None:
    """A server stream that goes on past its deadline ends there."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            while True:
                yield echo.Message()
                await trio.sleep(1)

    received = 0
    async with open_rpc_pair([Handlers()]) as pair:
        with trio.move_on_after(3.5):
            async with echo.Stub(pair.channel).Repeat(echo.Message()) as call:
                async for _ in call:
                    received += 1
    assert received == 4


async def test_a_deadline_already_passed_sends_nothing(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """The call is cancelled before a stream is opened."""
    watch = Watch()
    async with open_rpc_pair([unary(watch)]) as pair:
        with trio.move_on_after(0) as scope:
            await echo.Stub(pair.channel).Say(echo.Message())
        assert scope.cancelled_caught
        await wait_all_tasks_blocked()
        assert not watch.started.is_set()


async def test_cancelling_the_caller_cancels_the_handler_at_once(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """RST_STREAM(CANCEL) reaches the handler as Trio's Cancelled, without time passing."""
    watch = Watch()
    async with open_rpc_pair([unary(watch)]) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message())
        await watch.started.wait()
        before = trio.current_time()
        nursery.cancel_scope.cancel(reason="the test says so")
        with trio.CancelScope(shield=True):
            await watch.ended.wait()
        assert trio.current_time() == before
        assert isinstance(watch.error, trio.Cancelled)


async def test_a_reset_from_a_raw_client(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """Purerpc's server let the handler run on."""
    watch = Watch()
    client = await raw_client(RpcServer([unary(watch)]))
    stream_id = await client.call()
    await watch.started.wait()
    client.core.reset(stream_id, ErrorCode.CANCEL)
    await client.send()
    await watch.ended.wait()
    assert isinstance(watch.error, trio.Cancelled)


async def test_the_scope_says_why(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """The cancellation carries a reason."""
    watch = Watch()
    client = await raw_client(RpcServer([unary(watch)]))
    stream_id = await client.call()
    await watch.started.wait()
    client.core.reset(stream_id, ErrorCode.CANCEL)
    await client.send()
    await watch.ended.wait()
    assert isinstance(watch.error, trio.Cancelled)
    assert watch.error.reason == "the client cancelled the call"


async def test_a_lost_connection_cancels_handlers_and_fails_callers(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """Both sides know at once: Cancelled here, UNAVAILABLE there; purerpc's client hung for ever."""
    watch = Watch()
    errors: list[WhisprError] = []

    async with open_rpc_pair([unary(watch)]) as pair:

        async def call() -> None:
            with pytest.raises(WhisprError) as caught:
                await echo.Stub(pair.channel).Say(echo.Message())
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)
            await watch.started.wait()
            await wait_all_tasks_blocked()
            before = trio.current_time()
            await pair.network.cut()
        assert trio.current_time() == before
        assert [error.code for error in errors] == [Code.UNAVAILABLE] * 3
        await watch.ended.wait()
        assert isinstance(watch.error, trio.Cancelled)


async def test_the_channel_reconnects(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """The next call after a lost connection makes a new one."""
    async with open_rpc_pair([handlers]) as pair:
        stub = echo.Stub(pair.channel)
        await stub.Say(echo.Message())
        await pair.network.cut()
        await wait_all_tasks_blocked()
        await stub.Say(echo.Message())
        assert pair.network.connections_made == 2


async def test_while_the_server_is_away_calls_fail_fast_with_backoff(
    autojump_clock: MockClock, echo: Any, handlers: Any
) -> None:
    """The first call tries, the next fails at once, and after the backoff one tries again."""
    async with open_rpc_pair([handlers]) as pair:
        stub = echo.Stub(pair.channel)
        pair.network.reachable = False
        for _ in range(2):
            with pytest.raises(WhisprError) as caught:
                await stub.Say(echo.Message())
            assert caught.value.code is Code.UNAVAILABLE
            assert "connection refused" in caught.value.message
        pair.network.reachable = True
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message())
        await trio.sleep(caught.value.retry_after_s or 0)
        await stub.Say(echo.Message())


async def test_a_channel_may_wait_for_ready(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """Then calls outlast the server's absence, for as long as their scopes let them."""
    async with trio.open_nursery() as nursery:
        network = MemoryNetwork(RpcServer([handlers]), nursery)
        network.reachable = False
        async with open_channel("away:1", connect=network.connect, wait_for_ready=True) as channel:
            stub = echo.Stub(channel)
            with trio.move_on_after(10) as scope:
                await stub.Say(echo.Message())
            assert scope.cancelled_caught
            async with trio.open_nursery() as calls:
                calls.start_soon(stub.Say, echo.Message())
                await wait_all_tasks_blocked()
                network.reachable = True
        nursery.cancel_scope.cancel(reason="done")


async def test_an_interceptors_deadline_is_the_one_sent(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """A policy that opens a nearer scope around the call bounds the server too."""

    async def three_seconds(call: Any, proceed: Any) -> Any:
        with trio.fail_after(3):
            return await proceed()

    watch = Watch()
    async with open_rpc_pair([unary(watch)], channel_interceptors=[three_seconds]) as pair:
        with pytest.raises(trio.TooSlowError):
            await echo.Stub(pair.channel).Say(echo.Message())
        await watch.ended.wait()
    assert watch.deadline == pytest.approx(3, abs=0.01)


async def test_backoff_grows_to_its_limit(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """1 s, then 1.6 times as long each time, at most 120 s, each within 20 %."""
    waits = []
    async with open_rpc_pair([handlers]) as pair:
        pair.network.reachable = False
        for _ in range(14):
            with pytest.raises(WhisprError):
                await echo.Stub(pair.channel).Say(echo.Message())
            with pytest.raises(WhisprError) as caught:
                await echo.Stub(pair.channel).Say(echo.Message())
            waits.append(caught.value.retry_after_s or 0)
            await trio.sleep(waits[-1] + 0.001)
    for n, wait in enumerate(waits):
        plain = min(1.6**n, 120)
        assert plain * 0.79 < wait < plain * 1.21


async def test_a_peer_that_never_says_http2(autojump_clock: MockClock) -> None:
    """A client that connects and is silent is cut off after the handshake time; so is a silent server."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([], limits=RpcLimits(handshake_s=10)).serve_stream, far)
        while await near.receive_some():
            pass
    assert trio.current_time() == pytest.approx(10)


async def test_a_server_that_never_says_http2(autojump_clock: MockClock, echo: Any) -> None:
    """Connecting gives up after the handshake time with UNAVAILABLE."""
    ends = []

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ends.append(trio.testing.memory_stream_pair())
        return ends[-1][0]

    async with open_channel("silent:1", connect=connect, limits=RpcLimits(handshake_s=7)) as channel:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message())
    assert caught.value.code is Code.UNAVAILABLE
    assert trio.current_time() == pytest.approx(7)


async def test_drain_lets_calls_finish(autojump_clock: MockClock, echo: Any, unary: Unary) -> None:
    """A drain waits for the call in progress, refuses none that was on its way, and then closes."""

    async def say(message: Any) -> Any:
        await trio.sleep(3)
        return message

    async with open_rpc_pair([unary(say)]) as pair:
        stub = echo.Stub(pair.channel)
        replies = []

        async def call() -> None:
            replies.append(await stub.Say(echo.Message(n=1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await pair.server.drain()
            assert replies
        assert trio.current_time() == pytest.approx(3, abs=0.1)
        with pytest.raises(WhisprError) as caught:
            await stub.Say(echo.Message())
        assert caught.value.code is Code.UNAVAILABLE


async def test_a_drain_that_is_cancelled_ends_what_is_left(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """Past the drain's deadline handlers are cancelled and their callers hear UNAVAILABLE."""
    watch = Watch()
    async with open_rpc_pair([unary(watch)]) as pair, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(WhisprError, match="shutting down"):
                await echo.Stub(pair.channel).Say(echo.Message())

        nursery.start_soon(call)
        await watch.started.wait()
        with trio.move_on_after(2) as scope:
            await pair.server.drain()
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(2, abs=0.1)
        assert isinstance(watch.error, trio.Cancelled)


async def test_handlers_that_will_not_end_do_not_hold_up_the_end(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """A handler shielded for ten seconds costs a cancelled drain one, at most."""

    async def say(_: Any) -> Any:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)

    async with open_rpc_pair([unary(say)]) as pair, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(WhisprError):
                await echo.Stub(pair.channel).Say(echo.Message())

        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await pair.server.drain()
        assert trio.current_time() == pytest.approx(2, abs=0.1)


async def test_a_graceful_goaway_does_not_kill_calls(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """The two steps on the wire: a warning that refuses nothing, PING, then GOAWAY with the last stream."""

    async def say(message: Any) -> Any:
        await trio.sleep(1)
        return message

    server = RpcServer([unary(say)])
    client = await raw_client(server)
    first = await client.call()
    await wait_all_tasks_blocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain)
        warning = await client.until(lambda event: isinstance(event, events.GoAwayReceived))
        assert warning.last_stream_id == 2**31 - 1
        final = await client.until(lambda event: isinstance(event, events.GoAwayReceived))
        assert final.last_stream_id == first
        assert (await client.outcome(first))["grpc-status"] == "0"
        await client.closed()


async def test_reset_calls_count_until_their_handlers_end(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """Rapid reset: handlers that take time to unwind are bounded by the stream limit all the same."""
    running, peak = 0, 0

    async def say(_: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            running -= 1

    server = RpcServer(
        [unary(say)], limits=RpcLimits(http2=Limits(streams_max=10, control_frames_burst=10_000))
    )
    client = await raw_client(server)
    for _ in range(200):
        stream_id = await client.call()
        await wait_all_tasks_blocked()
        client.core.reset(stream_id, ErrorCode.CANCEL)
        await client.send()
    assert 0 < peak <= 10
    await trio.sleep(2)
    assert running == 0


async def test_current_call_deadline_is_the_callers(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """A handler can read how long its caller will wait."""

    async def say(_: Any) -> Any:
        return echo.Message(n=round(current_call().deadline - trio.current_time()))

    async with open_rpc_pair([unary(say)]) as pair:
        with trio.fail_after(40):
            assert (await echo.Stub(pair.channel).Say(echo.Message())).n == 40
