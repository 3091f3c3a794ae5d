"""Kill things under load: nothing acknowledged is lost or doubled, and service resumes by itself.

Run by `just test-resilience`. Each test starts a product of its own in a temporary folder.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.integration.load import acked, senders, until_acked
from tests.product import UNLIMITED, Product, running, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CLIENTS = 50
RECOVERY_S = 30
"""How long service may take to resume before a test gives up; what it took is printed."""


async def test_kill_9_of_the_product_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """While 50 clients send, kill -9: after the restart every acknowledged message is there exactly once."""
    product = start(tmp_path / "data", UNLIMITED)
    try:
        clients = senders(product, CLIENTS)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run, product)
            await until_acked(clients, 5)
            children = [product.pid_of(name) for name in ("postgres", "redis", "nats")]
            product.process.send_signal(signal.SIGKILL)
            before = acked(clients)
            await trio.to_thread.run_sync(product.kill)
            began = time.monotonic()
            restarted = await trio.to_thread.run_sync(partial(start, product.data_dir, UNLIMITED))
            took = time.monotonic() - began
            product.process, product.ports = restarted.process, restarted.ports
            assert not [pid for pid in children if alive(pid)]
            with trio.fail_after(RECOVERY_S):
                await until_acked(clients, 5)
            nursery.cancel_scope.cancel()
        for client in clients:
            client.check(product)
        print(
            f"kill -9 after {before} acknowledged; serving again in {took:.1f} s; {acked(clients)} in the end"
        )
    finally:
        product.stop()


@pytest.mark.parametrize("backend", ["postgres", "redis", "nats"])
async def test_kill_9_of_a_backend(tmp_path: Path, backend: str) -> None:
    """A killed backend is restarted; meanwhile calls wait or fail clearly; no acknowledged message is lost."""
    with running(tmp_path / "data", UNLIMITED) as product:
        clients = senders(product, CLIENTS)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run, product)
            await until_acked(clients, 5)
            pid = product.pid_of(backend)
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            with trio.fail_after(RECOVERY_S):
                await restarted(product, backend, pid)
                await until_acked(clients, 5)
            took = time.monotonic() - began
            nursery.cancel_scope.cancel()
        assert not any(client.reconnected for client in clients), "sockets outlive a backend"
        for client in clients:
            client.check(product)
        assert product.call("GET", "/readyz")[0] == 200
        refused = sum(client.refused for client in clients)
        print(f"{backend} killed: all served again after {took:.1f} s, {refused} sends refused meanwhile")


async def restarted(product: Product, backend: str, pid: int) -> None:
    """Wait until the backend runs under another pid."""
    while not alive(new := _pid(product, backend)) or new == pid:  # noqa: ASYNC110
        await trio.sleep(0.02)  # another process writes the pid file; nothing to wait for in ours


def _pid(product: Product, backend: str) -> int:
    try:
        return product.pid_of(backend)
    except (OSError, IndexError):
        return 0


def alive(pid: int) -> bool:
    """Whether a process with this pid runs; a zombie does not."""
    try:
        return pid != 0 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or before it is read
        return False
