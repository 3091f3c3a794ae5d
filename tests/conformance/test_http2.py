"""HTTP/2 and HPACK conformance: raw frames against a whole server, by section (`cases` holds the table)."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import purerpc
import pytest
import trio
import trio.testing
from google.protobuf.wrappers_pb2 import BytesValue

from tests.conformance.cases import cases
from tests.conformance.raw import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    cut,
    data,
    frame,
    settings,
    shifted,
)
from tests.conformance.table import (
    DIALECTS,
    STREAMS_MAX,
    Alive,
    Case,
    Dialect,
    GoneAway,
    Response,
    Says,
    Settle,
    Step,
    StreamFault,
    Wait,
    WaitForData,
)
from whispr.http2.limits import Limits
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer

FENCE = b"\0fence\0\0"
ALL = [(dialect, case, False) for dialect in DIALECTS for case in cases(dialect)]
ALL += [(DIALECTS[-1], case, True) for case in cases(DIALECTS[-1]) if case.handshake]
"""Each case as the first thing on a connection, and, where calls are known to take another way, after some."""

LIMITS = RpcLimits(http2=Limits(streams_max=STREAMS_MAX))
CALLS_BEFORE = 2
CONFORMANCE_MIN = 146
"""What the well-known third-party suite has; ours is no smaller."""


class Echo(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
    """One method, which takes any number of messages and answers with one of ten octets."""

    async def Join(self, input_messages: AsyncIterator[BytesValue]) -> BytesValue:  # noqa: N802
        async for _ in input_messages:
            pass
        return BytesValue(value=b"0123456789")

    @property
    def service(self) -> purerpc.Service:
        service = purerpc.Service("whispr.test.echo.Echo")
        signature = purerpc.RPCSignature(purerpc.Cardinality.STREAM_UNARY, BytesValue, BytesValue)
        service.add_method("Join", self.Join, signature)
        return service


class Pieces(trio.abc.HalfCloseableStream):
    """A socket whose writes leave in pieces."""

    PIECES_MAX = 64

    def __init__(self, stream: trio.SocketStream, octets: int) -> None:
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        self._stream = stream
        self._octets = octets

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        size = max(self._octets, len(data) // self.PIECES_MAX)
        for at in range(0, len(data), size):
            await self._stream.send_all(data[at : at + size])

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


class Peer:
    """A client that sends octets and collects frames."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.frames: list[Frame] = []
        self.closed = False
        self._rest = b""
        self._pings = itertools.count()

    async def send(self, octets: bytes) -> None:
        try:
            await self.stream.send_all(octets)
        except trio.BrokenResourceError:
            self.closed = True  # what was said before is still to be read

    async def read(self) -> bool:
        """Read more frames; False once the server has closed."""
        octets = await self.stream.receive_some()
        new, self._rest = cut(self._rest + bytes(octets))
        self.frames += new
        for received in new:
            if received.kind == SETTINGS and not received.flags & ACK:
                await self.send(frame(SETTINGS, ACK))
        self.closed = self.closed or not octets
        return bool(octets)

    async def fence(self) -> bool:
        """Read until everything sent has been dealt with; False when the server closed instead."""
        payload = FENCE[:-1] + bytes((next(self._pings),))
        await self.send(frame(PING, 0, 0, payload))
        while not any(got.kind == PING and got.payload == payload for got in self.frames):
            if not await self.read():
                return False
        return True

    async def until_answered(self, stream: int) -> None:
        """Read until the server has ended a stream; fails if the connection ends first."""
        while not any(
            got.stream == stream
            and (got.kind == RST_STREAM or (got.flags & END_STREAM and got.kind in (DATA, HEADERS)))
            for got in self.frames
        ):
            assert await self.read(), f"closed: {self.frames}"

    async def until_data(self, wait: WaitForData) -> None:
        """Read until so much DATA has come; fails if more does."""
        while not self._headers(wait.stream) or self.data(wait.stream) < wait.size:
            assert await self.read(), f"closed: {self.frames}"
        assert await self.fence()
        assert self.data(wait.stream) == wait.size

    def data(self, stream: int) -> int:
        return sum(len(got.payload) for got in self.frames if got.kind == DATA and got.stream == stream)

    def _headers(self, stream: int) -> bool:
        return any(got.kind == HEADERS and got.stream == stream for got in self.frames)

    def errors(self) -> list[tuple[str, int, str]]:
        """GOAWAYs and RST_STREAMs, with their streams and codes."""
        names = {GOAWAY: "GOAWAY", RST_STREAM: "RST_STREAM"}
        return [(names[got.kind], got.stream, got.code) for got in self.frames if got.kind in names]


async def warm_up(peer: Peer, dialect: Dialect) -> None:
    """Make some calls, so that the server has seen the like of what follows."""
    for stream in range(1, 2 * CALLS_BEFORE, 2):
        await peer.send(dialect.posting(stream) + data(stream, dialect.message))
        await peer.until_answered(stream)
    assert await peer.fence()
    assert peer.errors() == []
    peer.frames.clear()


