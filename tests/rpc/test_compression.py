"""Compressed messages, both ways, and those that are made to hurt (grpc/doc/compression.md)."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError
from whispr.http2 import events
from whispr.rpc import compression
from whispr.rpc.call import current_call
from whispr.rpc.channel import open_channel
from whispr.rpc.inbox import Inbox
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import Compressed, MessageReader, frame_encoded, frame_message
from whispr.testing import open_rpc_pair

Connect = Callable[[RpcServer], Awaitable[Any]]
Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]

GZIP, DEFLATE = compression.named("gzip"), compression.named("deflate")
LONG = "whispr " * 1000
MIB = 1024 * 1024


def flagged(data: bytes, flag: int = 1) -> bytes:
    """A message with the compressed flag, whatever it is."""
    return struct.pack(">BL", flag, len(data)) + data


# --- Without a connection ---------------------------------------------------------------------------------


@given(st.binary(max_size=5000), st.sampled_from(["gzip", "deflate"]))
def test_messages_survive(message: bytes, name: str) -> None:
    """What is worth compressing comes back as it was; what is not is left alone."""
    encoding = compression.named(name)
    assert encoding is not None
    compressed = encoding.compress(message)
    if compressed is None:
        return
    assert len(compressed) < len(message)
    assert encoding.expand(compressed, len(message)) == message


def test_small_and_incompressible_messages_are_left_alone() -> None:
    """Neither is worth the flag."""
    assert GZIP is not None
    assert GZIP.compress(b"a" * (compression.COMPRESSED_FROM_BYTES - 1)) is None
    assert GZIP.compress(b"a" * compression.COMPRESSED_FROM_BYTES)
    noise = random.Random(1).randbytes(2000)
    assert frame_encoded(noise, GZIP) == frame_message(noise)


def test_others_understand_ours_and_we_theirs() -> None:
    """The encodings are what the standard library calls gzip and zlib."""
    assert GZIP is not None
    assert DEFLATE is not None
    message = LONG.encode()
    assert gzip.decompress(GZIP.compress(message) or b"") == message
    assert zlib.decompress(DEFLATE.compress(message) or b"") == message
    assert GZIP.expand(gzip.compress(message), MIB) == message
    assert DEFLATE.expand(zlib.compress(message), MIB) == message
    assert GZIP.expand(gzip.compress(b""), MIB) == b""


def test_the_limit_is_exact() -> None:
    """As many bytes as allowed pass, one more does not."""
    assert GZIP is not None
    data = gzip.compress(b"a" * 1000)
    assert len(GZIP.expand(data, 1000)) == 1000
    with pytest.raises(WhisprError) as caught:
        GZIP.expand(data, 999)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_bomb_is_not_inflated(name: str) -> None:
    """Of 64 MiB packed into 64 KiB no more than the limit is ever in memory."""
    encoding = compression.named(name)
    assert encoding is not None
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | (16 if name == "gzip" else 0))
    zeros = bytes(4 * MIB)
    bomb = b"".join(packer.compress(zeros) for _ in range(16)) + packer.flush()
    assert len(bomb) < 70 * 1024
    tracemalloc.start()
    try:
        with pytest.raises(WhisprError) as caught:
            encoding.expand(bomb, MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert peak < 4 * MIB


WHOLE = gzip.compress(LONG.encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"not gzip", WHOLE[:-1], WHOLE[:-8] + bytes(8), WHOLE + b"x", WHOLE * 2, zlib.compress(b"x")],
    ids=["empty", "garbage", "cut short", "bad checksum", "followed by more", "two members", "zlib"],
)
def test_broken_data(data: bytes) -> None:
    """INTERNAL, as any message that does not parse."""
    assert GZIP is not None
    with pytest.raises(WhisprError) as caught:
        GZIP.expand(data, MIB)
    assert caught.value.code is Code.INTERNAL


def test_names() -> None:
    """Known ones, none, and an error that lists them."""
    assert compression.named(None) is compression.named("identity") is None
    with pytest.raises(ValueError, match="identity,deflate,gzip"):
        compression.named("br")
    assert compression.accepted("identity, GZIP ,br") == {"gzip"}
    assert compression.accepted(None) == compression.accepted("") == frozenset()


def test_messages_wait_compressed() -> None:
    """A thousand bombs that nobody reads take a thousand times their own size, and a reader meets one at a time."""
    assert GZIP is not None
    bomb = gzip.compress(bytes(MIB))
    inbox = Inbox(MIB)
    inbox.expect(GZIP)
    tracemalloc.start()
    try:
        for _ in range(1000):
            inbox.feed(flagged(bomb))
        held = tracemalloc.get_traced_memory()[0]
        message, surplus = inbox.take()
    finally:
        tracemalloc.stop()
    assert held < 1100 * (len(bomb) + 200)
    assert (len(message), surplus) == (MIB, 5 + len(bomb))
    assert inbox.compressed


def test_flags_are_per_message() -> None:
    """Plain and compressed messages mix in one stream, and are told apart."""
    assert GZIP is not None
    inbox = Inbox(MIB)
    inbox.expect(GZIP)
    inbox.feed(frame_encoded(LONG.encode(), GZIP) + frame_message(b"plain") + flagged(gzip.compress(b"")))
    taken = []
    for _ in range(3):
        message, _ = inbox.take()
        taken.append((message, inbox.compressed))
    assert taken == [(LONG.encode(), True), (b"plain", False), (b"", True)]


@pytest.mark.parametrize("flag", [2, 255])
def test_other_flags_are_errors(flag: int) -> None:
    """The prefix knows 0 and 1."""
    reader = MessageReader(100)
    reader.encoding = GZIP
    assert reader.feed(flagged(b"x")) == [Compressed(b"x")]
    with pytest.raises(WhisprError) as caught:
        reader.feed(flagged(b"x", flag))
    assert caught.value.code is Code.INTERNAL


# --- A server ---------------------------------------------------------------------------------------------

Changes = Mapping[str, str | None]

ACCEPTS_GZIP: Changes = {"grpc-accept-encoding": "identity,gzip"}


async def responses(client: Any, stream_id: int) -> tuple[dict[str, str], bytes]:
    """A response's fields and body."""
    fields = await client.outcome(stream_id)
    body = b"".join(
        event.data
        for event in client.reported
        if isinstance(event, events.DataReceived) and event.stream_id == stream_id
    )
    return fields, body


