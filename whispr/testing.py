"""A kit for tests: a server and a channel to it in memory, without sockets.

    async with open_rpc_pair([EchoHandlers()]) as pair:
        reply = await EchoStub(pair.channel).Say(Message(text="hi"))

Everything runs as in production but for the byte streams, so `autojump_clock` works: nothing waits for the
operating system.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import purerpc
import trio
import trio.testing

from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer

MEMORY_TARGET = "memory:0"


class RpcPair:
    """A server, a channel to it, and the wires between them."""

    def __init__(self, server: RpcServer, channel: Channel, network: MemoryNetwork) -> None:
        self.server = server
        self.channel = channel
        self.network = network


class MemoryNetwork:
    """Connects to a server in memory, and can break every connection it made."""

    def __init__(self, server: RpcServer, nursery: trio.Nursery) -> None:
        self.reachable = True
        """Whether connecting works; when not, it fails as a refused connection does."""
        self._server = server
        self._nursery = nursery
        self._streams: list[trio.abc.Stream] = []

    @property
    def connections_made(self) -> int:
        """How often `connect` has succeeded."""
        return len(self._streams) // 2

    async def connect(self) -> trio.abc.Stream:
        """A new connection to the server. Raises ConnectionRefusedError while unreachable."""
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise ConnectionRefusedError("connection refused")
        client_end, server_end = trio.testing.memory_stream_pair()
        self._streams += [client_end, server_end]
        self._nursery.start_soon(self._server.serve_stream, server_end)
        return client_end

    async def cut(self) -> None:
        """Break every connection, at both ends at once."""
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_rpc_pair(
    servicers: Sequence[purerpc.Servicer],
    *,
    server_interceptors: Sequence[Interceptor] = (),
    channel_interceptors: Sequence[Interceptor] = (),
    server_limits: RpcLimits = RpcLimits(),  # noqa: B008  # frozen
    channel_limits: RpcLimits = RpcLimits(),  # noqa: B008  # frozen
) -> AsyncIterator[RpcPair]:
    """Serve `servicers` in memory, with a channel to them, until the block ends."""
    server = RpcServer(servicers, server_interceptors, server_limits)
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            network = MemoryNetwork(server, nursery)
            try:
                async with open_channel(
                    MEMORY_TARGET,
                    interceptors=channel_interceptors,
                    limits=channel_limits,
                    connect=network.connect,
                ) as channel:
                    yield RpcPair(server, channel, network)
            except BaseException as error:
                body_error = error
                raise
            finally:
                nursery.cancel_scope.cancel(reason="the test is over")
    except BaseExceptionGroup as group:
        # A failing assertion should look like one, not like a group of one.
        if body_error is not None and group.exceptions == (body_error,):
            raise body_error from body_error.__cause__
        raise
