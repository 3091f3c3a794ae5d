"""TLS: certificates of the test's own making, memory streams and sockets, and grpcio at the other end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing
from cryptography import x509
from trio.testing import MockClock

from tests.certificates import Authority
from whispr.errors import Code, WhisprError
from whispr.http2.frames import PREFACE, FrameReader, Type, frame, ping, settings
from whispr.http2.headers import encode
from whispr.rpc.call import current_call
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.interceptors import Proceed
from whispr.rpc.limits import RpcLimits
from whispr.rpc.server import RpcServer
from whispr.rpc.tls import PeerIdentity, TlsFiles, connect_tls

Unary = Callable[[Callable[[Any], Awaitable[Any]]], Any]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom everybody trusts."""
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@asynccontextmanager
async def serving(handlers: Any, tls: TlsFiles | None, limits: RpcLimits | None = None) -> AsyncIterator[int]:
    """A server on a free port."""
    server = RpcServer([handlers], limits=limits or RpcLimits())
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(server.serve_tcp, tls=tls), "127.0.0.1", 0)
        yield port
        nursery.cancel_scope.cancel(reason="done")


async def failure(echo: Any, port: int, tls: TlsFiles | None) -> WhisprError:
    """What a call that cannot connect fails with."""
    async with open_channel(f"127.0.0.1:{port}", tls=tls) as channel:
        with pytest.raises(WhisprError) as caught:
            await echo.Stub(channel).Say(echo.Message())
    assert (caught.value.code, caught.value.facts) == (Code.UNAVAILABLE, {"processed": "no"})
    return caught.value


async def test_calls_over_tls(echo: Any, handlers: Any, authority: Authority) -> None:
    """All kinds, megabytes, by name and by address; the request's scheme says https."""
    server = TlsFiles(*authority.issue("server"))
    async with serving(handlers, server) as port:
        for host in ("localhost", "127.0.0.1"):
            async with open_channel(f"{host}:{port}", tls=TlsFiles(authorities=authority.file)) as channel:
                await all_kinds(echo, channel)
                assert encode([(":scheme", "https")]) in channel.head_block("/a/b")[0]


async def all_kinds(echo: Any, channel: Channel) -> None:
    stub = echo.Stub(channel)
    big = bytes(3_000_000)
    assert (await stub.Say(echo.Message(n=1, payload=big))).n == 2
    async with stub.Repeat(echo.Message(n=5, payload=bytes(10**6))) as receiving:
        assert [len(message.payload) async for message in receiving] == [10**6] * 5
    async with stub.Chat() as call:
        for n in range(50):
            await call.send(echo.Message(n=n))
            assert (await anext(call)).n == n


async def test_both_sides_know_who_the_other_is(echo: Any, unary: Unary, authority: Authority) -> None:
    """Mutual TLS: subject and alternative names on the call, on the server and on the client."""
    seen: list[PeerIdentity | None] = []

    async def say(message: Any) -> Any:
        seen.append(current_call().peer_identity)
        return message

    async def note(call: Any, proceed: Proceed) -> Any:
        reply = await proceed()
        seen.append(call.peer_identity)
        return reply

    uri = x509.UniformResourceIdentifier("spiffe://whispr/messaging")
    server = TlsFiles(*authority.issue("auth"), authority.file)
    client = TlsFiles(*authority.issue("messaging", uri), authority.file)
    async with (
        serving(unary(say), server) as port,
        open_channel(f"localhost:{port}", tls=client, interceptors=[note]) as channel,
    ):
        await echo.Stub(channel).Say(echo.Message())
    local = {"dns_names": ("localhost",), "ip_addresses": ("127.0.0.1",)}
    assert seen == [
        PeerIdentity("CN=messaging,O=Whispr", "messaging", uris=("spiffe://whispr/messaging",), **local),
        PeerIdentity("CN=auth,O=Whispr", "auth", uris=(), **local),
    ]


async def test_without_certificates_nobody_is_known(echo: Any, unary: Unary, authority: Authority) -> None:
    """A client that shows none has no identity, with TLS and without."""
    seen: list[PeerIdentity | None] = []

    async def say(message: Any) -> Any:
        seen.append(current_call().peer_identity)
        return message

    for server, client in (
        (TlsFiles(*authority.issue("server")), TlsFiles(authorities=authority.file)),
        (None, None),
    ):
        async with (
            serving(unary(say), server) as port,
            open_channel(f"127.0.0.1:{port}", tls=client) as channel,
        ):
            await echo.Stub(channel).Say(echo.Message())
    assert seen == [None, None]


async def test_a_server_nobody_vouches_for(
    echo: Any, handlers: Any, authority: Authority, stranger: Authority
) -> None:
    """Neither a certificate of another authority, nor one for another host, is accepted."""
    async with serving(handlers, TlsFiles(*stranger.issue("server"))) as port:
        error = await failure(echo, port, TlsFiles(authorities=authority.file))
        assert "the certificate is not accepted: unable to get local issuer" in error.message
        # The system's own authorities do not vouch for it either.
        assert "the certificate is not accepted" in (await failure(echo, port, TlsFiles())).message
    async with serving(handlers, TlsFiles(*authority.issue("server"))) as port:
        other = TlsFiles(authorities=authority.file, server_name="other.test")
        assert "not valid for 'other.test'" in (await failure(echo, port, other)).message


