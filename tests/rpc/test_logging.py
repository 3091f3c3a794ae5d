"""One event for each call, at the level of its outcome."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from whispr.errors import Code, WhisprError, denied, unavailable
from whispr.rpc.logging import Logged
from whispr.telemetry.logging import configure_logging
from whispr.testing import open_rpc_pair

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Logging is the process's: put back what a test configures."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    yield
    root.handlers[:], root.level = before[0], before[1]
    structlog.configure(**before[2])


async def logged(echo: Any, servicer: Any, **around: Any) -> list[Any]:
    """The events of one Say, `Logged` on the server."""
    with capture_logs() as events:
        async with open_rpc_pair([servicer], server_interceptors=[Logged()]) as pair:
            with trio.move_on_after(1):
                with contextlib.suppress(WhisprError):
                    await echo.Stub(pair.channel).Say(echo.Message(), **around)
            await trio.testing.wait_all_tasks_blocked()
    return [event for event in events if event["event"] == "call"]


async def test_a_call_that_goes_well(echo: Any, handlers: Any) -> None:
    """At debug: who called what, how long it took, and the id of the request."""
    (event,) = await logged(echo, handlers, metadata=[("x-request-id", "r1")])
    assert event["duration_ms"] >= 0
    del event["duration_ms"]
    assert event == {
        "event": "call",
        "log_level": "debug",
        "method": "/whispr.test.echo.Echo/Say",
        "code": "OK",
        "peer": "memory",
        "request_id": "r1",
    }


async def test_a_share_of_what_goes_well(echo: Any, handlers: Any) -> None:
    """At info, if it is wanted: about that share of the calls, with who they were made for and their trace."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    sampling = Logged(ok_ratio=0.5, actor_of=lambda call: call.metadata.text("x-somebody") or "")
    async with open_rpc_pair([handlers], server_interceptors=[sampling]) as pair:
        stub = echo.Stub(pair.channel)
        for _ in range(200):
            metadata = [("x-somebody", "alice"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]
            await stub.Say(echo.Message(), metadata=metadata)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert 20 < len(events) < 180
    facts = {(event["level"], event["code"], event["actor"], event["trace_id"]) for event in events}
    assert facts == {("info", "OK", "alice", trace)}


@pytest.mark.parametrize(
    ("error", "level", "code", "reason"),
    [
        (denied("no"), "info", "PERMISSION_DENIED", "forbidden"),
        (unavailable("later"), "warning", "UNAVAILABLE", "unavailable"),
        (WhisprError(Code.DATA_LOSS, "oh"), "error", "DATA_LOSS", "data_loss"),
        (RuntimeError("a crash"), "error", "INTERNAL", None),
        (trio.TooSlowError(), "warning", "DEADLINE_EXCEEDED", "deadline_exceeded"),
    ],
)
async def test_failures(
    echo: Any, unary: Unary, error: Exception, level: str, code: str, reason: str | None
) -> None:
    """The level says whose fault it was; a crash is told without its words."""

    async def fail(_: Any) -> Any:
        raise error

    (event,) = await logged(echo, unary(fail))
    assert (event["log_level"], event["code"], event.get("reason")) == (level, code, reason)
    assert "a crash" not in str(event)


async def test_calls_that_are_cancelled(echo: Any, unary: Unary, autojump_clock: Any) -> None:
    """A caller that goes and a deadline that passes are told apart."""

    async def wait(_: Any) -> Any:
        await trio.sleep_forever()

    (event,) = await logged(echo, unary(wait))
    assert (event["log_level"], event["code"]) == ("warning", "DEADLINE_EXCEEDED")
    with capture_logs() as events:
        async with open_rpc_pair([unary(wait)], server_interceptors=[Logged()]) as pair:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(echo.Stub(pair.channel).Say, echo.Message())
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel(reason="enough")
            await trio.testing.wait_all_tasks_blocked()
    (event,) = [event for event in events if event["event"] == "call"]
    assert (event["log_level"], event["code"]) == ("info", "CANCELLED")


async def test_the_products_log_has_failures_and_not_successes(echo: Any, unary: Unary) -> None:
    """At the level `info` an OK is not heard of; a streamed call of a client is logged as one."""
    stream = io.StringIO()
    configure_logging("info", "json", stream)

    async def say(message: Any) -> Any:
        if message.text:
            raise denied("no")
        return message

    interceptors = [Logged("call_made")]
    async with open_rpc_pair([unary(say)], channel_interceptors=interceptors) as pair:
        stub = echo.Stub(pair.channel)
        await stub.Say(echo.Message())
        with pytest.raises(WhisprError):
            await stub.Say(echo.Message(text="x"))
        with pytest.raises(WhisprError):
            async with stub.Repeat(echo.Message()) as call:
                await anext(call)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(event["event"], event["level"], event["code"]) for event in events] == [
        ("call_made", "info", "PERMISSION_DENIED"),
        ("call_made", "error", "UNIMPLEMENTED"),
    ]
