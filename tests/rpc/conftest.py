"""The echo service of `echo.proto`, generated anew, and a client that speaks raw HTTP/2 to a server."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.rpc import generate
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`.pb2`, `.grpc`, and `.Servicer`: a servicer that keeps what it saw."""
    folder = tmp_path_factory.mktemp("echo")
    generate.generate(Path(__file__).parent, ["echo.proto"], folder)
    sys.path.insert(0, str(folder))
    try:
        pb2, grpc = import_module("echo_pb2"), import_module("echo_grpc")
    finally:
        sys.path.remove(str(folder))
    yield SimpleNamespace(
        pb2=pb2, grpc=grpc, Message=pb2.Message, Stub=grpc.EchoStub, Servicer=grpc.EchoServicer, folder=folder
    )
    for name in ("echo_pb2", "echo_grpc"):
        del sys.modules[name]


@pytest.fixture
def handlers(echo: Any) -> Any:
    """An Echo that does what echo.proto says."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            return echo.Message(text=input_message.text, n=input_message.n + 1)

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            for n in range(input_message.n):
                yield echo.Message(text=input_message.text, n=n, payload=input_message.payload)

        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            return echo.Message(text="".join([message.text async for message in input_messages]))

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for message in input_messages:
                yield message

    return Handlers()


@pytest.fixture
def unary(echo: Any) -> Callable[[Callable[[Any], Awaitable[Any]]], Any]:
    """A servicer whose Say is the given function."""

    def make(function: Callable[[Any], Awaitable[Any]]) -> Any:
        class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
            async def Say(self, input_message: Any) -> Any:  # noqa: N802
                return await function(input_message)

        return Handlers()

    return make


REQUEST_FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/whispr.test.echo.Echo/Say",
    ":authority": "x",
    "te": "trailers",
    "content-type": "application/grpc",
}


@dataclass
class RawClient:
    """Drives a server through memory, event by event."""

    stream: trio.abc.Stream
    core: Connection = field(
        default_factory=lambda: Connection(Role.CLIENT, Limits(control_frames_burst=10**6))
    )
    reported: list[events.Event] = field(default_factory=list)

    async def send(self, octets: bytes = b"") -> None:
        output, _ = self.core.take_output()
        await self.stream.send_all(b"".join(output) + octets)

    async def open(self, changes: dict[str, str | None] | None = None, *, end: bool = False) -> int:
        """Send a request's head, with fields changed, added or, where None, left out."""
        fields: dict[str, str | None] = {**REQUEST_FIELDS, **(changes or {})}
        block = encode([(name, value) for name, value in fields.items() if value is not None])
        stream_id = self.core.open_stream(block, end)
        await self.send()
        return stream_id

    async def call(self, changes: dict[str, str | None] | None = None, body: bytes = b"") -> int:
        """Send a whole unary request."""
        stream_id = await self.open(changes)
        self.core.send_data(stream_id, frame_message(body), end_stream=True)
        await self.send()
        return stream_id

    async def until(self, done: Callable[[events.Event], bool]) -> events.Event:
        """Read until an event for which `done`; returns it. Fails when the server closes first."""
        while True:
            for event in self.reported:
                if done(event):
                    self.reported.remove(event)
                    return event
            data = await self.stream.receive_some()
            assert data, f"the server closed; reported {self.reported}"
            self.reported += self.core.receive(bytes(data))
            await self.send()

    async def outcome(self, stream_id: int) -> dict[str, str]:
        """The fields that end a response, with those of its head."""
        fields: dict[str, str] = {}
        while True:
            event = await self.until(
                lambda event: isinstance(event, events.HeadersReceived) and event.stream_id == stream_id
            )
            assert isinstance(event, events.HeadersReceived)
            fields.update(event.headers.fields)
            if event.end_stream:
                return fields

    async def closed(self) -> None:
        """Read until the server closes."""
        while data := await self.stream.receive_some():
            self.reported += self.core.receive(bytes(data))


@pytest.fixture
async def raw_client(nursery: trio.Nursery) -> Callable[[RpcServer], Awaitable[RawClient]]:
    """Connects a RawClient to a server."""

    async def connect(server: RpcServer) -> RawClient:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(server.serve_stream, far)
        client = RawClient(near)
        await client.send()
        return client

    return connect
