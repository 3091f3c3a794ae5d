"""Listening on a Unix socket, whatever the last one who did left behind."""

from __future__ import annotations

import errno
import os
import socket
import stat

import trio

_BACKLOG = 1024


async def open_unix_listener(path: str) -> trio.SocketListener:
    """Listen on a socket that its owner alone may connect to.

    One left by a process that was killed is replaced, if nobody answers on it. Raises OSError when the path
    cannot be had.
    """
    try:
        return _listen(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not await _is_stale(path):
            raise
    os.unlink(path)
    return _listen(path)


def _listen(path: str) -> trio.SocketListener:
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Between bind and chmod anybody could connect. Trio's own bind would wait for a thread, and others
        # would make files under this mask meanwhile.
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


async def _is_stale(path: str) -> bool:
    """Whether it is a socket, and nobody listens on it."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with trio.socket.socket(socket.AF_UNIX) as asking:
            await asking.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
