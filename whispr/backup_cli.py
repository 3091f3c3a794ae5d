"""`whispr backup FILE` and `whispr restore FILE`.

A backup is taken while the product runs, beside it: its backends are found through the settings or the data folder.
For a restore the product is stopped. Exit codes: 0, 1 it could not be done (nothing was changed, or it says what to
do), 2 bad usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import trio
import typer

from whispr.config import load
from whispr.options_cli import Config
from whispr.telemetry.logging import configure_logging


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write it. It holds keys: mode 0600.")],
    over: Annotated[bool, typer.Option("--replace", help="Also over a file that is there.")] = False,
    config: Config = None,
) -> None:
    """Write everything that cannot be derived into one file, as of one moment."""
    from whispr.backup.making import back_up

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    print("\n".join(trio.run(lambda: back_up(settings, file, over=over))))


def restore(
    file: Annotated[Path, typer.Argument(help="What `whispr backup` wrote.")],
    over: Annotated[bool, typer.Option("--replace", help="Also over what is there.")] = False,
    config: Config = None,
) -> None:
    """Make a backup the state of this deployment, while nothing of it runs."""
    from whispr.backup.restoring import restore as put_back

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    print("\n".join(trio.run(lambda: put_back(settings, file, over=over))))
