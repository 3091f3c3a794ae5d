"""Calls in the task tree, whichever task runs them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from whispr.task_facts import describe_all
from whispr.telemetry.tasks import TaskTree
from whispr.telemetry.tree import Seen
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]


def of_kind(seen: Seen, kind: str) -> list[Seen]:
    return [seen] * (seen.kind == kind) + [found for child in seen.children for found in of_kind(child, kind)]


async def test_every_call_that_waits_is_seen(echo: Any, unary: Unary, autojump_clock: Any) -> None:
    """The first runs in the task that reads the connection, the next ones in tasks of their own: all are calls.

    Each is below its connection, has its own deadline and age, and says where its handler waits; a task that the
    handler started is below it.
    """
    describe_all()

    async def helper() -> None:
        await trio.sleep_forever()

    async def wait(_: Any) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(helper, name="the handler's helper")
            await trio.Event().wait()

    async with open_rpc_pair([unary(wait)]) as pair, trio.open_nursery() as callers:

        async def call(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await echo.Stub(pair.channel).Say(echo.Message())

        for seconds in (10, 20, 30):
            callers.start_soon(call, seconds)
            await trio.testing.wait_all_tasks_blocked()
        (connection,) = of_kind(await TaskTree().read(), "connection")
        calls = of_kind(connection, "call")
        assert [each.name for each in calls] == ["whispr.test.echo.Echo/Say"] * 3
        assert sorted(round(each.left_s or 0) for each in calls) == [10, 20, 30]
        for each in calls:
            assert each.age_s is not None
            assert each.on
            assert [child.name for child in each.children] == ["the handler's helper"]
        callers.cancel_scope.cancel(reason="seen")