async def test_a_client_nobody_vouches_for(
    echo: Any, handlers: Any, authority: Authority, stranger: Authority
) -> None:
    """A server that knows its clients takes none without a certificate, or with a stranger's."""
    async with serving(handlers, TlsFiles(*authority.issue("server"), authority.file)) as port:
        for client in (
            TlsFiles(authorities=authority.file),
            TlsFiles(*stranger.issue("client"), authority.file),
        ):
            assert "before HTTP/2 began" in (await failure(echo, port, client)).message


async def test_plaintext_and_tls_do_not_meet(echo: Any, handlers: Any, authority: Authority) -> None:
    """Either way round the call fails at once, and the error says what to look at."""
    async with serving(handlers, TlsFiles(*authority.issue("server"))) as port:
        assert "is TLS on at one end only?" in (await failure(echo, port, None)).message
    async with serving(handlers, None) as port:
        error = await failure(echo, port, TlsFiles(authorities=authority.file))
        assert "the other side does not speak TLS" in error.message


async def test_a_peer_without_alpn_is_refused(echo: Any, handlers: Any, authority: Authority) -> None:
    """Whoever does not say h2 may mean anything."""
    files = TlsFiles(*authority.issue("server"), authorities=authority.file)
    async with serving(handlers, TlsFiles(*authority.issue("server"))) as port:
        context = files.client_context()
        context.set_alpn_protocols(["http/1.1"])
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=context, https_compatible=True
        )
        await stream.do_handshake()
        assert await nothing_from(stream)
        await trio.aclose_forcefully(stream)

    context = TlsFiles(*authority.issue("server")).server_context()
    context.set_alpn_protocols(["http/1.1"])
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def shake(stream: trio.SocketStream) -> None:
            encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            await encrypted.do_handshake()
            await trio.aclose_forcefully(encrypted)

        nursery.start_soon(trio.serve_listeners, shake, [listener])
        error = await failure(echo, port, TlsFiles(authorities=authority.file))
        assert "ALPN agreed on None, not on h2" in error.message
        nursery.cancel_scope.cancel(reason="done")


async def nothing_from(stream: trio.abc.Stream) -> bool:
    """Whether the other side closes without a word."""
    try:
        return not await stream.receive_some()
    except trio.BrokenResourceError:
        return True


async def test_a_handshake_has_a_time_limit(
    autojump_clock: MockClock, echo: Any, handlers: Any, authority: Authority
) -> None:
    """A server that accepts and says nothing: UNAVAILABLE after the time for handshakes."""
    ends: list[trio.abc.Stream] = []

    async def connect() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        near, far = trio.testing.memory_stream_pair()
        ends.append(far)
        return near

    tls = TlsFiles(authorities=authority.file)
    async with open_channel("silent:1", connect=connect, tls=tls, limits=RpcLimits(handshake_s=7)) as channel:
        with pytest.raises(WhisprError, match="no connection within 7 s"):
            await echo.Stub(channel).Say(echo.Message())
    assert trio.current_time() == pytest.approx(7)


async def test_a_silent_client_is_cut_off(echo: Any, handlers: Any, authority: Authority) -> None:
    """One that connects and never shakes hands holds its socket no longer than the limit; a drain waits for none."""
    tls = TlsFiles(*authority.issue("server"))
    async with (
        serving(handlers, tls, RpcLimits(handshake_s=0.05)) as port,
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        with trio.fail_after(5):
            assert not await stream.receive_some()
    server = RpcServer([handlers])
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(server.serve_tcp, tls=tls), "127.0.0.1", 0)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"\x16\x03\x01")
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.fail_after(5):
                await server.drain()
                assert not await stream.receive_some()


# --- Files --------------------------------------------------------------------------------------------------


async def test_replaced_certificates_are_used_by_the_next_handshake(
    echo: Any, handlers: Any, authority: Authority
) -> None:
    """Without a restart; connections that are there go on with the old ones."""
    names: list[str] = []

    async def note(call: Any, proceed: Proceed) -> Any:
        reply = await proceed()
        names.append(call.peer_identity.common_name)
        return reply

    server = TlsFiles(*authority.issue("first", stem="rotated"))
    client = TlsFiles(authorities=authority.file)
    async with (
        serving(handlers, server) as port,
        open_channel(f"localhost:{port}", tls=client, interceptors=[note]) as older,
    ):
        await echo.Stub(older).Say(echo.Message())
        authority.issue("second", stem="rotated")
        await echo.Stub(older).Say(echo.Message())
        async with open_channel(f"localhost:{port}", tls=client, interceptors=[note]) as newer:
            await echo.Stub(newer).Say(echo.Message())
    assert names == ["first", "first", "second"]


