"""Every bound of a connection: who is refused, who is closed and with which code, and that nobody else suffers."""

from __future__ import annotations

import struct

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.errors import unavailable
from whispr.realtime import frames
from whispr.realtime.channel import Channel, Session
from whispr.realtime.client import Disconnected, Refused
from whispr.realtime.frames import Closed, Ping, Pong
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits, OperationBudget
from whispr.realtime.server import serve_websocket
from whispr.realtime.testing import Server, served
from whispr.realtime.upgrade import Rejected


class Room(Channel):
    """Admits everybody; answers every push."""

    async def handle(self, event: str, payload: object) -> object:
        return payload


async def request(server: Server, head: bytes) -> bytes:
    """Send a raw HTTP request and return the whole answer."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(head)
        answer = b""
        while data := bytes(await stream.receive_some(65536)):
            answer += data
        return answer


def upgrade_head(target: str, *extra: str) -> bytes:
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: localhost:4000",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *extra,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


GOOD = "/socket/websocket?vsn=2.0.0&token=alice"

# ── the handshake ──


@pytest.mark.parametrize(
    ("head", "status", "reason"),
    [
        (upgrade_head("/elsewhere"), b"404", b"not_found"),
        (upgrade_head("/socket/websocket?vsn=3.0.0&token=alice"), b"403", b"unsupported_version"),
        (upgrade_head("/socket/websocket?vsn=2.0.0"), b"403", b"unauthorized"),
        (upgrade_head("/socket/websocket?vsn=2.0.0&token=expired"), b"403", b"token_expired"),
        (upgrade_head(GOOD, "Origin: https://evil.example"), b"403", b"forbidden_origin"),
        (upgrade_head(GOOD) + b"\x81\x80\x00\x00\x00\x00", b"400", b"protocol_error"),
    ],
)
async def test_a_refused_upgrade_is_an_http_error_with_a_reason(
    head: bytes, status: bytes, reason: bytes
) -> None:
    """Each refusal has its HTTP status and a JSON body naming the reason."""
    async with served({}) as server:
        answer = await request(server, head)
        assert answer.startswith(b"HTTP/1.1 " + status + b" ")
        assert b"content-type: application/json" in answer.lower()
        assert b'"reason": "' + reason + b'"' in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST " + GOOD.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200 + b"\r\n\r\n",
        upgrade_head(GOOD).replace(b": 13", b": 12"),
        upgrade_head(GOOD, "X-Long: " + "a" * 100_000),
        upgrade_head(GOOD).replace(b"localhost:4000", b"xn--\xff"),
        upgrade_head(GOOD, "Sec-WebSocket-Protocol: ph\u00f6nix"),
    ],
    ids=[
        "no upgrade",
        "POST",
        "garbage",
        "TLS hello",
        "version 12",
        "long header",
        "bad host",
        "bad protocol",
    ],
)
async def test_what_is_no_upgrade_request_is_refused_at_once(head: bytes) -> None:
    """Other HTTP and garbage get 400 or 426, or just the end of the connection, without waiting for a deadline."""
    async with served({}) as server:
        with trio.fail_after(5):
            try:
                answer = await request(server, head)
            except trio.BrokenResourceError:
                answer = b""
        assert not answer or answer.split(b" ", 2)[1] in (b"400", b"426", b"431")
        async with server.connect("alice"):
            assert len(server.hub.sockets) == 1


async def test_a_slow_handshake_is_dropped(autojump_clock: MockClock) -> None:
    """Ten seconds from connecting to a complete request; trickling bytes does not help."""
    async with served({}) as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                for byte in upgrade_head(GOOD):
                    await stream.send_all(bytes((byte,)))
                    await trio.sleep(1)

            nursery.start_soon(trickle)
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                assert await stream.receive_some(10) != b""
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started == pytest.approx(10.0)


async def test_a_peer_that_hangs_up_early_leaves_nothing_waiting() -> None:
    """A port scan does not hold a task until the handshake's deadline."""
    async with served({}) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port):
            pass
        await wait_all_tasks_blocked()
        async with server.connect("alice"):
            pass


