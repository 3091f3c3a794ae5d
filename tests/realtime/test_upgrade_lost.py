"""A WebSocket client whose server goes away during the opening handshake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from whispr.errors import Code, WhisprError
from whispr.realtime.upgrade import request_upgrade


def _reset(stream: trio.testing.MemoryReceiveStream) -> None:
    raise trio.BrokenResourceError


Ours = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


def _hang_up(ours: Ours, theirs: Ours) -> None:
    theirs.send_stream.close()


def _reset_answer(ours: Ours, theirs: Ours) -> None:
    ours.receive_stream.receive_some = _reset  # type: ignore[method-assign,assignment]  # as a reset shows


def _reset_request(ours: Ours, theirs: Ours) -> None:
    theirs.receive_stream.close()


@pytest.mark.parametrize("end", [_hang_up, _reset_answer, _reset_request])
async def test_a_lost_handshake_is_an_error(end: Callable[[Any, Any], None], autojump_clock: object) -> None:
    """A server that hangs up or resets the connection, before or after the request, is UNAVAILABLE at once."""
    ours, theirs = trio.testing.memory_stream_pair()
    end(ours, theirs)
    with trio.fail_after(1), pytest.raises(WhisprError) as error:
        await request_upgrade(ours, "host", "/socket/websocket")
    assert error.value.code is Code.UNAVAILABLE
