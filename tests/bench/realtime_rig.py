"""What `bench_realtime` measures with: servers to compare, one load client in C for all of them, CPU and memory.

The peers live in `realtime_peers`; `ws` and an environment with `websockets`, uvloop and picows in a folder that
`just bench-realtime` fills. CPU time is that of all of a server's threads, from the scheduler's own nanoseconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Command = Sequence[str | Path]

PROGRAMS = Path(__file__).parent / "realtime_peers"
ROOM = "room:0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f"
OWN = "user:0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e71"


class Unavailable(Exception):  # noqa: N818  # a fact about the machine
    """What is asked for is not installed here; the message says what."""


def compiled(name: str, folder: Path) -> Path:
    """Compile one of the C programs. Raises Unavailable without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("a C compiler is needed for the load client: install cc, gcc or clang")
    program = folder / name
    subprocess.run([compiler, "-O2", "-o", program, PROGRAMS / f"{name}.c"], check=True)
    return program


def peers_folder() -> Path:
    """Return where peers are installed."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "whispr" / "bench-realtime-peers"


def command_of(peer: str, sendloop: Path) -> Command:
    """Return how a peer's server is started. Raises Unavailable."""
    python = peers_folder() / "python" / "bin" / "python"
    if peer == "c send loop":
        return [sendloop]
    if peer == "ws":
        node = shutil.which("node")
        if node is None or not (peers_folder() / "node_modules" / "ws").exists():
            raise Unavailable("ws is not installed")
        return [node, PROGRAMS / "ws_server.js"]
    if peer in ("websockets", "picows"):
        if not python.exists():
            raise Unavailable(f"{peer} is not installed")
        return [python, PROGRAMS / f"{peer}_server.py"]
    return [sys.executable, "-m", "tests.bench.realtime_peers.whispr_server", *peer.split()[1:]]


class Server:
    """A server that is running; `port` was its first line."""

    def __init__(self, command: Command) -> None:
        environ = {**os.environ, "WS_FOLDER": str(peers_folder())}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def cpu_s(self) -> float:
        """CPU time so far (schedstat, field 1 is nanoseconds)."""
        return cpu_s(self._process.pid)

    @property
    def kib(self) -> float:
        """Resident memory in KiB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1024

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Load:
    """The load client: connected and joined when this returns. It ends by itself after four minutes at most."""

    def __init__(
        self, program: Path, port: int, sockets: int, topics: list[str], connects_per_s: int = 2000
    ) -> None:
        command: Command = [program, str(port), str(sockets), str(connects_per_s), *topics]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.connected = self._answer()

    def ask(self, line: str) -> Mapping[str, Any]:
        """Have it do something and return what it says of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def cpu_s(self) -> float:
        """CPU time so far."""
        return cpu_s(self._process.pid)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable("the load client ended: the server refused it or hung up")
        answer: Mapping[str, Any] = json.loads(line)
        return answer


@contextmanager
def under_load(
    command: Command, program: Path, sockets: int, topics: list[str], connects_per_s: int = 2000
) -> Iterator[tuple[Server, Load, float]]:
    """A server with so many sockets joined, and the KiB that each of them added to it."""
    server = Server(command)
    try:
        before = server.kib
        load = Load(program, server.port, sockets, topics, connects_per_s)
        try:
            yield server, load, (server.kib - before) / sockets
        finally:
            load.stop()
    finally:
        server.stop()
