"""What a hostile client may try against a whole server, and the error it gets; the floods are in `tests/http2`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from tests.rpc.conftest import REQUEST_FIELDS
from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import PREFACE
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message

Connect = Callable[[RpcServer], Awaitable[Any]]

SHUT = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 0})
"""No window at all for any response."""


def greedy(echo: Any) -> Any:
    """Answers with 100,000 bytes, once or for ever."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            return echo.Message(payload=bytes(100_000))

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            while True:
                yield echo.Message(payload=bytes(100_000))

    return Handlers()


@pytest.mark.parametrize("method", ["Say", "Repeat"])
async def test_windows_that_stay_shut_bound_memory(echo: Any, raw_client: Connect, method: str) -> None:
    """Answers wait up to `queued_bytes_max`; calls that would add to it end with RESOURCE_EXHAUSTED."""
    server = RpcServer([greedy(echo)], limits=RpcLimits(http2=Limits(queued_bytes_max=1_000_000)))
    client = await raw_client(server)
    await client.send(SHUT)
    calls = [await client.call({":path": f"/whispr.test.echo.Echo/{method}"}) for _ in range(20)]
    await wait_all_tasks_blocked()
    assert (await client.outcome(calls[-1]))["grpc-status"] == "8"
    (connection,) = server._connections
    assert connection.core._sender.queued <= 1_000_000


BAD_TEXT = [
    ("-bin that is not base64", {"x-bin": "%%%"}, "13"),
    ("path of invalid UTF-8", {":path": "/whispr.test.echo.Echo/\xff\xfe"}, "12"),
    ("path with a broken escape", {":path": "/whispr.test.echo.Echo/%zz"}, "12"),
    ("metadata of invalid UTF-8", {"x-text": "\xff\xfe"}, "0"),
    ("timeout in other digits", {"grpc-timeout": "\xb2S"}, "13"),
]


@pytest.mark.parametrize(("what", "fields", "status"), BAD_TEXT, ids=[case[0] for case in BAD_TEXT])
async def test_text_that_is_none(
    handlers: Any, raw_client: Connect, what: str, fields: dict[str, str | None], status: str
) -> None:
    """Octets that are no text end in a status, or are handed on as they are; the connection goes on."""
    client = await raw_client(RpcServer([handlers]))
    assert (await client.outcome(await client.call(fields)))["grpc-status"] == status
    assert (await client.outcome(await client.call()))["grpc-status"] == "0"


BOMBS = [
    ("an integer without end", b"\x00\x01x\x7f" + b"\xff" * 60_000, ErrorCode.COMPRESSION_ERROR),
    (
        "an entry again and again",
        b"\x40\x01x\x64" + b"a" * 100 + b"\xbe" * 16_000,
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    ("many tiny fields", b"\x00\x01x\x00" * 16_000, ErrorCode.ENHANCE_YOUR_CALM),
]


@pytest.mark.parametrize(("what", "bomb", "code"), BOMBS, ids=[case[0] for case in BOMBS])
async def test_hpack_bombs(
    handlers: Any, raw_client: Connect, what: str, bomb: bytes, code: ErrorCode
) -> None:
    """Blocks that unpack to far more than they are end the connection, unpacked no further than the limit."""
    client = await raw_client(RpcServer([handlers]))
    await client.send(frames.headers(1, b"\x83\x86\x84" + bomb, True, frames.MIN_MAX_FRAME_SIZE))
    await client.closed()
    (goaway,) = [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    assert goaway.code is code


@pytest.mark.parametrize(
    "sent", [b"", PREFACE[:16], PREFACE], ids=["nothing", "half a preface", "no SETTINGS"]
)
async def test_a_client_that_does_not_get_going_is_hung_up_on(
    handlers: Any, autojump_clock: Any, sent: bytes
) -> None:
    """Whoever does not complete the handshake within `handshake_s` is dropped, be it that nothing came at all."""
    near, far = trio.testing.memory_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([handlers]).serve_stream, far)
        await near.send_all(sent)
        with trio.fail_after(100):
            while await near.receive_some():
                pass
    assert trio.current_time() - began == pytest.approx(RpcLimits().handshake_s, abs=1)


@pytest.mark.parametrize("burst", [1, 10, 500])
async def test_a_storm_of_resets_leaves_no_handler(echo: Any, raw_client: Connect, burst: int) -> None:
    """Calls that are reset as soon as they are made end at once, however many come in one write."""
    running = 0

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            nonlocal running
            running += 1
            try:
                await trio.sleep_forever()
            finally:
                running -= 1

    server = RpcServer([Handlers()])
    client = await raw_client(server)
    head = encode(list(REQUEST_FIELDS.items()))
    with contextlib.suppress(trio.BrokenResourceError):  # the server may hang up on it, and that is well
        for _ in range(2000 // burst):
            for _ in range(burst):
                stream_id = client.core.open_stream(head, False)
                client.core.send_data(stream_id, frame_message(b""), end_stream=True)
                client.core.reset(stream_id, ErrorCode.CANCEL)
            await client.send()
            await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert running == 0
    assert not any(connection.calls_going for connection in server._connections)


async def test_a_reset_gives_queued_bytes_back(echo: Any, raw_client: Connect) -> None:
    """What waited for a window that never opened is dropped with its call."""
    server = RpcServer([greedy(echo)], limits=RpcLimits(http2=Limits(queued_bytes_max=1_000_000)))
    client = await raw_client(server)
    await client.send(SHUT)
    calls = [await client.call() for _ in range(20)]
    await wait_all_tasks_blocked()
    (connection,) = server._connections
    assert connection.core._sender.queued > 500_000
    for stream_id in calls:
        client.core.reset(stream_id, ErrorCode.CANCEL)
    await client.send()
    await wait_all_tasks_blocked()
    assert connection.core._sender.queued == 0
