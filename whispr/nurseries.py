"""Nurseries that a context manager keeps to itself: whoever writes a block sees none of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import trio


@asynccontextmanager
async def own_nursery(reason: str) -> AsyncIterator[trio.Nursery]:
    """Open a nursery that ends, cancelled for `reason`, with the block.

    The block's own error leaves as it was raised, without the group that a nursery puts around it: whoever
    wrote the block sees no nursery. Errors of the tasks stay in their group.
    """
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                body_error = error
                raise
            finally:
                nursery.cancel_scope.cancel(reason=reason)
    except BaseExceptionGroup as group:
        if body_error is not None and group.exceptions == (body_error,):
            raise body_error from body_error.__cause__
        raise


@contextmanager
def ungrouped() -> Iterator[None]:
    """Take the one exception of a block out of the group that a nursery around it makes of it.

    For context managers whose nursery is their own affair: the error of their block should come out as it
    was raised. Several errors stay a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        real = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
        if len(real) > 1:
            raise
        error = real[0] if real else group.exceptions[0]
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # and not the group, which is only our nursery's wrapping
            del error, context, real