async def ask(
    client: Any, body: bytes, changes: Changes, method: str = "Say"
) -> tuple[dict[str, str], bytes]:
    stream_id = await client.open({":path": f"/whispr.test.echo.Echo/{method}", **changes})
    client.core.send_data(stream_id, body, end_stream=True)
    await client.send()
    return await responses(client, stream_id)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
async def test_a_server_reads_what_is_compressed(
    echo: Any, handlers: Any, raw_client: Connect, name: str
) -> None:
    """And answers plainly, since compressing costs and nobody asked for it."""
    encoding = compression.named(name)
    assert encoding is not None
    client = await raw_client(RpcServer([handlers]))
    body = frame_encoded(echo.Message(text=LONG).SerializeToString(), encoding)
    fields, answer = await ask(client, body, {"grpc-encoding": name, "grpc-accept-encoding": name})
    assert fields["grpc-status"] == "0"
    assert "grpc-encoding" not in fields
    assert answer == frame_message(echo.Message(text=LONG, n=1).SerializeToString())


async def test_plain_messages_may_come_under_an_encoding(
    echo: Any, handlers: Any, raw_client: Connect
) -> None:
    """The flag of each message decides."""
    client = await raw_client(RpcServer([handlers]))
    body = frame_message(echo.Message(text="a").SerializeToString())
    fields, _ = await ask(client, body, {"grpc-encoding": "gzip"})
    assert fields["grpc-status"] == "0"


async def test_a_server_that_compresses(echo: Any, handlers: Any, raw_client: Connect) -> None:
    """It names the encoding in the head, flags what is worth it, and asks the client's consent first."""
    client = await raw_client(RpcServer([handlers], compression="gzip"))
    long, short = (frame_message(echo.Message(text=text).SerializeToString()) for text in (LONG, "a"))
    fields, answer = await ask(client, long, ACCEPTS_GZIP)
    assert (fields["grpc-encoding"], answer[0]) == ("gzip", 1)
    assert echo.Message.FromString(gzip.decompress(answer[5:])).text == LONG
    fields, answer = await ask(client, short, ACCEPTS_GZIP)
    assert (fields["grpc-encoding"], answer[0]) == ("gzip", 0)
    refusals: list[Changes] = [
        {},
        {"grpc-accept-encoding": "identity"},
        {"grpc-accept-encoding": "br, deflate"},
    ]
    for changes in refusals:
        fields, answer = await ask(client, long, changes)
        assert "grpc-encoding" not in fields
        assert answer[0] == 0


