"""What servers and channels make of peers that misbehave. Each is a defect seen in purerpc's transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError
from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message

Connect = Callable[[RpcServer], Awaitable[Any]]

REQUEST = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/whispr.test.echo.Echo/Say",
    "te": "trailers",
    "content-type": "application/grpc",
}

REFUSED_HEADS = [
    ("GET", {":method": "GET"}, "405", "13"),
    ("no content-type", {"content-type": None}, "415", "13"),
    ("wrong content-type", {"content-type": "application/json"}, "415", "13"),
    ("unknown encoding", {"grpc-encoding": "snappy"}, "200", "12"),
    ("path without a slash", {":path": "nonsense"}, "200", "12"),
    ("path with too many slashes", {":path": "/a/b/c/d"}, "200", "12"),
    ("unknown service", {":path": "/no.Such/Say"}, "200", "12"),
    ("unknown method", {":path": "/whispr.test.echo.Echo/No"}, "200", "12"),
    ("timeout without a unit", {"grpc-timeout": "100"}, "200", "13"),
    ("timeout of nine digits", {"grpc-timeout": "123456789S"}, "200", "13"),
    ("bad -bin metadata", {"k-bin": "not base64!"}, "200", "13"),
]


@pytest.mark.parametrize(
    ("what", "changes", "http", "status"), REFUSED_HEADS, ids=[case[0] for case in REFUSED_HEADS]
)
async def test_a_bad_head_is_answered_and_costs_nothing_else(
    handlers: Any, raw_client: Connect, what: str, changes: dict[str, str | None], http: str, status: str
) -> None:
    """The call ends with a status; the connection serves the next."""
    client = await raw_client(RpcServer([handlers]))
    fields = await client.outcome(await client.call(changes))
    assert (fields[":status"], fields["grpc-status"]) == (http, status)
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


async def test_an_unknown_encoding_is_told_the_known_ones(handlers: Any, raw_client: Connect) -> None:
    """grpc-accept-encoding comes with the refusal."""
    client = await raw_client(RpcServer([handlers]))
    fields = await client.outcome(await client.call({"grpc-encoding": "br"}))
    assert fields["grpc-status"] == "12"
    assert fields["grpc-accept-encoding"] == "identity,deflate,gzip"


async def test_a_missing_te_is_forgiven(handlers: Any, raw_client: Connect) -> None:
    """Proxies lose it, and nothing depends on it."""
    client = await raw_client(RpcServer([handlers]))
    assert (await client.outcome(await client.call({"te": None})))["grpc-status"] == "0"


BAD_BODIES = [
    ("ends on HEADERS", None, "13"),
    ("ends without a message", b"", "13"),
    ("ends within a message", frame_message(b"abcdef")[:-1], "13"),
    ("two messages", frame_message(b"") * 2, "13"),
    ("compressed without an encoding", b"\x01\0\0\0\x01x", "13"),
    ("not protobuf", frame_message(b"\xff\xff\xff"), "13"),
    ("length prefix over the limit", b"\0\xff\xff\xff\xff", "8"),
]


@pytest.mark.parametrize(("what", "body", "status"), BAD_BODIES, ids=[case[0] for case in BAD_BODIES])
async def test_a_bad_body_is_answered(
    handlers: Any, raw_client: Connect, what: str, body: bytes | None, status: str
) -> None:
    """Malformed unary requests end with a status, and the connection goes on."""
    client = await raw_client(RpcServer([handlers]))
    stream_id = await client.open(end=body is None)
    if body is not None:
        client.core.send_data(stream_id, body, end_stream=True)
        await client.send()
    assert (await client.outcome(stream_id))["grpc-status"] == status
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


async def test_a_request_stream_may_end_on_headers(handlers: Any, raw_client: Connect) -> None:
    """No messages at all is a client stream like any other."""
    client = await raw_client(RpcServer([handlers]))
    stream_id = await client.open({":path": "/whispr.test.echo.Echo/Join"}, end=True)
    assert (await client.outcome(stream_id))["grpc-status"] == "0"


async def test_a_protocol_error_ends_the_connection_with_goaway(handlers: Any, raw_client: Connect) -> None:
    """No zombies: the client is told, and then the server closes."""
    client = await raw_client(RpcServer([handlers]))
    await client.send(frames.window_update(0, 0))
    await client.closed()
    (goaway,) = [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    assert goaway.code is ErrorCode.PROTOCOL_ERROR


async def test_http1_is_hung_up_on(handlers: Any) -> None:
    """A browser that talks HTTP/1 gets a GOAWAY and a closed connection at once."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([handlers]).serve_stream, far)
        await near.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while await near.receive_some():
            pass


