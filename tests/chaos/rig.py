"""The product and its backends, each a process of its own that can be got at, and the roads between them.

    clients → road "product" → links → whispr serve → road of each backend → link → PostgreSQL, Valkey, NATS

Each backend runs under a supervisor of its own (`python -m whispr.embed`, the very code that `whispr serve` runs it
by), with its data on a disk of its own. Who is killed is started again by that supervisor; the product itself by us,
at once, as systemd or Kubernetes would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.chaos.machine import Machine
from tests.integration.faults import Link, linked
from tests.product import UNLIMITED, Product, start
from whispr.config import SERVICES

BACKENDS = {"postgres": "PostgreSQL", "redis": "Valkey", "nats": "NATS"}
PROGRAMS = ("postgres", "valkey-server", "product")
"""Whose clocks can be set: NATS has no libc that it would ask."""
LISTENERS = ("websocket", "gateway", "messaging")
"""Of the product, to which clients connect."""
PORTS = {name: 20000 + n for n, name in enumerate(("gateway", "websocket", *SERVICES))}
"""Of the product: in a network of our own all are free, and the same after each start."""

SETTINGS = (
    dict.fromkeys(UNLIMITED, "1000000")
    | {
        # Limits are kept in Valkey: with some that nobody reaches it has something to do.
        "WHISPR_LIMITS_MEDIA_UPLOADS_PER_MIN": "1000000",
        "WHISPR_AUTH_ACCESS_TOKEN_S": "86400",
        "WHISPR_LOG_FORMAT": "json",
        "CHAOS_CLOCK": "product",
    }
    | {f"WHISPR_{name.upper()}_PORT": str(port) for name, port in PORTS.items()}
)


class Rig:
    """Made by `open_rig`."""

    def __init__(self, machine: Machine, workers: int) -> None:
        self.machine = machine
        self.workers = workers
        self.links: dict[str, list[Link]] = {"product": []}
        self.urls: dict[str, str] = {}
        """Of each backend, past its road."""
        self.far: dict[str, int] = {}
        """Listener → the port at which clients find it."""
        self.product: Product
        self._data = machine.place_for("product")
        self._environ: dict[str, str] = {}

    @property
    def host(self) -> str:
        """Where clients find the product."""
        road = self.machine.roads.get("product")
        return road.far if road is not None else "127.0.0.1"

    @property
    def websocket_url(self) -> str:
        """Where Phoenix clients connect."""
        return f"ws://{self.host}:{self.far['websocket']}/socket/websocket"

    @property
    def gateway_url(self) -> str:
        """Where REST clients connect."""
        return f"http://{self.host}:{self.far['gateway']}"

    def pid_of(self, target: str) -> int:
        """The process of a target. Raises OSError or ValueError while there is none."""
        if target == "product":
            return self.product.process.pid
        if target == "worker":
            return int((self._data / "run" / "worker-1.pid").read_text())
        return int((self.machine.place_for(target) / "run" / f"{target}.pid").read_text())

    def pids_of(self, target: str) -> list[int]:
        """The process of a target and its children."""
        return family(self.pid_of(target))

    async def start_product(self) -> None:
        """Start it, or start it again."""
        arguments = ["--workers", str(self.workers)] if self.workers > 1 else []
        begin = partial(start, self._data, self._environ, *arguments)
        self.product = await trio.to_thread.run_sync(begin)

    async def start_product_again(self) -> None:
        """Reap the one that was killed and start another."""
        await trio.to_thread.run_sync(self.product.kill)
        await self.start_product()

    async def lead_to_backends(self, urls: Mapping[str, str], nursery: trio.Nursery) -> None:
        """Put a road and a link before each backend."""
        for name, url in urls.items():
            road = self.machine.roads.get(name)
            near, far = (road.near, road.far) if road is not None else ("127.0.0.1", "127.0.0.1")
            link, through = linked(url, nursery, near, far)
            await link.join()
            self.links[name] = [link]
            self._environ[f"WHISPR_{name.upper()}_URL"] = through()
        self.urls.update(urls)
        self._environ = SETTINGS | self._environ

    async def lead_to_product(self, nursery: trio.Nursery) -> None:
        """Put a road and links before the product's listeners."""
        road = self.machine.roads.get("product")
        for name in LISTENERS:
            link = Link(
                partial(trio.open_tcp_stream, "127.0.0.1", PORTS[name]),
                nursery,
                road.near if road is not None else "127.0.0.1",
            )
            await link.join()
            self.links["product"].append(link)
            self.far[name] = link.port


@asynccontextmanager
async def open_rig(machine: Machine, workers: int) -> AsyncIterator[Rig]:
    """Start everything, and stop it in the end."""
    rig = Rig(machine, workers)
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in BACKENDS:
            children[name] = _backend(machine.place_for(name), name)
        urls = {name: await trio.to_thread.run_sync(_url_of, child, name) for name, child in children.items()}
        async with trio.open_nursery() as nursery:
            for road in machine.roads.values():
                nursery.start_soon(road.carry)
            await rig.lead_to_backends(urls, nursery)
            await rig.lead_to_product(nursery)
            await rig.start_product()
            yield rig
            await trio.to_thread.run_sync(rig.product.stop)
            nursery.cancel_scope.cancel(reason="the rig is taken down")
    finally:
        if hasattr(rig, "product"):
            rig.product.kill()
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()
        for log in (*machine.folder.glob("disks/*/*.stderr"), *machine.folder.glob("disks/*/data/logs/*")):
            shutil.copy(log, machine.folder)  # the disks go with us


def _backend(folder: Path, name: str) -> subprocess.Popen[str]:
    log = folder.parent / f"{name}.stderr"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "whispr.embed", str(folder), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip


def _url_of(child: subprocess.Popen[str], name: str) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, f"{name} could not be started"
    return str(json.loads(line)[f"{name}_url"])


def family(pid: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
