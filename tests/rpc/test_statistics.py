"""What servers and channels say they have done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError, denied
from whispr.rpc.channel import open_channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.statistics import Statistics
from whispr.testing import open_rpc_pair


@pytest.fixture
def servicer(echo: Any) -> Any:
    """An Echo whose Say may refuse, and whose Chat goes on until its client stops."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            if input_message.text == "refuse":
                raise denied("not you")
            if input_message.text == "wait":
                await trio.sleep_forever()
            return input_message

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            for _ in range(input_message.n):
                yield input_message

        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            return echo.Message(n=len([message async for message in input_messages]))

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for message in input_messages:
                yield message

    return Handlers()


def calls(statistics: Statistics) -> tuple[int, int, int, int]:
    traffic = statistics.traffic
    return (
        traffic.calls_started,
        traffic.calls_succeeded,
        traffic.calls_failed,
        statistics.streams_open,
    )


def messages(statistics: Statistics) -> tuple[int, int]:
    return statistics.traffic.messages_sent, statistics.traffic.messages_received


async def test_both_ends_count_the_same(echo: Any, servicer: Any) -> None:
    """Calls of each kind, their messages each way, and bytes; what one sent the other received."""
    async with open_rpc_pair([servicer]) as pair:
        assert calls(pair.server.statistics()) == calls(pair.channel.statistics()) == (0, 0, 0, 0)
        stub = echo.Stub(pair.channel)
        for _ in range(3):
            await stub.Say(echo.Message(payload=bytes(1000)))
        async with stub.Repeat(echo.Message(n=5)) as repeating:
            assert len([message async for message in repeating]) == 5
        async with stub.Join() as joining:
            for _ in range(4):
                await joining.send(echo.Message())
            assert (await joining.response()).n == 4
        async with stub.Chat() as chatting:
            await chatting.send(echo.Message())
            await anext(chatting)
            here, there = pair.channel.statistics(), pair.server.statistics()
            assert calls(here) == calls(there) == (6, 5, 0, 1)
            await chatting.done_sending()
            assert [message async for message in chatting] == []
        await wait_all_tasks_blocked()
        here, there = pair.channel.statistics(), pair.server.statistics()
    assert calls(here) == calls(there) == (6, 6, 0, 0)
    assert messages(here) == (3 + 1 + 4 + 1, 3 + 5 + 1 + 1)
    assert messages(there) == messages(here)[::-1]
    assert here.traffic.bytes_sent == there.traffic.bytes_received > 3000
    assert here.traffic.bytes_received == there.traffic.bytes_sent > 3000
    assert here.last_error is there.last_error is None


async def test_large_messages_that_come_in_pieces_count_once(echo: Any, servicer: Any) -> None:
    """However many frames they are."""
    async with open_rpc_pair([servicer]) as pair:
        await echo.Stub(pair.channel).Say(echo.Message(payload=bytes(500_000)))
        assert messages(pair.server.statistics()) == messages(pair.channel.statistics()) == (1, 1)


async def test_failures(echo: Any, servicer: Any) -> None:
    """Refused by a handler, unknown, and cancelled: failed, on both sides; the last one is told."""
    async with open_rpc_pair([servicer]) as pair:
        stub = echo.Stub(pair.channel)
        before = time.time()
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message(text="refuse"))
        for statistics in (pair.channel.statistics(), pair.server.statistics()):
            error = statistics.last_error
            assert error is not None
            assert (error.code, error.message) == (Code.PERMISSION_DENIED, "not you")
            assert error.method == "/whispr.test.echo.Echo/Say"
            assert before <= error.at <= time.time()
            assert statistics.connections[0].last_error == error
        nonsense = pair.channel.unary_unary("/no.Such/Method", echo.Message, echo.Message)
        with pytest.raises(WhisprError):
            await nonsense(echo.Message())
        with trio.move_on_after(0.01):
            await stub.Say(echo.Message(text="wait"))
        await wait_all_tasks_blocked()
        assert calls(pair.channel.statistics()) == calls(pair.server.statistics()) == (3, 0, 3, 0)


async def test_closed_connections_stay_in_the_sums(echo: Any, servicer: Any) -> None:
    """What a connection did is not forgotten when it is lost, and its calls have failed."""
    limits = RpcLimits(backoff_s=0.001, backoff_s_max=0.001)
    async with open_rpc_pair([servicer], channel_limits=limits) as pair:
        stub = echo.Stub(pair.channel)
        for text in ("", "wait"):
            async with trio.open_nursery() as nursery:

                async def say(text: str = text) -> None:
                    with contextlib.suppress(WhisprError):
                        await stub.Say(echo.Message(text=text))

                nursery.start_soon(say)
                await wait_all_tasks_blocked()
                await pair.network.cut()
            await wait_all_tasks_blocked()
        for statistics in (pair.channel.statistics(), pair.server.statistics()):
            assert calls(statistics) == (2, 1, 1, 0)
            assert (statistics.connections, statistics.connections_opened) == ((), 2)
            assert statistics.last_error is not None
            assert statistics.last_error.code is Code.UNAVAILABLE
        assert pair.server.statistics().traffic.messages_sent == 1


async def test_calls_that_never_had_a_connection(echo: Any) -> None:
    """They failed, and are counted though there is nothing else to say."""

    async def refuse() -> trio.abc.Stream:
        raise ConnectionRefusedError("nobody listens")

    async with open_channel("nowhere:1", connect=refuse) as channel:
        with pytest.raises(WhisprError):
            await echo.Stub(channel).Say(echo.Message())
        with pytest.raises(WhisprError):
            async with echo.Stub(channel).Chat():
                pass
        statistics = channel.statistics()
    assert calls(statistics) == (2, 0, 2, 0)
    assert (statistics.connections, statistics.connections_opened) == ((), 0)
    assert statistics.last_error is not None
    assert "nobody listens" in statistics.last_error.message


async def test_connections_say_who_and_since_when(echo: Any, servicer: Any) -> None:
    """Over a socket: the peers' addresses, the time, and bytes that went through the kernel."""
    server = RpcServer([servicer])
    before = time.time()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            await echo.Stub(channel).Say(echo.Message(payload=bytes(300_000)))
            (here,), (there,) = channel.statistics().connections, server.statistics().connections
        nursery.cancel_scope.cancel(reason="the test is over")
    assert here.peer == f"127.0.0.1:{port}"
    assert there.peer.startswith("tcp:127.0.0.1:")
    assert before <= min(here.opened_at, there.opened_at) <= time.time()
    assert 300_000 < here.traffic.bytes_sent < 310_000
    assert 300_000 < there.traffic.bytes_received <= here.traffic.bytes_sent
    assert 300_000 < there.traffic.bytes_sent < 310_000