async def test_a_ping_flood_from_a_client_that_does_not_read(handlers: Any, raw_client: Connect) -> None:
    """The server stops at the budget instead of buffering answers without end."""
    client = await raw_client(RpcServer([handlers]))
    await client.send(frames.ping(bytes(8)) * 20_000)
    await client.closed()
    assert any(
        isinstance(event, events.GoAwayReceived) and event.code is ErrorCode.ENHANCE_YOUR_CALM
        for event in client.reported
    )


async def test_a_client_that_asks_and_does_not_read_is_not_answered_without_end(echo: Any) -> None:
    """With its windows wide open but its socket full, a client gets as many answers as it may have streams."""
    served = 0

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            nonlocal served
            served += 1
            return echo.Message(payload=bytes(10_000))

    near, far = trio.testing.lockstep_stream_pair()
    core = Connection(Role.CLIENT)
    core.receive(frames.settings({}))
    block = encode([(name, value) for name, value in REQUEST.items() if name != "te"])

    async def ask() -> None:
        output, _ = core.take_output()
        wide = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**30}) + frames.window_update(0, 2**30)
        await near.send_all(b"".join(output) + wide)
        for n in range(1000):
            request = frames.headers(2 * n + 1, block, False, frames.MIN_MAX_FRAME_SIZE)
            end = frames.frame(frames.Type.DATA, frames.END_STREAM, 2 * n + 1, frame_message(b""))
            await near.send_all(request + end)

    limits = RpcLimits(http2=Limits(streams_max=50))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([Handlers()], limits=limits).serve_stream, far)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="seen enough")
    assert 50 <= served < 70


# --- Servers that misbehave -------------------------------------------------------------------------------

OK_HEAD = encode([(":status", "200"), ("content-type", "application/grpc")])
MESSAGE = frame_message(b"")


@dataclass
class RawServer:
    """The server's end of a channel's connections, driven by a script for each request."""

    script: Callable[[Connection, int], None]
    connections: int = 0
    resets: list[events.StreamReset] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        core = Connection(Role.SERVER)
        answered: set[int] = set()
        while True:
            output, _ = core.take_output()
            if output:
                await stream.send_all(b"".join(output))
            data = await stream.receive_some()
            if not data:
                return
            for event in core.receive(bytes(data)):
                if isinstance(event, events.StreamReset):
                    self.resets.append(event)
                elif isinstance(event, events.HeadersReceived):
                    self.requests.append(dict(event.headers.fields))
                elif isinstance(event, events.DataReceived) and event.stream_id not in answered:
                    answered.add(event.stream_id)
                    self.script(core, event.stream_id)


@asynccontextmanager
async def channel_to(server: RawServer) -> AsyncIterator[Channel]:
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, far)
            await trio.lowlevel.checkpoint()
            return near

        async with open_channel("raw:1", connect=connect) as channel:
            yield channel
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")


async def call_raw(
    echo: Any, script: Callable[[Connection, int], None]
) -> tuple[RawServer, WhisprError | None]:
    """One unary call to a scripted server: the server, and the error the call ended with."""
    server = RawServer(script)
    error = None
    async with channel_to(server) as channel:
        try:
            await echo.Stub(channel).Say(echo.Message())
        except WhisprError as raised:
            error = raised
    return server, error


def head(core: Connection, stream_id: int) -> None:
    core.send_headers(stream_id, OK_HEAD)


def status(core: Connection, stream_id: int, code: str) -> None:
    core.send_trailers(stream_id, encode([("grpc-status", code)]))


def message_then_13(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE)
    status(core, stream_id, "13")


def no_trailers(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE, end_stream=True)


def two_messages(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE * 2)
    status(core, stream_id, "0")