async def test_a_handler_decides(echo: Any, raw_client: Connect) -> None:
    """For its call, and within it for each message; the head says the encoding once."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            call = current_call()
            call.compression = input_message.text or None
            return echo.Message(text=LONG)

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            call = current_call()
            call.compression = "gzip"
            for n in range(4):
                call.compress = n % 2 == 1
                yield echo.Message(text=LONG)
            with pytest.raises(RuntimeError):
                call.compression = None

    client = await raw_client(RpcServer([Handlers()], compression="gzip"))

    async def say(text: str) -> tuple[dict[str, str], bytes]:
        return await ask(client, frame_message(echo.Message(text=text).SerializeToString()), ACCEPTS_GZIP)

    assert (await say("gzip"))[1][0] == 1
    fields, answer = await say("")
    assert (fields.get("grpc-encoding"), answer[0]) == (None, 0)
    assert (await say("br"))[0]["grpc-status"] == "13"  # a ValueError of the handler's
    _, stream = await ask(client, frame_message(b""), ACCEPTS_GZIP, "Repeat")
    inbox = Inbox(MIB)
    assert GZIP is not None
    inbox.expect(GZIP)
    inbox.feed(stream)
    flags = []
    while inbox:
        inbox.take()
        flags.append(inbox.compressed)
    assert flags == [False, True, False, True]


async def test_a_handler_learns_how_a_message_came(echo: Any, unary: Unary, raw_client: Connect) -> None:
    """`received_compressed` is the last message's flag."""
    seen = []

    async def say(message: Any) -> Any:
        seen.append(current_call().received_compressed)
        return message

    client = await raw_client(RpcServer([unary(say)]))
    message = echo.Message(text=LONG).SerializeToString()
    assert GZIP is not None
    await ask(client, frame_encoded(message, GZIP), {"grpc-encoding": "gzip"})
    await ask(client, frame_message(message), {"grpc-encoding": "gzip"})
    await ask(client, frame_message(message), {})
    assert seen == [True, False, False]


BAD = [
    ("a bomb", gzip.compress(bytes(MIB), 9), "gzip", "8"),
    ("not gzip", b"\0\0\0", "gzip", "13"),
    ("compressed without an encoding", gzip.compress(b""), None, "13"),
    ("compressed under identity", gzip.compress(b""), "identity", "13"),
]


@pytest.mark.parametrize("method", ["Say", "Join"])
@pytest.mark.parametrize(("what", "data", "name", "status"), BAD, ids=[case[0] for case in BAD])
async def test_bad_compressed_requests(
    handlers: Any, raw_client: Connect, what: str, data: bytes, name: str | None, status: str, method: str
) -> None:
    """Each ends its own call with its own status; the connection serves the next."""
    client = await raw_client(RpcServer([handlers], limits=RpcLimits(message_bytes_max=64 * 1024)))
    fields, _ = await ask(client, flagged(data), {"grpc-encoding": name}, method)
    assert fields["grpc-status"] == status
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


def test_a_server_with_an_unknown_encoding(handlers: Any) -> None:
    """It is refused when it is made."""
    with pytest.raises(ValueError, match="no such encoding"):
        RpcServer([handlers], compression="br")


# --- A channel --------------------------------------------------------------------------------------------


async def test_calls_say_how_they_send(echo: Any) -> None:
    """Per call and, in a stream, per message; unary and streamed, each way."""
    seen: list[tuple[bool, str | bytes | None]] = []

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            current_call().compression = "gzip"
            seen.append((current_call().received_compressed, None))
            return input_message

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            call = current_call()
            call.compression = "deflate"
            async for message in input_messages:
                call.compress = call.received_compressed
                yield message

    async with open_rpc_pair([Handlers()]) as pair:
        stub = echo.Stub(pair.channel)
        for name in (None, "gzip", "deflate", "identity"):
            assert (await stub.Say(echo.Message(text=LONG), compression=name)).text == LONG
        async with stub.Chat(compression="gzip") as call:
            for compress in (True, False, True):
                await call.send(echo.Message(text=LONG), compress=compress)
                assert (await anext(call)).text == LONG
                assert call.received_compressed is compress
        with pytest.raises(ValueError, match="no such encoding"):
            await stub.Say(echo.Message(), compression="br")
    assert [compressed for compressed, _ in seen] == [False, True, True, False]


async def test_a_channels_encoding_and_its_calls_exceptions(echo: Any, handlers: Any) -> None:
    """What the channel says holds for calls that say nothing; an interceptor sees none of it."""
    seen = []

    async def look(call: Any, proceed: Any) -> Any:
        result = await proceed()
        seen.append(call.received_compressed)
        return result

    server = RpcServer([handlers], [look], compression="gzip")
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}", compression="gzip") as channel:
            stub = echo.Stub(channel)
            assert (await stub.Say(echo.Message(text=LONG))).text == LONG
            assert (await stub.Say(echo.Message(text=LONG), compression="identity")).text == LONG
        nursery.cancel_scope.cancel(reason="the test is over")
    assert seen == [True, False]


