"""Run the product as an operator does, as a process of its own, for integration tests and benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

LISTENERS = ("gateway", "websocket", "messaging", "auth", "user", "media", "notification", "chat", "stream")
UNLIMITED = {
    f"WHISPR_LIMITS_{name}": "0"
    for name in (
        "USER_MESSAGES_PER_MIN",
        "SOCKET_OPERATIONS_PER_MIN",
        "AUTH_ATTEMPTS_PER_HOUR",
        "USER_SOCKETS",
        "CONVERSATION_MESSAGES_PER_MIN",
        "USER_CALLS_PER_MIN",
        "ADDRESS_CALLS_PER_MIN",
        "ADDRESS_HANDSHAKES_PER_MIN",
        "ADDRESS_CONNECTIONS",
        "CONNECTION_CALLS_PER_MIN",
    )
}
"""Settings under which a test may send as fast as it can."""
START_S = 60
"""How long a start may take before the test gives up; generous, for a loaded machine."""


class StartError(Exception):
    """The product ended before it was ready; the message holds what it said."""


@dataclass
class Product:
    """A running `whispr serve`."""

    data_dir: Path
    environ: Mapping[str, str]
    process: subprocess.Popen[str]
    ports: dict[str, int] = field(default_factory=dict)

    def url(self, path: str) -> str:
        """Return the gateway's URL for a path."""
        return f"http://127.0.0.1:{self.ports['gateway']}{path}"

    @property
    def websocket_url(self) -> str:
        """Where Phoenix clients connect."""
        return f"ws://127.0.0.1:{self.ports['websocket']}/socket/websocket"

    def pid_of(self, backend: str) -> int:
        """Return the pid of an embedded backend: postgres, redis or nats."""
        return int((self.data_dir / "run" / f"{backend}.pid").read_text().split()[0])

    def call(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
        """Make one REST call; return its status and decoded JSON body."""
        connection = HTTPConnection("127.0.0.1", self.ports["gateway"], timeout=30)
        headers = {"content-type": "application/json"} | (
            {"authorization": f"Bearer {token}"} if token else {}
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return response.status, json.loads(content) if content else None

    def sign_up(self, username: str, password: str = "correct horse") -> tuple[str, str]:
        """Register a person; return their id and access token."""
        status, reply = self.call("POST", "/v1/auth/register", {"username": username, "password": password})
        assert status == 200, reply
        return reply["user"]["id"], reply["access_token"]

    def conversation(self, token: str, kind: str, *members: str) -> str:
        """Open a conversation with the given people; return its id."""
        body = {"kind": kind, "member_ids": members, "name": "" if kind == "direct" else "test"}
        status, reply = self.call("POST", "/v1/conversations", body, token)
        assert status == 200, reply
        return str(reply["conversation"]["id"])

    def stop(self, number: int = signal.SIGTERM, within_s: float = 15) -> int:
        """Ask the process to stop by a signal; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(within_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill -9, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def spawn(data_dir: Path, environ: Mapping[str, str] | None = None, *arguments: str) -> Product:
    """Start `whispr serve` on free ports and return at once; `wait_ready` waits for it."""
    free_ports = {f"WHISPR_{name.upper()}_PORT": "0" for name in LISTENERS}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    full = clean | free_ports | {"WHISPR_DATA_DIR": str(data_dir)} | dict(environ or {})
    log = data_dir.parent / f"{data_dir.name}.stderr"
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "whispr.cli", "serve", *arguments],
            env=full, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    return Product(data_dir, dict(environ or {}), process)


def wait_ready(product: Product) -> Product:
    """Read the start's progress until the line that says it is ready, then learn the ports."""
    assert product.process.stdout is not None
    deadline = time.monotonic() + START_S
    said = []
    for line in product.process.stdout:
        said.append(line)
        if line.startswith("ready"):
            product.ports = json.loads((product.data_dir / "ports.json").read_text())
            return product
        if time.monotonic() > deadline:
            break
    code = product.process.poll()
    log = (product.data_dir.parent / f"{product.data_dir.name}.stderr").read_text()
    product.kill()
    raise StartError(f"not ready (exit code {code}):\n{''.join(said)}\n{log[-4000:]}")


def start(data_dir: Path, environ: Mapping[str, str] | None = None, *arguments: str) -> Product:
    """Start `whispr serve` and wait until it is ready. Raises StartError."""
    return wait_ready(spawn(data_dir, environ, *arguments))


@contextmanager
def running(data_dir: Path, environ: Mapping[str, str] | None = None, *arguments: str) -> Iterator[Product]:
    """A product for the length of a block."""
    product = start(data_dir, environ, *arguments)
    try:
        yield product
    finally:
        product.stop()
