"""One event for each call, as an interceptor on either side.

    server = RpcServer([...], interceptors=[Measured(), Logged(), ...])

OK is logged at debug, and a share of it at info; what the caller did wrong at info, what something we depend on did
at warning, and what we did wrong at error. The level is looked at before anything is put together: an event that
nobody wants costs a call of one function.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping

import structlog

from whispr.errors import Code, Fault, WhisprError
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Observer
from whispr.rpc.tracing import trace_id_of

REQUEST_ID_KEY = "x-request-id"
"""Metadata that names a request across the services it passes through."""

_LEVEL: Mapping[Fault, int] = {
    Fault.CALLER: logging.INFO,
    Fault.DEPENDENCY: logging.WARNING,
    Fault.SERVICE: logging.ERROR,
}
_REQUEST_ID_CHARS_MAX = 128
_chance = random.random
_OK = Code.OK  # an enumeration takes longer to look it up in than all the rest of a call that is not logged


class Logged(Observer):
    """Logs calls by their outcome. Make it once logging is configured: the level is read then."""

    def __init__(
        self, event: str = "call", *, ok_ratio: float = 0.0, actor_of: Callable[[Call], str] | None = None
    ) -> None:
        """`event` is what the events are called, `call` on servers; channels may have another.

        `ok_ratio`, 0 to 1, of the calls that went well is logged at info. `actor_of` names who a call was made
        for, empty for nobody.
        """
        self._event = event
        self._ok_ratio = ok_ratio
        self._actor_of = actor_of
        self._log = structlog.get_logger("whispr.rpc").bind()
        self._tells_ok = self._log.is_enabled_for(logging.DEBUG)

    def ended(self, call: Call, code: Code, error: WhisprError | None) -> None:
        """Log one call. A crash has no words here: its traceback is logged where it ends the call."""
        if error is not None:
            self._tell(call, code, reason=error.reason, message=error.message)
        elif code is not _OK or self._tells_ok:
            self._tell(call, code)
        elif _chance() < self._ok_ratio:
            self._tell(call, code, logging.INFO)

    def _tell(self, call: Call, code: Code, level: int = 0, **more: str) -> None:
        level = level or (logging.DEBUG if code is Code.OK else _LEVEL[WhisprError(code, "").fault])
        if not self._log.is_enabled_for(level):
            return
        request_id = call.metadata.text(REQUEST_ID_KEY)
        if request_id is not None:
            more["request_id"] = request_id[:_REQUEST_ID_CHARS_MAX]
        if trace_id := trace_id_of(call):
            more["trace_id"] = trace_id
        if self._actor_of is not None and (actor := self._actor_of(call)):
            more["actor"] = actor
        duration_ms = round((time.perf_counter() - call.begun_at) * 1000, 3)
        self._log.log(
            level,
            self._event,
            method=call.method,
            code=code.name,
            duration_ms=duration_ms,
            peer=call.peer,
            **more,
        )