async def test_files_caught_half_written_leave_the_old_ones_in_use(
    echo: Any, handlers: Any, authority: Authority
) -> None:
    """A certificate whose key is not there yet, or half a file, costs no connection; the whole one is then used."""
    certificate, key = authority.issue("first", stem="torn")
    server, client = TlsFiles(certificate, key), TlsFiles(authorities=authority.file)
    other_certificate, other_key = authority.issue("second")
    async with serving(handlers, server) as port:

        async def common_name() -> str:
            async with open_channel(f"localhost:{port}", tls=client) as channel:
                await echo.Stub(channel).Say(echo.Message())
                identity = channel.connections[0].identity
                assert identity is not None
                return identity.common_name

        assert await common_name() == "first"
        certificate.write_bytes(other_certificate.read_bytes())
        assert await common_name() == "first"
        key.write_bytes(other_key.read_bytes()[:50])
        assert await common_name() == "first"
        os.remove(key)
        assert await common_name() == "first"
        key.write_bytes(other_key.read_bytes())
        assert await common_name() == "second"


def test_what_files_must_be_given(authority: Authority, tmp_path: Path) -> None:
    """Mistakes are told when the server starts, not to its first client."""
    certificate, key = authority.issue("server")
    with pytest.raises(ValueError, match="needs a key"):
        TlsFiles(certificate)
    with pytest.raises(ValueError, match="needs a certificate"):
        TlsFiles(authorities=authority.file).server_context()
    with pytest.raises(FileNotFoundError):
        TlsFiles(tmp_path / "none.pem", key).server_context()
    with pytest.raises(OSError, match="PEM"):
        TlsFiles(key, certificate).server_context()


# --- grpcio -------------------------------------------------------------------------------------------------


async def test_grpcios_client_against_our_server(echo: Any, handlers: Any, authority: Authority) -> None:
    """With mutual TLS, unary and streaming."""
    certificate, key = authority.issue("client")
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )

    def calls(port: int) -> None:
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            codec = (echo.Message.SerializeToString, echo.Message.FromString)
            say = channel.unary_unary("/whispr.test.echo.Echo/Say", *codec)
            assert say(echo.Message(n=1, payload=bytes(10**6))).n == 2
            chat = channel.stream_stream("/whispr.test.echo.Echo/Chat", *codec)
            assert [reply.n for reply in chat(echo.Message(n=n) for n in range(50))] == list(range(50))

    async with serving(handlers, TlsFiles(*authority.issue("server"), authority.file)) as port:
        await trio.to_thread.run_sync(calls, port)


async def test_our_client_against_grpcios_server(echo: Any, authority: Authority) -> None:
    """With mutual TLS, unary and streaming; grpcio knows us by our certificate."""

    def say(request: Any, context: grpc.ServicerContext) -> Any:
        (common_name,) = context.auth_context()["x509_common_name"]
        return echo.Message(text=common_name.decode(), n=request.n + 1)

    def chat(requests: Any, context: grpc.ServicerContext) -> Any:
        yield from requests

    def repeat(request: Any, context: grpc.ServicerContext) -> Any:
        for n in range(request.n):
            yield echo.Message(n=n, payload=request.payload)

    codec = (echo.Message.FromString, echo.Message.SerializeToString)
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say, *codec),
        "Chat": grpc.stream_stream_rpc_method_handler(chat, *codec),
        "Repeat": grpc.unary_stream_rpc_method_handler(repeat, *codec),
    }
    certificate, key = authority.issue("server")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.file.read_bytes(), require_client_auth=True
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("whispr.test.echo.Echo", handlers),)
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        client = TlsFiles(*authority.issue("messaging"), authority.file)
        async with open_channel(f"localhost:{port}", tls=client) as channel:
            assert (await echo.Stub(channel).Say(echo.Message())).text == "messaging"
            await all_kinds(echo, channel)
    finally:
        await trio.to_thread.run_sync(server.stop(None).wait)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
async def test_who_is_hung_up_on_hears_why(handlers: Any, authority: Authority, encrypted: bool) -> None:
    """GOAWAY arrives though much that was sent after the mistake is never looked at."""
    files = TlsFiles(*authority.issue("server")) if encrypted else None
    async with serving(handlers, files) as port:
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if encrypted:
            stream = await connect_tls(stream, TlsFiles(authorities=authority.file), "localhost")
        heard = b""
        await stream.send_all(
            PREFACE + settings({}) + ping(bytes(8)) + frame(Type.DATA, 0, 0) + bytes(500_000)
        )
        with trio.fail_after(5):
            while octets := await stream.receive_some():
                heard += octets
        await trio.aclose_forcefully(stream)
    *_, last = FrameReader(16384, expect_preface=False).feed(heard)
    assert last[0] == Type.GOAWAY
    assert b"DATA on stream 0" in last[3]
