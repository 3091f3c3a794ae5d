"""Over real sockets with grpcio at the other end: its client against our server, our stubs against its server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from google.rpc.status_pb2 import Status

from whispr.errors import Code, WhisprError, invalid
from whispr.rpc.call import current_call
from whispr.rpc.channel import open_channel
from whispr.rpc.health import NOT_SERVING, SERVING, HealthCheckRequest, HealthServicer, HealthStub
from whispr.rpc.server import RpcServer

SERVICE = "/whispr.test.echo.Echo"


class Client:
    """grpcio's blocking client for Echo."""

    def __init__(self, echo: Any, target: str) -> None:
        self.channel = grpc.insecure_channel(target)
        codec = (echo.Message.SerializeToString, echo.Message.FromString)
        self.say = self.channel.unary_unary(f"{SERVICE}/Say", *codec)
        self.repeat = self.channel.unary_stream(f"{SERVICE}/Repeat", *codec)
        self.join = self.channel.stream_unary(f"{SERVICE}/Join", *codec)
        self.chat = self.channel.stream_stream(f"{SERVICE}/Chat", *codec)


@asynccontextmanager
async def serving(echo: Any, handlers: Any) -> AsyncIterator[Client]:
    """Our server on a free port, and grpcio's client to it."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(RpcServer([handlers]).serve_tcp, "127.0.0.1", 0)
        client = Client(echo, f"127.0.0.1:{port}")
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(client.channel.close)
            nursery.cancel_scope.cancel(reason="done")


async def blocking(function: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(function)


async def test_grpcio_makes_all_kinds_of_calls(echo: Any, handlers: Any) -> None:
    """Each kind, with a message of megabytes and streams of hundreds."""

    def calls(client: Client) -> None:
        assert client.say(echo.Message(text="hi", n=1)) == echo.Message(text="hi", n=2)
        big = echo.Message(payload=bytes(3_000_000))
        assert client.say(big).n == 1
        assert [message.n for message in client.repeat(echo.Message(n=300))] == list(range(300))
        assert (
            sum(len(m.payload) for m in client.repeat(echo.Message(n=3, payload=bytes(10**6)))) == 3 * 10**6
        )
        assert client.join(echo.Message(text=str(n)) for n in range(10)).text == "0123456789"
        assert [message.n for message in client.chat(echo.Message(n=n) for n in range(100))] == list(
            range(100)
        )
        assert list(client.chat(iter(()))) == []

    async with serving(echo, handlers) as client:
        await blocking(lambda: calls(client))


async def test_grpcio_sees_status_details_and_metadata(echo: Any) -> None:
    """Code, message, google.rpc details, initial and trailing metadata of both sorts."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            call = current_call()
            call.set_initial([("first", "1"), ("first-bin", b"\0\1")])
            call.set_trailing([("last", "2"), ("echo-bin", call.metadata.get("k-bin"))])  # type: ignore[list-item]
            if input_message.text:
                raise invalid({"text": "no ünïcode"})
            return echo.Message()

    def calls(client: Client) -> None:
        metadata = (("k-bin", b"\xff\0"), ("authorization", "Bearer t"))
        _, call = client.say.with_call(echo.Message(), metadata=metadata)
        assert {("first", "1"), ("first-bin", b"\0\1")} <= set(call.initial_metadata())
        assert {("last", "2"), ("echo-bin", b"\xff\0")} <= set(call.trailing_metadata())
        with pytest.raises(grpc.RpcError) as caught:
            client.say(echo.Message(text="x"), metadata=metadata)
        error = caught.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no ünïcode" in error.details()
        packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert WhisprError.from_status(Status.FromString(packed)).fields == {"text": "no ünïcode"}

    async with serving(echo, Handlers()) as client:
        await blocking(lambda: calls(client))


async def test_grpcio_deadlines_and_cancels_reach_the_handler(echo: Any) -> None:
    """Grpcio's timeout bounds the handler; its cancel ends it."""
    ended: list[str] = []
    started, over = trio.Event(), trio.Event()

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            remaining = current_call().deadline - trio.current_time()
            assert 0 < remaining < 1 or input_message.text == "cancel"
            started.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                ended.append(input_message.text)
                over.set()
                raise

    def deadline(client: Client) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            client.say(echo.Message(text="deadline"), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    async with serving(echo, Handlers()) as client:
        await blocking(lambda: deadline(client))
        await over.wait()
        started, over = trio.Event(), trio.Event()
        future = client.say.future(echo.Message(text="cancel"))
        await started.wait()
        future.cancel()
        await over.wait()
    assert ended == ["deadline", "cancel"]


async def test_grpcio_learns_of_unknown_methods(echo: Any, handlers: Any) -> None:
    """UNIMPLEMENTED, with the method's name."""

    def call(client: Client) -> None:
        unknown = client.channel.unary_unary("/no.Such/Thing", lambda _: b"", lambda _: None)
        with pytest.raises(grpc.RpcError) as caught:
            unknown(None)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async with serving(echo, handlers) as client:
        await blocking(lambda: call(client))


async def test_grpcio_over_a_unix_socket(echo: Any, handlers: Any, tmp_path: Path) -> None:
    """The socket is its owner's alone, works for grpcio and for us, and is gone after a drain."""
    path = tmp_path / "rpc.sock"
    server = RpcServer([handlers])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_unix, path)
        assert path.stat().st_mode & 0o077 == 0
        client = Client(echo, f"unix:{path}")
        assert (await blocking(lambda: client.say(echo.Message(n=1)))).n == 2
        client.channel.close()
        async with open_channel(f"unix:{path}") as channel:
            assert (await echo.Stub(channel).Say(echo.Message(n=1))).n == 2
        await server.drain()
    assert not path.exists()


