"""The HTTP side of long polls by itself: bodies that come slowly or never end. For sessions see tests/realtime."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import trio
from starlette.types import Message

from whispr.gateway.longpoll import BODY_S, LongPollEndpoint

BODY_BYTES_MAX = 1000


async def nobody(*_: object) -> Any:
    raise AssertionError("not asked for")


async def posted(size: int) -> tuple[dict[str, Any], float]:
    """POST with a body of which so many bytes come each second, for ever; returns the answer, and after how long."""
    limits = SimpleNamespace(poll_body_bytes=BODY_BYTES_MAX)
    passing = cast(
        Any, SimpleNamespace(sessions=SimpleNamespace(hub=SimpleNamespace(limits=limits)), post=nobody)
    )
    began, answer = trio.current_time(), b""

    async def receive() -> Message:
        await trio.sleep(1)
        return {"type": "http.request", "body": bytes(size), "more_body": True}

    async def send(message: Message) -> None:
        nonlocal answer
        answer += message.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": "/socket/longpoll", "query_string": b"", "headers": []}
    await LongPollEndpoint(passing, nobody, nobody)(scope, receive, send)
    return msgspec.json.decode(answer), trio.current_time() - began


async def test_a_body_has_its_time_and_its_length(autojump_clock: trio.testing.MockClock) -> None:
    """A client that nobody knows yet is told when its request takes too long, or says too much."""
    slow, after_s = await posted(1)
    assert (slow["status"], after_s) == (408, BODY_S)
    long, after_s = await posted(400)
    assert (long["status"], after_s) == (413, 3)
