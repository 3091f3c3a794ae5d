"""The server over real sockets: what it promises to applications and to clients."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from whispr.asgi import HttpServer

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def post(size: int, extra: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n" % (size, extra)


async def respond(send: Any, body: bytes = b"ok", status: int = 200, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def read(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise EOFError
        body += bytes(event["body"])
        if not event["more_body"]:
            return body


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with method, path and body."""
    body = await read(receive)
    await respond(send, scope["method"].encode() + b" " + scope["raw_path"] + b" " + body)


async def hello(_: Any, __: Any, send: Any) -> None:
    """Answer without reading."""
    await respond(send, b"hello")


async def test_a_connection_serves_many_requests(serve: Any) -> None:
    """Keep-alive: one after another, with and without bodies, in every framing."""
    async with serve(echo) as served, served.connect() as client:
        assert (await client.ask(GET)).body == b"GET / "
        assert (await client.ask(post(5) + b"hello")).body == b"POST / hello"
        assert (await client.ask(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).body == b"POST / abcde"
        answer = await client.ask(GET)
        assert answer.status == 200
        assert "connection" not in answer.headers
        assert "server" not in answer.headers
        assert answer.headers["date"].endswith("GMT")


async def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    """However many come at once, each has its answer, in the order in which they came."""
    count = 2000
    many = b"".join(b"POST /%d HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab" % n for n in range(count))
    async with serve(echo) as served, served.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, many)
        for n in range(count):
            assert (await client.answer()).body == b"POST /%d ab" % n


