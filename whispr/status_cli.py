"""`whispr status`: how a running product and what it depends on are, as a table that follows.

whispr status                   follow, until Ctrl-C; the same as --watch
whispr status --once            once; exit code 1 when it does not serve
whispr status --json            once, as the gateway says it
"""

from __future__ import annotations

from typing import Annotated

import trio
import typer

from whispr.config import load
from whispr.options_cli import Config


def status(
    once: Annotated[bool, typer.Option("--once", help="Show it once.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow, until Ctrl-C, which is the default.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway says, once.")] = False,
    url: Annotated[str, typer.Option(help="The gateway; found through the data folder when not given.")] = "",
    token: Annotated[str, typer.Option(help="An administrator's.", envvar="TOKEN")] = "",
    config: Config = None,
) -> None:
    """Show health, latency, breakers and last errors of every service and dependency."""
    from whispr import status_console
    from whispr.tree_console import where

    if watch and (once or as_json):
        raise typer.BadParameter("--watch follows, --once and --json do not: say one of them")
    settings = load(file=config).settings
    base, shown = where(settings, url, token)
    if not once and not as_json:
        trio.run(status_console.follow, base, shown)
        return
    serves = trio.run(status_console.once, base, shown, as_json)
    raise typer.Exit(0 if serves else 1)
