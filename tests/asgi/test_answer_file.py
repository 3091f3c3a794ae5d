"""Files with ranges, tags and conditions, over sockets and TLS, read by clients nobody here wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import trio

from tests.asgi.test_files import GET, certificate, contexts
from whispr.asgi.files import answer_file

__all__ = ["certificate"]  # a fixture

CONTENT = os.urandom(300_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


def serving(path: Path) -> Any:
    async def app(scope: Any, _: Any, send: Any) -> None:
        await answer_file(scope, send, path, "audio/ogg", [(b"cache-control", b"private")])

    return app


RANGES = [
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=100000-199999", 206, slice(100_000, 200_000)),
    ("bytes=-5", 206, slice(-5, None)),
    ("bytes=299999-", 206, slice(299_999, None)),
    ("bytes=0-999999999", 206, slice(0, None)),
    ("bytes=1-2,5-6", 200, slice(0, None)),
    ("lines=1-2", 200, slice(0, None)),
    ("bytes=300000-", 416, slice(0, 0)),
]


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_ranges(serve: Any, certificate: Path, file: Path, secure: bool) -> None:
    """Each is answered with its bytes and where they are in the file, on one connection."""
    server, trusted = contexts(certificate)
    async with serve(serving(file), tls=server if secure else None) as served:
        url = f"{'https' if secure else 'http'}://127.0.0.1:{served.port}/"
        async with httpx.AsyncClient(verify=trusted, trust_env=False) as client:
            whole = await client.get(url)
            assert (whole.content, whole.headers["accept-ranges"]) == (CONTENT, "bytes")
            assert (whole.headers["content-type"], whole.headers["cache-control"]) == ("audio/ogg", "private")
            for asked, status, part in RANGES:
                response = await client.get(url, headers={"range": asked})
                assert (response.status_code, response.content) == (status, CONTENT[part])
                if status == 206:
                    start, end, _ = part.indices(len(CONTENT))
                    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
                head = await client.head(url, headers={"range": asked})
                assert (head.status_code, head.content) == (status, b"")
                if status != 416:
                    assert head.headers["content-length"] == str(len(CONTENT[part]))
            assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_conditions(serve: Any, file: Path) -> None:
    """A client that has the file, or part of it, is not given another's bytes, nor the same again."""
    async with serve(serving(file)) as served, httpx.AsyncClient(trust_env=False) as client:
        client.base_url = httpx.URL(f"http://127.0.0.1:{served.port}")
        first = (await client.get("/")).headers
        tag, date = first["etag"], first["last-modified"]
        for same in ({"if-none-match": tag}, {"if-modified-since": date}):
            response = await client.get("/", headers=same)
            assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
        part = {"range": "bytes=5-9", "if-range": tag}
        assert (await client.get("/", headers=part)).content == CONTENT[5:10]
        (new := file.with_name("new")).write_bytes(CONTENT[::-1])
        new.replace(file)
        assert (await client.get("/", headers=part)).content == CONTENT[::-1]
        assert (await client.get("/", headers={"if-match": tag})).status_code == 412
        assert (await client.get("/", headers={"if-none-match": tag})).status_code == 200


async def test_what_is_no_file(serve: Any, tmp_path: Path) -> None:
    """A missing one, a folder, and a pipe that nobody writes to: an error before anything is sent."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        async with serve(serving(path)) as served, served.connect() as client:
            with structlog.testing.capture_logs(), trio.fail_after(5):
                assert (await client.ask(GET)).status == 500


async def test_parts_of_a_body_are_no_files(serve: Any, file: Path) -> None:
    """The extension is taken for a whole body alone, and says so."""

    async def app(_: Any, __: Any, send: Any) -> None:
        with file.open("rb") as opened:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.zerocopysend", "file": opened, "more_body": True})

    async with serve(app) as served, served.connect() as client:
        with structlog.testing.capture_logs() as logs:
            assert (await client.ask(GET)).status == 500
        assert [entry["event"] for entry in logs] == ["request_failed"]
