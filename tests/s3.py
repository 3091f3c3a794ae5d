"""An S3 server for tests: moto's, on a free port."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from moto.server import ThreadedMotoServer

BUCKET = "whispr-test"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
"""What it takes, as it takes anything."""


@dataclass(frozen=True, slots=True)
class S3:
    """Where it is, and the bucket that it has."""

    endpoint: str
    url: str = f"s3://{BUCKET}"


@contextmanager
def serving_s3() -> Iterator[S3]:
    """Run the server until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # It would tell of every request.
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        httpx.put(f"{endpoint}/{BUCKET}", trust_env=False).raise_for_status()
        yield S3(endpoint)
    finally:
        server.stop()
