"""One event for each call, as an interceptor on either side.

    server = RpcServer([...], interceptors=[Measured(), Logged(), ...])

OK is logged at debug, what the caller did wrong at info, what something we depend on did at warning, and what
we did wrong at error. The level is looked at before anything is put together: an event that nobody wants
costs little more than the interceptor's own frame.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import structlog
import trio

from whispr.errors import Code, Fault, WhisprError
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed
from whispr.rpc.statuses import status_of

REQUEST_ID_KEY = "x-request-id"
"""Metadata that names a request across the services it passes through."""

_LEVEL: Mapping[Fault, int] = {
    Fault.CALLER: logging.INFO,
    Fault.DEPENDENCY: logging.WARNING,
    Fault.SERVICE: logging.ERROR,
}
_REQUEST_ID_CHARS_MAX = 128


class Logged:
    """Logs calls by their outcome. Make it once logging is configured: the level is read then."""

    def __init__(self, event: str = "call") -> None:
        """`event` is what the events are called, `call` on servers; channels may have another."""
        self._event = event
        self._log = structlog.get_logger("whispr.rpc").bind()
        self._tells_ok = self._log.is_enabled_for(logging.DEBUG)

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Log one call."""
        started = time.perf_counter()
        try:
            result = await proceed()
        except trio.Cancelled:
            passed = trio.current_time() >= call.deadline
            self._tell(call, started, Code.DEADLINE_EXCEEDED if passed else Code.CANCELLED)
            raise
        except Exception as error:
            self._tell_failure(call, started, status_of(error))
            raise
        if self._tells_ok:
            self._tell(call, started, Code.OK)
        return result

    def _tell_failure(self, call: Call, started: float, error: WhisprError | None) -> None:
        if error is None:  # a crash: its traceback is logged where it ends the call
            self._tell(call, started, Code.INTERNAL)
        else:
            self._tell(call, started, error.code, reason=error.reason, message=error.message)

    def _tell(self, call: Call, started: float, code: Code, **more: str) -> None:
        level = logging.DEBUG if code is Code.OK else _LEVEL[WhisprError(code, "").fault]
        if not self._log.is_enabled_for(level):
            return
        request_id = call.metadata.text(REQUEST_ID_KEY)
        if request_id is not None:
            more["request_id"] = request_id[:_REQUEST_ID_CHARS_MAX]
        duration_ms = round((time.perf_counter() - started) * 1000, 3)
        self._log.log(
            level,
            self._event,
            method=call.method,
            code=code.name,
            duration_ms=duration_ms,
            peer=call.peer,
            **more,
        )
