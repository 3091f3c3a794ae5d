"""One of several processes that serve the same ports: `python -m whispr.worker`, started by `whispr.workers`.

Its assignment comes on standard input, for it holds the backends' passwords. Once it serves it says `ready` on
standard output. SIGTERM drains it, a second one cancels; its parent's death kills it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from whispr.config import Settings
from whispr.errors import WhisprError
from whispr.worker_metrics import gather, serve_metrics, socket_name

READY = b"ready\n"


@dataclass(frozen=True)
class Assignment:
    """What a worker is to do."""

    settings: Settings
    """With the ports chosen, and the URLs of all backends."""
    services: Sequence[str]
    number: int
    """From 1."""
    folder: Path
    """Where the workers' sockets are."""


def main() -> None:
    """Take the assignment and serve; exits with 1 when it cannot."""
    from whispr.telemetry.logging import configure_logging

    # From our own parent, through a pipe that nobody else has.
    assignment: Assignment = pickle.loads(sys.stdin.buffer.read())  # noqa: S301
    settings = assignment.settings
    configure_logging(settings.log.level, settings.log.format)
    structlog.contextvars.bind_contextvars(worker=assignment.number)
    try:
        trio.run(work, assignment)
    except* WhisprError as group:
        for line in _told(group):
            print(f"whispr: worker {assignment.number}: {line}", file=sys.stderr)
        sys.exit(1)


def _told(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return [line for inner in error.exceptions for line in _told(inner)]
    return [str(error)]


async def work(assignment: Assignment) -> None:
    """Serve until told to stop. Raises WhisprError when it cannot."""
    from whispr.app import connected, obedient, run_node
    from whispr.node import Node, Shared

    settings, folder = assignment.settings, assignment.folder
    exposition = partial(gather, folder, settings.workers)
    async with (
        obedient(signal.SIGTERM) as orders,
        connected(settings) as backends,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(serve_metrics, folder / socket_name(str(assignment.number)))
        node = Node(
            settings,
            assignment.services,
            backends.db,
            backends.cache,
            backends.bus,
            shared=Shared(folder, assignment.number, exposition, settings.workers),
        )
        async with run_node(node):
            os.write(sys.stdout.fileno(), READY)
            orders.ready()
            await orders.stop.wait()
            await node.drain(settings.drain_s)
        nursery.cancel_scope.cancel(reason="drained")


if __name__ == "__main__":
    main()
