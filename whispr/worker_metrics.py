"""Metrics of all workers of one machine, from whichever of them is asked.

Each process writes its own metrics to whoever connects to its Unix socket, and closes: that is the whole protocol.
The gateway of any worker asks them all and puts `worker="<number>"` on every sample, `supervisor` for the parent. One
that does not answer in time shows as `whispr_worker_up 0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import trio
from prometheus_client import generate_latest

from whispr.unix_sockets import open_unix_listener

ASK_S = 1.0
"""How long a process may take to say its metrics."""
BYTES_MAX = 16 * 1024 * 1024
"""Of one process's metrics."""
SUPERVISOR = "supervisor"

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)")

log = structlog.get_logger("whispr.workers")


def socket_name(worker: str) -> str:
    """Return the name of the socket on which a worker says its metrics."""
    return f"metrics-{worker}.sock"


async def serve_metrics(
    path: Path,
    own: Callable[[], bytes] = generate_latest,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Say this process's metrics to whoever connects, until cancelled."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(ASK_S):
            try:
                await stream.send_all(own())
            except trio.BrokenResourceError:
                log.debug("metrics_not_taken")

    listener = await open_unix_listener(str(path))
    task_status.started()
    await trio.serve_listeners(answer, [listener])


async def gather(folder: Path, workers: int) -> bytes:
    """Return the metrics of all processes."""
    names = [SUPERVISOR, *(str(number) for number in range(1, workers + 1))]
    said: dict[str, str | None] = dict.fromkeys(names)

    async def ask(name: str) -> None:
        said[name] = await _asked(folder / socket_name(name))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return merged(said).encode()


async def _asked(path: Path) -> str | None:
    with trio.move_on_after(ASK_S):
        try:
            stream = await trio.open_unix_socket(str(path))
        except OSError:
            return None
        async with stream:
            parts, size = [], 0
            async for part in stream:
                parts.append(part)
                size += len(part)
                if size > BYTES_MAX:
                    return None
            return b"".join(parts).decode()
    return None


def merged(said: Mapping[str, str | None]) -> str:
    """Join expositions: every family once, each sample with its worker. None is of a process that said nothing."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in said.items():
        family = ""
        for line in (text or "").splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif (sample := _SAMPLE.fullmatch(line)) is not None:
                labels = f",{sample[2].rstrip(',')}" if sample[2] else ""
                labelled = f'{sample[1]}{{worker="{worker}"{labels}}} {sample[3]}'
                samples.setdefault(family or sample[1], []).append(labelled)
    lines = [
        "# HELP whispr_worker_up Whether a process of this machine said its metrics",
        "# TYPE whispr_worker_up gauge",
    ]
    lines += [
        f'whispr_worker_up{{worker="{worker}"}} {int(text is not None)}' for worker, text in said.items()
    ]
    for family, found in samples.items():
        lines += [*heads.get(family, ()), *found]
    return "\n".join(lines) + "\n"
