"""Clients that keep a server waiting: a frame that trickles, windows that stay shut, sockets nobody reads."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.rpc.conftest import REQUEST_FIELDS, RawClient
from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import encode
from whispr.rpc.limits import RpcLimits
from whispr.rpc.patience import CUT_OFF
from whispr.rpc.server import RpcServer
from whispr.rpc.wire import frame_message

Connect = Callable[[RpcServer], Awaitable[RawClient]]

LIMITS = RpcLimits(unfinished_s=30, untaken_s=100)
SHUT = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 0})
HEAD = encode(list(REQUEST_FIELDS.items()))
FINISHED = 1.5
"""Looks are at intervals of half the shorter limit."""


def cut_off(why: str) -> float:
    return float(CUT_OFF.labels(why)._value.get())


@pytest.fixture
def answers(echo: Any) -> Any:
    """Answers with 30,000 bytes, once or for ever."""

    class Handlers(echo.Servicer):  # type: ignore[misc]  # a class made at run time
        async def Say(self, input_message: Any) -> Any:  # noqa: N802
            return echo.Message(payload=bytes(30_000))

        async def Repeat(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802
            while True:
                yield echo.Message(payload=bytes(30_000))

    return Handlers()


UPDATE = frames.window_update(0, 1)
BEGUN = [
    ("a frame's header", UPDATE[:5], UPDATE[5:]),
    ("a WINDOW_UPDATE", UPDATE[:11], UPDATE[11:]),
    (
        "a request's head",
        frames.headers(1, HEAD, True, 16384)[:40],
        frames.headers(1, HEAD, True, 16384)[40:],
    ),
    (
        "a header block in several frames",
        frames.frame(frames.Type.HEADERS, frames.END_STREAM, 1, HEAD[:20]),
        frames.frame(frames.Type.CONTINUATION, frames.END_HEADERS, 1, HEAD[20:]),
    ),
]


@pytest.mark.parametrize(("what", "begun", "rest"), BEGUN, ids=[case[0] for case in BEGUN])
@pytest.mark.parametrize("trickles", [False, True], ids=["nothing more", "an octet now and then"])
async def test_what_has_begun_must_go_on(
    answers: Any,
    raw_client: Connect,
    autojump_clock: MockClock,
    what: str,
    begun: bytes,
    rest: bytes,
    trickles: bool,
) -> None:
    """GOAWAY with ENHANCE_YOUR_CALM ends who does not complete a frame or header block within `unfinished_s`."""
    before, began = cut_off("unfinished"), trio.current_time()
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    await client.send(begun)

    async def trickle() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            for octet in rest[:-1]:
                await trio.sleep(LIMITS.unfinished_s / 3)
                await client.stream.send_all(bytes((octet,)))

    async with trio.open_nursery() as nursery:
        if trickles and not what.startswith("a header block"):
            nursery.start_soon(trickle)
        with trio.fail_after(1000):
            await client.closed()
        nursery.cancel_scope.cancel(reason="hung up on")
    (goaway,) = [event for event in client.reported if isinstance(event, events.GoAwayReceived)]
    assert goaway.code is ErrorCode.ENHANCE_YOUR_CALM
    assert b"was not complete within 30 s" in goaway.debug
    assert LIMITS.unfinished_s <= trio.current_time() - began <= LIMITS.unfinished_s * FINISHED + 3
    assert cut_off("unfinished") == before + 1


@pytest.mark.parametrize(("what", "begun", "rest"), BEGUN, ids=[case[0] for case in BEGUN])
async def test_slow_is_not_too_slow(
    answers: Any, raw_client: Connect, autojump_clock: MockClock, what: str, begun: bytes, rest: bytes
) -> None:
    """Many frames that each come in two parts, all within the limit, take as long as they like in all."""
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    if begun not in UPDATE:
        client.core.open_stream(HEAD, True)
        client.core.take_output()  # sent by hand
    for _ in range(10 if begun in UPDATE else 1):
        for part in (begun, rest):
            await client.stream.send_all(part)
            await trio.sleep(LIMITS.unfinished_s * 0.6)
    await client.send(frames.ping(b"are you?"))
    await client.until(lambda event: event == events.PingAcknowledged(b"are you?"))
    assert not [event for event in client.reported if isinstance(event, events.GoAwayReceived)]


async def test_an_idle_connection_is_not_slow(
    answers: Any, raw_client: Connect, autojump_clock: MockClock
) -> None:
    """Nothing begun and nothing waiting: it may stay as long as keepalive lets it."""
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    await trio.sleep(10 * LIMITS.untaken_s)
    await client.outcome(await client.call())


@pytest.mark.parametrize("method", ["Say", "Repeat"])
async def test_a_window_kept_shut_ends_its_stream(
    answers: Any, raw_client: Connect, autojump_clock: MockClock, method: str
) -> None:
    """RST_STREAM with ENHANCE_YOUR_CALM after `untaken_s`; others on the connection go on."""
    before = cut_off("shut_window")
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    await client.send(SHUT)
    began = trio.current_time()
    shut = await client.call({":path": f"/whispr.test.echo.Echo/{method}"})
    other = await client.call()
    await client.send(frames.window_update(other, 40_000))
    assert (await client.outcome(other))["grpc-status"] == "0"
    with trio.fail_after(1000):
        event = await client.until(lambda event: isinstance(event, events.StreamReset))
    assert isinstance(event, events.StreamReset)
    assert (event.stream_id, event.code) == (shut, ErrorCode.ENHANCE_YOUR_CALM)
    waited = trio.current_time() - began
    assert LIMITS.untaken_s <= waited <= LIMITS.untaken_s + LIMITS.unfinished_s
    assert cut_off("shut_window") == before + 1


async def test_a_window_opened_by_the_octet_counts_as_shut(
    answers: Any, raw_client: Connect, autojump_clock: MockClock
) -> None:
    """A dribble is no reading."""
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    await client.send(SHUT)
    shut = await client.call()

    async def dribble() -> None:
        while True:
            await trio.sleep(5)
            await client.send(frames.window_update(shut, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble)
        with trio.fail_after(1000):
            event = await client.until(lambda event: isinstance(event, events.StreamReset))
        nursery.cancel_scope.cancel(reason="reset")
    assert isinstance(event, events.StreamReset)
    assert event.code is ErrorCode.ENHANCE_YOUR_CALM


async def test_a_slow_reader_is_served(answers: Any, raw_client: Connect, autojump_clock: MockClock) -> None:
    """A few kilobytes now and then are enough, however long it takes."""
    client = await raw_client(RpcServer([answers], limits=LIMITS))
    await client.send(SHUT)
    slow = await client.call()
    for _ in range(4):
        await trio.sleep(LIMITS.untaken_s * 0.8)
        await client.send(frames.window_update(slow, 8_000))
    assert (await client.outcome(slow))["grpc-status"] == "0"


async def test_a_connections_window_kept_shut_ends_it(answers: Any, autojump_clock: MockClock) -> None:
    """GOAWAY with ENHANCE_YOUR_CALM, when it is the connection's own window in front of everything."""
    near, far = trio.testing.memory_stream_pair()
    wide = frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 2**30})
    message = frame_message(b"")
    heard = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RpcServer([answers], limits=LIMITS).serve_stream, far)
        await near.send_all(frames.PREFACE + wide)
        for stream_id in (1, 3, 5):
            await near.send_all(frames.whole_request(stream_id, HEAD, message))
        with trio.fail_after(1000):
            while data := await near.receive_some():
                heard += data
    kind, _, _, payload = list(frames.FrameReader(2**14, expect_preface=False).feed(heard))[-1]
    assert kind == frames.Type.GOAWAY
    assert payload[4:8] == bytes((0, 0, 0, ErrorCode.ENHANCE_YOUR_CALM))
    assert b"window was shut for 100 s" in payload


async def test_a_socket_that_is_not_read_is_closed(
    echo: Any, answers: Any, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows wide open and nothing read: the connection ends after `untaken_s`, and its calls with it."""
    server = RpcServer([answers], limits=LIMITS)
    near, far = trio.testing.memory_stream_pair()
    before = cut_off("unread")
    full = trio.Event()

    async def send_all(data: bytes) -> None:
        await full.wait()

    monkeypatch.setattr(far, "send_all", send_all)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, far)
        await near.send_all(frames.PREFACE + frames.settings({}) + frames.headers(1, HEAD, False, 16384))
        await wait_all_tasks_blocked()
        assert server.statistics().streams_open == 1
        with trio.fail_after(1000):
            while await near.receive_some():
                pass
    assert LIMITS.untaken_s <= trio.current_time() - began <= LIMITS.untaken_s + LIMITS.unfinished_s
    assert server.statistics().connections == ()
    assert cut_off("unread") == before + 1


def test_what_a_server_is_patient_about() -> None:
    """A limit of nothing would end everybody."""
    with pytest.raises(AssertionError):
        RpcLimits(unfinished_s=0.0)
    with pytest.raises(AssertionError):
        RpcLimits(untaken_s=-1.0)
