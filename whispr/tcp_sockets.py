"""Listening on TCP, over IPv4 and IPv6; also with other processes on the same port.

Processes that share a port all listen with SO_REUSEPORT (socket(7)): the kernel gives each new connection to one of
them, and those of a process that has stopped listening to the others. One that merely binds the port holds it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

BACKLOG = 1024

_ABSENT = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


async def open_tcp(host: str, port: int, *, shared: bool = False) -> list[trio.SocketListener]:
    """Listen on every address of `host`, all interfaces if it is empty; port 0 for a free one.

    All listen on the same port, `shared` with whoever else says so. Raises OSError, a gaierror for an unknown name.
    """
    sockets = await bind_tcp(host, port, shared=shared)
    try:
        for each in sockets:
            each.listen(BACKLOG)
    except BaseException:
        for each in sockets:
            each.close()
        raise
    return [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]


async def bind_tcp(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Bind the same port of every address of `host` without listening. Raises as `open_tcp`."""
    return await bind_every(host, port, socket.SOCK_STREAM, partial(_bound, shared=shared))


async def bind_every(
    host: str, port: int, kind: socket.SocketKind, bound_to: Callable[[int, Any], socket.socket]
) -> list[socket.socket]:
    """Bind the same port of every address of `host`, by `bound_to(family, address)`. Raises as `open_tcp`."""
    found = await trio.socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    failure: OSError | None = None
    try:
        for family, _, _, _, address in found:
            try:
                each = bound_to(family, (address[0], port, *address[2:]))
            except OSError as error:
                # Of "localhost" one family may be missing on this machine; an address in use is an error.
                failure = error
                if error.errno not in _ABSENT:
                    raise
                continue
            bound.append(each)
            port = each.getsockname()[1]
    except BaseException:
        for each in bound:
            each.close()
        raise
    if not bound:
        raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return bound


def _bound(family: int, address: Any, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made
