"""A nursery that a context manager keeps to itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
