"""Interceptors: what surrounds calls, on servers and on channels alike.

An interceptor is an async callable (a function, or an object with `__call__`):

    async def timed(call: Call, proceed: Proceed) -> Any:
        started = trio.current_time()
        try:
            return await proceed()
        finally:
            record(call.method, trio.current_time() - started)

`proceed()` runs the rest of the call: the next interceptor, and in the end the handler, or the call itself.
It is awaited at most once, its result is handed back as it is, and it raises what the call ends with: a
WhisprError, or Trio's Cancelled, which must be let through. Raising a WhisprError instead of proceeding refuses
the call. The first one listed acts first.

For a streaming call of a client `proceed()` lasts as long as the `async with` block around it.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from types import MethodType
from typing import Any, Protocol, TypeVar

from whispr.rpc.call import Call

Proceed = Callable[[], Awaitable[Any]]
CallT = TypeVar("CallT", bound=Call)


class Interceptor(Protocol):
    """See the module."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Surround one call."""


async def intercepted(interceptors: Sequence[Interceptor], call: Call, innermost: Proceed) -> Any:
    """Run `innermost` inside the interceptors, the first of them outermost."""
    return await surrounded(interceptors, lambda _: innermost())(call)


def surrounded(
    interceptors: Sequence[Interceptor], innermost: Callable[[CallT], Awaitable[Any]]
) -> Callable[[CallT], Awaitable[Any]]:
    """`innermost` inside the interceptors, the first of them outermost: put together once, for many calls."""
    run = innermost
    for interceptor in reversed(interceptors):
        run = partial(_surround, interceptor, run)
    return run


def _surround(
    interceptor: Interceptor, inside: Callable[[CallT], Awaitable[Any]], call: CallT
) -> Awaitable[Any]:
    # A bound method takes a third of a partial's memory, and as many calls as wait hold one for each interceptor.
    return interceptor(call, MethodType(inside, call))


class _Paused:
    """What a suspended interceptor chain yields instead of a trap of Trio's."""


_PAUSED = _Paused()


@types.coroutine
def _pause() -> Generator[Any, Any, Any]:
    return (yield _PAUSED)


@types.coroutine
def _run_until_paused(
    chain: Generator[Any, Any, Any], resume: Callable[[], Any]
) -> Generator[Any, Any, bool]:
    """Run a chain, passing its waits on to Trio; True when it paused, False when it returned."""
    while True:
        try:
            trap = resume()
        except StopIteration:
            return False
        if trap is _PAUSED:
            return True
        resume = yield from _answer(chain, trap)


def _answer(chain: Generator[Any, Any, Any], trap: Any) -> Generator[Any, Any, Callable[[], Any]]:
    """Let Trio handle one trap; returns how to carry on."""
    try:
        value = yield trap
    except BaseException as error:  # noqa: BLE001  # handed on to the chain as it is
        return lambda error=error: chain.throw(error)  # type: ignore[misc]
    return lambda: chain.send(value)


class Surrounding:
    """An interceptor chain around a block of code instead of a function.

    `enter` runs the chain up to its innermost `proceed()`, `exit` the rest of it, in the same task, so
    cancel scopes that interceptors open nest around the block as they would around a function call.
    """

    def __init__(self, interceptors: Sequence[Interceptor], call: Call) -> None:
        self._interceptors = interceptors
        self._call = call
        self._chain: Any = None

    async def enter(self) -> None:
        """Raises what an interceptor refuses the call with."""
        chain: Any = intercepted(self._interceptors, self._call, _pause)
        self._chain = chain
        if not await _run_until_paused(chain, lambda: chain.send(None)):
            raise RuntimeError("an interceptor returned without proceeding")

    async def exit(self, error: BaseException | None) -> None:
        """Let the chain see how the block ended; raises what the chain makes of it."""
        chain = self._chain
        resume = (lambda: chain.send(None)) if error is None else (lambda: chain.throw(error))
        if await _run_until_paused(chain, resume):
            raise RuntimeError("an interceptor proceeded twice")
