"""Files by `http.response.pathsend`, Range by Starlette's FileResponse, and both over TLS."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, with its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    command += f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {path}.key -out {path}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


def contexts(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What the server uses, and a client that trusts it."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate)
    return server, ssl.create_default_context(cafile=f"{certificate}.crt")


def files(path: Path) -> Starlette:
    async def serve_file(_: Any) -> FileResponse:
        return FileResponse(path)

    return Starlette(routes=[Route("/", serve_file)])


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that no socket takes at once."""
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(1024) * 4096)
    return path


@pytest.mark.parametrize("secure", [False, True])
async def test_a_file_is_sent(serve: Any, certificate: Path, large: Path, secure: bool) -> None:
    """Whole, by HEAD without a body, and in ranges; on a connection that stays, plain and over TLS."""
    server, client_context = contexts(certificate)
    async with serve(files(large), tls=server if secure else None) as served:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{served.port}/"
        async with httpx.AsyncClient(verify=client_context, trust_env=False) as client:
            assert (await client.get(url)).content == large.read_bytes()
            head = await client.head(url)
            assert (head.headers["content-length"], head.content) == (str(large.stat().st_size), b"")
            part = await client.get(url, headers={"range": "bytes=1000000-1000099"})
            assert (part.status_code, part.content) == (206, large.read_bytes()[1000000:1000100])
            wrong = await client.get(url, headers={"range": "bytes=99999999-"})
            assert wrong.status_code == 416


def sending(path: Path, *headers: tuple[bytes, bytes]) -> Any:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(path)})

    return app


async def test_a_files_size_is_its_length(serve: Any, tmp_path: Path) -> None:
    """An application that names a file need not measure it; an empty one is sent too."""
    for content in (b"some text", b""):
        path = tmp_path / "a.txt"
        path.write_bytes(content)
        async with serve(sending(path)) as served, served.connect() as client:
            for _ in range(2):
                assert (await client.ask(GET)).body == content


async def test_what_is_no_file_is_500(serve: Any, tmp_path: Path) -> None:
    """A missing file, a folder, a pipe that would block: an error before anything is sent."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "missing", tmp_path, pipe):
        async with serve(sending(path)) as served, served.connect() as client:
            with structlog.testing.capture_logs() as logs:
                assert (await client.ask(GET)).status == 500
            assert [entry["event"] for entry in logs] == ["request_failed"]


async def test_a_file_that_shrinks_cuts_the_connection(serve: Any, large: Path) -> None:
    """Fewer bytes than were promised are never taken for all."""
    os.truncate(large, 64 * 1024 * 1024)  # more than the network holds
    async with serve(sending(large)) as served, served.connect() as client:
        await client.send(GET)
        await client.stream.receive_some(1)
        os.truncate(large, 100)
        with structlog.testing.capture_logs() as logs, pytest.raises(trio.BrokenResourceError):
            with trio.fail_after(5):
                while await client.stream.receive_some():
                    pass
        assert [entry["event"] for entry in logs] == ["request_failed"]


async def test_a_client_without_tls_is_no_error(serve: Any, certificate: Path) -> None:
    """Plain HTTP on a TLS port is closed, and noted once; the next client is served."""
    server, client_context = contexts(certificate)
    app = sending(certificate)
    async with serve(app, tls=server, head_s=1.0) as served:
        with structlog.testing.capture_logs() as logs:
            async with served.connect() as client:
                await client.send(GET)
                with trio.fail_after(5):
                    while await client.stream.receive_some():
                        pass
        assert [entry["event"] for entry in logs] == ["no_tls"]
        async with httpx.AsyncClient(verify=client_context, trust_env=False) as client:
            assert (await client.get(f"https://localhost:{served.port}/")).status_code == 200


async def test_the_scheme_is_in_the_scope(serve: Any, certificate: Path) -> None:
    """An application behind TLS knows that it is; a client that leaves is noticed there too."""
    server, client_context = contexts(certificate)
    heard, schemes = trio.Event(), []

    async def app(scope: Any, receive: Any, _: Any) -> None:
        schemes.append(scope["scheme"])
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async with serve(app, tls=server) as served:
        stream = await trio.open_ssl_over_tcp_stream(
            "localhost", served.port, ssl_context=client_context, https_compatible=True
        )
        await stream.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()
        with trio.fail_after(5):
            await heard.wait()
    assert schemes == ["https"]


async def test_connections_and_refusals_are_counted(serve: Any, large: Path) -> None:
    """Prometheus sees what is open, and each refusal under its reason."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    refused = value("whispr_http_refused_total", reason="bad_host")
    async with serve(sending(large)) as served, served.connect() as client:
        assert (await client.ask(GET)).status == 200
        async with served.connect() as other:
            assert (await other.ask(GET)).status == 200
            assert value("whispr_http_connections") == 2
        assert (await client.ask(b"GET / HTTP/1.1\r\n\r\n")).status == 400
    assert value("whispr_http_refused_total", reason="bad_host") == refused + 1
    assert value("whispr_http_connections") == 0