# --- Our stubs against grpcio's server --------------------------------------------------------------------


@contextmanager
def grpcio_server(echo: Any) -> Iterator[str]:
    """Grpcio's threaded server with an Echo; its address."""

    def say(request: Any, context: grpc.ServicerContext) -> Any:
        if request.text == "slow":
            time.sleep(0.3)
        if request.text == "fail":
            context.set_trailing_metadata([("hint", "h"), ("raw-bin", b"\0\xff")])
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nö 100%")
        remaining = context.time_remaining()
        metadata = dict(context.invocation_metadata())
        return echo.Message(
            text=metadata.get("k", ""),
            payload=metadata.get("k-bin", b""),
            n=round(remaining) if remaining and remaining < 1e6 else 0,
        )

    def repeat(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.send_initial_metadata([("first", "1")])
        for n in range(request.n):
            yield echo.Message(n=n, payload=request.payload)

    def join(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        return echo.Message(text="".join(request.text for request in requests))

    def chat(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        yield from requests

    codec = (echo.Message.FromString, echo.Message.SerializeToString)
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say, *codec),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat, *codec),
        "Join": grpc.stream_unary_rpc_method_handler(join, *codec),
        "Chat": grpc.stream_stream_rpc_method_handler(chat, *codec),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("whispr.test.echo.Echo", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_our_stubs_make_all_kinds_of_calls(echo: Any) -> None:
    """Each kind, with metadata both ways, megabytes, and the deadline as grpcio understands it."""
    with grpcio_server(echo) as target:
        async with open_channel(target) as channel:
            stub = echo.Stub(channel)
            with trio.fail_after(30):
                reply = await stub.Say(echo.Message(), metadata=[("k", "v"), ("k-bin", b"\0\xff")])
            assert (reply.text, reply.payload, reply.n) == ("v", b"\0\xff", 30)
            async with stub.Repeat(echo.Message(n=5, payload=bytes(10**6))) as receiving:
                assert (await receiving.initial_metadata()).get("first") == "1"
                assert [(m.n, len(m.payload)) async for m in receiving] == [(n, 10**6) for n in range(5)]
            async with stub.Join() as sending:
                for n in range(200):
                    await sending.send(echo.Message(text=str(n)))
                assert (await sending.response()).text == "".join(map(str, range(200)))
            async with stub.Chat() as call:
                for n in range(5):
                    await call.send(echo.Message(n=n))
                    assert (await anext(call)).n == n
                await call.done_sending()
                assert [m async for m in call] == []


async def test_our_stubs_raise_what_grpcio_aborts_with(echo: Any) -> None:
    """Code and message; UNIMPLEMENTED for what it lacks; and the channel stays good."""
    with grpcio_server(echo) as target:
        async with open_channel(target) as channel:
            stub = echo.Stub(channel)
            with pytest.raises(WhisprError) as caught:
                await stub.Say(echo.Message(text="fail"))
            assert (caught.value.code, caught.value.message) == (Code.FAILED_PRECONDITION, "nö 100%")
            with pytest.raises(WhisprError) as missing:
                await channel.unary_unary("/no.Such/Thing", echo.Message, echo.Message)(echo.Message())
            assert missing.value.code is Code.UNIMPLEMENTED
            # Both ends watch the clock, and on a busy machine the server's word may be there first.
            with trio.move_on_after(0.05) as scope, pytest.raises(WhisprError) as late:
                await stub.Say(echo.Message(text="slow"))
            assert scope.cancelled_caught or late.value.code is Code.DEADLINE_EXCEEDED
            assert await stub.Say(echo.Message())


async def test_a_server_that_dies_fails_calls_at_once(echo: Any) -> None:
    """Grpcio's server is stopped under a call: UNAVAILABLE or CANCELLED, and then UNAVAILABLE."""
    with grpcio_server(echo) as target:
        async with open_channel(target) as channel:
            call = echo.Stub(channel).Chat()
            async with call:
                await call.send(echo.Message())
                await anext(call)
                # grpcio aborts its calls and closes when its context ends; here the socket is what goes.
                channel.connections[0].kill("the network went away")
                with pytest.raises(WhisprError) as caught:
                    await anext(call)
            assert caught.value.code is Code.UNAVAILABLE
            assert await echo.Stub(channel).Say(echo.Message())


async def test_nobody_listening_is_unavailable(echo: Any) -> None:
    """A refused connection says so."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message())
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("target", ["", "localhost", "host:", ":", "host:port"])
async def test_targets_that_cannot_be_read(target: str) -> None:
    """The error names the target."""
    with pytest.raises(ValueError, match="target"):
        async with open_channel(target):
            pass


async def test_health(echo: Any, handlers: Any) -> None:
    """Check answers for the server and for services; Watch follows changes, and waits for the unknown."""
    health = HealthServicer()
    health.set("", SERVING)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(RpcServer([handlers, health]).serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = HealthStub(channel)
            assert (await stub.Check(HealthCheckRequest())).status == SERVING
            with pytest.raises(WhisprError) as caught:
                await stub.Check(HealthCheckRequest(service="later"))
            assert caught.value.code is Code.NOT_FOUND
            async with stub.Watch(HealthCheckRequest(service="later")) as watch:
                assert (await anext(watch)).status == 3
                health.set("later", SERVING)
                assert (await anext(watch)).status == SERVING
                health.set("", NOT_SERVING)
                health.set("later", NOT_SERVING)
                assert (await anext(watch)).status == NOT_SERVING
        nursery.cancel_scope.cancel(reason="done")
