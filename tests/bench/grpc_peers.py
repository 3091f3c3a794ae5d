"""The contestants: `python -m tests.bench.grpc_peers PEER serve`, or `PEER call PORT SCENARIO SECONDS`.

Every server has the same service, and every client the same scenarios; what a client measured it prints as one
line of JSON. purerpc and grpclib run in an environment of their own, where nothing of Whispr is installed: nothing
here imports it but what needs it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from google.protobuf.wrappers_pb2 import BytesValue, StringValue

SERVICE = "whispr.bench.Echo"
TASKS = 64
PACED_CALLS_PER_S = 1000
TEXT = "w" * 22
SMALL_BYTES, SMALL_COUNT = 100, 10_000
LARGE_BYTES, LARGE_COUNT = 1 << 20, 150


def flow(messages: int, size: int) -> StringValue:
    """A request for a stream of messages."""
    return StringValue(value=f"{messages} {size}")


async def flowing(request: StringValue) -> AsyncIterator[BytesValue]:
    """The stream that a request asks for."""
    messages, size = map(int, request.value.split())
    value = bytes(size)
    for _ in range(messages):
        yield BytesValue(value=value)


# --- What clients measure ---------------------------------------------------------------------------------

Say = Callable[[StringValue], Awaitable[Any]]
Flow = Callable[[StringValue], Awaitable[int]]
"""Takes a stream in; returns how many messages it had."""


class Client:
    """A scenario over one channel, in terms of what event loops differ in."""

    def __init__(self, say: Say, flow: Flow, together: Callable[..., Awaitable[None]], sleep: Any) -> None:
        """`together` runs a function in many tasks at once."""
        self.say, self.flow, self.together, self.sleep = say, flow, together, sleep
        self.latencies: list[float] = []
        self.stop = 0.0

    async def _loop(self) -> None:
        request, now = StringValue(value=TEXT), time.perf_counter
        while (started := now()) < self.stop:
            await self.say(request)
            self.latencies.append(now() - started)

    async def unary(self, seconds: float, tasks: int) -> dict[str, float]:
        """Closed loop: so many tasks, each with one call at a time."""
        for measured, duration in ((False, seconds / 4), (True, seconds)):
            self.latencies.clear()
            started = time.perf_counter()
            self.stop = started + duration
            await self.together(self._loop, tasks)
            elapsed = time.perf_counter() - started
            if measured:
                return {"rate": len(self.latencies) / elapsed, **percentiles(self.latencies)}
        raise AssertionError

    async def paced(self, seconds: float) -> dict[str, float]:
        """Open loop: calls start when they are due, however long others take, and are timed from then."""
        request = StringValue(value=TEXT)
        for _ in range(200):
            await self.say(request)
        count = int(seconds * PACED_CALLS_PER_S)
        first = time.perf_counter() + 0.05
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for number in numbers:
                due = first + number / PACED_CALLS_PER_S
                wait = due - time.perf_counter()
                if wait > 0:
                    await self.sleep(wait)
                await self.say(request)
                self.latencies.append(time.perf_counter() - due)

        await self.together(one_after_another, 16)
        return {"rate": count / (time.perf_counter() - first), **percentiles(self.latencies)}

    async def stream(self, messages: int, size: int) -> dict[str, float]:
        """One server stream, after a short one to warm up."""
        await self.flow(flow(max(1, messages // 10), size))
        started = time.perf_counter()
        received = await self.flow(flow(messages, size))
        assert received == messages
        return {"rate": messages / (time.perf_counter() - started)}

    async def run(self, scenario: str, seconds: float) -> None:
        """Run one scenario and print what was measured."""
        if scenario == "small":
            result = await self.stream(SMALL_COUNT, SMALL_BYTES)
        elif scenario == "large":
            result = await self.stream(LARGE_COUNT, LARGE_BYTES)
        elif scenario == "paced":
            result = await self.paced(seconds)
        else:
            result = await self.unary(seconds, 1 if scenario == "sequential" else TASKS)
        print(json.dumps(result), flush=True)


def percentiles(latencies: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(latencies)
    return {f"p{share}": ordered[len(ordered) * share // 100] * 1000 for share in (50, 99)}


# --- Whispr -----------------------------------------------------------------------------------------------


def serve_whispr() -> None:
    import whispr

    assert whispr.__version__, "imported before purerpc, which it makes importable"

    import purerpc
    import trio

    from whispr.http2.limits import Limits
    from whispr.rpc.limits import RpcLimits
    from whispr.rpc.logging import Logged
    from whispr.rpc.metrics import Measured
    from whispr.rpc.server import RpcServer
    from whispr.telemetry.logging import configure_logging

    configure_logging()

    class Echo(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
        async def Say(self, input_message: StringValue) -> StringValue:  # noqa: N802
            return StringValue(value=input_message.value)

        async def SayLater(self, input_message: StringValue) -> StringValue:  # noqa: N802
            await trio.lowlevel.checkpoint()
            return StringValue(value=input_message.value)

        async def Wait(self, input_message: StringValue) -> StringValue:  # noqa: N802
            await trio.sleep_forever()
            raise AssertionError

        async def Flow(self, input_message: StringValue) -> AsyncIterator[BytesValue]:  # noqa: N802
            async for message in flowing(input_message):
                yield message

        @property
        def service(self) -> purerpc.Service:
            service = purerpc.Service(SERVICE)
            unary = purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue)
            for method in (self.Say, self.SayLater, self.Wait):
                service.add_method(method.__name__, method, unary)
            stream = purerpc.RPCSignature(purerpc.Cardinality.UNARY_STREAM, StringValue, BytesValue)
            service.add_method("Flow", self.Flow, stream)
            return service

    async def main() -> None:
        limits = RpcLimits(http2=Limits(streams_max=10_000))
        server = RpcServer([Echo()], [Measured(), Logged()], limits)
        async with trio.open_nursery() as nursery:
            print(await nursery.start(server.serve_tcp, "127.0.0.1", 0), flush=True)

    trio.run(main)


def call_whispr(port: int, scenario: str, seconds: float) -> None:
    import trio

    from whispr.rpc.channel import open_channel

    async def main() -> None:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            say = channel.unary_unary(f"/{SERVICE}/Say", StringValue, StringValue)
            streamed = channel.unary_stream(f"/{SERVICE}/Flow", StringValue, BytesValue)

            async def take(request: StringValue) -> int:
                async with streamed(request) as call:
                    return len([None async for _ in call])

            async def together(function: Callable[[], Awaitable[None]], tasks: int) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(tasks):
                        nursery.start_soon(function)

            await Client(say, take, together, trio.sleep).run(scenario, seconds)

    trio.run(main)


# --- grpcio -----------------------------------------------------------------------------------------------


def serve_grpcio() -> None:
    import asyncio

    import grpc

    async def say(request: StringValue, context: object) -> StringValue:
        return StringValue(value=request.value)

    async def flow(request: StringValue, context: object) -> AsyncIterator[BytesValue]:
        async for message in flowing(request):
            yield message

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(
                say, StringValue.FromString, StringValue.SerializeToString
            ),
            "Flow": grpc.unary_stream_rpc_method_handler(
                flow, StringValue.FromString, BytesValue.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()

    asyncio.run(main())


async def _asyncio_together(function: Callable[[], Awaitable[None]], tasks: int) -> None:
    import asyncio

    await asyncio.gather(*(function() for _ in range(tasks)))


def call_grpcio(port: int, scenario: str, seconds: float) -> None:
    import asyncio

    import grpc

    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            say = channel.unary_unary(
                f"/{SERVICE}/Say", StringValue.SerializeToString, StringValue.FromString
            )
            streamed = channel.unary_stream(
                f"/{SERVICE}/Flow", StringValue.SerializeToString, BytesValue.FromString
            )

            async def take(request: StringValue) -> int:
                return len([None async for _ in streamed(request)])

            await Client(say, take, _asyncio_together, asyncio.sleep).run(scenario, seconds)

    asyncio.run(main())


# --- grpclib ----------------------------------------------------------------------------------------------


def serve_grpclib() -> None:
    import asyncio
    import socket

    from grpclib.const import Cardinality, Handler
    from grpclib.server import Server

    class Echo:
        async def say(self, stream: Any) -> None:
            request = await stream.recv_message()
            await stream.send_message(StringValue(value=request.value))

        async def flow(self, stream: Any) -> None:
            async for message in flowing(await stream.recv_message()):
                await stream.send_message(message)

        def __mapping__(self) -> dict[str, Any]:
            return {
                f"/{SERVICE}/Say": Handler(self.say, Cardinality.UNARY_UNARY, StringValue, StringValue),
                f"/{SERVICE}/Flow": Handler(self.flow, Cardinality.UNARY_STREAM, StringValue, BytesValue),
            }

    async def main() -> None:
        server = Server([Echo()])
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await server.start(sock=listening)
            print(listening.getsockname()[1], flush=True)
            await server.wait_closed()

    asyncio.run(main())


def call_grpclib(port: int, scenario: str, seconds: float) -> None:
    import asyncio

    from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod

    async def main() -> None:
        async with Channel("127.0.0.1", port) as channel:
            say = UnaryUnaryMethod(channel, f"/{SERVICE}/Say", StringValue, StringValue)
            streamed = UnaryStreamMethod(channel, f"/{SERVICE}/Flow", StringValue, BytesValue)

            async def take(request: StringValue) -> int:
                return len(await streamed(request))

            await Client(say, take, _asyncio_together, asyncio.sleep).run(scenario, seconds)

    asyncio.run(main())


# --- purerpc ----------------------------------------------------------------------------------------------


def serve_purerpc() -> None:
    import socket

    import anyio
    import purerpc

    async def say(request: StringValue) -> StringValue:
        return StringValue(value=request.value)

    service = purerpc.Service(SERVICE)
    unary = purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue)
    service.add_method("Say", say, unary)
    stream = purerpc.RPCSignature(purerpc.Cardinality.UNARY_STREAM, StringValue, BytesValue)
    service.add_method("Flow", flowing, stream)
    with socket.socket() as free:  # it cannot say which port it was given
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = purerpc.Server(port)
    server.add_service(service)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            await group.start(server.serve_async)
            print(port, flush=True)

    anyio.run(main, backend="trio")


def call_purerpc(port: int, scenario: str, seconds: float) -> None:
    import anyio
    import purerpc

    async def main() -> None:
        async with purerpc.insecure_channel("127.0.0.1", port) as channel:
            client = purerpc.Client(SERVICE, channel)
            unary = purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue)
            stream = purerpc.RPCSignature(purerpc.Cardinality.UNARY_STREAM, StringValue, BytesValue)
            say, streamed = client.get_method_stub("Say", unary), client.get_method_stub("Flow", stream)

            async def take(request: StringValue) -> int:
                return len([None async for _ in streamed(request)])

            async def together(function: Callable[[], Awaitable[None]], tasks: int) -> None:
                async with anyio.create_task_group() as group:
                    for _ in range(tasks):
                        group.start_soon(cast("Any", function))

            await Client(say, take, together, anyio.sleep).run(scenario, seconds)

    anyio.run(main, backend="trio")


SERVERS = {
    "whispr": serve_whispr,
    "grpcio.aio": serve_grpcio,
    "grpclib": serve_grpclib,
    "purerpc": serve_purerpc,
}
CLIENTS = {
    "whispr": call_whispr,
    "grpcio.aio": call_grpcio,
    "grpclib": call_grpclib,
    "purerpc": call_purerpc,
}

if __name__ == "__main__":
    peer, command, *rest = sys.argv[1:]
    if command == "serve":
        SERVERS[peer]()
    else:
        CLIENTS[peer](int(rest[0]), rest[1], float(rest[2]))
