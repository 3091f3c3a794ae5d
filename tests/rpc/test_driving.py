"""Handlers run in the task that read their request, and cannot tell it from a task of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
import trio

from whispr.errors import Code
from whispr.rpc.call import Call, current_call
from whispr.rpc.interceptors import Proceed
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]

_color: ContextVar[str] = ContextVar("color", default="none")


@pytest.fixture
async def socket_pair(nursery: trio.Nursery) -> Any:
    """Connects a channel to a server over a real socket, where calls are batched as in production."""
    from whispr.rpc.channel import Channel, open_channel
    from whispr.rpc.server import RpcServer

    async def connect(servicer: Any, *interceptors: Any) -> Channel:
        server = RpcServer([servicer], interceptors)
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        channel: Channel = await nursery.start(_held_open, open_channel, f"127.0.0.1:{port}")
        return channel

    yield connect
    nursery.cancel_scope.cancel()


async def _held_open(open_channel: Any, target: str, *, task_status: trio.TaskStatus[Any]) -> None:
    async with open_channel(target) as channel:
        task_status.started(channel)
        await trio.sleep_forever()


@pytest.mark.parametrize("waits", [False, True])
async def test_every_kind_again_and_again(echo: Any, handlers: Any, socket_pair: Any, waits: bool) -> None:
    """Requests whose head has been seen before, with an interceptor that waits before it proceeds, or does not."""

    async def slow(call: Call, proceed: Proceed) -> Any:
        if waits:
            await trio.lowlevel.checkpoint()
        return await proceed()

    stub = echo.Stub(await socket_pair(handlers, slow))
    for n in range(3):
        request = echo.Message(text="a", n=n)
        assert (await stub.Say(request)).n == n + 1
        async with stub.Repeat(request) as receiving:
            assert [message.n async for message in receiving] == list(range(n))
        async with stub.Join() as joining:
            await joining.send(request)
            await joining.send(request)
            assert (await joining.response()).text == "aa"
        async with stub.Chat() as chatting:
            await chatting.send(request)
            await chatting.done_sending()
            assert [message.n async for message in chatting] == [n]


async def test_a_handler_is_in_one_task_from_first_step_to_last(
    echo: Any, unary: Unary, socket_pair: Any
) -> None:
    """Locks, scopes and nurseries that its first step takes or opens are its own after it has waited."""
    lock = trio.Lock()
    most = 0
    running = 0

    async def say(message: Any) -> Any:
        nonlocal most, running
        task = trio.lowlevel.current_task()
        with trio.move_on_after(60) as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.lowlevel.checkpoint)
                async with lock:
                    running += 1
                    most = max(most, running)
                    await trio.lowlevel.checkpoint()
                    running -= 1
        assert trio.lowlevel.current_task() is task
        assert not scope.cancelled_caught
        return message

    stub = echo.Stub(await socket_pair(unary(say)))
    await stub.Say(echo.Message())
    async with trio.open_nursery() as callers:
        for n in range(20):
            callers.start_soon(stub.Say, echo.Message(n=n))
    assert most == 1


async def test_context_variables_stay_within_their_call(echo: Any, unary: Unary, socket_pair: Any) -> None:
    """What one handler sets, waiting or not, the next one does not see; `current_call` is right throughout."""

    async def say(message: Any) -> Any:
        seen = _color.get()
        _color.set("red")
        call = current_call()
        if message.n % 2:
            await trio.lowlevel.checkpoint()
            assert _color.get() == "red"
        assert current_call() is call
        assert call.metadata.text("x-number") == str(message.n)
        return echo.Message(text=seen)

    stub = echo.Stub(await socket_pair(unary(say)))
    replies: list[str] = []

    async def ask(n: int) -> None:
        replies.append((await stub.Say(echo.Message(n=n), metadata=[("x-number", str(n))])).text)

    for _ in range(3):
        async with trio.open_nursery() as callers:
            for n in range(6):
                callers.start_soon(ask, n)
    assert replies == ["none"] * 18


async def test_calls_of_one_batch_keep_their_own_deadlines(echo: Any, unary: Unary, socket_pair: Any) -> None:
    """One scope serves many calls one after the other, and each has the deadline its caller gave it."""
    left: dict[int, float] = {}

    async def say(message: Any) -> Any:
        left[message.n] = trio.current_effective_deadline() - trio.current_time()
        return message

    stub = echo.Stub(await socket_pair(unary(say)))

    async def ask(n: int) -> None:
        with trio.CancelScope(deadline=trio.current_time() + n if n else float("inf")):
            await stub.Say(echo.Message(n=n))

    for _ in range(2):
        async with trio.open_nursery() as callers:
            for n in (5, 0, 50, 500, 0):
                callers.start_soon(ask, n)
    assert left[0] == float("inf")
    assert all(n - 1 < left[n] <= n + 0.002 for n in (5, 50, 500))


async def test_a_cancelled_call_leaves_the_next_ones_alone(echo: Any, unary: Unary, socket_pair: Any) -> None:
    """A call whose caller gives up is cancelled; calls before, beside and after it on the connection are not."""
    cancelled: list[int] = []

    async def say(message: Any) -> Any:
        if message.n % 3 == 0:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                cancelled.append(message.n)
                raise
        return message

    stub = echo.Stub(await socket_pair(unary(say)))

    async def ask(n: int) -> None:
        with trio.move_on_after(10 if n % 3 else 0.05) as scope:
            assert (await stub.Say(echo.Message(n=n))).n == n
        assert scope.cancelled_caught == (n % 3 == 0)

    for _ in range(3):
        async with trio.open_nursery() as callers:
            for n in range(9):
                callers.start_soon(ask, n)
    assert (await stub.Say(echo.Message(n=1))).n == 1
    assert sorted(cancelled) == [0, 0, 0, 3, 3, 3, 6, 6, 6]


async def test_an_error_beside_a_cancellation_ends_only_its_call(echo: Any, unary: Unary) -> None:
    """A handler whose nursery ends with a defect and a Cancelled at once fails; the connection goes on."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while being cancelled")

    async def say(message: Any) -> Any:
        if not message.n:
            async with trio.open_nursery() as inner:
                inner.start_soon(fail)
                inner.start_soon(trio.sleep_forever)
        return message

    async with open_rpc_pair([unary(say)]) as pair:
        stub = echo.Stub(pair.channel)
        with trio.move_on_after(0.05):
            await stub.Say(echo.Message(n=0))
        assert (await stub.Say(echo.Message(n=1))).n == 1


