"""Calls of all four kinds, in memory: messages, metadata, statuses, limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog.testing
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from tests.rpc.conftest import REQUEST_FIELDS
from whispr.errors import Code, WhisprError, invalid
from whispr.http2.events import DataReceived
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.rpc.call import Call, current_call
from whispr.rpc.interceptors import Proceed
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Any]], Any]


async def test_one_message_each_way(echo: Any, handlers: Any) -> None:
    """A unary call returns its response."""
    async with open_rpc_pair([handlers]) as pair:
        assert await echo.Stub(pair.channel).Say(echo.Message(text="hi", n=1)) == echo.Message(text="hi", n=2)


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_many_messages_back(echo: Any, handlers: Any, count: int) -> None:
    """A server stream ends after its last message, be it the none-th."""
    async with (
        open_rpc_pair([handlers]) as pair,
        echo.Stub(pair.channel).Repeat(echo.Message(n=count)) as call,
    ):
        assert [message.n async for message in call] == list(range(count))


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_many_messages_there(echo: Any, handlers: Any, count: int) -> None:
    """A client stream is answered once it ends."""
    async with open_rpc_pair([handlers]) as pair, echo.Stub(pair.channel).Join() as call:
        for n in range(count):
            await call.send(echo.Message(text=str(n)))
        assert (await call.response()).text == "".join(map(str, range(count)))


async def test_many_messages_each_way(echo: Any, handlers: Any) -> None:
    """In a two-way stream each message is answered before the next is sent."""
    async with open_rpc_pair([handlers]) as pair, echo.Stub(pair.channel).Chat() as call:
        for n in range(20):
            await call.send(echo.Message(n=n))
            assert (await anext(call)).n == n
        await call.done_sending()
        assert [message async for message in call] == []


async def test_megabytes_each_way(echo: Any, handlers: Any) -> None:
    """Messages larger than every window pass, unary and streamed."""
    payload = bytes(range(256)) * 12_000
    async with open_rpc_pair([handlers]) as pair:
        stub = echo.Stub(pair.channel)
        assert (await stub.Say(echo.Message(payload=payload))).n == 1
        async with stub.Repeat(echo.Message(n=3, payload=payload)) as call:
            assert [message.payload == payload async for message in call] == [True] * 3


async def test_empty_messages(echo: Any, handlers: Any) -> None:
    """A message of no bytes is a message."""
    async with open_rpc_pair([handlers]) as pair, echo.Stub(pair.channel).Chat() as call:
        await call.send(echo.Message())
        assert await anext(call) == echo.Message()


async def test_metadata_both_ways(echo: Any, unary: Unary) -> None:
    """Text and bytes, repeated names in order; initial and trailing metadata come back."""
    seen: list[Any] = []

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            call = current_call()
            seen.append([(k, v) for k, v in call.metadata if k != "user-agent"])
            call.set_initial([("first", "1")])
            call.set_trailing([("last-bin", b"\0\xff")])
            yield echo.Message()

    sent = [("k", "a"), ("k-bin", bytes(range(256))), ("k", "b")]
    async with open_rpc_pair([Handlers()]) as pair:
        stub = echo.Stub(pair.channel)
        async with stub.Repeat(echo.Message(), metadata=sent) as call:
            assert (await call.initial_metadata()).get("first") == "1"
            assert [message async for message in call] == [echo.Message()]
            assert call.trailing_metadata.get("last-bin") == b"\0\xff"
        assert seen == [sent]
        with pytest.raises(ValueError, match="reserved"):
            await stub.Say(echo.Message(), metadata=[("grpc-timeout", "1S")])


async def test_the_call_says_who_and_what(echo: Any, unary: Unary) -> None:
    """Inside a handler `current_call` has the method, the peer and the deadline; outside there is none."""

    async def say(_: Any) -> Any:
        call = current_call()
        return echo.Message(text=f"{call.method} {call.peer} {call.deadline}")

    async with open_rpc_pair([unary(say)]) as pair:
        reply = await echo.Stub(pair.channel).Say(echo.Message())
    assert reply.text == "/whispr.test.echo.Echo/Say memory inf"
    with pytest.raises(LookupError):
        current_call()


async def test_errors_arrive_with_their_details(echo: Any, unary: Unary) -> None:
    """A WhisprError raised by a handler is the one its caller catches, trailing metadata included."""

    async def say(_: Any) -> Any:
        current_call().set_trailing([("hint", "h")])
        raise invalid({"text": "too ü short"})

    async with open_rpc_pair([unary(say)]) as pair:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(pair.channel).Say(echo.Message())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.fields == {"text": "too ü short"}


async def test_an_error_after_messages(echo: Any) -> None:
    """A stream that fails half-way delivers what it had, then the error."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            yield echo.Message(n=1)
            raise WhisprError(Code.ABORTED, "half-way")

    async with open_rpc_pair([Handlers()]) as pair, echo.Stub(pair.channel).Repeat(echo.Message()) as call:
        assert (await anext(call)).n == 1
        with pytest.raises(WhisprError, match="half-way"):
            await anext(call)


