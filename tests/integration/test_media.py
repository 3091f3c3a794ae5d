"""Files through a running product, by REST and signed URLs: as scripts use it, killed, and split over processes."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.test_operation import whispr
from tests.product import UNLIMITED, Product, running, start
from tests.services.media.samples import SECRET, photo
from whispr.embed import Backends

SETTLE_S = 150
MANY = UNLIMITED | {"WHISPR_LIMITS_MEDIA_UPLOADS_PER_MIN": "0"}


def ask(
    method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Make one request; return status, headers and body."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def announce(product: Product, token: str, content: bytes, kind: str = "application/octet-stream") -> Any:
    request = {"filename": "file", "content_type": kind, "file_size": str(len(content))}
    status, reply = product.call("POST", "/v1/media/uploads", request, token)
    assert status == 200, reply
    return reply


def settled(product: Product, token: str, media_id: str) -> Any:
    """Wait until a medium is ready or has failed."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        status, reply = product.call("GET", f"/v1/media/{media_id}?include_thumbnails=true", token=token)
        assert status == 200, reply
        if reply["metadata"]["upload_status"] in ("ready", "error"):
            return reply["metadata"]
        time.sleep(0.05)
    raise AssertionError(f"{media_id} is still {reply['metadata']['upload_status']}")


def downloaded(product: Product, token: str, media_id: str) -> bytes:
    status, reply = product.call("GET", f"/v1/media/{media_id}/url", token=token)
    assert status == 200, reply
    status, _, content = ask("GET", reply["url"])
    assert status == 200
    return content


def test_a_picture_by_rest(product: Product) -> None:
    """Announced, sent, looked at, downloaded, listed and deleted by REST; no log holds a signature."""
    _, token = product.sign_up("painter")
    content = photo(width=300)
    created = announce(product, token, content, "image/jpeg")
    assert created["upload_url"].startswith(product.url("/v1/media/uploads/"))
    assert ask("PUT", created["upload_url"], content)[0] == 204
    media_id = created["media_id"]
    known = settled(product, token, media_id)
    assert (known["upload_status"], known["width"]) == ("ready", 300)
    assert SECRET not in downloaded(product, token, media_id)
    assert ask("GET", known["thumbnail_urls"][0])[1]["content-type"] == "image/webp"
    assert ask("GET", known["thumbnail_urls"][0][:-3])[0] == 403
    _, reply = product.call("GET", "/v1/media", token=token)
    assert [each["media_id"] for each in reply["media"]] == [media_id]
    assert product.call("DELETE", f"/v1/media/{media_id}", token=token)[0] == 200
    assert product.call("DELETE", f"/v1/media/{media_id}", token=token)[0] == 404
    assert ask("GET", known["thumbnail_urls"][0])[0] == 404
    log = (product.data_dir.parent / f"{product.data_dir.name}.stderr").read_text()
    assert "signature=" not in log
    assert (product.data_dir / "keys" / "media" / "0001.key").stat().st_mode & 0o077 == 0


def resume(product: Product, path: str, content: bytes) -> None:
    """Send what is missing of an upload, as tus does, however often the product is away meanwhile."""
    deadline = time.monotonic() + SETTLE_S
    chunk = 700_000
    while time.monotonic() < deadline:
        url = product.url(path)
        try:
            status, headers, _ = ask("HEAD", url, headers={"tus-resumable": "1.0.0"})
            if status != 200:
                # While ours is away another program may have its port.
                time.sleep(0.05)
                continue
            at = int(headers["upload-offset"])
            if at == len(content):
                return
            said = {
                "tus-resumable": "1.0.0", "upload-offset": str(at),
                "content-type": "application/offset+octet-stream",
            }  # fmt: skip
            ask("PATCH", url, content[at : at + chunk], said)
        except (OSError, HTTPException):
            time.sleep(0.05)
    raise AssertionError("the upload could not be finished")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_kill_9_loses_no_acknowledged_byte(tmp_path: Path) -> None:
    """Killed while it receives and while it processes: clients go on, and everything arrives, once and whole."""
    import threading

    product = start(tmp_path / "data", MANY)
    try:
        _, token = product.sign_up("sender")
        contents = [os.urandom(8_000_000 + n) for n in range(6)]
        created = [announce(product, token, content) for content in contents]
        paths = [each["upload_url"].partition("/v1/")[2] for each in created]
        threads = [
            threading.Thread(target=resume, args=(product, f"/v1/{path}", content))
            for path, content in zip(paths, contents, strict=True)
        ]
        for thread in threads:
            thread.start()
        for _ in range(3):
            time.sleep(0.7)
            product.process.send_signal(signal.SIGKILL)
            product.kill()
            restarted = start(product.data_dir, MANY)
            product.process, product.ports = restarted.process, restarted.ports
        for thread in threads:
            thread.join(SETTLE_S)
        for each, content in zip(created, contents, strict=True):
            known = settled(product, token, each["media_id"])
            assert known["upload_status"] == "ready", known
            assert known["sha256"] == hashlib.sha256(content).hexdigest()
            assert downloaded(product, token, each["media_id"]) == content
    finally:
        product.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_media_in_processes_of_their_own(backends: Backends, tmp_path: Path) -> None:
    """Calls go to the media service wherever it is, bytes to its gateway, either of two that share their files."""
    assert backends.postgres_url is not None
    assert backends.redis_url is not None
    assert backends.nats_url is not None
    port = free_port()
    urls = MANY | {
        "WHISPR_POSTGRES_URL": backends.postgres_url,
        "WHISPR_REDIS_URL": backends.redis_url,
        "WHISPR_NATS_URL": backends.nats_url,
    }
    front = urls | {"MEDIA_SERVICE_GRPC_ENDPOINT": f"127.0.0.1:{port}"}
    with running(tmp_path / "a", front, "auth", "user") as people:
        token_file = tmp_path / "token"
        minted = whispr("token", "media", "--ttl", "3600", WHISPR_DATA_DIR=str(tmp_path / "a"))
        token_file.write_text(minted.stdout)
        others = urls | {
            "WHISPR_AUTH_ENDPOINT": f"127.0.0.1:{people.ports['auth']}",
            "USER_SERVICE_GRPC_ENDPOINT": f"127.0.0.1:{people.ports['user']}",
            "WHISPR_AUTH_SERVICE_TOKEN_FILE": str(token_file),
            "WHISPR_MEDIA_STORE_URL": f"file://{tmp_path}/shared",
            "WHISPR_MEDIA_KEY_DIR": str(tmp_path / "keys"),
        }
        with (
            running(tmp_path / "b", others | {"WHISPR_MEDIA_PORT": str(port)}, "media") as one,
            running(tmp_path / "c", others, "media") as two,
        ):
            _, token = people.sign_up("somebody")
            content = os.urandom(3_000_000)
            created = announce(people, token, content)
            assert created["upload_url"].startswith(one.url("/v1/media/uploads/"))
            path = f"/v1/{created['upload_url'].partition('/v1/')[2]}"
            said = {
                "tus-resumable": "1.0.0", "upload-offset": "0", "content-type": "application/offset+octet-stream",
            }  # fmt: skip
            assert ask("PATCH", one.url(path), content[:2_000_000], said)[0] == 204
            said["upload-offset"] = "2000000"
            assert ask("PATCH", two.url(path), content[2_000_000:], said)[0] == 204
            assert settled(people, token, created["media_id"])["upload_status"] == "ready"
            assert downloaded(people, token, created["media_id"]) == content
            assert ask("HEAD", people.url(path), headers={"tus-resumable": "1.0.0"})[0] in (401, 404)
