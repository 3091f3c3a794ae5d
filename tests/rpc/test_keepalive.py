"""Pings, ages and idle times of connections, on a clock that jumps."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.errors import Code, WhisprError
from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.keepalive import Keepalive
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]
Connect = Callable[[RpcServer], Awaitable[Any]]

FOREVER = Keepalive(server_ping_s=math.inf)


class Wire(trio.abc.Stream):
    """A stream that can go silent: what it is given vanishes, and nothing comes out."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self.silent = False
        self.sent = bytearray()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if not self.silent:
            self.sent += data
            await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        if self.silent:
            await trio.sleep_forever()
        return data

    async def aclose(self) -> None:
        await self._inner.aclose()

    def pings(self) -> int:
        """How many PINGs have been sent on it, acknowledgements apart."""
        return bytes(self.sent).count(b"\0\0\x08\x06\0\0\0\0\0")


@asynccontextmanager
async def wired(
    handlers: Any, limits: RpcLimits, server_limits: RpcLimits
) -> AsyncIterator[tuple[Channel, list[Wire]]]:
    """A server, a channel to it, and the client's ends of its connections."""
    server = RpcServer([handlers], limits=server_limits)
    wires: list[Wire] = []
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve_stream, far)
            wires.append(Wire(near))
            return wires[-1]

        async with open_channel("wire:1", connect=connect, limits=limits) as channel:
            yield channel, wires
        nursery.cancel_scope.cancel(reason="done")


async def hang(_: Any) -> Any:
    await trio.sleep_forever()


def test_pings_less_than_ten_seconds_apart_are_not_to_be_had() -> None:
    """Gentle servers would end the connection for them."""
    with pytest.raises(ValueError, match="client_ping_s 9"):
        Keepalive(client_ping_s=9)


async def test_a_client_finds_out_that_its_server_is_gone(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """30 s of silence, a ping, 20 s more: the call fails with UNAVAILABLE, possibly processed."""
    limits = RpcLimits(keepalive=Keepalive(client_ping_s=30))
    async with wired(unary(hang), limits, RpcLimits()) as (channel, wires):

        async def go_silent() -> None:
            await trio.sleep(1)
            wires[0].silent = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_silent)
            with pytest.raises(WhisprError, match="nothing came within 20 s of a ping") as caught:
                await echo.Stub(channel).Say(echo.Message())
    assert (caught.value.code, caught.value.facts["processed"]) == (Code.UNAVAILABLE, "maybe")
    assert trio.current_time() == pytest.approx(50)


