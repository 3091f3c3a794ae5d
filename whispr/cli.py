"""The command line: arguments in, the application out.

    whispr serve [services…]     run all services, or some of them, and whatever backends have no URL;
                                 with --workers N in N processes that share the ports
    whispr migrate               bring the database up to date and stop
    whispr status                how it and what it depends on are, as a table that follows
    whispr doctor                say what would keep it from running here, and what to do about it
    whispr token SERVICE         print a token for calls between services
    whispr keys list|rotate|retire   the keys that sign tokens
    whispr account show|promote|…   accounts; the first administrator, data exports, deletion
    whispr config show           every setting, its value and where that came from
    whispr chat --user NAME      sign up or in, and talk
    whispr rpc list|describe|call   what gRPC servers offer, and calls to them
    whispr tree                  the live task tree: who started whom, and what each waits on
    whispr events lag|list-dead|…   how far events have come, dead letters, replays
    whispr backup|restore FILE   everything that cannot be derived, in one file, and back

Exit codes: 0 done, 1 it could not be done (said on standard error), 2 bad usage or configuration;
64 + its status for a failed `rpc`.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import trio
import typer

from whispr import __version__
from whispr.account_cli import account_app
from whispr.backup_cli import backup, restore
from whispr.config import SERVICES, ConfigError, Loaded, Section, load, without_password
from whispr.errors import WhisprError
from whispr.events_cli import events_app
from whispr.keys_cli import keys_app
from whispr.options_cli import Config
from whispr.rpc_cli import rpc_app
from whispr.status_cli import status
from whispr.telemetry.logging import configure_logging
from whispr.tree_cli import tree

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A self-hosted backend for chat, presence and live audio.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")
app.add_typer(config_app, name="config")
app.add_typer(rpc_app, name="rpc")
app.add_typer(events_app, name="events")
app.add_typer(keys_app, name="keys")
app.add_typer(account_app, name="account")
app.command()(tree)
app.command()(status)
app.command()(backup)
app.command()(restore)


def main() -> None:
    """Run the command line: the `whispr` script."""
    try:
        app()
    except ConfigError as error:
        _fail(["the configuration cannot be used:", *(f"  {problem}" for problem in error.problems)], 2)
    except (WhisprError, KeyboardInterrupt, OSError, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, KeyboardInterrupt) or _told(leaf) for leaf in leaves):
            raise
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            sys.exit(130)
        _fail([_told(leaf) for leaf in leaves], 1)


_OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What an operator can do something about, without knowing where in the code it was met."""


def _told(error: BaseException) -> str:
    """What to say of an error; nothing of a defect."""
    if isinstance(error, WhisprError):
        return error.message
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        about = f"{error.filename}: " if error.filename else ""
        remedy = " (run this as the user it belongs to)" if isinstance(error, PermissionError) else ""
        return f"{about}{error.strerror}{remedy}"
    return ""


def _fail(lines: list[str], code: int) -> None:
    for line in lines:
        print(line if line.startswith(" ") else f"whispr: {line}", file=sys.stderr)
    sys.exit(code)


def _leaves(error: BaseException) -> list[BaseException]:
    """Flatten what nurseries wrapped into groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


@app.callback(invoke_without_command=True)
def _version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(f"whispr {__version__}")
        raise typer.Exit


@app.command()
def serve(
    services: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(SERVICES)}.")] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=64, help="Processes; else WHISPR_WORKERS, else 1."),
    ] = None,
    config: Config = None,
) -> None:
    """Run all services, or some of them."""
    settings = load(file=config).settings
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    chosen = _chosen(services or [])
    from whispr.app import serve as run  # after what is quickly refused: it takes a second
    from whispr.progress import Progress

    configure_logging(settings.log.level, settings.log.format)
    trio.run(run, settings, chosen, Progress(sys.stdout))


def _chosen(services: list[str]) -> tuple[str, ...]:
    unknown = [name for name in services if name not in SERVICES]
    if unknown:
        raise ConfigError([f"no such service: {', '.join(unknown)} (there are {', '.join(SERVICES)})"])
    return tuple(name for name in SERVICES if not services or name in services)


@app.command()
def migrate(config: Config = None) -> None:
    """Bring the database up to date and stop."""
    from whispr.app import migrate_only
    from whispr.progress import Progress

    settings = load(file=config).settings
    configure_logging(settings.log.level, settings.log.format)
    applied = trio.run(migrate_only, settings, Progress(sys.stdout))
    print("\n".join(f"applied {name}" for name in applied) or "the database is up to date")


@app.command()
def doctor(config: Config = None) -> None:
    """Say what would keep Whispr from running here, and what to do about it."""
    from whispr.doctor import examine

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    findings = trio.run(examine, settings)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what:<22} {finding.detail}")
        if not finding.ok and finding.remedy:
            print(f"{'':<28} → {finding.remedy}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def token(
    service: Annotated[str, typer.Argument(help="Who will show it, such as `billing`.")],
    ttl_s: Annotated[int, typer.Option("--ttl", min=1, help="Seconds until it expires.")] = 3600,
    config: Config = None,
) -> None:
    """Print a token for calls between services, signed with this data folder's key."""
    from whispr.credentials import mint

    print(mint(load(file=config).settings, service, ttl_s))


@config_app.command("show")
def show(config: Config = None) -> None:
    """Print every setting, its value and where that came from."""
    loaded = load(file=config)
    for key, value, origin in _rows(loaded):
        print(f"{key:<36} {value:<40} {origin}".rstrip())


def _rows(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Settings as key, shown value and origin; passwords in URLs are hidden."""
    rows = []
    for name in type(loaded.settings).model_fields:
        value = getattr(loaded.settings, name)
        leaves = (
            [((name, key), getattr(value, key)) for key in type(value).model_fields]
            if isinstance(value, Section)
            else [((name,), value)]
        )
        for key, leaf in leaves:
            shown = without_password(str(leaf))
            rows.append((".".join(key), shown or '""', loaded.origins.get(key, "default")))
    return rows


@app.command()
def chat(
    user: Annotated[str, typer.Option("--user", help="Your username; signs up when it is new.")],
    peer: Annotated[str, typer.Option("--with", help="Whom to talk to.")] = "",
    password: Annotated[str, typer.Option(help="Asked for when not given.", envvar="CHAT_PASSWORD")] = "",
    url: Annotated[str, typer.Option(help="The gateway; found through the data folder when not given.")] = "",
    websocket: Annotated[str, typer.Option(help="The WebSocket address, if not the gateway's host.")] = "",
    config: Config = None,
) -> None:
    """Sign up or in, and talk: history, typing and presence, live."""
    from whispr.chat.session import addresses, run

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    gateway, socket = addresses(settings, url, websocket)
    secret = password or typer.prompt("password", hide_input=True)
    trio.run(run, gateway, socket, user, secret, peer)


if __name__ == "__main__":
    main()