async def test_a_verifier_that_is_away_means_try_again() -> None:
    """Nobody is let in unverified, and nobody is told that their token is bad: 503 with a time to retry."""

    async def away(token: str) -> Session:
        raise unavailable("keys cannot be fetched", 2.0)

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(serve_websocket, Hub(), "127.0.0.1", 0, away)
        server = Server(Hub(), port, nursery)
        answer = await request(server, upgrade_head(GOOD))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"retry_after_ms": 2000' in answer
        nursery.cancel_scope.cancel()


async def test_the_21st_socket_of_a_user_is_refused() -> None:
    """The newest is refused with 429; other users, and the same user after one socket closed, are not."""
    async with served({}, Limits(user_sockets=2)) as server:
        async with server.connect("alice"), server.wire("alice"):
            with pytest.raises(Rejected) as raised:
                async with server.connect("alice"):
                    pass
            assert (raised.value.status, raised.value.reason) == (429, "too_many_sockets")
            async with server.connect("bob"):
                pass
        while server.hub.sockets:
            await trio.lowlevel.checkpoint()
        async with server.connect("alice"):
            pass


async def test_a_port_in_use_is_an_error_at_once() -> None:
    """The listener does not start half."""
    async with served({}) as server:
        with pytest.raises(OSError, match="Address already in use"):
            await serve_websocket(Hub(), "127.0.0.1", server.port, _nobody)


async def _nobody(token: str) -> Session:
    raise unavailable("nobody is let in")


# ── frames ──


@pytest.mark.parametrize(
    ("opcode", "payload", "code"),
    [
        (frames.TEXT, b"not json", 1011),
        (frames.TEXT, b'{"topic": "room:1"}', 1011),
        (frames.BINARY, b"\x07", 1011),
        (frames.TEXT, b"\xff\xfe", 1007),
        (frames.PING, b"x" * 126, 1002),
        (3, b"", 1002),
    ],
)
async def test_a_malformed_frame_closes_with_its_code(opcode: int, payload: bytes, code: int) -> None:
    """1011 for what is no Phoenix message, as Phoenix closes; 1002 and 1007 for broken WebSocket."""
    async with served({"room": Room}) as server, server.wire("alice") as wire:
        await wire.send_frame(opcode, payload)
        closed = await wire.closed()
        assert closed.code == code
        assert closed.reason
        assert await wire.receive_item() is None


async def test_a_frame_over_the_limit_closes_with_1009() -> None:
    """The header alone is enough; a frame of exactly the limit is taken."""
    async with served({"room": Room}, Limits(frame_bytes=200)) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        text = b'["1","2","room:1","e","' + b"x" * 175 + b'"]'
        assert len(text) == 200
        await wire.send_frame(frames.TEXT, text)
        await wire.receive()
        await wire.stream.send_all(struct.pack("!BBH", 0x81, 0x80 | 126, 201))
        assert (await wire.closed()).code == 1009


async def test_pings_are_answered_and_of_a_flood_a_few() -> None:
    """A few are answered each, of many the latest (§5.5.3): a flood cannot make us send as much as it receives."""
    async with served({}) as server, server.wire("alice") as wire:
        await wire.send_frame(frames.PING, b"one")
        assert await wire.receive_item() == Pong(b"one")
        await wire.stream.send_all(
            frames.encode_masked_frame(frames.PING, b"p", b"abcd") * 999
            + frames.encode_masked_frame(frames.PING, b"last", b"abcd")
        )
        pongs = 0
        while (item := await wire.receive_item()) != Pong(b"last"):
            assert item == Pong(b"p")
            pongs += 1
        assert pongs < 500
        assert not isinstance(item, Ping)


