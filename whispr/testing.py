"""A kit for tests: a server and a channel to it in memory, without sockets.

    async with open_rpc_pair([EchoHandlers()]) as pair:
        reply = await EchoStub(pair.channel).Say(Message(text="hi"))

Everything runs as in production but for the byte streams, so `autojump_clock` works: nothing waits for the
operating system. The streams may be made faulty, and the faults are the same for the same seed:

    async with open_rpc_pair([EchoHandlers()], faults=Faults(delay_s=0.2, split=0.5, drop=0.01), seed=7) as pair:
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import purerpc
import trio
import trio.testing

from whispr.nurseries import own_nursery
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer

MEMORY_TARGET = "memory:0"


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with bytes on their way. Chances, from 0 to 1, are taken for each piece that arrives."""

    delay_s: float = 0.0
    """Each piece is late by up to this many seconds."""
    split: float = 0.0
    """The piece arrives in two."""
    drop: float = 0.0
    """The connection breaks instead, at both ends."""
    cut: float = 0.0
    """Part of the piece arrives, and then the end of the stream."""
    garble: float = 0.0
    """One of its bytes is another."""


class FaultyStream(trio.abc.Stream):
    """A byte stream on whose receiving side things go wrong."""

    def __init__(self, stream: trio.abc.Stream, faults: Faults, random: Random) -> None:
        self._stream = stream
        self._faults = faults
        self._random = random
        self._rest = b""
        """What has arrived and not been received yet."""
        self._broken = False
        self._cut = False

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises BrokenResourceError once the connection has been dropped or cut."""
        if self._broken:
            raise trio.BrokenResourceError("the connection was dropped")
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream inside."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next piece, with whatever happens to it. Raises BrokenResourceError when that is a drop."""
        if not self._rest and not self._cut:
            # Read whole, so that the chances are per piece and not per the reader's idea of a read.
            arrived = bytes(await self._stream.receive_some(2**20))
            if self._faults.delay_s:
                await trio.sleep(self._random.uniform(0, self._faults.delay_s))
            self._rest = await self._damaged(arrived) if arrived else b""
        else:
            await trio.lowlevel.checkpoint()
        if self._broken and not self._cut:
            raise trio.BrokenResourceError("the connection was dropped")
        size = len(self._rest) if max_bytes is None else min(max_bytes, len(self._rest))
        if size > 1 and self._happens(self._faults.split):
            size = self._random.randrange(1, size)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    async def _damaged(self, piece: bytes) -> bytes:
        faults, random = self._faults, self._random
        if self._happens(faults.drop):
            await self._break()
            return b""
        if self._happens(faults.garble):
            at = random.randrange(len(piece))
            piece = piece[:at] + bytes((piece[at] ^ random.randrange(1, 256),)) + piece[at + 1 :]
        if self._happens(faults.cut):
            self._cut = True
            await self._break()
            piece = piece[: random.randrange(len(piece))]
        return piece

    async def _break(self) -> None:
        self._broken = True
        await trio.aclose_forcefully(self._stream)

    async def aclose(self) -> None:
        """Close the stream inside."""
        await self._stream.aclose()


class RpcPair:
    """A server, a channel to it, and the wires between them."""

    def __init__(self, server: RpcServer, channel: Channel, network: MemoryNetwork) -> None:
        self.server = server
        self.channel = channel
        self.network = network


class MemoryNetwork:
    """Connects to a server in memory, and can break every connection it made."""

    def __init__(
        self, server: RpcServer, nursery: trio.Nursery, faults: Faults | None = None, seed: int = 0
    ) -> None:
        self.faults = faults
        """What goes wrong on connections made from now on."""
        self.reachable = True
        """Whether connecting works; when not, it fails as a refused connection does."""
        self._server = server
        self._nursery = nursery
        self._streams: list[trio.abc.Stream] = []
        self._random = Random(seed)  # noqa: S311  # faults are to be repeated, not to be unguessable

    @property
    def connections_made(self) -> int:
        """How often `connect` has succeeded."""
        return len(self._streams) // 2

    async def connect(self) -> trio.abc.Stream:
        """A new connection to the server. Raises ConnectionRefusedError while unreachable."""
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise ConnectionRefusedError("connection refused")
        client_end: trio.abc.Stream
        server_end: trio.abc.Stream
        client_end, server_end = trio.testing.memory_stream_pair()
        if self.faults is not None:
            client_end, server_end = self._faulty(client_end), self._faulty(server_end)
        self._streams += [client_end, server_end]
        self._nursery.start_soon(self._server.serve_stream, server_end)
        return client_end

    def _faulty(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        assert self.faults is not None, "only asked where there are faults"
        return FaultyStream(stream, self.faults, Random(self._random.random()))  # noqa: S311  # as above

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
    faults: Faults | None = None,
    seed: int = 0,
) -> AsyncIterator[RpcPair]:
    """Serve `servicers` in memory, with a channel to them, until the block ends.

    `faults` happen to what goes either way, the same ones for the same `seed`.
    """
    server = RpcServer(servicers, server_interceptors, server_limits)
    async with own_nursery("the test is over") as nursery:
        network = MemoryNetwork(server, nursery, faults, seed)
        async with open_channel(
            MEMORY_TARGET,
            interceptors=channel_interceptors,
            limits=channel_limits,
            connect=network.connect,
        ) as channel:
            yield RpcPair(server, channel, network)
