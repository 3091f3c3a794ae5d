"""What `whispr serve` says once it is ready."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from whispr.config import SERVICES, load
from whispr.gateway.page_files import PAGES
from whispr.progress import Progress

README = (Path(__file__).parents[1] / "README.md").read_text()


def told(ports: Mapping[str, int], **environ: str) -> list[str]:
    out = io.StringIO()
    Progress(out).ready(
        load({f"WHISPR_{name.upper()}": value for name, value in environ.items()}).settings, ports
    )
    return out.getvalue().splitlines()


def test_the_pages_are_named() -> None:
    """A line for each page that there is to open, as a URL of the gateway; the README shows the same."""
    settings = load({}).settings
    lines = told({name: getattr(settings, name).port for name in ("gateway", "websocket", *SERVICES)})
    pages = lines[1:5]
    assert [line.split("8080")[-1] for line in pages] == ["/", "/listen/", "/console", "/docs"]
    assert {line.split("8080")[-1] for line in pages} <= set(PAGES)
    assert "\n".join(pages) in README
    assert lines[0].partition(" s: ")[2] in README


def test_only_what_runs_is_named() -> None:
    """A process without the services of a page does not send anybody there; the scheme and the host are its own."""
    lines = told({"gateway": 7, "media": 8}, public_host="chat.example.org")
    assert lines[1:] == [
        "  console      http://chat.example.org:7/console",
        "  API          http://chat.example.org:7/docs",
    ]
