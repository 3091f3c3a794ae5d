"""The ports of a process: found taken before anything starts, published once it is ready."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from whispr.config import PREFIX, Settings
from whispr.errors import conflict
from whispr.tcp_sockets import bind_tcp

FILE = "ports.json"


def check_free(settings: Settings, sections: Iterable[str]) -> None:
    """Try every port that is to be listened on.

    Raises FAILED_PRECONDITION (port_in_use) naming each one that cannot be had and the setting that moves it.
    The port is let go again: whoever takes it meanwhile is noticed when it is listened on.
    """
    problems = []
    for section in sections:
        host, port = settings.bind_host(section), getattr(settings, section).port
        if port == 0:
            continue
        try:
            with _bound(host, port):
                pass
        except OSError as error:
            variable = f"{PREFIX}{section.upper()}_PORT"
            reason = error.strerror or str(error)
            problems.append(f"{section} cannot listen on {host}:{port}: {reason} (move it with {variable})")
    if problems:
        raise conflict("; ".join(problems), "port_in_use")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    attempt = socket.socket(family, kind, protocol)
    try:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.bind(address)
    except OSError:
        attempt.close()
        raise
    return attempt


@asynccontextmanager
async def reserved(settings: Settings, sections: Iterable[str]) -> AsyncIterator[Settings]:
    """Hold the ports of these listeners for processes that share them; yields settings with each port chosen.

    Raises FAILED_PRECONDITION (port_in_use).
    """
    with contextlib.ExitStack() as stack:
        chosen = {}
        for section in sections:
            listener = getattr(settings, section)
            host = settings.bind_host(section)
            try:
                held = await bind_tcp(host, listener.port, shared=True)
            except OSError as error:
                told = f"{section} cannot listen on {host}:{listener.port}: {error.strerror}"
                raise conflict(told, "port_in_use") from error
            for each in held:
                stack.enter_context(each)
            chosen[section] = listener.model_copy(update={"port": held[0].getsockname()[1]})
        yield settings.model_copy(update=chosen)


def publish(data_dir: Path, ports: Mapping[str, int]) -> None:
    """Write `ports.json`, whole or not at all."""
    draft = data_dir / f"{FILE}.new"
    draft.write_text(json.dumps(dict(ports), indent=2) + "\n")
    draft.replace(data_dir / FILE)


def read(data_dir: Path) -> Mapping[str, int]:
    """Return the ports that a running process has published; none when there is none.

    Raises FAILED_PRECONDITION (data_dir_unusable) when we may not know.
    """
    try:
        published: dict[str, int] = json.loads((data_dir / FILE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise conflict(f"cannot read {data_dir / FILE}: {error.strerror}", "data_dir_unusable") from error
    return published


def withdraw(data_dir: Path) -> None:
    """Remove `ports.json`: nothing listens any more."""
    with contextlib.suppress(FileNotFoundError):
        (data_dir / FILE).unlink()
