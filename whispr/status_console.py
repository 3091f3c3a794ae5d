"""What `whispr status` does: asks a gateway how everything is, and shows it as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from whispr.errors import WhisprError, unavailable
from whispr.tree_console import client_of

EVERY_S = 1.0
ASK_S = 5.0
PATH = "/v1/health"

Answer = dict[str, Any]

_STYLES = {
    "up": "green", "ok": "green", "serving": "green", "closed": "green",
    "degraded": "yellow", "half_open": "yellow", "unknown": "yellow", "starting": "yellow", "draining": "yellow",
    "down": "bold red", "open": "bold red",
}  # fmt: skip


def table(answer: Mapping[str, Any]) -> Group:
    """Draw an answer of the gateway."""
    shown = Table(box=None, pad_edge=False)
    for title in ("name", "status", "latency", "breaker", "in flight", "queued", "last error"):
        right = title in ("latency", "in flight", "queued")
        shown.add_column(title, justify="right" if right else "left", overflow="fold")
    for name, facts in answer["services"].items():
        shown.add_row(Text(name if facts["here"] else f"{name} (elsewhere)"), *_cells(facts))
    for name, facts in answer["dependencies"].items():
        shown.add_row(Text(name), *_cells(facts))
    return Group(Text.assemble("whispr is ", _coloured(answer["status"]), " · ", answer["state"]), shown)


def _cells(facts: Mapping[str, Any]) -> list[Text]:
    latency = "" if facts["latency_ms"] is None else f"{facts['latency_ms']:.1f} ms"
    error = facts["last_error"]
    told = "" if error is None else f"{error['code']} {error['age_s']:.0f} s ago {error.get('message', '')}"
    plain = (str(facts["in_flight"]), str(facts["queued"]), told.strip())
    return [_coloured(facts["status"]), Text(latency), _coloured(facts["breaker"]), *map(Text, plain)]


def _coloured(word: str) -> Text:
    return Text(word.replace("_", "-"), style=_STYLES.get(word, ""))


async def once(url: str, token: str, as_json: bool) -> bool:
    """Show it once; return whether it serves. Raises UNAVAILABLE when the gateway says nothing."""
    async with client_of(url, token) as client:
        answer = await _ask(client)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        Console().print(table(answer))
    return bool(answer["status"] != "down")


async def follow(url: str, token: str) -> None:
    """Show it every EVERY_S in the same place. A gateway that is away is shown as such, and asked again."""
    async with client_of(url, token) as client:
        with Live(Text("…"), auto_refresh=False) as live:
            while True:
                try:
                    shown: Group | Text = table(await _ask(client))
                except WhisprError as error:
                    shown = Text(error.message, style="bold red")
                live.update(shown, refresh=True)
                await trio.sleep(EVERY_S)


async def _ask(client: httpx.AsyncClient) -> Answer:
    with trio.move_on_after(ASK_S):
        try:
            answer: Answer = (await client.get(PATH)).json()
        except (httpx.HTTPError, ValueError) as error:
            raise unavailable(f"{client.base_url}: {str(error) or type(error).__name__}") from error
        if "services" not in answer:
            raise unavailable(f"{client.base_url}: {answer.get('message', 'this is no gateway of Whispr')}")
        return answer
    raise unavailable(f"{client.base_url}: no answer within {ASK_S:g} s")
