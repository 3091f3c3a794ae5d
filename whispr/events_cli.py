"""`whispr events`: the outbox, how far consumers are, and the events they gave up on.

    whispr events lag                          what waits, in the outbox and before each consumer
    whispr events list-dead [--consumer NAME]  dead letters, oldest first
    whispr events show ID                      one dead letter, with its event and error
    whispr events replay-dead ID…              hand dead letters to their consumers again
    whispr events drop ID…                     forget dead letters
    whispr events replay CONSUMER              have a consumer rebuild what it derives from its streams

Works beside a running product, whose servers it finds through the data folder, and without one, when it
starts the servers itself. Exit codes: 0, 1 it could not be done, 2 bad usage.
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
    from whispr.events.dead_letters import Choice
    from whispr.events_console import Work

events_app = typer.Typer(no_args_is_help=True, help="Look after events: lag, dead letters, replays.")

ID_MAX = 2**63 - 1
"""What PostgreSQL counts to."""
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="[ID]…", min=1, max=ID_MAX, help="Numbers that `list-dead` shows."),
]
OfConsumer = Annotated[str, typer.Option("--consumer", help="All of this consumer.")]
All = Annotated[bool, typer.Option("--all", help="All there are.")]


@events_app.command()
def lag(config: Config = None) -> None:
    """Show what waits: rows of the outbox, and events before each consumer."""
    from whispr import events_console

    _run(events_console.lag, config, nats=True)


@events_app.command("list-dead")
def list_dead(
    consumer: OfConsumer = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many at most.")] = 50,
    config: Config = None,
) -> None:
    """List dead letters: events that a consumer gave up on, or that could not be published."""
    from whispr import events_console

    _run(events_console.listing(consumer, limit), config)


@events_app.command()
def show(
    letter: Annotated[
        int, typer.Argument(metavar="ID", min=1, max=ID_MAX, help="A number that `list-dead` shows.")
    ],
    config: Config = None,
) -> None:
    """Show a dead letter: whose it is, why it died, and the event."""
    from whispr import events_console

    _run(events_console.showing(letter), config)


@events_app.command("replay-dead")
def replay_dead(ids: Ids = None, consumer: OfConsumer = "", all_: All = False, config: Config = None) -> None:
    """Hand dead letters to their consumers again, with all attempts; one that fails stays a dead letter."""
    from whispr import events_console

    _run(events_console.replaying_dead(_choice(ids, consumer, all_)), config)


@events_app.command()
def drop(ids: Ids = None, consumer: OfConsumer = "", all_: All = False, config: Config = None) -> None:
    """Forget dead letters: their events will not be handled."""
    from whispr import events_console

    _run(events_console.dropping(_choice(ids, consumer, all_)), config)


@events_app.command()
def replay(
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="A name that `lag` shows.")],
    config: Config = None,
) -> None:
    """Have a consumer start over: it empties what it derived and handles its streams from their start.

    It begins within a second if the product runs, else when it next does. Streams hold what their limits leave.
    """
    from whispr import events_console

    _run(events_console.replaying(consumer), config)


def _choice(ids: list[int] | None, consumer: str, all_: bool) -> Choice:
    from whispr.events.dead_letters import Choice

    if sum((bool(ids), bool(consumer), all_)) != 1:
        raise typer.BadParameter("say which: ID…, or --consumer NAME, or --all")
    return Choice(tuple(ids or ()), consumer)


def _run(work: Work, config: Path | None, *, nats: bool = False) -> None:
    """Do the work and print what it says, line by line."""
    from whispr.events_console import reach

    settings = load(file=config).settings
    configure_logging("error", settings.log.format)
    for line in trio.run(reach, settings, work, nats):
        print(line)
