"""A server whose every answer is scripted, and a channel to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.wire import frame_message

Script = Callable[[Connection, int, int], None]

OK_HEAD = encode([(":status", "200"), ("content-type", "application/grpc")])
OK_END = encode([("grpc-status", "0")])


def answer(core: Connection, stream_id: int, connection: int = 0) -> None:
    """Answer with an empty message."""
    core.respond(stream_id, OK_HEAD, frame_message(b""), OK_END)


def go_away(core: Connection, last_stream_id: int) -> None:
    core._sender.output += frames.goaway(last_stream_id, ErrorCode.NO_ERROR)


@dataclass
class RawServer:
    """The far end of a channel's connections: `script(core, stream_id, connection)` for each request that ends."""

    script: Script
    limits: Limits = field(default_factory=Limits)
    connections: int = 0
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: dict[tuple[int, int], bytes] = field(default_factory=dict)
    after_head: Script | None = None
    streams: list[trio.abc.Stream] = field(default_factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        number, self.connections = self.connections, self.connections + 1
        self.streams.append(stream)
        core = Connection(Role.SERVER, self.limits)
        async with stream:
            while True:
                output, _ = core.take_output()
                if output:
                    await stream.send_all(b"".join(output))
                data = await stream.receive_some()
                if not data:
                    return
                for event in core.receive(bytes(data)):
                    self._handle(core, event, number)

    def _handle(self, core: Connection, event: events.Event, number: int) -> None:
        if isinstance(event, events.HeadersReceived):
            self.heads.append(dict(event.headers.fields))
            if self.after_head is not None:
                self.after_head(core, event.stream_id, number)
        elif isinstance(event, events.DataReceived):
            key = (number, event.stream_id)
            self.bodies[key] = self.bodies.get(key, b"") + event.data
            core.consume(event.stream_id, len(event.data))
            if event.end_stream:
                self.script(core, event.stream_id, number)


class Stalling(trio.abc.Stream):
    """A stream whose sends can be made to hang, as on a network that has gone silent."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner
        self.stalled = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.stalled:
            await trio.sleep_forever()
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    near, far = trio.socket.socketpair()
    return trio.SocketStream(near), trio.SocketStream(far)


@asynccontextmanager
async def channel_to(
    server: RawServer,
    limits: RpcLimits | None = None,
    stalling: list[Stalling] | None = None,
    *,
    sockets: bool = False,
) -> AsyncIterator[Channel]:
    """A channel whose every connection is served by `server`, through memory or real sockets."""
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            near, far = socket_pair() if sockets else trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, far)
            if stalling is None:
                return near
            stalling.append(Stalling(near))
            return stalling[-1]

        async with open_channel("raw:1", connect=connect, limits=limits or RpcLimits()) as channel:
            yield channel
        nursery.cancel_scope.cancel(reason="done")