def moved(case: Case, by: int) -> Case:
    """The same case on streams of higher ids."""

    def later(stream: int) -> int:
        return stream if stream == 2**31 - 1 else stream + by

    def step(old: Step) -> Step:
        if isinstance(old, bytes):
            return shifted(old, by)
        return old if isinstance(old, Settle) else replace(old, stream=later(old.stream))

    expected = case.expected
    if isinstance(expected, StreamFault):
        expected = replace(expected, stream=later(expected.stream))
    elif isinstance(expected, Response):
        expected = replace(expected, streams=tuple(map(later, expected.streams)))
    return replace(case, steps=tuple(map(step, case.steps)), expected=expected)


async def play(peer: Peer, case: Case) -> None:
    """Take a case's steps."""
    for step in case.steps:
        if isinstance(step, Wait):
            await peer.until_answered(step.stream)
        elif isinstance(step, WaitForData):
            await peer.until_data(step)
        elif isinstance(step, Settle):
            assert await peer.fence()
        else:
            await peer.send(step)


async def judge(peer: Peer, expected: Any) -> None:
    """Read what must come, and check that nothing else of note did."""
    if isinstance(expected, GoneAway):
        while await peer.read():
            pass
        kinds = [(kind, code) for kind, _, code in peer.errors() if kind == "GOAWAY"]
        assert kinds in [[("GOAWAY", code)] for code in expected.codes]
    elif isinstance(expected, StreamFault):
        alive = await peer.fence()
        connection = [("GOAWAY", 0, code) for code in expected.codes]
        stream = [("RST_STREAM", expected.stream, code) for code in expected.codes]
        errors = [error for error in peer.errors() if error[2] != "NO_ERROR"]
        assert errors[0] in (stream if alive else connection)
        assert len(errors) == 1
    else:
        for stream_id in expected.streams if isinstance(expected, Response) else ():
            await peer.until_answered(stream_id)
        assert await peer.fence(), peer.errors()
        assert peer.errors() == []
        if isinstance(expected, Says):
            wanted = (expected.kind, expected.flags, expected.payload)
            assert wanted in [(got.kind, got.flags, got.payload) for got in peer.frames]
        else:
            assert isinstance(expected, Alive | Response)


@pytest.mark.parametrize(
    ("dialect", "case", "warm"),
    ALL,
    ids=[f"{'warm ' * warm}{dialect.name} {case.section} {case.name}" for dialect, case, warm in ALL],
)
async def test_conformance(
    dialect: Dialect, case: Case, warm: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """What the section asks of a server comes back, and a server that may go on does."""
    server = RpcServer([Echo()], limits=LIMITS)
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, far)
        await converse(Peer(near), dialect, case, warm)
        nursery.cancel_scope.cancel(reason="judged")


@pytest.mark.slow
@pytest.mark.parametrize("octets_max", [None, 7], ids=["whole", "in pieces"])
async def test_conformance_over_sockets(octets_max: int | None) -> None:
    """The same cases through the kernel, each on a connection of its own; also where writes arrive in pieces."""
    server = RpcServer([Echo()], limits=LIMITS)
    failed: list[str] = []
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        for dialect, case, warm in ALL:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                peer = Peer(stream if octets_max is None else Pieces(stream, octets_max))
                try:
                    await converse(peer, dialect, case, warm)
                except (AssertionError, trio.TooSlowError) as error:
                    failed.append(f"{dialect.name} {case.section} {case.name}: {error!r}")
        nursery.cancel_scope.cancel(reason="judged")
    assert not failed, "\n".join(failed)


async def converse(peer: Peer, dialect: Dialect, case: Case, warm: bool) -> None:
    """Play a case from its connection's beginning, and judge."""
    with trio.fail_after(10):
        if case.handshake:
            await peer.send(PREFACE + settings())
            assert await peer.fence()
            peer.frames.clear()
        if warm:
            await warm_up(peer, dialect)
            case = moved(case, 2 * CALLS_BEFORE)
        await play(peer, case)
        await judge(peer, case.expected)


def test_the_table_is_whole() -> None:
    """No case is written twice, and every section of the protocol that binds a server has some."""
    for dialect in DIALECTS:
        table = list(cases(dialect))
        assert len({(case.section, case.name) for case in table}) == len(table) >= CONFORMANCE_MIN
        sections = {case.section for case in table}
        assert sections >= {f"6.{n}" for n in range(1, 11)} | {
            "3.4",
            "4.1",
            "4.2",
            "4.3",
            "5.1",
            "5.1.1",
            "5.1.2",
        }
        assert sections >= {
            "5.4.1",
            "5.4.2",
            "5.5",
            "7",
            "8.1",
            "8.1.1",
            "8.2.1",
            "8.2.2",
            "8.3",
            "8.3.1",
            "8.4",
        }
        assert sections >= {f"hpack {part}" for part in ("2.3.3", "4.2", "5.1", "5.2", "6.1", "6.2.1", "6.3")}
