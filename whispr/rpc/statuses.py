"""Which status an exception of a handler stands for."""

from __future__ import annotations

import purerpc
import trio

from whispr.errors import Code, WhisprError


def status_of(error: BaseException) -> WhisprError | None:
    """The status to end a call with; None for a crash, of which the caller learns nothing.

    An exception group counts as what is in it, when that is one exception: handlers use nurseries.
    """
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, WhisprError):
        return error
    if isinstance(error, purerpc.RpcFailedError):
        return WhisprError(Code(error.status.int_value), error.status.status_message)
    if isinstance(error, NotImplementedError):
        # What the servicers of purerpc's own plugin raise by default.
        return WhisprError(Code.UNIMPLEMENTED, "the method is not implemented")
    if isinstance(error, trio.TooSlowError):
        return WhisprError(Code.DEADLINE_EXCEEDED, "a deadline within the call passed")
    return None
