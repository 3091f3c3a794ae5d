"""`python -m whispr.embed DATA_DIR [postgres] [redis] [nats]`: the servers alone, for tests and debugging.

Prints one line of JSON with the URLs once all are ready; stops them at the end of stdin, SIGTERM or SIGINT.
The line holds secrets: it is for the process that started this one.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import trio

from whispr.embed.supervisor import ALL, run_children
from whispr.errors import WhisprError


async def _end_of_stdin(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(0) as stdin:
        while await stdin.receive_some(4096):
            pass
    scope.cancel(reason="stdin ended")


async def _signalled(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            scope.cancel(reason=signal.Signals(number).name)


def _print_ready(title: str, took_s: float) -> None:
    print(f"{title} ready ({took_s:.2f} s)", file=sys.stderr, flush=True)


async def _main(data_dir: Path, wanted: list[str]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_of_stdin, nursery.cancel_scope)
        nursery.start_soon(_signalled, nursery.cancel_scope)
        backends = await nursery.start(run_children, data_dir, wanted, _print_ready)
        urls = {
            "postgres_url": backends.postgres_url,
            "redis_url": backends.redis_url,
            "nats_url": backends.nats_url,
        }
        print(json.dumps(urls), flush=True)


def main() -> None:
    """Parse the command line and run."""
    arguments = sys.argv[1:]
    if not arguments or set(arguments[1:]) - set(ALL):
        sys.exit(f"usage: python -m whispr.embed DATA_DIR [{'] ['.join(ALL)}]")
    try:
        trio.run(_main, Path(arguments[0]), arguments[1:] or list(ALL))
    except* WhisprError as group:
        sys.exit("\n".join(str(error) for error in group.exceptions))


if __name__ == "__main__":
    main()
