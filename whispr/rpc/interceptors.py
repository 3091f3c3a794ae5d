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

What only has to know how calls end is better an `Observer`, an interceptor that never waits: a server holds nothing
for those that are listed first, while a coroutine for each of the others takes a third of a KiB as long as its
call lasts.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from types import MethodType
from typing import Any, Protocol, TypeVar, cast

import trio

from whispr.errors import Code, WhisprError
from whispr.rpc.call import Call
from whispr.rpc.statuses import status_of

Proceed = Callable[[], Awaitable[Any]]
CallT = TypeVar("CallT", bound=Call)


class Interceptor(Protocol):
    """See the module."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Surround one call."""


class Selective(Interceptor, Protocol):
    """An interceptor that most calls can do without, and that says so at less than it costs to surround one."""

    def wants(self, call: Call) -> bool:
        """Tell whether it has something to do for a call."""


class Observer(ABC):
    """An interceptor that is told of each call once it is over, and can neither refuse nor change it.

    `call.begun_at` says when it began.
    """

    @abstractmethod
    def ended(self, call: Call, code: Code, error: WhisprError | None) -> None:
        """Take note of how a call has ended. Must not raise.

        `error` is the status it ended with, unless it was OK, cancelled, or the handler crashed.
        """

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Surround one call, as any interceptor does."""
        try:
            result = await proceed()
        except trio.Cancelled:
            self.ended(call, cancelled_code(call), None)
            raise
        except Exception as error:
            status = status_of(error)
            self.ended(call, Code.INTERNAL if status is None else status.code, status)
            raise
        self.ended(call, Code.OK, None)
        return result


def cancelled_code(call: Call) -> Code:
    """What a call that was cancelled ends with."""
    return Code.DEADLINE_EXCEEDED if trio.current_time() >= call.deadline else Code.CANCELLED


def split(interceptors: Sequence[Interceptor]) -> tuple[tuple[Observer, ...], Sequence[Interceptor]]:
    """The observers that are listed first, and all that comes after them."""
    count = 0
    while count < len(interceptors) and isinstance(interceptors[count], Observer):
        count += 1
    first = tuple(one for one in interceptors[:count] if isinstance(one, Observer))
    return first, interceptors[count:]


async def intercepted(interceptors: Sequence[Interceptor], call: Call, innermost: Proceed) -> Any:
    """Run `innermost` inside the interceptors, the first of them outermost."""
    return await surrounded(interceptors, lambda _: innermost())(call)


def surrounded(
    interceptors: Sequence[Interceptor], innermost: Callable[[CallT], Awaitable[Any]]
) -> Callable[[CallT], Awaitable[Any]]:
    """`innermost` inside the interceptors, the first of them outermost: put together once, for many calls."""
    run = innermost
    for interceptor in reversed(interceptors):
        if hasattr(interceptor, "wants"):  # Selective: to ask whether it is one takes a hundred times as long
            run = partial(_surround_wanted, cast(Selective, interceptor), run)
        else:
            run = partial(_surround, interceptor, run)
    return run


def _surround_wanted(
    interceptor: Selective, inside: Callable[[CallT], Awaitable[Any]], call: CallT
) -> Awaitable[Any]:
    return _surround(interceptor, inside, call) if interceptor.wants(call) else inside(call)


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
