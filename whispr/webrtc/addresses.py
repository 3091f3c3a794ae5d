"""The addresses that peers are told, and the sockets that listen there."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, Final

from whispr.tcp_sockets import bind_every

BUFFER_BYTES: Final = 4 << 20
"""Of a socket, each way: a packet to each of thousands at once must fit. The kernel may allow less."""
_FAR = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of documentation, in nobody's network: the way there is the default route."""


async def bind_udp(host: str, port: int) -> list[socket.socket]:
    """Bind the same UDP port of every address of `host`, of all interfaces if it is empty; 0 for a free one.

    Raises OSError when it cannot be had, a gaierror for an unknown name.
    """
    return await bind_every(host, port, socket.SOCK_DGRAM, _bound)


def _bound(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def reachable(sockets: Sequence[socket.socket]) -> list[str]:
    """Return where these sockets are reached from elsewhere: where they are bound, for all interfaces by the default
    route; by the loopback if nowhere else.
    """  # noqa: D205  # one sentence
    hosts: list[str] = []
    for each in sockets:
        bound = ipaddress.ip_address(each.getsockname()[0].partition("%")[0])
        host = _source(each.family) if bound.is_unspecified else str(bound)
        if host is not None:
            hosts.append(host)
    return hosts or [_loopback(sockets[0].family)]


def _source(family: int) -> str | None:
    """Which address of this machine packets into the world have; None without a way there. Nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect((_FAR[socket.AddressFamily(family)], 9))
            host: str = asking.getsockname()[0]
            return host
    except OSError:
        return None


def _loopback(family: int) -> str:
    return "127.0.0.1" if family == socket.AF_INET else "::1"
