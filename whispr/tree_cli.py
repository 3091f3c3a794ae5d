"""`whispr tree`: the live task tree of a running product.

    whispr tree                     draw it once
    whispr tree --watch             draw it again every two seconds
    whispr tree --expand socket     more than a few examples of a kind
    whispr tree --worker 2          one of several workers; otherwise all of them, one after the other
    whispr tree --json              as the gateway says it

It asks the gateway of the process that uses this data folder, with a token signed by the folder's key; `--url` and
`--token` ask another.
"""

from __future__ import annotations

from typing import Annotated

import trio
import typer

from whispr.config import load
from whispr.options_cli import Config


def tree(
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again and again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the gateway says.")] = False,
    expand: Annotated[list[str] | None, typer.Option("--expand", help="Show more of a kind.")] = None,
    worker: Annotated[str, typer.Option("--worker", help="One of several workers, by its number.")] = "",
    url: Annotated[str, typer.Option(help="The gateway; found through the data folder when not given.")] = "",
    token: Annotated[str, typer.Option(help="An administrator's.", envvar="TOKEN")] = "",
    config: Config = None,
) -> None:
    """Draw the tasks of a running product: who started whom, how long ago, and what each waits on."""
    from whispr import tree_console

    settings = load(file=config).settings
    base, shown = tree_console.where(settings, url, token)
    wanted = tree_console.Wanted(worker, expand or ())
    show = tree_console.as_text if not as_json else tree_console.as_json
    trio.run(tree_console.follow if watch else tree_console.once, base, shown, wanted, show)
