"""permessage-deflate: what is negotiated, what is compressed, and what a hostile client can do with it."""

from __future__ import annotations

import json
import os
import subprocess
import zlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect

from tests.phoenix_js import SCRIPT, installed_node
from whispr.realtime import deflate as module
from whispr.realtime import frames
from whispr.realtime.channel import Channel
from whispr.realtime.deflate import deflate, deflate_frame, inflate, negotiate
from whispr.realtime.frames import (
    BINARY,
    CloseCode,
    Closed,
    FrameError,
    FrameReader,
    encode_frame,
    encode_masked_frame,
)
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served

MASK = b"\x01\x02\x03\x04"
LONG = "the same words again and again, " * 200


@pytest.mark.parametrize(
    ("offers", "accepted"),
    [
        ([], False),
        (["permessage-deflate"], True),
        (["permessage-deflate; client_max_window_bits"], True),
        (["permessage-deflate; client_max_window_bits=9; server_no_context_takeover"], True),
        (["permessage-deflate; server_max_window_bits=15"], True),
        (["permessage-deflate; server_max_window_bits=10"], False),
        (["permessage-deflate; server_max_window_bits=10, permessage-deflate"], True),
        (["x-webkit-deflate-frame", "permessage-deflate"], True),
        (["permessage-deflate; client_max_window_bits=16"], False),
        (["permessage-deflate; server_no_context_takeover=1"], False),
        (["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], False),
        (["permessage-deflate; level=9"], False),
    ],
)
def test_an_offer_is_accepted_if_all_of_it_can_be_kept(offers: list[str], accepted: bool) -> None:
    """Unknown, repeated and invalid parameters, and a smaller window for the server, decline one offer."""
    assert negotiate(offers) is accepted


@given(st.binary(max_size=40_000))
def test_any_message_comes_back_as_it_was(data: bytes) -> None:
    """Through our own inflater, and through zlib's as any client has it."""
    compressed = deflate(data)
    assert inflate(compressed, len(data)) == data
    assert zlib.decompressobj(-15).decompress(compressed + b"\0\0\xff\xff") == data


def test_a_bomb_is_not_inflated() -> None:
    """A message that would be longer than the limit is refused as too big, without being made."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = (bomb.compress(bytes(30_000_000)) + bomb.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(data) < 40_000
    with pytest.raises(FrameError) as caught:
        inflate(data, 1024 * 1024)
    assert caught.value.code == CloseCode.TOO_BIG


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x07rubbish", deflate(b"whole") + b"\x06\xff\xfe"])
def test_what_is_no_deflate_data_is_invalid(data: bytes) -> None:
    """It fails the connection with 1007."""
    with pytest.raises(FrameError) as caught:
        inflate(data, 1000)
    assert caught.value.code == CloseCode.INVALID_DATA


def test_a_last_block_may_end_a_message_and_nothing_may_follow() -> None:
    """A compressor may mark its last block as such (RFC 7692 section 7.2.3.4)."""
    last = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = last.compress(b"hello") + last.flush(zlib.Z_FINISH)
    assert inflate(data + b"\x00", 100) == b"hello"
    with pytest.raises(FrameError):
        inflate(data + data, 100)


def test_short_messages_and_those_that_would_grow_stay_as_they_are() -> None:
    """Only from a size on, and only for less."""
    short, noise = encode_frame(1, b"x" * 99), encode_frame(2, os.urandom(5000))
    assert deflate_frame(short, 100) is short
    assert deflate_frame(noise, 100) is noise
    long = encode_frame(1, b"x" * 100)
    assert len(deflate_frame(long, 100)) < len(long)


def read(*data: bytes, inflates: bool = True) -> list[frames.Item]:
    reader = FrameReader(masked=True, message_bytes_max=100_000, inflate=inflate if inflates else None)
    return [item for each in data for item in reader.feed(each)]


def test_a_compressed_message_may_come_in_fragments() -> None:
    """RSV1 is on the first fragment alone, and a ping may come between."""
    data = deflate(LONG.encode())
    first = bytearray(encode_masked_frame(1, data[:10], MASK))
    first[0] = frames.TEXT | frames.RSV1
    rest = encode_masked_frame(0, data[10:], MASK)
    assert read(bytes(first), encode_masked_frame(frames.PING, b"?", MASK), rest) == [frames.Ping(b"?"), LONG]


@pytest.mark.parametrize(
    ("first", "inflates"),
    [(0xC1, False), (0xA1, True), (0xF1, True), (0xC9, True), (0xC8, True), (0xC0, True)],
)
def test_reserved_bits_mean_something_only_where_they_were_negotiated(first: int, inflates: bool) -> None:
    """RSV1 without the extension, on a control frame or a continuation, and RSV2 or RSV3 are protocol errors."""
    frame = bytearray(encode_masked_frame(1, b"", MASK))
    frame[0] = first
    with pytest.raises(FrameError) as caught:
        read(bytes(frame), inflates=inflates)
    assert caught.value.code == CloseCode.PROTOCOL_ERROR


# ── with clients that others wrote ──


class Echo(Channel):
    """Tells everybody on the topic what it is told."""

    async def handle(self, event: str, payload: object) -> object:
        self.link.broadcast(event, payload)
        return {"length": len(json.dumps(payload))}


def heard(url: str, compression: str | None) -> tuple[int, object]:
    """Join with `websockets` and return how many extensions it has, and the first broadcast."""
    with connect(url, compression=compression, max_size=None) as client:
        client.send(json.dumps(["1", "1", "echo:1", "phx_join", {}]))
        assert json.loads(client.recv(timeout=10))[4]["status"] == "ok"
        return len(client.protocol.extensions), json.loads(client.recv(timeout=10))


async def all_heard(server: Server, *compressions: str | None) -> list[tuple[int, object]]:
    """What each of several clients has heard of one long broadcast."""
    found: list[tuple[int, object]] = []

    async def hear(url: str, compression: str | None) -> None:
        found.append(await trio.to_thread.run_sync(heard, url, compression))

    async with trio.open_nursery() as nursery:
        for n, compression in enumerate(compressions):
            url = f"{server.url}/socket/websocket?vsn=2.0.0&token=user{n}"
            nursery.start_soon(hear, url, compression)
        with trio.fail_after(20):
            while len(server.hub.subscribers("echo:1")) < len(compressions):  # noqa: ASYNC110  # in other threads
                await trio.sleep(0.01)
        server.hub.broadcast("echo:1", "say", {"text": LONG})
    return sorted(found, key=lambda each: each[0])


async def test_websockets_reads_what_is_compressed_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sockets with the extension and one without get the same broadcast, which is compressed once."""
    compressed: list[int] = []

    def counted(data: bytes) -> bytes:
        compressed.append(len(data))
        return deflate(data)

    monkeypatch.setattr(module, "deflate", counted)
    said = [None, None, "echo:1", "say", {"text": LONG}]
    async with served({"echo": Echo}) as server:
        assert await all_heard(server, "deflate", "deflate", None) == [(0, said), (1, said), (1, said)]
    assert len(compressed) == 1


async def test_ws_of_npm_reads_and_writes_it() -> None:
    """Node's `ws` negotiates it by itself, sends compressed messages and reads ours."""
    script = """
        const { WebSocket } = require('ws')
        const text = 'the same words again and again, '.repeat(200)
        const socket = new WebSocket(process.argv[1], { perMessageDeflate: { threshold: 0 } })
        socket.on('open', () => socket.send(JSON.stringify(['1', '1', 'echo:1', 'phx_join', {}])))
        socket.on('message', (data) => {
          const [, ref, , event, payload] = JSON.parse(data)
          if (ref === '1') socket.send(JSON.stringify(['1', '2', 'echo:1', 'say', { text }]))
          if (event === 'say') console.log(socket.extensions, payload.text === text)
          if (ref === '2') socket.close()
        })
    """
    node = installed_node()
    async with served({"echo": Echo}) as server:
        url = f"{server.url}/socket/websocket?vsn=2.0.0&token=alice"
        with trio.fail_after(20):
            done = await trio.run_process(
                [node, "-e", script, url], cwd=SCRIPT.parent, capture_stdout=True, stdin=subprocess.DEVNULL
            )
    assert done.stdout.split() == [b"permessage-deflate", b"true"]


async def test_it_can_be_switched_off() -> None:
    """Then no offer is accepted, and a compressed frame is an error."""
    async with served({"echo": Echo}, Limits(deflate=False)) as server:
        ((extensions, _),) = await all_heard(server, "deflate")
        assert extensions == 0
        async with server.wire("bob") as wire:
            await wire.send_frame(BINARY | frames.RSV1, deflate(b"hello"))
            assert (await wire.closed()).code == 1002


@pytest.mark.parametrize(
    ("data", "code"), [(b"\xff\xff\xff", 1007), (deflate(b" " * 5000), 1009)], ids=["malformed", "too long"]
)
async def test_a_bad_compressed_message_closes_its_socket(data: bytes, code: int) -> None:
    """1007 for what is no DEFLATE data, 1009 for what is longer than a message may be once inflated."""
    limits = Limits(frame_bytes=1000)
    async with served({"echo": Echo}, limits) as server, server.wire("bob", deflate=True) as wire:
        await wire.send_frame(BINARY | frames.RSV1, data)
        assert isinstance(closed := await wire.receive(), Closed)
        assert closed.code == code
