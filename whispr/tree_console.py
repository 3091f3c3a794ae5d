"""What `whispr tree` does: asks a gateway for its process's tasks, and draws them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import trio

from whispr import ports
from whispr.config import Settings
from whispr.credentials import mint
from whispr.errors import unavailable
from whispr.telemetry.tree import drawn

TOKEN_S = 12 * 3600.0
EVERY_S = 2.0
ASK_S = 10.0
PATH = "/v1/debug/tasks"
_CLEAR = "\x1b[H\x1b[2J"

Answer = dict[str, Any]
Show = Callable[[Answer], str]


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


def as_text(answer: Answer) -> str:
    """Draw the tree."""
    own = answer["process"]
    head = f"{own['tasks']:,} tasks · {', '.join(own['services'])} · up {own['uptime_s']:,.0f} s"
    return "\n".join([head, *drawn(answer["tree"])])


def as_json(answer: Answer) -> str:
    """Leave it as it is, on one line."""
    return json.dumps(answer, ensure_ascii=False)


async def once(url: str, token: str, expand: Sequence[str], show: Show) -> None:
    """Show the tree. Raises UNAVAILABLE when the gateway does not give it."""
    async with _client(url, token) as client:
        print(show(await _ask(client, expand)))


async def follow(url: str, token: str, expand: Sequence[str], show: Show) -> None:
    """Show the tree every EVERY_S, in place on a terminal. Raises UNAVAILABLE."""
    clear = _CLEAR if show is as_text and sys.stdout.isatty() else ""
    async with _client(url, token) as client:
        while True:
            print(clear + show(await _ask(client, expand)), flush=True)
            await trio.sleep(EVERY_S)


def _client(url: str, token: str) -> httpx.AsyncClient:
    # No timeouts of the client's own: scopes are what ends a request here.
    return httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=None)  # noqa: S113


async def _ask(client: httpx.AsyncClient, expand: Sequence[str]) -> Answer:
    with trio.move_on_after(ASK_S):
        try:
            reply = await client.get(PATH, params={"expand": list(expand)})
            answer: Answer = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            raise unavailable(f"{client.base_url}: {str(error) or type(error).__name__}") from error
        if reply.is_success:
            return answer
        raise unavailable(f"{client.base_url}: {answer.get('message', reply.status_code)}")
    raise unavailable(f"{client.base_url}: no answer within {ASK_S:g} s")
