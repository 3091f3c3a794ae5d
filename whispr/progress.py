"""What `whispr serve` says on standard output while it starts, and once it is ready."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from whispr import __version__
from whispr.config import Settings

_TALKING = {"auth", "user", "messaging"}
"""The services that people need to talk."""


class Progress:
    """Prints one line a step, and the way in at the end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()

    def begin(self, settings: Settings) -> None:
        """Say what starts, and where its data is."""
        self._print(f"whispr {__version__} · data in {settings.data_dir}")

    def step(self, title: str, took_s: float | None = None, detail: str = "") -> None:
        """Say that a part is ready."""
        took = f"{took_s:6.2f} s" if took_s is not None else ""
        self._print(f"  {title:<12} {took or detail}".rstrip())

    def ready(self, settings: Settings, ports: Mapping[str, int]) -> None:
        """Say that everything is, with the URLs to open and a first thing to try."""
        took_s = time.monotonic() - self._began

        def shown(name: str) -> str:
            return f"{settings.public_host or settings.reach_host(name)}:{ports[name]}"

        gateway = f"{settings.gateway.scheme}://{shown('gateway')}"
        urls = [gateway]
        if "websocket" in ports:
            urls.append(f"ws://{shown('websocket')}/socket/websocket")
        services = [f"{name} :{port}" for name, port in ports.items() if name not in ("gateway", "websocket")]
        if settings.workers > 1:
            services.append(f"in {settings.workers} workers")
        self._print(f"ready in {took_s:.1f} s: {' · '.join(urls)} · gRPC {', '.join(services)}")
        for title, page in _pages(ports):
            self.step(title, detail=gateway + page)
        if ports.keys() >= _TALKING:
            self._print("\nTry it, in two more terminals:")
            for user, peer in (("alice", "bob"), ("bob", "alice")):
                self._print(f"  {_command(settings)} chat --user {user} --with {peer}")
            self._print("\nCtrl-C stops it.")

    def stopping(self) -> None:
        """Say that a stop was asked for."""
        self._print("stopping: finishing what is in flight (again to stop at once)")

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _pages(ports: Collection[str]) -> Iterator[tuple[str, str]]:
    """What there is to open in a browser: title, path."""
    if set(ports) >= _TALKING:
        yield "chat", "/"
    if "stream" in ports:
        yield "live audio", "/listen/"
    yield "console", "/console"
    yield "API", "/docs"


def _command(settings: Settings) -> str:
    """How to run `whispr` from the current folder on the same data."""
    script = Path(sys.executable).with_name("whispr")
    shown = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    default = Settings.model_fields["data_dir"].default
    return str(shown) if settings.data_dir == default else f"WHISPR_DATA_DIR={settings.data_dir} {shown}"
