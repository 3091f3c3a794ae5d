"""What connections take that have nothing to do, and what serves many of them at once."""

from __future__ import annotations

import contextlib
import gc
import socket
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr.errors import WhisprError
from whispr.http2 import frames
from whispr.http2.headers import encode
from whispr.rpc.channel import open_channel
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]

CONNECTIONS = 100
HEAD = encode(
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/whispr.test.echo.Echo/Say"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", "20S"),
    ]
)
CALL = (
    frames.PREFACE
    + frames.settings({})
    + frames.headers(1, HEAD, False, 16_384)
    + frames.frame(frames.Type.DATA, frames.END_STREAM, 1, frame_message(b""))
)


async def connect(port: int) -> socket.socket:
    """A connection that has made one call, and got its answer."""
    client = socket.create_connection(("127.0.0.1", port))
    client.send(CALL)
    heard = b""
    while b"grpc-status" not in heard:
        await trio.lowlevel.wait_readable(client)
        heard += client.recv(10_000)
    return client


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Closed in the end."""
    opened: list[socket.socket] = []
    yield opened
    for client in opened:
        client.close()


async def test_an_idle_connection_is_one_task_and_ten_kib(
    unary: Unary, nursery: trio.Nursery, clients: list[socket.socket]
) -> None:
    """After a call that had to wait, too: there may be thousands of them."""

    async def later(message: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return message

    server = RpcServer([unary(later)])
    port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
    clients.append(await connect(port))
    await wait_all_tasks_blocked()
    tasks = trio.lowlevel.current_statistics().tasks_living
    gc.collect()
    tracemalloc.start()
    try:
        clients.extend([await connect(port) for _ in range(CONNECTIONS)])
        await wait_all_tasks_blocked()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert trio.lowlevel.current_statistics().tasks_living == tasks + CONNECTIONS
    assert held / CONNECTIONS < 10 * 1024


async def test_one_connection_that_ends_slowly_holds_up_no_other(
    echo: Any, unary: Unary, nursery: trio.Nursery
) -> None:
    """What writes for all lives with one of them, and moves at once when that is killed."""
    let_go = trio.Event()

    async def say(message: Any) -> Any:
        if message.text != "slow":
            await trio.lowlevel.checkpoint()  # so that the answer is nobody's but the flusher's to write
            return message
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await let_go.wait()

    server = RpcServer([unary(say)])
    port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
    async with open_channel(f"127.0.0.1:{port}") as first, open_channel(f"127.0.0.1:{port}") as second:
        await echo.Stub(first).Say(echo.Message())
        await echo.Stub(second).Say(echo.Message())
        with trio.move_on_after(0):
            await echo.Stub(first).Say(echo.Message())
        async with trio.open_nursery() as calling:
            calling.start_soon(_ignoring, echo.Stub(first), echo.Message(text="slow"))
            await wait_all_tasks_blocked(0.02)
            host = server._common.flusher._host
            assert host is not None
            assert host.calls_going
            host.kill("the test says so")
            with trio.fail_after(5):
                for _ in range(3):
                    await echo.Stub(second).Say(echo.Message())
            assert server._common.flusher._host is not host
            let_go.set()


async def _ignoring(stub: Any, message: Any) -> None:
    with trio.move_on_after(20):
        with contextlib.suppress(WhisprError):  # how it ends is not what is tested
            await stub.Say(message)
