"""Where a channel connects to: target names, and the addresses they stand for.

    "127.0.0.1:50053"  "[::1]:50053"  "chat.internal:50053"  "dns:///chat.internal:50053"
    "unix:/run/whispr/auth.sock"  "unix:///run/whispr/auth.sock"
    "10.0.0.1:50053,10.0.0.2:50053"

The forms are those of grpc/doc/naming.md, and a list. Host names are looked up whenever the channel connects
again, so a service may move while its callers run.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of a target: a host, by name or address, and its port; or a Unix socket's path."""

    host: str
    port: int = 0
    path: str = ""

    @property
    def authority(self) -> str:
        """What requests carry as `:authority`."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to look up."""
        return bool(self.path) or _is_ip(self.host)


@dataclass(frozen=True, slots=True)
class Address:
    """Something to connect a socket to."""

    family: int
    where: tuple[Any, ...] | str
    endpoint: Endpoint

    def __str__(self) -> str:
        if isinstance(self.where, str):
            return f"unix:{self.where}"
        host, port = self.where[:2]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"

    async def dial(self) -> trio.abc.Stream:
        """Connect. Raises OSError."""
        sock = trio.socket.socket(self.family, socket.SOCK_STREAM)
        try:
            await sock.connect(self.where)
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


def parse_target(target: str) -> tuple[Endpoint, ...]:
    """Read a target. Raises ValueError naming what is wrong with it."""
    return tuple(_parse_entry(target, entry.strip()) for entry in target.split(","))


def _parse_entry(target: str, entry: str) -> Endpoint:
    if entry.startswith("unix:"):
        path = entry.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError(f"target {target!r}: unix: without a path")
        return Endpoint("localhost", path=path)
    if entry.startswith("dns:"):
        server, _, name = entry.removeprefix("dns:").removeprefix("//").rpartition("/")
        if server:
            raise ValueError(f"target {target!r}: names are asked of this system's resolver, not of {server}")
        entry = name
    host, _, port = entry.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"target {target!r}: an IPv6 address is written in brackets, [::1]:50053")
    if not host or not port.isascii() or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise ValueError(f"target {target!r} is not host:port, dns:///host:port or unix:/path")
    return Endpoint(host, int(port))


async def look_up_all(endpoints: Sequence[Endpoint]) -> list[Address]:
    """The addresses of a whole target, each once. Raises OSError when no entry of it can be resolved."""
    found: dict[Address, None] = {}
    failure: OSError | None = None
    for endpoint in endpoints:
        try:
            found.update(dict.fromkeys(await look_up(endpoint)))
        except OSError as error:
            failure = error
    if failure is not None and not found:
        raise failure
    return list(found)


async def look_up(endpoint: Endpoint) -> list[Address]:
    """Every address of an entry. Raises OSError when its name cannot be resolved."""
    if endpoint.path:
        return [Address(socket.AF_UNIX, endpoint.path, endpoint)]
    try:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"cannot resolve {endpoint.host}: {error.strerror}") from error
    except UnicodeError as error:
        raise OSError(f"cannot resolve {endpoint.host}: not a host name") from error
    # Python built without IPv6 reports its addresses as bytes, which nothing could connect to.
    return [Address(family, where, endpoint) for family, _, _, _, where in found if isinstance(where[0], str)]


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
