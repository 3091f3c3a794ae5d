"""Megabytes per second of media: sent and given out, over loopback, by one client and by several.

    python -m tests.bench.bench_media [--mib 100] [--clients 4] [--s3]

The product runs as a process of its own, its objects in a temporary folder, or with --s3 in moto's server, which is
there to be correct and not fast. Clients are threads of this process on plain sockets.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.product import UNLIMITED, Product, running
from tests.s3 import CREDENTIALS, serving_s3

MIB = 1024 * 1024
CHUNK = 4 * MIB


def exchange(
    url: str, method: str, headers: dict[str, str], body: memoryview | None = None
) -> tuple[int, int]:
    """Make one request; return its status and how many bytes came back after the headers."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = [f"{method} {parts.path}?{parts.query} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
        head += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            head.append(f"content-length: {len(body)}")
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        if body is not None:
            connection.sendall(body)
        received = bytearray(MIB)
        first = connection.recv_into(received)
        start, _, rest = bytes(received[:first]).partition(b"\r\n\r\n")
        size = len(rest)
        while count := connection.recv_into(received):
            size += count
    return int(start.split()[1]), size


def announce(product: Product, token: str, size: int) -> Any:
    body = {"filename": "file", "content_type": "application/octet-stream", "file_size": str(size)}
    status, reply = product.call("POST", "/v1/media/uploads", body, token)
    assert status == 200, reply
    return reply


def put(url: str, content: bytes) -> None:
    status, _ = exchange(url, "PUT", {}, memoryview(content))
    assert status == 204, status


def tus(url: str, content: bytes) -> None:
    for at in range(0, len(content), CHUNK):
        headers = {
            "tus-resumable": "1.0.0",
            "upload-offset": str(at),
            "content-type": "application/offset+octet-stream",
        }
        status, _ = exchange(url, "PATCH", headers, memoryview(content)[at : at + CHUNK])
        assert status == 204, status


def whole(url: str, size: int) -> None:
    assert exchange(url, "GET", {}) == (200, size)


def range_of(url: str, size: int) -> None:
    assert exchange(url, "GET", {"range": "bytes=1-"}) == (206, size - 1)


def timed(name: str, size: int, jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs at once, and print what they moved in a second."""
    threads = [threading.Thread(target=job) for job in jobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    print(f"{name:<44} {len(jobs) * size / MIB / took:8.0f} MiB/s")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    size = options.mib * MIB
    environ = UNLIMITED | {
        f"WHISPR_LIMITS_MEDIA_{name}": "0" for name in ("UPLOADS_PER_MIN", "USER_BYTES", "FILE_BYTES")
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.s3:
            s3 = stack.enter_context(serving_s3())
            environ |= CREDENTIALS | {
                "WHISPR_MEDIA_STORE_URL": s3.url,
                "WHISPR_MEDIA_S3_ENDPOINT": s3.endpoint,
            }
        product = stack.enter_context(running(folder / "data", environ))
        _, token = product.sign_up("bench")
        measure(product, token, os.urandom(size), options.clients)


def measure(product: Product, token: str, content: bytes, clients: int) -> None:
    """Send, wait for, and fetch files."""
    size, each = len(content), content[: len(content) // clients]
    uploads = [announce(product, token, size) for _ in range(2)]
    timed("upload, one PUT", size, [lambda: put(uploads[0]["upload_url"], content)])
    began = time.perf_counter()
    ready(product, token, uploads[0]["media_id"])
    print(
        f"{'processing it, scan and pictures apart':<44} {size / MIB / (time.perf_counter() - began):8.0f} MiB/s"
    )
    timed("upload, tus in requests of 4 MiB", size, [lambda: tus(uploads[1]["upload_url"], content)])
    ready(product, token, uploads[1]["media_id"])
    several = [announce(product, token, len(each)) for _ in range(clients)]
    jobs = [lambda url=one["upload_url"]: put(url, each) for one in several]
    timed(f"upload, {clients} clients at once", len(each), jobs)
    for one in several:
        ready(product, token, one["media_id"])
    _, reply = product.call("GET", f"/v1/media/{uploads[0]['media_id']}/url", token=token)
    url = reply["url"]
    timed("download", size, [lambda: whole(url, size)])
    timed("download, a range", size, [lambda: range_of(url, size)])
    timed(f"download, {clients} clients at once", size, [lambda: whole(url, size)] * clients)


def ready(product: Product, token: str, media_id: str) -> None:
    """Wait until a medium is ready."""
    while True:
        _, reply = product.call("GET", f"/v1/media/{media_id}", token=token)
        status = reply["metadata"]["upload_status"]
        assert status != "error", reply
        if status == "ready":
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
