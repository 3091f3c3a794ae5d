"""Runs a handler in the task that is at hand, and tells when it has to wait.

Most handlers of unary calls never wait, and a task for each would cost more than the handler. So the task
that has read a request runs the handler itself, by hand: every step of it runs in this one task, from the
first to the last, so that scopes, nurseries, locks and whatever else belongs to a task are the handler's own.
Should the handler have to wait, `waits` is told before it does; the task is then the handler's until it
ends, and somebody else has to see to what the task was doing.

Each handler has a copy of `base` as its context, as it would in a task of its own.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

import trio

from whispr.rpc.call import set_current_call

if TYPE_CHECKING:
    from whispr.rpc.server_call import ServerCall


@types.coroutine
def drive(
    call: ServerCall, task: trio.lowlevel.Task, base: Context, waits: Callable[[ServerCall], None]
) -> Generator[Any, Any, Any]:
    """Run a call's handler to its end in the current task, which is `task`; returns and raises what it does."""
    # What a task's context is counts from its next step on: the first one is run in it explicitly.
    task.context = context = base.copy()
    try:
        coroutine, trap = context.run(_begin, call)
    except StopIteration as returned:
        return returned.value
    waits(call)
    while True:
        try:
            try:
                value = yield trap
            except BaseException as error:  # noqa: BLE001  # handed on to the handler as it is
                trap = coroutine.throw(error)
            else:
                trap = coroutine.send(value)
        except StopIteration as returned:
            return returned.value


def _begin(call: ServerCall) -> tuple[Coroutine[Any, Any, Any], Any]:
    """Run the first step; returns what it waits for. Raises StopIteration with the result when there is no other."""
    set_current_call(call)
    awaitable = call.handler.run(call)
    coroutine = awaitable if isinstance(awaitable, types.CoroutineType) else _awaited(awaitable)
    return coroutine, coroutine.send(None)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