async def test_a_crash_tells_nothing_and_is_logged_once(echo: Any, unary: Unary) -> None:
    """Any other exception is INTERNAL without a word of it, and one logged traceback; the server goes on."""

    async def say(message: Any) -> Any:
        if message.text == "crash":
            raise KeyError("secret")
        return message

    async with open_rpc_pair([unary(say)]) as pair:
        stub = echo.Stub(pair.channel)
        with structlog.testing.capture_logs() as logs, pytest.raises(WhisprError) as caught:
            await stub.Say(echo.Message(text="crash"))
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in str(caught.value)
        (entry,) = logs
        assert entry["method"] == "/whispr.test.echo.Echo/Say"
        assert isinstance(entry["exc_info"], KeyError)
        assert await stub.Say(echo.Message(text="x"))


async def test_an_error_out_of_a_nursery_is_still_itself(echo: Any, unary: Unary) -> None:
    """A handler may raise its error inside a nursery, which wraps it in a group."""

    async def say(_: Any) -> Any:
        async with trio.open_nursery():
            raise WhisprError(Code.NOT_FOUND, "inside")

    async with open_rpc_pair([unary(say)]) as pair:
        with pytest.raises(WhisprError, match="inside"):
            await echo.Stub(pair.channel).Say(echo.Message())


async def test_what_is_not_implemented_says_so(echo: Any, handlers: Any) -> None:
    """A method not overridden, of a unary and of a streaming kind, and an unknown service."""
    async with open_rpc_pair([echo.Servicer()]) as pair:
        stub = echo.Stub(pair.channel)
        with pytest.raises(WhisprError) as unary_error:
            await stub.Say(echo.Message())
        async with stub.Repeat(echo.Message()) as call:
            with pytest.raises(WhisprError) as stream_error:
                await anext(call)
        unknown = pair.channel.unary_unary("/no.Such/Thing", echo.Message, echo.Message)
        with pytest.raises(WhisprError) as unknown_error:
            await unknown(echo.Message())
    for error in (unary_error, stream_error, unknown_error):
        assert error.value.code is Code.UNIMPLEMENTED
    assert "/no.Such/Thing" in unknown_error.value.message


def test_two_servicers_of_one_service_are_refused(handlers: Any) -> None:
    """The server says so when it is made."""
    with pytest.raises(ValueError, match="two servicers offer"):
        RpcServer([handlers, handlers])


async def test_oversize_messages_both_ways(echo: Any, handlers: Any) -> None:
    """Beyond the receiver's limit a message fails its call with RESOURCE_EXHAUSTED, and only that call."""
    small = RpcLimits(message_bytes_max=1000)
    for limits in ({"server_limits": small}, {"channel_limits": small}):
        async with open_rpc_pair([handlers], **limits) as pair:  # type: ignore[arg-type]  # either
            stub = echo.Stub(pair.channel)
            big = echo.Message(n=1, payload=bytes(2000))
            with pytest.raises(WhisprError) as caught:
                async with stub.Repeat(big) as call:
                    await anext(call)
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            assert await stub.Say(echo.Message())


async def test_a_slow_reader_holds_back_the_server(echo: Any) -> None:
    """A handler stops producing when its client does not read, after about a window and a queue."""
    produced = 0

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            nonlocal produced
            while True:
                produced += 1
                yield echo.Message(payload=bytes(1000))

    async with open_rpc_pair([Handlers()]) as pair, echo.Stub(pair.channel).Repeat(echo.Message()) as call:
        await anext(call)
        await wait_all_tasks_blocked()
        assert 60 < produced < 300
        before = produced
        for _ in range(300):
            await anext(call)
        assert produced > before


async def test_a_slow_handler_holds_back_the_client(echo: Any) -> None:
    """A client stops sending when the handler does not read."""
    go = trio.Event()

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            await go.wait()
            return echo.Message(n=len([message async for message in input_messages]))

    sent = 0

    async def send_all(call: Any) -> None:
        nonlocal sent
        for _ in range(1000):
            await call.send(echo.Message(payload=bytes(1000)))
            sent += 1

    async with open_rpc_pair([Handlers()]) as pair, echo.Stub(pair.channel).Join() as call:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, call)
            await wait_all_tasks_blocked()
            assert 60 < sent < 300
            go.set()
        assert (await call.response()).n == 1000
        with pytest.raises(RuntimeError, match="after done_sending"):
            await call.send(echo.Message())


