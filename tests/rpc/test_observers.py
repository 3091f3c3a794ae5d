"""Interceptors that only learn how calls end."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError, denied
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Observer, Proceed, split
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]


class Seen(Observer):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str | None]] = []

    def ended(self, call: Call, code: Code, error: WhisprError | None) -> None:
        assert call.begun_at > 0
        self.told.append((code.name, None if error is None else error.message))


async def passing(call: Call, proceed: Proceed) -> Any:
    return await proceed()


async def outcomes(message: Any) -> Any:
    """A handler that ends in as many ways as there are."""
    if message.text == "wait":
        await trio.sleep_forever()
    if message.text == "later":
        await trio.lowlevel.checkpoint()
    if message.text == "refuse":
        raise denied("no")
    if message.text == "crash":
        raise RuntimeError("a crash")
    return message


@pytest.mark.parametrize("listed", ["first", "after others"])
@pytest.mark.parametrize("side", ["server_interceptors", "channel_interceptors"])
@pytest.mark.parametrize(
    ("text", "server", "channel"),
    [
        ("", ("OK", None), ("OK", None)),
        ("later", ("OK", None), ("OK", None)),
        ("refuse", ("PERMISSION_DENIED", "no"), ("PERMISSION_DENIED", "no")),
        ("crash", ("INTERNAL", None), ("INTERNAL", "the server failed to handle the call")),
        ("wait", ("DEADLINE_EXCEEDED", None), ("DEADLINE_EXCEEDED", None)),
    ],
)
async def test_observers_learn_how_each_call_ends(
    echo: Any, unary: Unary, autojump_clock: Any, listed: str, side: str, text: str, server: Any, channel: Any
) -> None:
    """Once, on either side, wherever they are listed; the second call of a method goes another way than the first."""
    seen = Seen()
    around: dict[str, Any] = {side: [seen] if listed == "first" else [passing, seen]}
    async with open_rpc_pair([unary(outcomes)], **around) as pair:
        for _ in range(3):
            with trio.move_on_after(1):
                with contextlib.suppress(WhisprError):
                    await echo.Stub(pair.channel).Say(echo.Message(text=text))
        await trio.sleep(1)
    assert seen.told == [server if side == "server_interceptors" else channel] * 3


async def test_observers_learn_of_calls_that_others_refuse(echo: Any, handlers: Any) -> None:
    """Listed before the one that refuses."""

    async def refuse(call: Call, proceed: Proceed) -> Any:
        raise denied("not you")

    seen = Seen()
    async with open_rpc_pair([handlers], server_interceptors=[seen, refuse]) as pair:
        with pytest.raises(WhisprError):
            await echo.Stub(pair.channel).Say(echo.Message())
    assert seen.told == [("PERMISSION_DENIED", "not you")]


async def test_observers_learn_of_calls_that_die_with_their_connection(echo: Any, unary: Unary) -> None:
    """Cancelled by the caller, and killed with all of the connection: each is told once."""
    seen = Seen()
    async with open_rpc_pair([unary(outcomes)], server_interceptors=[seen]) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message(text="wait"))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert seen.told == [("CANCELLED", None)]
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_lost, echo.Stub(pair.channel), echo.Message(text="wait"))
            await wait_all_tasks_blocked()
            for connection in list(pair.server._connections):
                connection.kill("the test says so")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert seen.told == [("CANCELLED", None)] * 3


async def _lost(stub: Any, message: Any) -> None:
    with pytest.raises(WhisprError):
        await stub.Say(message)


def test_only_those_listed_first_are_the_servers_to_tell() -> None:
    """One that comes after another interceptor must be told of what that one makes of the call."""
    one, other = Seen(), Seen()
    assert split([one, other, passing, one]) == ((one, other), [passing, one])
    assert split([]) == ((), [])
