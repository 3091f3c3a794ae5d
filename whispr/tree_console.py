"""What `whispr tree` does: asks a gateway for the tasks of its processes, and draws them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx
import trio

from whispr import ports
from whispr.config import Settings
from whispr.credentials import mint
from whispr.errors import invalid, unavailable
from whispr.telemetry.tree import drawn

TOKEN_S = 12 * 3600.0
EVERY_S = 2.0
ASK_S = 10.0
PATH = "/v1/debug/tasks"
_CLEAR = "\x1b[H\x1b[2J"

Answer = dict[str, Any]
Show = Callable[[Sequence[Answer]], str]


class Wanted(NamedTuple):
    """What is to be shown."""

    worker: str = ""
    """One worker by its number; all of them when empty."""
    expand: Sequence[str] = ()
    """Kinds, or groups, of which more than a few examples are shown."""


def where(settings: Settings, url: str, token: str) -> tuple[str, str]:
    """Return the gateway's base URL and a token for it. Raises WhisprError when one cannot be had."""
    if not url:
        port = ports.read(settings.data_dir).get("gateway")
        if port is None:
            raise unavailable(
                f"nothing runs with its data in {settings.data_dir}; --url asks another machine"
            )
        url = f"{settings.gateway.scheme}://{settings.reach_host('gateway')}:{port}"
    return url, token or mint(settings, "operator", TOKEN_S)


def as_text(answers: Sequence[Answer]) -> str:
    """Draw the tree of each worker."""
    return "\n\n".join(map(_drawn, answers))


def _drawn(answer: Answer) -> str:
    own = answer["process"]
    worker = f"worker {answer['worker']} of {len(answer['workers'])} · " if len(answer["workers"]) > 1 else ""
    head = f"{worker}{own['tasks']:,} tasks · {', '.join(own['services'])} · up {own['uptime_s']:,.0f} s"
    return "\n".join([head, *drawn(answer["tree"])])


def as_json(answers: Sequence[Answer]) -> str:
    """Leave it as it is, each worker on a line."""
    return "\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers)


async def once(url: str, token: str, wanted: Wanted, show: Show) -> None:
    """Show the trees. Raises UNAVAILABLE when the gateway does not give them."""
    async with client_of(url, token) as client:
        print(show(await _ask(client, wanted)))


async def follow(url: str, token: str, wanted: Wanted, show: Show) -> None:
    """Show the trees every EVERY_S, in place on a terminal. Raises UNAVAILABLE."""
    clear = _CLEAR if show is as_text and sys.stdout.isatty() else ""
    async with client_of(url, token) as client:
        while True:
            print(clear + show(await _ask(client, wanted)), flush=True)
            await trio.sleep(EVERY_S)


def client_of(url: str, token: str) -> httpx.AsyncClient:
    """Return a client of a gateway. Raises INVALID_ARGUMENT for a URL or a token that cannot be one."""
    if not url.startswith(("http://", "https://")):
        raise invalid({"url": f"not an HTTP address: {url}"})
    try:
        # No timeouts of the client's own: scopes are what ends a request here.
        return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=None)  # noqa: S113
    except httpx.InvalidURL as error:
        raise invalid({"url": f"{url}: {error}"}) from error
    except UnicodeEncodeError as error:
        raise invalid({"token": "it is no token"}) from error


async def _ask(client: httpx.AsyncClient, wanted: Wanted) -> list[Answer]:
    """Ask for the tree of the worker that is wanted, else of each that the first answer names."""
    first = await _ask_one(client, wanted.worker, wanted.expand)
    if wanted.worker:
        return [first]
    others = [name for name in first["workers"] if name != first["worker"]]
    answers = [first, *[await _ask_one(client, name, wanted.expand) for name in others]]
    return sorted(answers, key=lambda answer: int(answer["worker"]))


async def _ask_one(client: httpx.AsyncClient, worker: str, expand: Sequence[str]) -> Answer:
    with trio.move_on_after(ASK_S):
        try:
            asked = {"expand": list(expand), **({"worker": worker} if worker else {})}
            reply = await client.get(PATH, params=asked)
            answer: Answer = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise unavailable(f"{client.base_url}: {str(error) or type(error).__name__}") from error
        if reply.is_success:
            return answer
        raise unavailable(f"{client.base_url}: {answer.get('message', reply.status_code)}")
    raise unavailable(f"{client.base_url}: no answer within {ASK_S:g} s")
