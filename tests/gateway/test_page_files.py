"""The pages: whole by themselves, under a policy that lets them reach this product and nobody else."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest

from whispr.gateway.page_files import PAGES, Places, asset_routes, page_headers

IMPORT = re.compile(r'(?:from|import) "(\.[^"]+)"')
LINK = re.compile(r'(?:src|href)="(/assets/[^"]+)"')
ROUTES = {route.path for route in asset_routes(Places())}
ASSETS = sorted(path for path in ROUTES if path.startswith("/assets/"))


def source(path: str) -> str:
    """What is served there."""
    name = PAGES.get(path, path.removeprefix("/assets/"))
    return resources.files("whispr.gateway").joinpath("assets", *name.split("/")).read_text()


async def test_what_a_page_is_and_how_it_is_kept(served: Any) -> None:
    """Each page and file has its type, is not guessed at, and is asked about again by its tag each time."""
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in [*PAGES, *ASSETS]:
        first = await served.client.get(path)
        wanted = kinds.get(path[path.rfind(".") :], "text/html") if "." in path else "text/html"
        assert (first.status_code, first.headers["content-type"].split(";")[0]) == (200, wanted)
        assert first.headers["x-content-type-options"] == "nosniff"
        assert first.headers["cache-control"] == "no-cache"
        assert first.headers["content-security-policy"].startswith("default-src 'none'")
        again = await served.client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_nothing_that_is_served_is_guessed_at(served: Any) -> None:
    """What is no page is not taken for one, whatever it holds: facts, metrics, and errors of every kind."""
    for path in (
        "/healthz",
        "/readyz",
        "/startupz",
        "/metrics",
        "/openapi.json",
        "/client.json",
        "/no",
        "/v1/no",
    ):
        answer = await served.client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["content-type"].split(";")[0] in ("application/json", "text/plain"), path
    assert (await served.client.post("/console")).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_what_a_page_loads_is_there_and_ours(path: str) -> None:
    """Every file named by another is served; nothing is loaded from another host; no page holds a script."""
    text = source(path)
    for name in LINK.findall(text):
        assert name in ROUTES, f"{path} loads {name}"
    for name in IMPORT.findall(text):
        parts = path.rpartition("/")[0].split("/")
        for step in name.split("/"):
            parts = parts[:-1] if step == ".." else parts if step == "." else [*parts, step]
        assert "/".join(parts) in ROUTES, f"{path} imports {name}"
    assert not re.search(r'(?:src|href|from|import)\s*=?\s*"(?:https?:)?//', text)
    if path in PAGES:
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text)
    if path.endswith(".js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), "what people write is put on a page as text alone"


def test_a_page_may_connect_to_this_product_alone() -> None:
    """To its own host, and there to the WebSocket port; where an operator says it is elsewhere, to that."""

    def connects(places: Places, host: str) -> list[str]:
        policy = page_headers(places, host)["content-security-policy"]
        return re.findall(r"connect-src ([^;]*)", policy)[0].split()  # type: ignore[no-any-return]  # strings

    here = Places(websocket_port=4001)
    assert connects(here, "chat.example:8080") == [
        "'self'",
        "ws://chat.example:4001",
        "wss://chat.example:8080",
    ]
    assert connects(here, "[::1]:8080") == ["'self'", "ws:", "wss:"]
    assert connects(here, "x; script-src *") == ["'self'", "ws:", "wss:"]
    away = Places(websocket_url="wss://live.example/socket/websocket", media_url="https://media.example/")
    assert connects(away, "chat.example") == ["'self'", "wss://live.example", "https://media.example"]


async def test_pages_are_told_where_the_socket_is(served: Any) -> None:
    """`/client.json` needs no token, for who is about to sign in has none."""
    told = (await served.client.get("/client.json")).json()
    assert told["websocket"] == {"url": "", "port": 4000, "path": "/socket/websocket"}