def ok_without_a_message(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    status(core, stream_id, "0")


def cut_message(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, b"\0\0\0\0\x05ab")
    status(core, stream_id, "0")


def bad_message(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, frame_message(b"\xff"))
    status(core, stream_id, "0")


def http_503(core: Connection, stream_id: int) -> None:
    core.send_headers(stream_id, encode([(":status", "503"), ("content-type", "text/html")]))
    core.send_data(stream_id, b"<h1>No</h1>", end_stream=True)


def html(core: Connection, stream_id: int) -> None:
    core.send_headers(stream_id, encode([(":status", "200"), ("content-type", "text/html")]))
    core.send_data(stream_id, b"<h1>Hi</h1>", end_stream=True)


def missing_status(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_trailers(stream_id, encode([("other", "x")]))


def send_raw(core: Connection, octets: bytes) -> None:
    """What a correct server never says."""
    core._sender.output += octets


def one_block(
    grpc_status: str | None, *more: tuple[str, str], http: str = "200", kind: str | None = "application/grpc"
) -> Callable[[Connection, int], None]:
    """A response of nothing but header fields."""
    fields = [(":status", http), ("content-type", kind), ("grpc-status", grpc_status), *more]
    block = encode([(name, value) for name, value in fields if value is not None])
    return lambda core, stream_id: core.send_headers(stream_id, block, end_stream=True)


def trailers_that_do_not_end(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE)
    send_raw(core, frames.headers(stream_id, encode([("grpc-status", "0")]), False, 16384))
    send_raw(core, frames.frame(frames.Type.DATA, frames.END_STREAM, stream_id, MESSAGE))


def two_heads(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    send_raw(core, frames.headers(stream_id, OK_HEAD, False, 16384))


def message_before_the_head(core: Connection, stream_id: int) -> None:
    send_raw(core, frames.frame(frames.Type.DATA, 0, stream_id, MESSAGE))


def compressed_without_an_encoding(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, b"\1" + MESSAGE[1:])
    status(core, stream_id, "0")


def bad_binary_trailers(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE)
    core.send_trailers(stream_id, encode([("grpc-status", "0"), ("x-bin", "!")]))


def a_message_and_a_reset(core: Connection, stream_id: int) -> None:
    head(core, stream_id)
    core.send_data(stream_id, MESSAGE)
    core.reset(stream_id, ErrorCode.NO_ERROR)


def answer(core: Connection, stream_id: int) -> None:
    core.respond(stream_id, OK_HEAD, MESSAGE, encode([("grpc-status", "0")]))


def answer_then_a_message(core: Connection, stream_id: int) -> None:
    answer(core, stream_id)
    send_raw(core, frames.frame(frames.Type.DATA, frames.END_STREAM, stream_id, MESSAGE))


def answer_then_a_reset(core: Connection, stream_id: int) -> None:
    answer(core, stream_id)
    send_raw(core, frames.rst_stream(stream_id, ErrorCode.NO_ERROR))


def interim_then_answer(core: Connection, stream_id: int) -> None:
    send_raw(core, frames.headers(stream_id, encode([(":status", "103")]), False, 16384))
    answer(core, stream_id)


def goaway_below(core: Connection, stream_id: int) -> None:
    core._sender.output += frames.goaway(0, ErrorCode.NO_ERROR)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (message_then_13, Code.INTERNAL),
        (no_trailers, Code.INTERNAL),
        (two_messages, Code.INTERNAL),
        (ok_without_a_message, Code.INTERNAL),
        (cut_message, Code.INTERNAL),
        (bad_message, Code.INTERNAL),
        (http_503, Code.UNAVAILABLE),
        (html, Code.UNKNOWN),
        (missing_status, Code.UNKNOWN),
        (goaway_below, Code.UNAVAILABLE),
        (one_block("7"), Code.PERMISSION_DENIED),
        (one_block("0"), Code.INTERNAL),
        (trailers_that_do_not_end, Code.INTERNAL),
        (two_heads, Code.INTERNAL),
        (message_before_the_head, Code.INTERNAL),
        (one_block(None), Code.UNKNOWN),
        (compressed_without_an_encoding, Code.INTERNAL),
        (one_block("0", ("x-bin", "!")), Code.INTERNAL),
        (bad_binary_trailers, Code.INTERNAL),
        (one_block("5", http="404"), Code.NOT_FOUND),
        (a_message_and_a_reset, Code.INTERNAL),
        (one_block("0", kind=None), Code.UNKNOWN),
        (lambda core, stream_id: core.reset(stream_id, ErrorCode.REFUSED_STREAM), Code.UNAVAILABLE),
        (lambda core, stream_id: core.reset(stream_id, ErrorCode.CANCEL), Code.CANCELLED),
        (lambda core, stream_id: core.reset(stream_id, ErrorCode.ENHANCE_YOUR_CALM), Code.RESOURCE_EXHAUSTED),
        (lambda core, stream_id: core.reset(stream_id, ErrorCode.INTERNAL_ERROR), Code.INTERNAL),
        (lambda core, _: core.go_away(ErrorCode.NO_ERROR), None),
    ],
)
async def test_every_bad_ending_is_an_error(
    echo: Any, script: Callable[[Connection, int], None], code: Code | None
) -> None:
    """None succeeds, none hangs, none ends the channel."""
    if code is None:

        def then_answer(core: Connection, stream_id: int) -> None:
            script(core, stream_id)
            core.respond(stream_id, OK_HEAD, MESSAGE, encode([("grpc-status", "0")]))

        _, error = await call_raw(echo, then_answer)
        assert error is None
        return
    _, error = await call_raw(echo, script)
    assert error is not None
    assert error.code is code


@pytest.mark.parametrize("script", [answer_then_a_message, answer_then_a_reset, interim_then_answer])
async def test_what_does_not_spoil_an_answer(echo: Any, script: Callable[[Connection, int], None]) -> None:
    """A status that has come stands, whatever the server says after it, and informational heads are passed over."""
    _, error = await call_raw(echo, script)
    assert error is None


async def test_the_request_head(echo: Any) -> None:
    """What a server expects of a client: method, scheme, path, te, content-type, user-agent."""
    server, _ = await call_raw(echo, message_then_13)
    (fields,) = server.requests
    assert fields.pop("user-agent").startswith("whispr-rpc/")
    assert fields == {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/whispr.test.echo.Echo/Say",
        ":authority": "raw:1",
        "te": "trailers",
        "content-type": "application/grpc+proto",
        "grpc-accept-encoding": "identity,deflate,gzip",
    }


async def test_goaway_then_ping_is_survived(echo: Any) -> None:
    """A graceful GOAWAY and its PING end nothing: the call is answered, and the next goes elsewhere."""
    server = RawServer(lambda core, stream_id: None)

    def graceful(core: Connection, stream_id: int) -> None:
        core.announce_shutdown()
        core.ping(b"12345678")
        core.respond(stream_id, OK_HEAD, MESSAGE, encode([("grpc-status", "0")]))

    server.script = graceful
    async with channel_to(server) as channel:
        for _ in range(3):
            await echo.Stub(channel).Say(echo.Message())
    assert server.connections == 3


async def test_cancelling_sends_a_reset(echo: Any) -> None:
    """The server hears RST_STREAM(CANCEL) when the caller's scope is cancelled."""
    server = RawServer(lambda core, stream_id: None)
    async with channel_to(server) as channel:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as calls:
                calls.start_soon(echo.Stub(channel).Say, echo.Message())
                await wait_all_tasks_blocked()
                scope.cancel(reason="enough")
    assert [reset.code for reset in server.resets] == [ErrorCode.CANCEL]


async def test_calls_fail_when_the_channel_closes(echo: Any) -> None:
    """Leaving the channel's block fails what still waits, rather than leaving it to hang."""
    errors: list[WhisprError] = []
    server = RawServer(lambda core, stream_id: None)

    async def call(channel: Channel) -> None:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message())
        errors.append(caught.value)

    async with trio.open_nursery() as nursery, channel_to(server) as channel:
        nursery.start_soon(call, channel)
        await wait_all_tasks_blocked()
    assert [error.code for error in errors] == [Code.UNAVAILABLE]


async def test_a_response_over_the_limit(echo: Any) -> None:
    """The client refuses at the prefix and resets the call."""

    def huge(core: Connection, stream_id: int) -> None:
        head(core, stream_id)
        core.send_data(stream_id, b"\0\xff\xff\xff\xff")

    server, error = await call_raw(echo, huge)
    assert error is not None
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert [reset.code for reset in server.resets] == [ErrorCode.CANCEL]