async def test_a_response_that_is_a_bomb(echo: Any) -> None:
    """The caller gets RESOURCE_EXHAUSTED, unary and streamed, and the channel goes on."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            current_call().compression = "gzip"
            return echo.Message(payload=bytes(input_message.n))

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            current_call().compression = "gzip"
            yield echo.Message(payload=bytes(input_message.n))

    async with open_rpc_pair([Handlers()], channel_limits=RpcLimits(message_bytes_max=10_000)) as pair:
        stub = echo.Stub(pair.channel)
        with pytest.raises(WhisprError) as unary:
            await stub.Say(echo.Message(n=MIB))
        with pytest.raises(WhisprError) as streamed:
            async with stub.Repeat(echo.Message(n=MIB)) as call:
                await anext(call)
        assert unary.value.code is streamed.value.code is Code.RESOURCE_EXHAUSTED
        assert len((await stub.Say(echo.Message(n=9000))).payload) == 9000


async def test_a_server_that_answers_in_an_encoding_nobody_accepts(echo: Any, unary: Unary) -> None:
    """INTERNAL, naming it."""

    async def say(message: Any) -> Any:
        call = current_call()
        call._initial = [("grpc-encoding", "br")]  # what a broken server would say
        return message

    async with open_rpc_pair([unary(say)]) as pair:
        with pytest.raises(WhisprError, match="br") as caught:
            await echo.Stub(pair.channel).Say(echo.Message())
    assert caught.value.code is Code.INTERNAL


# --- grpcio -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_grpcio_clients(echo: Any, handlers: Any, algorithm: Any) -> None:
    """They compress what they send and understand what we do, unary and streamed."""
    path = "/whispr.test.echo.Echo"
    codec = (echo.Message.SerializeToString, echo.Message.FromString)
    seen = []

    async def look(call: Any, proceed: Any) -> Any:
        result = await proceed()
        seen.append(call.received_compressed)
        return result

    def calls(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}", compression=algorithm) as channel:
            say = channel.unary_unary(f"{path}/Say", *codec)
            assert say(echo.Message(text=LONG)).text == LONG
            chat = channel.stream_stream(f"{path}/Chat", *codec)
            assert [message.text for message in chat(iter([echo.Message(text=LONG)] * 3))] == [LONG] * 3

    server = RpcServer([handlers], [look], compression="gzip")
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        await trio.to_thread.run_sync(calls, port)
        nursery.cancel_scope.cancel(reason="the test is over")
    assert seen == [True, True]


async def test_grpcio_servers(echo: Any) -> None:
    """They understand what we compress, and we them."""
    codec = (echo.Message.FromString, echo.Message.SerializeToString)
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(lambda request, _: request, *codec)}
    server = grpc.server(ThreadPoolExecutor(2), compression=grpc.Compression.Gzip)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("whispr.test.echo.Echo", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    seen = []

    async def look(call: Any, proceed: Any) -> Any:
        result = await proceed()
        seen.append(call.received_compressed)
        return result

    try:
        async with open_channel(f"127.0.0.1:{port}", interceptors=[look], compression="gzip") as channel:
            stub = echo.Stub(channel)
            for name in (None, "deflate", "identity"):
                assert (await stub.Say(echo.Message(text=LONG), compression=name)).text == LONG
    finally:
        server.stop(None).wait()
    assert seen == [True, True, True]


async def test_what_calls_hold_inflated_is_limited_over_a_connection(echo: Any) -> None:
    """Small requests that inflate to large ones, held by their handlers: too many together are RESOURCE_EXHAUSTED.

    What a call held is free again when it ends, and a stream holds its last message alone.
    """
    go_on = trio.Event()

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            await go_on.wait()
            return echo.Message()

        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            return echo.Message(n=len([None async for _ in input_messages]))

    limits = RpcLimits(inflated_bytes_max=10 * MIB)
    large = echo.Message(payload=bytes(3 * MIB))
    outcomes: list[Code | None] = []
    async with open_rpc_pair([Handlers()], server_limits=limits) as pair:
        stub = echo.Stub(pair.channel)

        async def say() -> None:
            try:
                await stub.Say(large, compression="gzip")
                outcomes.append(None)
            except WhisprError as error:
                outcomes.append(error.code)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(say)
                await wait_all_tasks_blocked()
                assert outcomes == [Code.RESOURCE_EXHAUSTED] * 2
                go_on.set()
            assert outcomes[2:] == [None] * 3
            outcomes.clear()
            go_on = trio.Event()
        async with stub.Join(compression="gzip") as call:
            for _ in range(8):
                await call.send(large)
            assert (await call.response()).n == 8
        (connection,) = pair.server._connections
        assert connection._inflated == 0
