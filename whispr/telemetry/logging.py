"""Structured logs on standard error: one event a line, named fields, no secrets.

A terminal gets a readable console form, everything else JSON. What the standard library's loggers say
(asyncpg, nats, trio-websocket) goes through the same pipeline, so there is one form and one level.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

SECRET_FIELDS = frozenset(
    {
        "password",
        "token",
        "access_token",
        "refresh_token",
        "authorization",
        "secret",
        "private_key",
        "content",
        "text",
    }
)
"""Fields that never reach a log, whoever passes them: credentials, and what people write to each other."""

_QUIET = ("trio-websocket", "asyncio", "httpx", "httpcore")
"""Libraries whose informational lines say what our own events say better."""

Event = MutableMapping[str, Any]


def configure_logging(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Route structlog and the standard library's logging to `stream` (standard error when None).

    `level` is debug, info, warning or error; `form` is console, json, or auto: console on a terminal.
    """
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    # Tracebacks come without local variables: those hold what people wrote, and their tokens.
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    plain = structlog.dev.plain_traceback
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
        if console
        else [structlog.processors.ExceptionRenderer(without_locals), structlog.processors.JSONRenderer()]
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def redact(_: object, __: str, event: Event) -> Event:
    """Blank the fields of `SECRET_FIELDS`; a structlog processor."""
    for field in SECRET_FIELDS & event.keys():
        event[field] = "[redacted]"
    return event
