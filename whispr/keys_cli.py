"""`whispr keys`: the keys that sign tokens.

    whispr keys list             each key, and whether it signs
    whispr keys rotate           add a key; it signs a minute later, when every process has seen it
    whispr keys retire KEY       remove an old key, once the last token under it has expired

Running processes look for keys every few seconds: nothing is restarted. After a leak: `rotate --at-once`, then
`retire KEY --at-once`; everybody signs in again. Exit codes: 0, 1 it could not be done, 2 bad usage.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from whispr.config import Settings, load
from whispr.errors import conflict
from whispr.options_cli import Config

ResultT = TypeVar("ResultT")

keys_app = typer.Typer(no_args_is_help=True, help="Look after the keys that sign tokens.")


@keys_app.command("list")
def list_keys(config: Config = None) -> None:
    """Show each key: its number, its id, since when, and what it does."""
    from whispr.credentials import shared_secrets
    from whispr.services.auth.keys import read_keys, signing

    settings = load(file=config).settings
    files = _done(lambda: read_keys(_folder(settings)))
    secrets = _done(lambda: shared_secrets(settings.auth))
    now = time.time()
    current = signing(files, now) if files and not secrets else None
    for file in files:
        made_at = datetime.fromtimestamp(file.made_at, UTC).isoformat(timespec="seconds")
        role = "signs" if file == current else "verifies"
        if current is not None and file.number > current.number:
            role = "verifies, signs soon"
        print(f"{file.number:04}  {file.signer.kid}  {made_at}  {role}")
    for place, secret in enumerate(secrets):
        print(f"HS256  {secret.kid}  {'signs' if place == 0 else 'verifies'}")


@keys_app.command()
def rotate(
    at_once: Annotated[bool, typer.Option("--at-once", help="Sign with it now: after a leak.")] = False,
    config: Config = None,
) -> None:
    """Add a key. It signs in a minute; keep the old one until its tokens have expired."""
    from whispr.services.auth import keys

    folder = _folder(load(file=config).settings)
    made = _done(lambda: keys.rotate(folder, at_once=at_once))
    when = "now" if at_once else f"in {keys.PUBLISH_S:.0f} s"
    print(f"{made.number:04}  {made.signer.kid}  signs {when}")


@keys_app.command()
def retire(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A number or id that `list` shows.")],
    at_once: Annotated[
        bool, typer.Option("--at-once", help="Also while tokens under it are alive: after a leak.")
    ] = False,
    config: Config = None,
) -> None:
    """Remove a key that no longer signs. Within a minute no process trusts its tokens."""
    from whispr.services.auth import keys

    settings = load(file=config).settings
    lives_s = max(settings.auth.access_token_s, keys.SERVICE_TOKEN_LIFETIME_S)
    gone = _done(lambda: keys.retire(_folder(settings), key, lives_s, at_once=at_once))
    print(f"{gone.number:04}  {gone.signer.kid}  retired")


def _folder(settings: Settings) -> Path:
    from whispr.credentials import key_folder

    return key_folder(settings)


def _done(work: Callable[[], ResultT]) -> ResultT:
    """Do it. Raises FAILED_PRECONDITION saying what is wrong with the keys."""
    from whispr.services.auth.keys import KeyFolderError

    try:
        return work()
    except KeyFolderError as error:
        raise conflict(str(error), "keys_unusable") from error
