"""Which sockets have something to read.

Trio's own `wait_readable` registers a socket anew for every wait, which is a system call and about a tenth of
what a small request costs. Here each connection is registered once, edge-triggered (epoll(7)), and one task
waits for all of them: a socket is ready from when the kernel says so until a read has emptied it.
"""

from __future__ import annotations

import select
from typing import Final

import trio

_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Readiness:
    """What is known of one socket."""

    __slots__ = ("_task", "hung_up", "ready")

    def __init__(self) -> None:
        self.ready = False
        """Whether a read may find something, or the end; the reader clears it when it has found nothing."""
        self.hung_up = False
        """Whether the other side has closed, though bytes of it may still be unread."""
        self._task: trio.lowlevel.Task | None = None

    def note(self, events: int) -> None:
        """Take what the kernel says, and wake who waits for it."""
        self.ready = True
        if events & _HUNG_UP:
            self.hung_up = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait until the socket is ready. Raises BusyResourceError when another task does."""
        if self.ready:
            # One who always has something to say would otherwise let nobody else have a turn.
            await trio.lowlevel.checkpoint()
            return
        if self._task is not None:
            raise trio.BusyResourceError("another task reads from this connection")
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Poller:
    """Waits for the sockets of one server."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets: dict[int, Readiness] = {}

    def add(self, descriptor: int) -> Readiness:
        """Watch a socket, until `remove`."""
        readiness = self._sockets[descriptor] = Readiness()
        if not self._epoll.closed:  # Else the server is being cancelled, and the new connection with it.
            self._epoll.register(descriptor, _EVENTS)
        return readiness

    def remove(self, descriptor: int) -> None:
        """Forget a socket, before it is closed."""
        if self._sockets.pop(descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Until cancelled."""
        sockets = self._sockets
        with self._epoll as epoll:
            while True:
                await trio.lowlevel.wait_readable(epoll.fileno())
                for descriptor, events in epoll.poll(0, len(sockets) or 1):
                    sockets[descriptor].note(events)
