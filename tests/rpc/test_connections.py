"""A channel's connections: lost, refused, full, several; and what becomes of the calls on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rpc.raw_server import RawServer, Stalling, answer, channel_to, go_away
from whispr.errors import Code, WhisprError
from whispr.http2.connection import Connection
from whispr.http2.errors import ErrorCode
from whispr.http2.limits import Limits
from whispr.rpc.call import NO_METADATA
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.client_call import ClientCall
from whispr.rpc.limits import RpcLimits
from whispr.rpc.wire import frame_message
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]
# --- Lost ---------------------------------------------------------------------------------------------------


async def test_a_lost_call_may_have_been_processed(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """Its error says so, at once: nobody may simply ask again for what is not idempotent."""

    async def hang(_: Any) -> Any:
        await trio.sleep_forever()

    errors: list[WhisprError] = []
    async with open_rpc_pair([unary(hang)]) as pair:

        async def call() -> None:
            with pytest.raises(WhisprError) as caught:
                await echo.Stub(pair.channel).Say(echo.Message())
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(call)
            await wait_all_tasks_blocked()
            await pair.network.cut()
    assert [(error.code, error.facts["processed"]) for error in errors] == [(Code.UNAVAILABLE, "maybe")] * 10
    assert trio.current_time() == 0


async def test_a_call_that_was_never_sent_is_made_again(autojump_clock: MockClock, echo: Any) -> None:
    """What lay unsent when the connection died goes out on the next one; what was in the socket fails."""
    stalling: list[Stalling] = []
    server = RawServer(answer)
    outcomes: dict[str, str] = {}

    async with channel_to(server, stalling=stalling) as channel:
        stub = echo.Stub(channel)
        await stub.Say(echo.Message())

        async def call(name: str) -> None:
            try:
                await stub.Say(echo.Message())
                outcomes[name] = "answered"
            except WhisprError as error:
                outcomes[name] = error.facts["processed"]

        async with trio.open_nursery() as nursery:
            stalling[0].stalled = True
            nursery.start_soon(call, "in the socket")
            await wait_all_tasks_blocked()
            nursery.start_soon(call, "unsent")
            await wait_all_tasks_blocked()
            channel.connections[0].kill("the network went away")
    assert outcomes == {"in the socket": "maybe", "unsent": "answered"}
    assert "grpc-previous-rpc-attempts" not in server.heads[-1]


async def test_a_server_that_cannot_be_reached_processed_nothing(echo: Any, handlers: Any) -> None:
    """UNAVAILABLE with `processed: no`, and when to try again."""
    async with open_rpc_pair([handlers]) as pair:
        pair.network.reachable = False
        with pytest.raises(WhisprError, match="connection refused") as caught:
            await echo.Stub(pair.channel).Say(echo.Message())
    assert caught.value.facts == {"processed": "no"}
    assert (caught.value.retry_after_s or 0) > 0.5


# --- Refused ------------------------------------------------------------------------------------------------


async def test_calls_above_goaways_last_id_go_elsewhere(autojump_clock: MockClock, echo: Any) -> None:
    """The server has not seen them: their callers notice nothing, while older calls finish where they are."""
    cores: list[tuple[Connection, int]] = []

    def script(core: Connection, stream_id: int, connection: int) -> None:
        if connection:
            answer(core, stream_id)
            return
        cores.append((core, stream_id))
        if len(cores) == 3:
            go_away(core, cores[0][1])
            answer(*cores[0])

    server = RawServer(script)
    async with channel_to(server) as channel, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(echo.Stub(channel).Say, echo.Message())
    assert server.connections == 2
    attempts = [head.get("grpc-previous-rpc-attempts") for head in server.heads]
    assert attempts == [None, None, None, "1", "1"]


async def test_a_graceful_goaway_moves_new_calls_only(autojump_clock: MockClock, echo: Any) -> None:
    """While an older call is still going on the old connection, a new one is answered on another."""
    held: list[tuple[Connection, int]] = []

    def script(core: Connection, stream_id: int, connection: int) -> None:
        if connection:
            answer(core, stream_id)
        else:
            held.append((core, stream_id))
            core.announce_shutdown()

    server = RawServer(script)
    ended: list[str] = []
    async with channel_to(server) as channel:
        stub = echo.Stub(channel)

        async def older() -> None:
            await stub.Say(echo.Message())
            ended.append("older")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(older)
            await wait_all_tasks_blocked()
            await stub.Say(echo.Message())
            ended.append("newer")
            ((core, stream_id),) = held
            answer(core, stream_id)
            await server.streams[0].send_all(b"".join(core.take_output()[0]))
    assert ended == ["newer", "older"]
    assert server.connections == 2


@pytest.mark.parametrize(("refusals", "error"), [(1, None), (2, "no")])
async def test_a_refused_stream_is_tried_once_more(
    autojump_clock: MockClock, echo: Any, refusals: int, error: str | None
) -> None:
    """REFUSED_STREAM promises that nothing was done (RFC 9113 section 8.7), so one more attempt is safe."""

    def script(core: Connection, stream_id: int, connection: int) -> None:
        if len(server.heads) <= refusals:
            core.reset(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            answer(core, stream_id)

    server = RawServer(script)
    async with channel_to(server) as channel:
        if error is None:
            await echo.Stub(channel).Say(echo.Message())
        else:
            with pytest.raises(WhisprError) as caught:
                await echo.Stub(channel).Say(echo.Message())
            assert (caught.value.code, caught.value.facts["processed"]) == (Code.UNAVAILABLE, error)
    assert [head.get("grpc-previous-rpc-attempts") for head in server.heads] == [None, "1"]


@pytest.mark.parametrize(("room", "again"), [(1000, True), (20, False)])
async def test_a_refused_streaming_call_sends_its_messages_again(
    autojump_clock: MockClock, echo: Any, room: int, again: bool
) -> None:
    """What was sent before the refusal and after it arrive as one stream, unless it was too much to keep."""
    core_of: list[Connection] = []

    def after_head(core: Connection, stream_id: int, connection: int) -> None:
        core_of.append(core)

    server = RawServer(answer, after_head=after_head)
    async with (
        channel_to(server, RpcLimits(retry_bytes_max=room)) as channel,
        echo.Stub(channel).Join() as call,
    ):
        for n in range(5):
            await call.send(echo.Message(n=n + 1))
            await wait_all_tasks_blocked()
        core_of[0].reset(1, ErrorCode.REFUSED_STREAM)
        # The raw server says what its core has to say when it reads: the next message makes it.
        await call.send(echo.Message(n=6))
        await wait_all_tasks_blocked()
        if again:
            await call.send(echo.Message(n=7))
            await call.response()
        else:
            with pytest.raises(WhisprError, match="refused"):
                await call.response()
    if again:
        expected = b"".join(
            frame_message(echo.Message(n=n).SerializeToString()) for n in (1, 2, 3, 4, 5, 6, 7)
        )
        assert server.bodies[0, 3] == expected
    assert len(server.heads) == 1 + again


async def test_a_call_waiting_for_another_connection_can_be_cancelled(
    autojump_clock: MockClock, echo: Any
) -> None:
    """Its deadline holds between attempts too, and nothing of it is left behind."""

    def script(core: Connection, stream_id: int, connection: int) -> None:
        go_away(core, 0)

    server = RawServer(script)
    attempts = 0
    async with trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            nonlocal attempts
            attempts += 1
            await trio.lowlevel.checkpoint()
            if attempts > 1:
                raise ConnectionRefusedError("connection refused")
            near, far = trio.testing.memory_stream_pair()
            nursery.start_soon(server.serve, far)
            return near

        async with open_channel("raw:1", connect=connect, wait_for_ready=True) as channel:
            with trio.move_on_after(10) as scope:
                await echo.Stub(channel).Say(echo.Message())
            assert scope.cancelled_caught
            await wait_all_tasks_blocked()
            assert not channel._line
            with pytest.raises(WhisprError, match="connection refused") as caught:
                await echo.Stub(channel).Say(echo.Message(), wait_for_ready=False)
            assert caught.value.facts == {"processed": "no"}
        nursery.cancel_scope.cancel(reason="done")
    assert trio.current_time() == pytest.approx(10)
    assert attempts > 2


async def test_a_connection_found_too_late_opens_no_stream(
    autojump_clock: MockClock, echo: Any, handlers: Any
) -> None:
    """A call that was abandoned just before its next connection was found leaves nothing on it."""
    async with open_rpc_pair([handlers]) as pair:
        await echo.Stub(pair.channel).Say(echo.Message())
        (connection,) = pair.channel.connections
        call = ClientCall(pair.channel, "/whispr.test.echo.Echo/Say", NO_METADATA)
        call.abandon()
        call.resume(connection)
        assert connection.core.open_streams == 0


async def test_calls_between_attempts_fail_when_the_channel_closes(
    autojump_clock: MockClock, echo: Any
) -> None:
    """They end with UNAVAILABLE, like those on a connection."""
    server = RawServer(lambda core, stream_id, _: go_away(core, 0))
    errors: list[WhisprError] = []

    async def call(channel: Channel) -> None:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message(), wait_for_ready=True)
        errors.append(caught.value)

    made = 0
    async with trio.open_nursery() as nursery, trio.open_nursery() as servers:

        async def connect() -> trio.abc.Stream:
            nonlocal made
            made += 1
            if made > 1:
                await trio.sleep_forever()
            near, far = trio.testing.memory_stream_pair()
            servers.start_soon(server.serve, far)
            await trio.lowlevel.checkpoint()
            return near

        async with open_channel("raw:1", connect=connect) as channel:
            nursery.start_soon(call, channel)
            await wait_all_tasks_blocked()
        servers.cancel_scope.cancel(reason="done")
    assert [(error.code, error.facts) for error in errors] == [(Code.UNAVAILABLE, {"processed": "no"})]


# --- Full ---------------------------------------------------------------------------------------------------


async def test_a_full_connection_gets_others_beside_it(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """Up to the limit; then calls queue, and start as streams become free on any of them."""
    running, peak = 0, 0

    async def say(message: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await trio.sleep(1)
        running -= 1
        return message

    two_each = RpcLimits(http2=Limits(streams_max=2))
    limits = RpcLimits(connections_per_address_max=3)
    async with open_rpc_pair([unary(say)], server_limits=two_each, channel_limits=limits) as pair:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message())
        assert pair.network.connections_made == 3
    assert peak == 6
    assert trio.current_time() == pytest.approx(10)


async def test_a_full_connection_goes_on_when_no_other_can_be_made(
    autojump_clock: MockClock, echo: Any, unary: Unary
) -> None:
    """A failed attempt at a second connection fails no call that can wait for the first."""

    async def say(message: Any) -> Any:
        await trio.sleep(1)
        return message

    one = RpcLimits(http2=Limits(streams_max=1))
    async with open_rpc_pair([unary(say)], server_limits=one) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message())
        await wait_all_tasks_blocked()
        pair.network.reachable = False
        for _ in range(4):
            nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message())
    assert trio.current_time() == pytest.approx(5)


async def test_a_call_may_wait_for_ready_or_not(autojump_clock: MockClock, echo: Any, handlers: Any) -> None:
    """What a call says goes before what its channel says."""
    async with open_rpc_pair([handlers]) as pair:
        stub = echo.Stub(pair.channel)
        pair.network.reachable = False
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message())
        replies = []

        async def wait() -> None:
            replies.append(await stub.Say(echo.Message(n=1), wait_for_ready=True))
            async with stub.Repeat(echo.Message(n=2), wait_for_ready=True) as call:
                replies.extend([message async for message in call])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(30)
            assert not replies
            with pytest.raises(WhisprError):
                await stub.Say(echo.Message())
            pair.network.reachable = True
    assert len(replies) == 3


async def test_the_servers_limit_of_header_lists_is_kept(
    autojump_clock: MockClock, echo: Any, handlers: Any
) -> None:
    """Metadata the server would reset the stream for fails here with the two sizes, and spoils nothing."""
    small = RpcLimits(http2=Limits(header_list_bytes_max=2000))
    async with open_rpc_pair([handlers], server_limits=small) as pair:
        stub = echo.Stub(pair.channel)
        await stub.Say(echo.Message(), metadata=[("k", "v" * 1000)])
        with pytest.raises(WhisprError, match=r"over the 2000 that") as caught:
            await stub.Say(echo.Message(), metadata=[("k", "v" * 2000)])
        assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "metadata_too_large")
        await stub.Say(echo.Message())


async def test_a_channel_closed_as_its_connection_begins(echo: Any) -> None:
    """Whichever of their tasks comes first, which is chance in each round: calls end, and nothing else happens."""
    for _ in range(40):
        connecting, go_on = trio.Event(), trio.Event()

        async def connect(connecting: trio.Event = connecting, go_on: trio.Event = go_on) -> trio.abc.Stream:
            connecting.set()
            await go_on.wait()
            return trio.testing.memory_stream_pair()[0]

        async def call(channel: Any) -> None:
            with pytest.raises(WhisprError):
                await echo.Stub(channel).Say(echo.Message())

        async with trio.open_nursery() as nursery, open_channel("memory:1", connect=connect) as channel:
            nursery.start_soon(call, channel)
            await connecting.wait()
            go_on.set()
            await trio.lowlevel.checkpoint()
