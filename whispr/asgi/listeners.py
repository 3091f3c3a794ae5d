"""Sockets to listen on: TCP over IPv4 and IPv6."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import trio

BACKLOG = 1024

_ABSENT = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


async def open_tcp(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of `host`, all interfaces if it is empty; port 0 for a free one.

    All listen on the same port. Raises OSError, a gaierror if the name is not known.
    """
    found = await trio.socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    listeners: list[trio.SocketListener] = []
    failure: OSError | None = None
    try:
        for family, _, _, _, address in found:
            try:
                listener = _bound(family, (address[0], port, *address[2:]))
            except OSError as error:
                # Of "localhost" one family may be missing on this machine; an address in use is an error.
                failure = error
                if error.errno not in _ABSENT:
                    raise
                continue
            listeners.append(listener)
            port = listener.socket.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    if not listeners:
        raise failure or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return listeners


def _bound(family: int, address: Any) -> trio.SocketListener:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    except BaseException:
        listener.close()
        raise