async def test_a_quiet_server_that_answers_pings_is_left_alone(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """A call of ten minutes outlasts its pings, one for each half minute of silence."""

    async def slow(message: Any) -> Any:
        await trio.sleep(600)
        return message

    limits = RpcLimits(keepalive=Keepalive(client_ping_s=30))
    async with wired(unary(slow), limits, RpcLimits()) as (channel, wires):
        assert await echo.Stub(channel).Say(echo.Message(n=1))
        assert wires[0].pings() in (19, 20)


async def test_a_client_without_calls_does_not_ping_unless_told_to(
    autojump_clock: MockClock, echo: Any, handlers: Any
) -> None:
    """The default spares servers; who wants idle connections watched says so."""
    for pings_without_calls, pings in ((False, 0), (True, 10)):
        keepalive = Keepalive(client_ping_s=60, client_pings_without_calls=pings_without_calls)
        patient = RpcLimits(keepalive=Keepalive(pinged_s_min=0))
        async with wired(handlers, RpcLimits(keepalive=keepalive), patient) as (channel, wires):
            await echo.Stub(channel).Say(echo.Message())
            await trio.sleep(601)
            assert wires[0].pings() == pings


async def test_by_default_a_client_does_not_ping(autojump_clock: MockClock, echo: Any, unary: Unary) -> None:
    """As gRPC's clients: off unless asked for."""
    limits = RpcLimits()
    async with wired(unary(hang), limits, RpcLimits(keepalive=FOREVER)) as (channel, wires):
        with trio.move_on_after(100_000):
            await echo.Stub(channel).Say(echo.Message())
        assert wires[0].pings() == 0


async def test_a_server_finds_out_that_its_client_is_gone(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """By default after two hours of silence and 20 s without an answer; handlers are then cancelled."""
    ended = trio.Event()

    async def say(_: Any) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    client = await raw_client(RpcServer([unary(say)]))
    await client.call()
    await ended.wait()
    assert trio.current_time() == pytest.approx(7220)


async def test_a_client_that_answers_stays(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """An idle connection is pinged every two hours, and kept."""
    async with open_rpc_pair([handlers]) as pair:
        await echo.Stub(pair.channel).Say(echo.Message())
        await trio.sleep(80_000)
        await echo.Stub(pair.channel).Say(echo.Message())
        assert pair.network.connections_made == 1


# --- Too many pings -----------------------------------------------------------------------------------------


async def test_too_many_pings_without_calls_end_the_connection(
    autojump_clock: MockClock, handlers: Any, raw_client: Connect
) -> None:
    """The third that comes within five minutes of the one before: ENHANCE_YOUR_CALM, too_many_pings."""
    client = await raw_client(RpcServer([handlers]))
    for n in range(4):
        await client.send(frames.ping(bytes(8)))
        if n < 3:
            await client.until(lambda event: isinstance(event, events.PingAcknowledged))
            await trio.sleep(100)
    await client.closed()
    (goaway,) = [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    assert (goaway.code, goaway.debug) == (ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")


async def test_pings_far_apart_or_with_calls_are_welcome(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """Every five minutes without calls, and as one likes between and during calls."""

    async def say(message: Any) -> Any:
        await trio.sleep(50 * message.n)
        return message

    client = await raw_client(RpcServer([unary(say)]))

    async def ping() -> None:
        await client.send(frames.ping(bytes(8)))
        await client.until(lambda event: isinstance(event, events.PingAcknowledged))

    for _ in range(10):
        await ping()
        await trio.sleep(300)
    for _ in range(10):
        stream_id = await client.call()
        await client.outcome(stream_id)
        await ping()
    stream_id = await client.call(body=echo.Message(n=1).SerializeToString())
    for _ in range(10):
        await ping()
        await trio.sleep(1)
    assert (await client.outcome(stream_id))["grpc-status"] == "0"


async def test_a_client_told_so_pings_half_as_often(
    autojump_clock: MockClock, echo: Any, handlers: Any
) -> None:
    """The channel doubles its interval each time, until the server is content (gRFC A8)."""
    keepalive = Keepalive(client_ping_s=100, client_pings_without_calls=True)
    async with wired(handlers, RpcLimits(keepalive=keepalive), RpcLimits()) as (channel, wires):
        for _ in range(4):
            await echo.Stub(channel).Say(echo.Message())
            await trio.sleep(5000)
        # 100 and 200 are refused, 400 is not.
        assert len(wires) == 3
        assert channel._shared.pings.seconds == 400


# --- Age and idleness ---------------------------------------------------------------------------------------


async def test_an_old_connection_takes_no_new_calls(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """After its age, give or take a tenth, calls go to a new one while older calls finish."""

    async def say(message: Any) -> Any:
        await trio.sleep(message.n)
        return message

    old = RpcLimits(keepalive=Keepalive(age_s=100))
    async with open_rpc_pair([unary(say)], server_limits=old) as pair:
        stub = echo.Stub(pair.channel)
        replies = []

        async def long() -> None:
            replies.append(await stub.Say(echo.Message(n=500)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(long)
            await trio.sleep(89)
            await stub.Say(echo.Message())
            assert pair.network.connections_made == 1
            await trio.sleep(22)
            await stub.Say(echo.Message())
            assert pair.network.connections_made == 2
        assert replies
        assert trio.current_time() == pytest.approx(500)


async def test_ages_differ(autojump_clock: MockClock, echo: Any, handlers: Any, raw_client: Connect) -> None:
    """By up to a tenth, so that the clients of a server do not all come back at once."""
    server = RpcServer([handlers], limits=RpcLimits(keepalive=Keepalive(age_s=100)))
    ends: list[float] = []

    async def live() -> None:
        client = await raw_client(server)
        await client.until(lambda event: isinstance(event, events.GoAwayReceived))
        ends.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(live)
    assert 90 <= min(ends) < 98
    assert 102 < max(ends) <= 110


async def test_grace_has_an_end(autojump_clock: MockClock, echo: Any, unary: Unary) -> None:
    """Calls that outlive age and grace fail with UNAVAILABLE."""
    old = RpcLimits(keepalive=Keepalive(age_s=100, age_grace_s=30))
    async with open_rpc_pair([unary(hang)], server_limits=old) as pair:
        with pytest.raises(WhisprError, match="come of age") as caught:
            await echo.Stub(pair.channel).Say(echo.Message())
    assert caught.value.code is Code.UNAVAILABLE
    assert 120 <= trio.current_time() <= 140


async def test_an_idle_connection_is_closed(
    autojump_clock: MockClock, echo: Any, unary: Unary, raw_client: Connect
) -> None:
    """After its idle time without a call, or at most a quarter later; a call in progress is not idleness."""

    async def say(message: Any) -> Any:
        await trio.sleep(message.n)
        return message

    server = RpcServer([unary(say)], limits=RpcLimits(keepalive=Keepalive(idle_s=100)))
    client = await raw_client(server)
    await client.outcome(await client.call(body=echo.Message(n=500).SerializeToString()))
    assert not [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    for _ in range(5):
        await trio.sleep(70)
        await client.outcome(await client.call())
    last = trio.current_time()
    await client.until(lambda event: isinstance(event, events.GoAwayReceived))
    assert 100 <= trio.current_time() - last <= 126
    await client.closed()


async def test_calls_do_not_notice_idle_closing(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """The channel connects again for the next call."""
    idle = RpcLimits(keepalive=Keepalive(idle_s=60))
    async with open_rpc_pair([handlers], server_limits=idle) as pair:
        for _ in range(5):
            await echo.Stub(pair.channel).Say(echo.Message())
            await trio.sleep(200)
            await wait_all_tasks_blocked()
        assert pair.network.connections_made == 5


# --- The watchman -------------------------------------------------------------------------------------------


async def test_connections_are_watched_when_others_have_ended(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """One task watches them all; it outlives the connection it began with."""
    server = RpcServer([unary(hang)], limits=RpcLimits(handshake_s=10))
    ends: list[float] = []

    async def silent(after_s: float, stay_s: float) -> None:
        await trio.sleep(after_s)
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(server.serve_stream, far)
        with trio.move_on_after(stay_s):
            while await near.receive_some():
                pass
            ends.append(trio.current_time())
        await near.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silent, 0, 3)
        nursery.start_soon(silent, 1, 4)
        for n in range(5):
            nursery.start_soon(silent, 2 + n, 100)
        nursery.start_soon(silent, 50, 100)
    assert ends == pytest.approx([12, 13, 14, 15, 16, 60])


async def test_connections_that_come_and_go_leave_nothing_behind(
    autojump_clock: MockClock, echo: Any, handlers: Any, raw_client: Connect
) -> None:
    """Their watches would not be due for hours."""
    server = RpcServer([handlers], limits=RpcLimits(keepalive=Keepalive(age_s=10_000, idle_s=10_000)))
    stays = await raw_client(server)
    for _ in range(500):
        client = await raw_client(server)
        await client.outcome(await client.call())
        await client.stream.aclose()
        await wait_all_tasks_blocked()
    assert len(server._common.watchman._heap) < 250
    assert len(server._common.watchman._entries) == 1
    await stays.outcome(await stays.call())
