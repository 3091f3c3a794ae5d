"""What grpc/doc/PROTOCOL-HTTP2.md asks of a server, rule by rule, by a client that speaks raw HTTP/2.

What a client makes of servers that break the rules is in test_bad_peers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError, invalid
from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers, Kind, encode, list_bytes
from whispr.rpc import wire
from whispr.rpc.call import Metadata, current_call
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message

Connect = Callable[[RpcServer], Awaitable[Any]]
PATH = "/whispr.test.echo.Echo"


@pytest.fixture
def servicer(echo: Any) -> Any:
    """An Echo that keeps the metadata it is called with, and answers with what `.plan` does to the call."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        def __init__(self) -> None:
            self.seen: list[Metadata] = []
            self.plan: Callable[[Any], None] = lambda _: None

        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            self.seen.append(current_call().metadata)
            self.plan(current_call())
            return input_message

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            for n in range(input_message.n):
                yield echo.Message(n=n)
            self.plan(current_call())

        async def Chat(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802
            async for message in input_messages:
                yield message
                if message.text == "enough":
                    return

    return Handlers()


async def request(client: Any, more: Iterable[tuple[str, str]] = (), **changes: str | None) -> int:
    """A whole call of Say, with fields changed by pseudo-name, or more of them at the end."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": f"{PATH}/Say", ":authority": "x", "te": "trailers",
        "content-type": "application/grpc",
    }  # fmt: skip
    block = encode([*fields.items(), *more])
    stream_id: int = client.core.open_stream(block)
    client.core.send_data(stream_id, frame_message(b""), end_stream=True)
    await client.send()
    return stream_id


def body(client: Any, stream_id: int) -> bytes:
    """What the server has sent as the body of a response so far."""
    return b"".join(
        event.data
        for event in client.reported
        if isinstance(event, events.DataReceived) and event.stream_id == stream_id
    )


# --- Requests: Custom-Metadata ----------------------------------------------------------------------------


async def test_repeated_metadata_keeps_its_order(servicer: Any, raw_client: Connect) -> None:
    """Text is left as it came, commas included; binary values come apart at them, padded or not."""
    client = await raw_client(RpcServer([servicer]))
    sent = [
        ("k", "1"),
        ("b-bin", "YQ"),
        ("k", "2,3"),
        ("b-bin", "Yg==,Yw"),
        ("k", ""),
        ("b-bin", ""),
        ("k", "1"),
    ]
    assert (await client.outcome(await request(client, sent)))["grpc-status"] == "0"
    (seen,) = servicer.seen
    assert seen.get_all("k") == ["1", "2,3", "", "1"]
    assert seen.get_all("b-bin") == [b"a", b"b", b"c", b""]
    names = [name for name, _ in seen if name in ("k", "b-bin")]
    assert names == ["k", "b-bin", "k", "b-bin", "b-bin", "k", "b-bin", "k"]


async def test_reserved_names_do_not_reach_handlers(servicer: Any, raw_client: Connect) -> None:
    """`grpc-` names are the protocol's, those unknown too; others are the application's, user-agent as well."""
    client = await raw_client(RpcServer([servicer]))
    sent = [("grpc-future", "1"), ("grpc-tags-bin", "AA"), ("user-agent", "raw/1"), ("x", "y")]
    assert (await client.outcome(await request(client, sent)))["grpc-status"] == "0"
    assert list(servicer.seen[0]) == [("user-agent", "raw/1"), ("x", "y")]


async def test_values_that_are_not_ascii_are_passed_on(servicer: Any, raw_client: Connect) -> None:
    """HTTP allows them, gRPC lets a server choose: nothing fails, each octet is one character."""
    client = await raw_client(RpcServer([servicer]))
    assert (await client.outcome(await request(client, [("x", "caf\xe9\xff")])))["grpc-status"] == "0"
    assert servicer.seen[0].get("x") == "caf\xe9\xff"


@pytest.mark.parametrize("value", ["!", "YQ==YQ", "a", "Y Q", "caf\xe9", "YQ,!"])
async def test_binary_values_that_are_not_base64(servicer: Any, raw_client: Connect, value: str) -> None:
    """The call is refused before its handler runs, naming the value."""
    client = await raw_client(RpcServer([servicer]))
    fields = await client.outcome(await request(client, [("x-bin", value)]))
    assert fields["grpc-status"] == str(int(Code.INTERNAL))
    assert "base64" in wire.unquote_message(fields["grpc-message"])
    assert servicer.seen == []


# --- Requests: Timeout ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "status"), [("0n", "4"), ("0H", "4"), ("99999999H", "0"), ("5S", "0"), ("000000005S", "13")]
)
async def test_timeouts_at_the_edges(
    servicer: Any, raw_client: Connect, timeout: str, status: str, autojump_clock: Any
) -> None:
    """Nothing left is DEADLINE_EXCEEDED without a handler; eleven thousand years are no problem."""
    client = await raw_client(RpcServer([servicer]))
    fields = await client.outcome(await request(client, [("grpc-timeout", timeout)]))
    assert fields["grpc-status"] == status
    assert len(servicer.seen) == (status == "0")


# --- Requests: Content-Type -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;charset=utf-8", True),
        ("application/grpc+json", False),
        ("application/grpc-web+proto", False),
        ("application/grpcx", False),
    ],
)
async def test_content_types(servicer: Any, raw_client: Connect, kind: str, served: bool) -> None:
    """Protobuf is what we read; anything else is HTTP 415 and says so."""
    client = await raw_client(RpcServer([servicer]))
    fields = await client.outcome(await client.call({"content-type": kind}))
    assert fields[":status"] == ("200" if served else "415")
    assert (fields["grpc-status"] == "0") is served


# --- Requests: the order of things ------------------------------------------------------------------------


async def test_a_request_may_end_with_trailers(servicer: Any, raw_client: Connect) -> None:
    """HTTP allows them, gRPC defines none: they half-close, and whatever they say is ignored."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.open()
    client.core.send_data(stream_id, frame_message(b""))
    block = encode([("grpc-status", "13"), ("x", "y")])
    await client.send()
    await client.send(frames.headers(stream_id, block, True, 16384))
    assert (await client.outcome(stream_id))["grpc-status"] == "0"


async def test_headers_in_the_middle_of_a_request(servicer: Any, raw_client: Connect) -> None:
    """Trailers that do not end the stream are malformed: it is reset, and the connection goes on."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.open()
    await client.send(frames.headers(stream_id, encode([("x", "y")]), False, 16384))
    reset = await client.until(lambda event: isinstance(event, events.StreamReset))
    assert (reset.stream_id, reset.code) == (stream_id, ErrorCode.PROTOCOL_ERROR)
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


async def test_half_close_by_an_empty_frame(servicer: Any, raw_client: Connect) -> None:
    """The end may come after the message, in DATA of its own."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.open()
    client.core.send_data(stream_id, frame_message(b""))
    await client.send()
    await wait_all_tasks_blocked()
    assert servicer.seen == []  # a unary handler starts once the request is known to be one message
    client.core.send_data(stream_id, b"", end_stream=True)
    await client.send()
    assert (await client.outcome(stream_id))["grpc-status"] == "0"


async def test_a_server_streams_after_the_client_has_half_closed(
    echo: Any, servicer: Any, raw_client: Connect
) -> None:
    """The client's end is only its own."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.call({":path": f"{PATH}/Repeat"}, echo.Message(n=3).SerializeToString())
    assert (await client.outcome(stream_id))["grpc-status"] == "0"
    expected = b"".join(frame_message(echo.Message(n=n).SerializeToString()) for n in range(3))
    assert body(client, stream_id) == expected


async def test_a_server_ends_before_the_client_does(echo: Any, servicer: Any, raw_client: Connect) -> None:
    """The status comes, then RST_STREAM(NO_ERROR); what the client still sends is nobody's error."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.open({":path": f"{PATH}/Chat"})
    enough = frame_message(echo.Message(text="enough").SerializeToString())
    client.core.send_data(stream_id, enough)
    await client.send()
    assert (await client.outcome(stream_id))["grpc-status"] == "0"
    reset = await client.until(lambda event: isinstance(event, events.StreamReset))
    assert (reset.stream_id, reset.code) == (stream_id, ErrorCode.NO_ERROR)
    late = frames.frame(frames.Type.DATA, frames.END_STREAM, stream_id, enough)
    await client.send(late)
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


async def test_a_message_after_the_end(servicer: Any, raw_client: Connect) -> None:
    """DATA after END_STREAM is the client's breach of HTTP/2; the call it had finished is answered first."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.call()
    assert (await client.outcome(stream_id))["grpc-status"] == "0"
    await client.send(frames.frame(frames.Type.DATA, 0, stream_id, frame_message(b"")))
    await client.closed()
    (goaway,) = [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    assert goaway.code is ErrorCode.STREAM_CLOSED


# --- Responses --------------------------------------------------------------------------------------------


async def test_an_error_without_a_message_is_trailers_only(servicer: Any, raw_client: Connect) -> None:
    """One header block with the HTTP status, the content-type and the outcome."""

    def fail(call: Any) -> None:
        call.set_trailing([("hint", "h")])
        raise WhisprError(Code.ABORTED, "nö 100%")

    servicer.plan = fail
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.call()
    event = await client.until(lambda event: isinstance(event, events.HeadersReceived))
    assert event.end_stream
    assert dict(event.headers.fields) == {
        ":status": "200",
        "content-type": "application/grpc+proto",
        "grpc-status": "10",
        "grpc-message": "n%C3%B6 100%25",
        "hint": "h",
    }
    assert body(client, stream_id) == b""


async def test_initial_metadata_comes_before_an_error_too(servicer: Any, raw_client: Connect) -> None:
    """Then the head has a block of its own."""

    def fail(call: Any) -> None:
        call.set_initial([("first", "1"), ("first", "2")])
        raise WhisprError(Code.ABORTED, "no")

    servicer.plan = fail
    client = await raw_client(RpcServer([servicer]))
    await client.call()
    head = await client.until(lambda event: isinstance(event, events.HeadersReceived))
    end = await client.until(lambda event: isinstance(event, events.HeadersReceived))
    assert [value for name, value in head.headers.fields if name == "first"] == ["1", "2"]
    assert not head.end_stream
    assert end.end_stream
    assert ("grpc-status", "10") in end.headers.fields


async def test_a_stream_without_messages_succeeds(servicer: Any, raw_client: Connect) -> None:
    """Trailers only, with status 0."""
    client = await raw_client(RpcServer([servicer]))
    stream_id = await client.call({":path": f"{PATH}/Repeat"})
    fields = await client.outcome(stream_id)
    assert (fields[":status"], fields["grpc-status"]) == ("200", "0")
    assert body(client, stream_id) == b""


LONG = "x" * 3000


def set_initial(call: Any) -> None:
    call.set_initial([("long", LONG)])


def set_trailing(call: Any) -> None:
    call.set_trailing([("long", LONG)])


def set_trailing_and_fail(call: Any) -> None:
    call.set_trailing([("long", LONG)])
    raise WhisprError(Code.ABORTED, "no")


def set_initial_and_fail(call: Any) -> None:
    call.set_initial([("long", LONG)])
    raise WhisprError(Code.ABORTED, "no")


def fail_with_details(call: Any) -> None:
    raise invalid({"field": LONG[:1500]})


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (set_initial, Code.RESOURCE_EXHAUSTED),
        (set_trailing, Code.RESOURCE_EXHAUSTED),
        (set_trailing_and_fail, Code.ABORTED),
        (set_initial_and_fail, Code.ABORTED),
        (fail_with_details, Code.INVALID_ARGUMENT),
    ],
)
async def test_what_a_client_does_not_take_is_not_sent(
    servicer: Any, raw_client: Connect, plan: Callable[[Any], None], code: Code
) -> None:
    """Its MAX_HEADER_LIST_SIZE holds for heads and trailers; the status arrives whatever else does not."""
    servicer.plan = plan
    client = await raw_client(RpcServer([servicer]))
    await client.send(frames.settings({frames.Setting.MAX_HEADER_LIST_SIZE: 2000}))
    fields = await client.outcome(await client.call())
    assert fields["grpc-status"] == str(int(code))
    assert "long" not in fields


# --- Without a connection: what statuses may weigh ---------------------------------------------------------


@pytest.mark.parametrize("letter", ["a", "ü", "€", "😀", "%"])
def test_any_status_fits_eight_kib(letter: str) -> None:
    """The smallest limit that peers are known to have, whatever the alphabet; cut between characters."""
    fields = wire.status_fields(invalid({"field": letter * 5000}))
    assert list_bytes(fields) < 8 * 1024
    message = wire.unquote_message(dict(fields)["grpc-message"])
    assert message.startswith(f"field: {letter * 100}")
    assert "\ufffd" not in message


def test_an_ending_that_fits_is_left_alone() -> None:
    """Status, then metadata, in order."""
    error, trailing = WhisprError(Code.ABORTED, "no"), [("b", "1"), ("a", "2"), ("b", "3")]
    assert wire.ending_fields(error, trailing, 1000) == wire.status_fields(error) + trailing
    assert wire.ending_fields(None, trailing, 1000) == [("grpc-status", "0"), *trailing]


@pytest.mark.parametrize("name", ["connection", "transfer-encoding", "host", "content-length", "upgrade"])
def test_names_that_http_has_a_meaning_for(name: str) -> None:
    """Sending one would cost the whole call: refused where it is set."""
    with pytest.raises(ValueError, match=name):
        wire.metadata_fields([(name, "x")])


def test_spaces_around_values_are_not_sent() -> None:
    """RFC 9113 section 8.2.1 makes them malformed, and gRPC lets us strip them; inside they stay."""
    assert wire.metadata_fields([("k", "  a b "), ("e", "")]) == [("k", "a b"), ("e", "")]


def test_an_http_error_with_a_grpc_status_is_that_status() -> None:
    """http-grpc-status-mapping.md: the mapping is only for want of a grpc-status."""
    fields = ((":status", "404"), ("content-type", "application/grpc"), ("grpc-status", "5"))
    error = wire.read_response(Headers(fields, Kind.RESPONSE))
    assert error is not None
    assert error.code is Code.NOT_FOUND
