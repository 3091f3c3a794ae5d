"""One interceptor interface for both sides and all call kinds."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from whispr.errors import Code, WhisprError, denied
from whispr.rpc.call import Call, current_call
from whispr.rpc.interceptors import Interceptor, Proceed
from whispr.testing import open_rpc_pair


def recorder(name: str, log: list[str]) -> Interceptor:
    async def record(call: Call, proceed: Proceed) -> Any:
        log.append(f"{name} in")
        try:
            return await proceed()
        except BaseException as error:
            log.append(f"{name} {type(error).__name__}")
            raise
        finally:
            log.append(f"{name} out")

    return record


async def all_kinds(echo: Any, channel: Any) -> None:
    stub = echo.Stub(channel)
    await stub.Say(echo.Message())
    async with stub.Repeat(echo.Message(n=2)) as call:
        assert len([message async for message in call]) == 2
    async with stub.Join() as call:
        await call.response()
    async with stub.Chat() as call:
        await call.done_sending()
        assert [message async for message in call] == []


@pytest.mark.parametrize("side", ["server_interceptors", "channel_interceptors"])
async def test_the_first_listed_acts_first(echo: Any, handlers: Any, side: Any) -> None:
    """Around every kind of call, outermost first, on either side."""
    log: list[str] = []
    chain = [recorder("a", log), recorder("b", log)]
    around: dict[str, Any] = {side: chain}
    async with open_rpc_pair([handlers], **around) as pair:
        await all_kinds(echo, pair.channel)
    assert log == ["a in", "b in", "b out", "a out"] * 4


@pytest.mark.parametrize("side", ["server_interceptors", "channel_interceptors"])
async def test_a_refusal_is_what_the_caller_gets(echo: Any, handlers: Any, side: Any) -> None:
    """An interceptor that raises instead of proceeding refuses the call; the ones inside never see it."""
    log: list[str] = []

    async def refuse(call: Call, proceed: Proceed) -> Any:
        raise denied("not you")

    around: dict[str, Any] = {side: [recorder("a", log), refuse, recorder("b", log)]}
    async with open_rpc_pair([handlers], **around) as pair:
        stub = echo.Stub(pair.channel)
        with pytest.raises(WhisprError) as unary:
            await stub.Say(echo.Message())
        with pytest.raises(WhisprError) as stream:
            async with stub.Repeat(echo.Message(n=1)) as call:
                await anext(call)
    assert unary.value.code is stream.value.code is Code.PERMISSION_DENIED
    assert log == ["a in", "a WhisprError", "a out"] * 2


async def test_a_client_interceptor_adds_metadata_and_a_server_one_reads_it(echo: Any, unary: Any) -> None:
    """How a token travels, and how what it says reaches the handler."""

    async def sign(call: Call, proceed: Proceed) -> Any:
        call.metadata = call.metadata.plus([("authorization", "Bearer t")])
        return await proceed()

    async def verify(call: Call, proceed: Proceed) -> Any:
        call.state["actor"] = call.metadata.text("authorization")
        return await proceed()

    async def say(_: Any) -> Any:
        return echo.Message(text=current_call().state["actor"])

    async with open_rpc_pair([unary(say)], channel_interceptors=[sign], server_interceptors=[verify]) as pair:
        assert (await echo.Stub(pair.channel).Say(echo.Message())).text == "Bearer t"


async def test_interceptors_see_how_a_call_ends(echo: Any, unary: Any) -> None:
    """The handler's error on both sides, and Trio's Cancelled when the caller goes."""
    log: list[str] = []
    started = trio.Event()

    async def say(message: Any) -> Any:
        if message.text:
            raise WhisprError(Code.ABORTED, "no")
        started.set()
        await trio.sleep_forever()

    async with open_rpc_pair(
        [unary(say)],
        server_interceptors=[recorder("server", log)],
        channel_interceptors=[recorder("client", log)],
    ) as pair:
        stub = echo.Stub(pair.channel)
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message(text="x"))
        assert log == [
            "client in",
            "server in",
            "server WhisprError",
            "server out",
            "client WhisprError",
            "client out",
        ]
        log.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stub.Say, echo.Message())
            await started.wait()
            nursery.cancel_scope.cancel(reason="enough")
        await trio.testing.wait_all_tasks_blocked()
    assert {"client Cancelled", "server Cancelled"} <= set(log)


async def test_a_scope_around_a_streaming_call_holds(echo: Any, handlers: Any) -> None:
    """A cancel scope that a client's interceptor opens covers the whole block, waits of its body included."""
    with_deadline: list[bool] = []

    async def hurry(call: Call, proceed: Proceed) -> Any:
        with trio.move_on_after(0.05) as scope:
            await proceed()
        with_deadline.append(scope.cancelled_caught)

    async with open_rpc_pair([handlers], channel_interceptors=[hurry]) as pair:
        with pytest.raises(trio.Cancelled):  # the block is what is measured
            async with echo.Stub(pair.channel).Chat():
                await trio.sleep_forever()
    assert with_deadline == [True]