async def test_calls_beyond_the_servers_streams_wait_in_line(echo: Any, unary: Unary) -> None:
    """Neither refused nor raised: they start, in order, as streams become free."""
    running, peak, order = 0, 0, []

    async def say(message: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        order.append(message.n)
        await trio.lowlevel.checkpoint()
        running -= 1
        return message

    limits = RpcLimits(http2=Limits(streams_max=3))
    one = RpcLimits(connections_per_address_max=1)
    async with open_rpc_pair([unary(say)], server_limits=limits, channel_limits=one) as pair:
        stub = echo.Stub(pair.channel)
        await stub.Say(echo.Message())
        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(stub.Say, echo.Message(n=n))
                await wait_all_tasks_blocked(0)
    assert peak <= 3
    assert len(order) == 51


async def test_the_line_of_waiting_calls_is_bounded(echo: Any, unary: Unary) -> None:
    """One more than `waiting_calls_max` fails with RESOURCE_EXHAUSTED."""

    async def say(_: Any) -> Any:
        await trio.sleep_forever()

    limits = RpcLimits(http2=Limits(streams_max=1))
    async with (
        open_rpc_pair(
            [unary(say)],
            server_limits=limits,
            channel_limits=RpcLimits(waiting_calls_max=2, connections_per_address_max=1),
        ) as pair,
        trio.open_nursery() as nursery,
    ):
        stub = echo.Stub(pair.channel)
        for _ in range(3):
            nursery.start_soon(stub.Say, echo.Message())
            await wait_all_tasks_blocked()
        with pytest.raises(WhisprError) as caught:
            await stub.Say(echo.Message())
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_leaving_a_stream_early_ends_the_handler(echo: Any) -> None:
    """A `break` out of the block cancels the handler; the channel stays in use."""
    cancelled = trio.Event()

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            try:
                while True:
                    yield echo.Message()
                    await trio.sleep_forever()
            finally:
                cancelled.set()

        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            return input_message

    async with open_rpc_pair([Handlers()]) as pair:
        stub = echo.Stub(pair.channel)
        async with stub.Repeat(echo.Message()) as call:
            async for _ in call:
                break
        await cancelled.wait()
        assert await stub.Say(echo.Message(n=7)) == echo.Message(n=7)


async def test_a_handler_may_answer_before_it_has_read_everything(echo: Any) -> None:
    """An early response ends the call, and the client's sending with it."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Join(self, input_messages: Any) -> Any:  # noqa: N802
            return echo.Message(text=(await anext(input_messages)).text)

    async with open_rpc_pair([Handlers()]) as pair, echo.Stub(pair.channel).Join() as call:
        await call.send(echo.Message(text="enough"))
        await wait_all_tasks_blocked()
        for _ in range(500):
            await call.send(echo.Message(payload=bytes(1000)))
        assert (await call.response()).text == "enough"


async def test_an_error_in_the_block_leaves_as_it_is(echo: Any, handlers: Any) -> None:
    """The channel's nursery does not wrap the body's own exception."""
    with pytest.raises(ZeroDivisionError):
        async with open_rpc_pair([handlers]) as pair, echo.Stub(pair.channel).Chat():
            _ = 1 / 0


async def test_calls_after_the_first_are_no_different(echo: Any, handlers: Any) -> None:
    """Requests whose like has been seen come in one piece; every kind of call is served, again and again."""
    async with open_rpc_pair([handlers]) as pair:
        stub = echo.Stub(pair.channel)
        for n in range(1, 4):
            assert (await stub.Say(echo.Message(text="a", n=n))).n == n + 1
            async with stub.Repeat(echo.Message(text="b", n=n)) as repeated:
                assert [reply.text async for reply in repeated] == ["b"] * n
            async with stub.Join() as joining:
                await joining.send(echo.Message(text="c"))
                assert (await joining.response()).text == "c"


async def test_interceptors_may_wait_before_the_handler(echo: Any, handlers: Any) -> None:
    """The request is still there when they proceed, on the first call and on those after it."""

    async def patient(call: Call, proceed: Proceed) -> Any:
        await trio.lowlevel.checkpoint()
        return await proceed()

    async with open_rpc_pair([handlers], server_interceptors=[patient]) as pair:
        for text in ("a", "b", "c"):
            assert (await echo.Stub(pair.channel).Say(echo.Message(text=text))).text == text


async def _wait_first(call: Any, proceed: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return await proceed()


@pytest.mark.parametrize("interceptors", [[], [_wait_first]], ids=["at once", "after a wait"])
@pytest.mark.parametrize("method", ["Say", "Repeat"])
async def test_a_request_in_one_piece_is_read_whole(
    echo: Any, handlers: Any, raw_client: Any, method: str, interceptors: list[Any]
) -> None:
    """Head and body in one segment reach the handler, also when an interceptor has to wait before it."""
    client = await raw_client(RpcServer([handlers], interceptors))
    head = encode(list((REQUEST_FIELDS | {":path": f"/whispr.test.echo.Echo/{method}"}).items()))
    stream_id = client.core.open_stream(head, False)
    message = echo.Message(text="whole", n=1).SerializeToString()
    client.core.send_data(stream_id, frame_message(message), end_stream=True)
    with trio.fail_after(5):
        await client.send()
        answer = await client.until(lambda event: isinstance(event, DataReceived))
        assert (await client.outcome(stream_id))["grpc-status"] == "0"
    assert echo.Message.FromString(answer.data[5:]).text == "whole"