async def test_the_clients_close_is_answered() -> None:
    """The status comes back, then the connection ends (RFC 6455 §5.5.1)."""
    async with served({}) as server, server.wire("alice") as wire:
        await wire.send_frame(frames.CLOSE, frames.close_payload(4000, "bye"))
        assert await wire.receive_item() == Closed(4000, "")
        assert await wire.receive_item() is None


# ── channels and operations ──


async def test_a_socket_joins_a_bounded_number_of_channels() -> None:
    """One more is refused; joining one of them anew, or another after leaving one, is not."""
    limits = Limits(channels=3, operations_per_min=0)
    async with served({"room": Room}, limits) as server, server.connect("alice") as phoenix:
        channels = [await phoenix.join(f"room:{n}") for n in range(3)]
        with pytest.raises(Refused) as raised:
            await phoenix.join("room:3")
        assert raised.value.reason == "too_many_channels"
        await phoenix.join("room:2")
        await channels[0].leave()
        await phoenix.join("room:3")


async def test_operations_over_the_budget_are_refused_until_it_refills(autojump_clock: MockClock) -> None:
    """Joins and pushes spend it, heartbeats and leaves do not; the refusal says when to come back."""
    async with served({"room": Room}, Limits(operations_per_min=3)) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        for ref in ("2", "3"):
            await wire.send("1", ref, "room:1", "e", {})
            await wire.receive()
        await wire.send("1", "4", "room:1", "e", {})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[:4] == ["1", "4", "room:1", "phx_reply"]
        response = reply[4]["response"]
        assert response["reason"] == "rate_limited"
        assert 19_000 <= response["retry_after_ms"] <= 20_000
        await wire.send(None, "5", "phoenix", "heartbeat", {})
        assert await wire.receive() == [None, "5", "phoenix", "phx_reply", {"status": "ok", "response": {}}]
        await trio.sleep(response["retry_after_ms"] / 1000)
        await wire.send("1", "6", "room:1", "e", 6)
        assert await wire.receive() == ["1", "6", "room:1", "phx_reply", {"status": "ok", "response": 6}]
        await wire.send("1", "7", "room:1", "phx_leave", {})
        assert await wire.receive() == ["1", "7", "room:1", "phx_reply", {"status": "ok", "response": {}}]


def test_the_budget_is_a_burst_then_a_steady_rate() -> None:
    """All of a minute's operations at once, then one each interval; 0 lifts the limit."""
    budget = OperationBudget(60)
    assert [budget.take(0.0) for _ in range(60)] == [0.0] * 60
    assert budget.take(0.0) == pytest.approx(1.0)
    assert budget.take(1.0) == 0.0
    assert budget.take(1.5) == pytest.approx(0.5)
    assert [budget.take(100.0) for _ in range(60)] == [0.0] * 60
    lifted = OperationBudget(0)
    assert not lifted.limited
    assert [lifted.take(0.0) for _ in range(1000)] == [0.0] * 1000


# ── time ──


async def test_a_silent_client_is_closed_after_a_minute(autojump_clock: MockClock) -> None:
    """Without any frame for idle_s the socket closes with 1001; heartbeats every 30 s keep it."""
    async with served({}) as server, server.connect("bob", heartbeat_s=30.0) as phoenix:
        async with server.wire("alice") as wire:
            started = trio.current_time()
            assert (await wire.closed()).code == 1001
            assert 60 < trio.current_time() - started < 63
        await trio.sleep(200)
        assert phoenix.closed is None


async def test_a_peer_that_does_not_answer_our_close_is_dropped(autojump_clock: MockClock) -> None:
    """The closing handshake is bounded by close_s: then the connection is gone, whatever the peer does."""
    async with served({}) as server, server.wire("alice") as wire:
        while not server.hub.sockets:
            await trio.lowlevel.checkpoint()
        (socket,) = server.hub.sockets
        socket.close(1001, "test")
        assert await wire.closed() == Closed(1001, "test")
        await wire.send(None, "1", "phoenix", "heartbeat", {})
        await trio.sleep(1.9)
        await wire.send(None, "2", "phoenix", "heartbeat", {})
        await trio.sleep(0.2)
        with pytest.raises(trio.BrokenResourceError):
            for ref in range(10):
                await wire.send(None, ref, "phoenix", "heartbeat", {})


