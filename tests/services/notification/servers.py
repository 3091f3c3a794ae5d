"""Push services on loopback that speak what the real ones speak: HTTP/1.1, and HTTP/2 with TLS and ALPN."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h11
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Request:
    """What a push service was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    version: str


@dataclass(frozen=True)
class Reply:
    """What it answers."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


Answer = Callable[[Request], Reply]


@dataclass
class PushServer:
    """A push service. `answers` are given in turn; when there is none left, `otherwise`."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    answers: list[Reply] = field(default_factory=list)
    otherwise: Reply | Answer = field(default_factory=Reply)
    hold: trio.Event | None = None
    """While set, answers wait for it."""
    at_once: int = 0
    at_once_max: int = 0
    arrived: trio.Event = field(default_factory=trio.Event)

    async def answer(self, request: Request) -> Reply:
        """Note a request and answer it."""
        self.requests.append(request)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        self.arrived.set()
        self.arrived = trio.Event()
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.at_once -= 1
        if self.answers:
            return self.answers.pop(0)
        return self.otherwise(request) if callable(self.otherwise) else self.otherwise

    async def wait_requests(self, count: int) -> None:
        """Wait until so many requests have come."""
        with trio.fail_after(5):
            while len(self.requests) < count:
                await self.arrived.wait()


@asynccontextmanager
async def http1_server() -> AsyncIterator[PushServer]:
    """Serve HTTP/1.1 on a free port of loopback."""
    async with _listening(PushServer(), _serve_http1, None) as server:
        yield server


@asynccontextmanager
async def http2_server(tls: ssl.SSLContext) -> AsyncIterator[PushServer]:
    """Serve HTTP/2 over TLS on a free port of loopback."""
    async with _listening(PushServer(), _serve_http2, tls) as server:
        yield server


@asynccontextmanager
async def _listening(
    server: PushServer,
    serve: Callable[[PushServer, trio.abc.Stream], object],
    tls: ssl.SSLContext | None,
) -> AsyncIterator[PushServer]:
    async def connection(stream: trio.SocketStream) -> None:
        wrapped: trio.abc.Stream = stream
        if tls is not None:
            wrapped = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            await serve(server, wrapped)  # type: ignore[misc]  # an async function
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(wrapped)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, connection, 0)
        port = next(each.socket.getsockname()[1] for each in listeners)
        scheme, host = ("https", "localhost") if tls is not None else ("http", "127.0.0.1")
        server.url = f"{scheme}://{host}:{port}"
        yield server
        nursery.cancel_scope.cancel(reason="the test is over")


async def _serve_http1(server: PushServer, stream: trio.abc.Stream) -> None:
    machine = h11.Connection(h11.SERVER)
    while True:
        request, body = None, b""
        while True:
            event = machine.next_event()
            if event is h11.NEED_DATA:
                machine.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        if request is None:
            return
        headers = {name.decode(): value.decode() for name, value in request.headers}
        reply = await server.answer(
            Request(request.method.decode(), request.target.decode(), headers, body, "1.1")
        )
        named = [*reply.headers, ("content-length", str(len(reply.body)))]
        encoded = [(name.encode(), value.encode()) for name, value in named]
        for event in (
            h11.Response(status_code=reply.status, headers=encoded),
            h11.Data(data=reply.body),
            h11.EndOfMessage(),
        ):
            await stream.send_all(machine.send(event) or b"")
        machine.start_next_cycle()


async def _serve_http2(server: PushServer, stream: trio.abc.Stream) -> None:
    machine = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    )
    machine.initiate_connection()
    await stream.send_all(machine.data_to_send())
    pending: dict[int, tuple[dict[str, str], bytearray]] = {}
    sending = trio.Lock()

    async def flush() -> None:
        async with sending:
            await stream.send_all(machine.data_to_send())

    async def respond(stream_id: int) -> None:
        headers, body = pending.pop(stream_id)
        reply = await server.answer(Request(headers[":method"], headers[":path"], headers, bytes(body), "2"))
        named = [(":status", str(reply.status)), *reply.headers]
        machine.send_headers(stream_id, named, end_stream=not reply.body)
        if reply.body:
            machine.send_data(stream_id, reply.body, end_stream=True)
        await flush()

    async with trio.open_nursery() as nursery:
        while data := await stream.receive_some(65536):
            for event in machine.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    pending[event.stream_id] = (dict(event.headers), bytearray())  # type: ignore[arg-type]
                elif isinstance(event, h2.events.DataReceived):
                    pending[event.stream_id][1].extend(event.data)
                    machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    nursery.start_soon(respond, event.stream_id)
            await flush()
        nursery.cancel_scope.cancel(reason="the client has gone")


def self_signed(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for localhost: the contexts of a server that speaks HTTP/2, and of who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "localhost.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    server.set_alpn_protocols(["h2"])
    return server, ssl.create_default_context(cafile=str(file))
