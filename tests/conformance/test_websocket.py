"""WebSocket conformance: Autobahn's cases against the listener, judged by wsproto, and compression by `websockets`.

Autobahn's own case files are `test_autobahn`'s. Here are the same cases (`ws_cases`) with another judge: what the
server answers is read by wsproto's strict client half, which raises for anything RFC 6455 does not allow, and pongs
and messages come in the order in which they were asked for.

The listener is the product's, handshake included, but for one thing: what it reads it echoes instead of taking it
for Phoenix.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import wsproto.frame_protocol as third_party
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

from tests.conformance.ws_cases import BINARY, OPEN, TEXT, Case, cases, close, frame
from whispr.realtime import frames, server
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.testing import served
from whispr.realtime.upgrade import request_upgrade
from whispr.realtime.websocket import WebSocket

pytestmark = pytest.mark.slow
AUTOBAHN = 297
"""Cases of ours with the numbers of Autobahn's sections 1 to 7, 9 and 10."""
CASE_S = 20
BIG = 64 << 20
LIFTED = Limits(frame_bytes=BIG, buffer_bytes=BIG, fragments=0, chatter_per_min=0)


class Echo(WebSocket):
    """A socket that says what it hears."""

    __slots__ = ()

    async def _message(self, data: str | bytes) -> None:
        payload = data.encode() if isinstance(data, str) else data
        self.send(frames.encode_frame(frames.TEXT if isinstance(data, str) else frames.BINARY, payload))


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """The port of an echoing listener."""
    monkeypatch.setattr(server, "WebSocket", Echo)
    async with served({}, hub=Hub(LIFTED)) as listening:
        yield listening.port


Heard = str | bytes | tuple[str, bytes]


class Judge:
    """Reads what the server says, by somebody else's reading of the RFC."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._protocol = third_party.FrameProtocol(client=True, extensions=[])
        self.ended: int | None = None

    async def listen(self, count: int) -> list[Heard]:
        """Return the next messages and pongs, fewer when the server closes first."""
        heard: list[Heard] = []
        parts: list[str | bytes] = []
        while len(heard) < count and self.ended is None:
            data = bytes(await self._stream.receive_some(1 << 20))
            assert data, "the connection ended without a close frame"
            self._protocol.receive_bytes(data)
            for received in self._protocol.received_frames():
                self._take(received, heard, parts)
        return heard

    def _take(self, received: third_party.Frame, heard: list[Heard], parts: list[str | bytes]) -> None:
        if received.opcode is third_party.Opcode.CLOSE:
            code, _ = cast("tuple[int, str]", received.payload)
            self.ended = int(code)
        elif received.opcode is third_party.Opcode.PONG:
            heard.append(("pong", bytes(cast("bytes", received.payload))))
        else:
            part = cast("str | bytearray", received.payload)
            parts.append(part if isinstance(part, str) else bytes(part))
            if received.message_finished:
                whole = parts[0][:0].join(parts)  # type: ignore[arg-type]  # all of one message, so of one type
                heard.append(whole)
                parts.clear()

    async def hung_up(self) -> bool:
        """Hang up too; tell whether the server ends the connection, and says nothing before it does."""
        try:
            await self._stream.send_all(close(None))
            return not bytes(await self._stream.receive_some(100))
        except trio.BrokenResourceError:
            return True  # it had closed already, and what was just sent came too late for it


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        await request_upgrade(stream, f"127.0.0.1:{port}", "/socket/websocket?vsn=2.0.0&token=fuzz")
        yield stream


async def say(stream: trio.SocketStream, case: Case) -> None:
    """Send what a case sends; the server may have closed before the end of it."""
    try:
        for piece in case.sends:
            for at in range(0, len(piece), case.chop or len(piece) or 1):
                await stream.send_all(piece[at : at + (case.chop or len(piece))])
    except trio.BrokenResourceError:
        assert case.ends != OPEN


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.number} {case.what}")
async def test_autobahns_case(case: Case, port: int) -> None:
    """The echo, then the end, as the case says."""
    with trio.fail_after(CASE_S):
        async with connected(port) as stream:
            judge = Judge(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(say, stream, case)
                heard = await judge.listen(len(case.expects))
            assert heard == list(case.expects)
            if case.ends == OPEN:
                await stream.send_all(close(1000))
            assert await judge.listen(1) == []
            assert judge.ended == (case.ends or 1000)
            assert await judge.hung_up()


def test_there_are_as_many_cases_as_in_autobahns_suite() -> None:
    """A table that loses a section would look as good as one that has it."""
    found = {case.number for case in cases()}
    assert len(found) == len(cases())
    assert len(found) >= AUTOBAHN
    for section in ("1.1", "1.2", "2", "3", "4.1", "4.2", "5", "6.5", "6.21", "7.1", "7.13", "9.1", "9.8"):
        assert any(number.startswith(f"{section}.") for number in found), section


DEFLATE_SIZES = (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)


@pytest.mark.parametrize("takeover", [False, True], ids=["12", "13"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
@pytest.mark.parametrize("size", DEFLATE_SIZES)
async def test_compression_of_websockets(port: int, size: int, opcode: int, takeover: bool) -> None:
    """Sections 12 and 13: what the library `websockets` compresses is read, with every form of its offer."""
    offer = ClientPerMessageDeflateFactory(
        server_no_context_takeover=not takeover,
        client_no_context_takeover=not takeover,
        client_max_window_bits=True,
    )
    uri = parse_uri(f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&token=fuzz")
    client = ClientProtocol(uri, extensions=[offer], max_size=BIG)
    said = (b'{"n": 1, "text": "compressible"}' * (size // 16))[:size]
    with trio.fail_after(CASE_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            client.send_request(client.connect())
            await exchange(client, stream)
            assert client.extensions, "the server did not take the extension"
            for _ in range(20):
                (client.send_text if opcode == TEXT else client.send_binary)(said)
            heard: list[bytes] = []
            while len(heard) < 20:
                events = await exchange(client, stream)
                heard += [
                    bytes(event.data)
                    for event in events
                    if getattr(event, "opcode", None) in (Opcode.TEXT, Opcode.BINARY)
                ]
            assert heard == [said] * 20


async def exchange(client: ClientProtocol, stream: trio.SocketStream) -> list[Any]:
    """Send what the library wants sent, and have it read what comes."""
    for data in client.data_to_send():
        await stream.send_all(data)
    client.receive_data(bytes(await stream.receive_some(1 << 20)))
    assert client.parser_exc is None
    return list(client.events_received())


@pytest.mark.parametrize("payload", [b"not deflated at all", b"\xff" * 50])
async def test_what_is_not_compressed_as_it_says(port: int, payload: bytes) -> None:
    """A frame marked as compressed whose payload is none: closed with 1002 or 1007, and nothing echoed."""
    uri = parse_uri(f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0&token=fuzz")
    client = ClientProtocol(uri, extensions=[ClientPerMessageDeflateFactory()])
    with trio.fail_after(CASE_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            client.send_request(client.connect())
            await exchange(client, stream)
            with pytest.raises(zlib.error):
                zlib.decompress(payload, -15)
            await stream.send_all(frame(BINARY, payload, rsv=4))
            judge = Judge(stream)
            assert await judge.listen(1) == []
            assert judge.ended in (1002, 1007)