async def test_close_is_respected(serve: Any) -> None:
    """`Connection: close` gets one answer; HTTP/1.0 too, unless it asks to keep the connection."""
    async with serve(hello) as served:
        for request in (CLOSE, b"GET / HTTP/1.0\r\n\r\n"):
            async with served.connect() as client:
                assert (await client.ask(request)).headers["connection"] == "close"
                assert await client.closed()
        async with served.connect() as client:
            for _ in range(2):
                answer = await client.ask(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
                assert answer.headers["connection"] == "keep-alive"


async def test_head_has_no_body(serve: Any) -> None:
    """HEAD ends with the head, and the next answer is where the client expects it."""
    async with serve(echo) as served, served.connect() as client:
        assert (await client.ask(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n", "HEAD")).body == b""
        assert (await client.ask(GET)).body == b"GET / "


async def test_a_server_header_can_be_had(serve: Any) -> None:
    """None by default."""
    async with serve(hello, server_header="whispr") as served, served.connect() as client:
        assert (await client.ask(GET)).headers["server"] == "whispr"


async def test_continue_is_sent_when_the_application_reads(serve: Any) -> None:
    """A client that asks first is told to go on only by an application that wants the body."""
    expects = post(5, b"expect: 100-continue\r\n")
    async with serve(echo) as served, served.connect() as client:
        await client.send(expects)
        assert await client.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(b"hello")).body == b"POST / hello"
    async with serve(hello) as served, served.connect() as client:
        answer = await client.ask(expects)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed()


async def test_an_unread_small_body_keeps_the_connection(serve: Any) -> None:
    """A body that has come and that nobody reads is dropped, and the next request served."""
    async with serve(hello) as served, served.connect() as client:
        for _ in range(2):
            answer = await client.ask(post(5) + b"hello")
            assert "connection" not in answer.headers


async def test_a_client_still_sending_gets_the_answer(serve: Any) -> None:
    """A body refused half-way is heard out, so that its sender reads the answer and not a reset."""
    async with serve(hello) as served, served.connect() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, post(8_000_000) + b"x" * 8_000_000)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_streaming_both_ways(serve: Any) -> None:
    """An application may answer while it reads: each part goes out as it comes in."""

    async def stream(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            event = await receive()
            more = event["more_body"]
            await send({"type": "http.response.body", "body": event["body"].upper(), "more_body": more})

    async with serve(stream) as served, served.connect() as client:
        await client.send(CHUNKED + b"1\r\na\r\n")
        seen = b""
        with trio.fail_after(5):
            while b"1\r\nA\r\n" not in seen:
                seen += await client.stream.receive_some()
            await client.send(b"1\r\nb\r\n0\r\n\r\n")
            while not seen.endswith(b"0\r\n\r\n"):
                seen += await client.stream.receive_some()
        assert b"transfer-encoding: chunked" in seen
        assert b"1\r\nB\r\n" in seen


async def test_a_slow_application_holds_the_client_back(serve: Any) -> None:
    """While nobody reads the body, the client cannot send more than the network holds."""
    release = trio.Event()
    total = 64 * 1024 * 1024
    sizes: list[int] = []

    async def slow(_: Any, receive: Any, send: Any) -> None:
        await release.wait()
        more = True
        while more:
            event = await receive()
            sizes.append(len(event["body"]))
            more = event["more_body"]
        await respond(send, b"%d" % sum(sizes))

    async with serve(slow) as served, served.connect() as client, trio.open_nursery() as nursery:
        sent = 0

        async def push() -> None:
            nonlocal sent
            await client.send(post(total))
            while sent < total:
                await client.send(b"x" * 65536)
                sent += 65536

        nursery.start_soon(push)
        await stalled(lambda: sent)
        assert sent < total // 2
        release.set()
        assert (await client.answer(within_s=20)).body == b"%d" % total
    assert max(sizes) <= 2 * 65536


async def test_a_slow_reader_holds_the_application_back(serve: Any) -> None:
    """`send` waits: an application cannot pile up what a client does not read."""
    sent = 0
    total = 64 * 1024 * 1024

    async def pour(_: Any, __: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent < total:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 65536
        await send({"type": "http.response.body"})

    async with serve(pour) as served, served.connect() as client:
        await client.send(GET)
        await stalled(lambda: sent)
        assert sent < total // 2
        received, last = 0, b""
        with trio.fail_after(20):
            while not last.endswith(b"\r\n0\r\n\r\n"):
                last = await client.stream.receive_some()
                received += len(last)
        assert received > total


async def stalled(progress: Callable[[], int]) -> None:
    """Wait until something has begun and gets no further."""
    with trio.fail_after(10):
        before = -1
        while progress() == 0 or progress() != before:
            before = progress()
            for _ in range(300):
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.05):
                await trio.sleep_forever()


async def test_a_reader_that_stops_is_cut_off(serve: Any) -> None:
    """A client that reads nothing for long does not keep its connection, and the application is told."""
    told: list[type[BaseException]] = []
    over = trio.Event()

    async def pour(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        except OSError as error:
            told.append(type(error))
            over.set()
            raise

    async with serve(pour, send_gap_s=0.2) as served, served.connect() as client:
        await client.send(GET)
        with trio.fail_after(10):
            await over.wait()
    assert len(told) == 1


async def test_a_client_that_leaves_is_a_disconnect(serve: Any) -> None:
    """An application that listens hears of it at once; one that sends gets an OSError."""
    heard = trio.Event()

    async def listen(_: Any, receive: Any, __: Any) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async with serve(listen) as served:
        async with served.connect() as client:
            await client.send(GET)
        with trio.fail_after(5):
            await heard.wait()


async def test_a_client_that_leaves_in_its_body_is_a_disconnect(serve: Any) -> None:
    """A body that ends early is not taken for a whole one."""
    heard = trio.Event()

    async def listen(_: Any, receive: Any, __: Any) -> None:
        try:
            await read(receive)
        except EOFError:
            heard.set()

    async with serve(listen) as served:
        async with served.connect() as client:
            await client.send(post(10) + b"hello")
        with trio.fail_after(5):
            await heard.wait()


async def test_work_for_a_client_that_left_is_cancelled(serve: Any) -> None:
    """An application that neither listens nor sends is cancelled by its scope, with the reason."""
    reached, reasons = trio.Event(), []
    over = trio.Event()

    async def work(_: Any, __: Any, ___: Any) -> None:
        reached.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            over.set()
            raise

    async with serve(work) as served:
        async with served.connect() as client:
            await client.send(GET)
            await reached.wait()
        with trio.fail_after(5):
            await over.wait()
    assert reasons == ["the client has gone"]


async def test_work_after_the_answer_is_not_cancelled(serve: Any) -> None:
    """What an application does after its answer is its own: the client has what it came for."""
    release, done = trio.Event(), trio.Event()

    async def later(_: Any, __: Any, send: Any) -> None:
        await respond(send)
        await release.wait()
        done.set()

    async with serve(later) as served:
        async with served.connect() as client:
            await client.ask(CLOSE)
        with trio.move_on_after(1.2):
            await trio.sleep_forever()  # Twice as long as it takes to find out that a client has left.
        release.set()
        with trio.fail_after(5):
            await done.wait()


async def test_the_end_of_the_answer_is_a_disconnect(serve: Any) -> None:
    """A task that listens for the client while another answers is not left waiting; nor is the next request lost."""

    async def both(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)

        async def listen() -> None:
            assert (await receive())["type"] == "http.disconnect"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            await respond(send, scope["raw_path"])
        assert (await receive())["type"] == "http.disconnect"

    async with serve(both) as served, served.connect() as client:
        await client.send(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\nGET /2 HTTP/1.1\r\nhost")
        assert (await client.answer()).body == b"/1"
        await client.send(b": x\r\n\r\n")
        assert (await client.answer()).body == b"/2"


async def test_what_comes_ahead_is_bounded(serve: Any) -> None:
    """A client that goes on sending while its request is worked on is stopped by the network, and served later."""
    release = trio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        if scope["raw_path"] == b"/first":
            await read(receive)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await release.wait()
                await respond(send)
        else:
            await respond(send)

    filler = GET * 200_000
    async with serve(wait) as served, served.connect() as client, trio.open_nursery() as nursery:
        sent = 0

        async def push() -> None:
            nonlocal sent
            await client.send(b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n")
            for start in range(0, len(filler), 65536):
                await client.send(filler[start : start + 65536])
                sent += 65536

        nursery.start_soon(push)
        await stalled(lambda: sent)
        assert sent < len(filler)
        release.set()
        for _ in range(20):
            assert (await client.answer()).body == b"ok"
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_a_defect_is_500_without_insides(serve: Any) -> None:
    """An exception before the answer costs its request: 500 that tells nothing, and one line in the log."""

    async def broken(_: Any, __: Any, ___: Any) -> None:
        raise RuntimeError("secret detail")

    async with serve(broken) as served, served.connect() as client:
        with structlog.testing.capture_logs() as logs:
            answer = await client.ask(GET)
            assert await client.closed()
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("request_failed", "error")]


@pytest.mark.parametrize("declared", [True, False])
async def test_a_defect_in_mid_answer_cuts_the_connection(serve: Any, declared: bool) -> None:
    """Nobody takes half an answer for a whole one: not even HTTP/1.0, where the end of the connection ends it."""

    async def broken(_: Any, __: Any, send: Any) -> None:
        headers = [(b"content-length", b"9")] if declared else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("secret detail")

    async with serve(broken) as served, served.connect() as client:
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            while True:
                assert await client.stream.receive_some()


async def test_no_answer_is_a_defect(serve: Any) -> None:
    """An application that returns without answering is 500; one that does not finish is cut."""

    async def silent(_: Any, __: Any, ___: Any) -> None:
        return

    async def nonsense(_: Any, __: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    for app in (silent, nonsense):
        async with serve(app) as served, served.connect() as client:
            assert (await client.ask(GET)).status == 500


async def test_a_defect_after_the_answer_is_logged(serve: Any) -> None:
    """The client has its answer, and its connection."""

    async def later(_: Any, __: Any, send: Any) -> None:
        await respond(send)
        raise RuntimeError("too late to tell")

    async with serve(later) as served, served.connect() as client:
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                assert (await client.ask(GET)).status == 200
    assert {entry["event"] for entry in logs} == {"request_failed"}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"a" * 10_000, 414),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 20_000, 431),
        (b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (post(101), 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 403),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n", 501),
        (GET * 2 + b"GET / HTTP/1.1\r\n\r\n", 400),
    ],
)
async def test_a_refused_request_closes_the_connection(serve: Any, data: bytes, status: int) -> None:
    """It is answered, counted and logged once, after the requests before it; nothing that follows is read."""
    async with serve(echo, body_bytes=100) as served, served.connect() as client:
        with structlog.testing.capture_logs() as logs:
            await client.send(data)
            for _ in range(2 if data.startswith(GET) else 0):
                assert (await client.answer()).status == 200
            answer = await client.answer()
            await client.send(GET)
            assert await client.closed()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert [entry["event"] for entry in logs] == ["request_refused"]


@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n", 413), (b"5\r\nhelloo", 400), (b"5\r\nhel", 408)],
)
async def test_a_body_that_goes_wrong_is_answered_by_the_server(serve: Any, rest: bytes, status: int) -> None:
    """Too large, malformed or too slow: the client is told, and the application gets a disconnect."""
    outcomes: list[str] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        try:
            await read(receive)
        except EOFError:
            outcomes.append("disconnect")
            await respond(send, status=418)  # goes nowhere

    async with serve(app, body_bytes=100, body_gap_s=0.2) as served, served.connect() as client:
        answer = await client.ask(CHUNKED + rest)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await client.closed()
    assert outcomes == ["disconnect"]


async def test_headers_that_take_too_long_are_408(serve: Any) -> None:
    """A client that sends its headers byte by byte gets no longer than others (slowloris)."""
    async with serve(hello, head_s=0.3) as served, served.connect() as client:

        async def drip() -> None:
            for byte in GET[:-1] * 50:
                await client.send(bytes([byte]))
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert (await client.answer()).status == 408
            nursery.cancel_scope.cancel(reason="answered")


async def test_idle_connections_are_closed(serve: Any) -> None:
    """Without a word: one that never asks, and one that does not ask again."""
    async with serve(hello, head_s=0.2, idle_s=0.2) as served:
        async with served.connect() as client:
            assert await client.closed(within_s=10)
        async with served.connect() as client:
            assert (await client.ask(GET)).status == 200
            assert await client.closed(within_s=10)


async def test_a_busy_connection_is_not_idle(serve: Any) -> None:
    """The time between requests counts, not that of the connection or of a long request."""

    async def slow(_: Any, __: Any, send: Any) -> None:
        await trio.sleep(next(pauses))
        await respond(send)

    pauses = iter((1.3, 0, 0))
    async with serve(slow, head_s=1, idle_s=1) as served, served.connect() as client:
        for _ in range(3):
            assert (await client.ask(GET)).status == 200


async def test_connections_have_a_limit(serve: Any) -> None:
    """One too many is told 503 and closed; when another has gone there is room again."""
    async with serve(hello, connections=2) as served, served.connect() as first, served.connect() as second:
        assert (await first.ask(GET)).status == (await second.ask(GET)).status == 200
        async with served.connect() as third:
            refused = await third.ask(GET)
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert await third.closed()
        await first.stream.aclose()
        with trio.fail_after(5):
            while True:
                async with served.connect() as fourth:
                    if (await fourth.ask(GET)).status == 200:
                        break


async def test_a_drain_finishes_what_is_in_flight(serve: Any) -> None:
    """Idle connections close at once, the request under way is answered with `close`, new ones find nobody."""
    reached, release = trio.Event(), trio.Event()

    async def slow(scope: Any, _: Any, send: Any) -> None:
        if scope["raw_path"] == b"/slow":
            reached.set()
            await release.wait()
        await respond(send)

    async with (
        serve(slow) as served,
        served.connect() as idle,
        served.connect() as fresh,
        served.connect() as busy,
        trio.open_nursery() as nursery,
    ):
        await idle.ask(GET)
        await busy.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        await reached.wait()
        nursery.start_soon(served.server.drain)
        assert await idle.closed(within_s=10)
        assert await fresh.closed(within_s=10)
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", served.port)
        release.set()
        assert (await busy.answer()).headers["connection"] == "close"
        assert await busy.closed()
        await busy.stream.aclose()


async def test_a_drain_is_bounded_by_its_caller(serve: Any) -> None:
    """Cancelled, it cuts what is left, and says why to the application."""
    reached, reasons = trio.Event(), []

    async def stuck(_: Any, __: Any, ___: Any) -> None:
        reached.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            raise

    async with serve(stuck) as served, served.connect() as client:
        await client.send(GET)
        await reached.wait()
        with trio.move_on_after(0.1):
            await served.server.drain()
        assert await client.closed()
    assert reasons == ["the drain's time is up"]


async def test_ipv6(serve: Any) -> None:
    """An address of either family; the scope says who is there."""

    async def peer(scope: Any, _: Any, send: Any) -> None:
        await respond(send, f"{scope['client'][0]} {scope['server'][1]} {scope['scheme']}".encode())

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with serve(peer, host="::1") as served, served.connect() as client:
        assert (await client.ask(GET)).body == f"::1 {served.port} http".encode()


async def test_every_address_of_a_name_has_the_same_port(serve: Any) -> None:
    """Port 0 on "localhost" or on every interface is one port."""
    for host in ("localhost", ""):
        async with serve(hello, host=host) as served:
            stream = await trio.open_tcp_stream("127.0.0.1", served.port)
            await stream.aclose()


async def test_a_unix_socket(tmp_path: Path) -> None:
    """Its owner alone may connect, one left by a process that was killed is replaced, one in use is an error."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = HttpServer(echo)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve_unix, path)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(OSError):
            await HttpServer(echo).serve_unix(path)
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(CLOSE)
            seen = b""
            while chunk := await stream.receive_some():
                seen += chunk
        assert seen.endswith(b"GET / ")
        await server.drain()
    assert not path.exists()