async def test_an_expired_session_is_told_and_closed(autojump_clock: MockClock) -> None:
    """At the token's expiry each channel gets `token_expired`, then the socket closes with 1008."""
    wall = [1000.0]
    hub = Hub(wall_clock=lambda: wall[0])
    async with served({"room": Room}, hub=hub) as server, server.wire("alice/s/1060") as wire:
        await wire.join("room:1")
        await trio.sleep(5)
        assert len(hub.sockets) == 1
        wall[0] = 1060.0
        assert await wire.receive() == ["1", None, "room:1", "token_expired", {"reason": "token_expired"}]
        assert await wire.receive_item() == Closed(1008, "token_expired")


# ── slow readers ──


async def test_a_slow_reader_is_closed_with_1013_and_nobody_else_suffers() -> None:
    """Its buffer is bounded; the others get every broadcast; it finds whole frames, then the close frame."""
    limits = Limits(buffer_bytes=128 * 1024)
    async with (
        served({"room": Room}, limits) as server,
        server.wire("slow", receive_buffer_bytes=4096) as slow,
        server.connect("alice") as phoenix,
    ):
        await slow.join("room:1")
        channel = await phoenix.join("room:1")
        big = "x" * 50_000
        count = 0
        while len(server.hub.subscribers("room:1")) == 2:
            count += 1
            assert count < 1000, "the buffer is not bounded"
            server.hub.broadcast("room:1", "big", [count, big])
            assert await channel.__anext__() == ("big", [count, big])
        received = 0
        while not isinstance(message := await slow.receive(), Closed):
            assert isinstance(message, list)
            received += 1
            assert message[4][0] == received, "a frame was lost before the close"
        assert message.code == 1013
        assert received < count
        server.hub.broadcast("room:1", "still", {})
        assert await channel.__anext__() == ("still", {})


async def test_one_reply_larger_than_the_buffer_is_no_sign_of_slowness() -> None:
    """The frame being sent does not count against the buffer: a reader that reads gets it, and what follows."""
    async with served({"room": Room}, Limits(buffer_bytes=64 * 1024)) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        big = "x" * 8_000_000
        server.hub.broadcast("room:1", "big", big)
        server.hub.broadcast("room:1", "after", {})
        assert await wire.receive() == [None, None, "room:1", "big", big]
        assert await wire.receive() == [None, None, "room:1", "after", {}]


async def test_a_burst_in_one_step_is_no_sign_of_slowness() -> None:
    """Frames held back for coalescing are tried on the kernel before anybody is called slow: 130 KB, buffer 64."""
    async with served({"room": Room}, Limits(buffer_bytes=64 * 1024)) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        for n in range(1000):
            server.hub.broadcast("room:1", "n", [n, "x" * 100])
        for n in range(1000):
            message = await wire.receive()
            assert isinstance(message, list)
            assert message[4][0] == n


async def test_disconnects_reach_the_client_as_errors_of_what_waits() -> None:
    """A push in flight when the connection is cut raises Disconnected."""

    class Never(Channel):
        async def handle(self, event: str, payload: object) -> object:
            await trio.sleep_forever()

    async with served({"never": Never}) as server, server.connect("alice") as phoenix:
        channel = await phoenix.join("never:1")
        receipt = channel.push_nowait("e", {})
        await wait_all_tasks_blocked()
        for socket in tuple(server.hub.sockets):
            socket.close(1001, "test")
        with pytest.raises(Disconnected) as raised:
            await receipt.wait()
        assert raised.value.close_code == 1001