async def test_a_call_past_its_deadline_is_not_begun(echo: Any, unary: Unary, raw_client: Any) -> None:
    """A request that comes too late runs no handler."""
    from whispr.rpc.server import RpcServer

    begun: list[int] = []

    async def say(message: Any) -> Any:
        begun.append(message.n)
        return message

    client = await raw_client(RpcServer([unary(say)]))
    stream_id = await client.call({"grpc-timeout": "0n"})
    assert (await client.outcome(stream_id))["grpc-status"] == str(int(Code.DEADLINE_EXCEEDED))
    assert begun == []


async def test_a_waiting_handler_holds_up_nobody(echo: Any, unary: Unary, socket_pair: Any) -> None:
    """While one handler waits, calls that came with it in the same read are answered."""
    release = trio.Event()

    async def say(message: Any) -> Any:
        if message.n == 0:
            await release.wait()
        return message

    stub = echo.Stub(await socket_pair(unary(say)))
    answered: list[int] = []

    async def ask(n: int) -> None:
        answered.append((await stub.Say(echo.Message(n=n))).n)
        if len(answered) == 5:
            release.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as callers:
            for n in range(6):
                callers.start_soon(ask, n)
    assert answered[-1] == 0


async def test_messages_of_a_stream_leave_before_it_ends(echo: Any, socket_pair: Any) -> None:
    """What a streaming handler has sent before it waits is on its way when it waits."""
    release = trio.Event()

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            yield input_message
            await release.wait()
            yield input_message

    stub = echo.Stub(await socket_pair(Handlers()))
    for _ in range(2):
        with trio.fail_after(5):
            async with stub.Repeat(echo.Message(n=1)) as call:
                await anext(call)
                release.set()
                await anext(call)
