"""`whispr account`: accounts, as an operator sees them.

    whispr account show NAME                   the account
    whispr account promote NAME                make it an administrator: how there is a first one
    whispr account role NAME ROLE              user, premium, moderator or admin
    whispr account deactivate NAME             close it and end its sessions
    whispr account reactivate NAME             open it again
    whispr account export NAME --out FILE      everything held about the person, from every service, as a zip
    whispr account delete NAME                 delete it for good, with what is held about the person

Asks the running auth service, found through the data folder or `WHISPR_AUTH_ENDPOINT`, with a token signed by the
data folder's key. Exit codes: 0, 1 it could not be done, 2 bad usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from whispr.config import load
from whispr.options_cli import Config
from whispr.telemetry.logging import configure_logging

if TYPE_CHECKING:
    # What does the work takes a while to load, which no other command should wait for.
    from whispr.account_console import Work

account_app = typer.Typer(no_args_is_help=True, help="Look after accounts; make the first administrator.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The username.")]


@account_app.command()
def show(name: Name, config: Config = None) -> None:
    """Show an account."""
    from whispr import account_console

    _run(account_console.showing(name), config)


@account_app.command()
def promote(name: Name, config: Config = None) -> None:
    """Make an account an administrator."""
    from whispr import account_console

    _run(account_console.giving_role(name, "admin"), config)


@account_app.command()
def role(
    name: Name,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="user, premium, moderator or admin.")],
    config: Config = None,
) -> None:
    """Give an account a role. One that may less ends its sessions."""
    from whispr import account_console

    _run(account_console.giving_role(name, role), config)


@account_app.command()
def deactivate(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Kept with the account.")] = "",
    config: Config = None,
) -> None:
    """Close an account and end its sessions; nothing is deleted."""
    from whispr import account_console

    _run(account_console.deactivating(name, reason), config)


@account_app.command()
def reactivate(name: Name, config: Config = None) -> None:
    """Open a closed account again."""
    from whispr import account_console

    _run(account_console.reactivating(name), config)


@account_app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="The zip to write; it must not exist.")],
    wait_s: Annotated[float, typer.Option("--wait", min=1, help="Seconds to wait for it.")] = 600,
    config: Config = None,
) -> None:
    """Write everything held about a person into one archive. Fails naming the services that did not answer."""
    from whispr import account_console

    _run(account_console.exporting(name, out, wait_s), config)


@account_app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
) -> None:
    """Delete an account for good, and have every service erase what it holds about the person."""
    from whispr import account_console

    if not yes:
        typer.confirm(f"Delete {name} and everything held about them? There is no way back.", abort=True)
    _run(account_console.deleting(name), config)


def _run(work: Work, config: Path | None) -> None:
    """Do the work and print what it says, line by line."""
    from whispr.account_console import reach

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    for line in trio.run(reach, settings, work):
        print(line)
