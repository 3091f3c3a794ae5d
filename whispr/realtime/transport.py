"""Non-blocking sends on one socket: direct when they can be, coalesced when they should be, always bounded.

A frame goes straight to the kernel if nothing waits before it. Three things make it wait:

* The socket was already sent a frame in this *round*. A round ends when the flusher task runs, one scheduling
  step of Trio after the first send. So a lone frame leaves at once, and a burst costs two system calls in all.
* The hub is corked: a caller is about to send several frames and says so.
* The kernel's buffer is full. Then a writer task waits for room, and lives only as long as that lasts.

What waits behind the frame being sent is bounded by `buffer_bytes`. Past that the reader is too slow for what
it subscribed to: what waits is dropped, `on_slow` is called once, and only its close frame is still sent.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from itertools import accumulate

import trio

_COALESCE_BYTES = 64 * 1024


class Flusher:
    """Ends rounds: flushes the transports that held frames back. One per hub; `run` must be running."""

    __slots__ = ("_dirty", "_lot", "armed", "corks", "round")

    def __init__(self) -> None:
        self.round = 1
        self.armed = False
        self.corks = 0
        self._dirty: list[Transport] = []
        self._lot = trio.lowlevel.ParkingLot()

    def arm(self) -> None:
        """See to it that the round ends soon."""
        self.armed = True
        self._lot.unpark()

    def add(self, transport: Transport) -> None:
        """Flush this transport when the round ends, or when the hub is uncorked."""
        self._dirty.append(transport)
        if not self.armed:
            self.arm()

    def flush(self) -> None:
        """End the round now."""
        self.round += 1
        dirty, self._dirty = self._dirty, []
        for transport in dirty:
            transport.flush()

    async def run(self) -> None:
        """End rounds for ever."""
        while True:
            if self.armed:
                await trio.lowlevel.checkpoint()
            else:
                await self._lot.park()
            self.armed = False
            self.flush()


class Transport:
    """The sending half of one non-blocking stdlib socket.

    `start_soon` starts the writer task in the connection's nursery. `ending` says that nothing more is accepted,
    because a close frame was sent or is the last of the queue; `broken` that the connection is gone.
    """

    __slots__ = (
        "_blocked",
        "_buffer_bytes",
        "_dirty",
        "_flusher",
        "_on_slow",
        "_queue",
        "_queued_bytes",
        "_round",
        "_sock",
        "_start_soon",
        "broken",
        "ending",
    )

    def __init__(
        self,
        sock: socket.socket,
        flusher: Flusher,
        buffer_bytes: int,
        start_soon: Callable[[Callable[[], Awaitable[None]]], None],
        on_slow: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._flusher = flusher
        self._buffer_bytes = buffer_bytes
        self._start_soon = start_soon
        self._on_slow = on_slow
        self._queue: list[bytes] = []  # the first may be what is left of a frame
        self._queued_bytes = 0
        self._round = 0
        self._dirty = False
        self._blocked = False
        self.ending = False
        self.broken = False

    def send(self, frame: bytes) -> None:
        """Send, or keep for later, one whole frame; drop it when the connection is ending. Never waits or raises."""
        flusher = self._flusher
        if self._queue or self._round == flusher.round or flusher.corks:
            self._enqueue(frame)
            return
        if self.ending:
            return
        self._round = flusher.round
        if not flusher.armed:
            flusher.arm()
        sent = self._try_send(frame)
        if sent < len(frame) and not self.broken:
            self._queue.append(frame[sent:])
            self._queued_bytes = len(frame) - sent
            self._wait_for_room()

    def end(self, close_frame: bytes) -> None:
        """Send the close frame after what waits, and accept nothing more."""
        if self.ending:
            return
        self.ending = True
        self._queue.append(close_frame)
        self._queued_bytes += len(close_frame)
        self.flush()

    def flush(self) -> None:
        """Send as much as the kernel takes; wait for room if that was not all."""
        self._dirty = False
        if self._blocked:
            return
        self._push_out()
        if self._queue:
            self._wait_for_room()

    def detach(self) -> None:
        """Start no writer task any more, since its nursery is closing; `flushed` takes over."""
        self._blocked = True

    async def flushed(self) -> None:
        """Send what waits, until nothing does or the connection is broken. One task at a time."""
        self._push_out()
        while self._queue:
            await trio.lowlevel.wait_writable(self._sock)
            self._push_out()

    def _enqueue(self, frame: bytes) -> None:
        if self.ending or self.broken:
            return
        if self._blocked:
            # The frame being sent is not counted: one large reply to a healthy reader is no sign of slowness.
            if self._queued_bytes - len(self._queue[0]) + len(frame) > self._buffer_bytes:
                self._give_up()
                return
        elif self._queued_bytes >= _COALESCE_BYTES:
            self.flush()
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if not self._blocked and not self._dirty:
            self._dirty = True
            self._flusher.add(self)

    def _give_up(self) -> None:
        """Drop what waits, save the rest of a frame already begun: without it no close frame could be read."""
        del self._queue[1:]
        self._queued_bytes = len(self._queue[0])
        self._on_slow()

    def _wait_for_room(self) -> None:
        self._blocked = True
        self._start_soon(self._write)

    async def _write(self) -> None:
        """Writer task: lives as long as the kernel's buffer is full."""
        await self.flushed()
        self._blocked = False

    def _push_out(self) -> None:
        """Send coalesced chunks until the queue is empty or the kernel takes no more."""
        queue = self._queue
        while queue and not self.broken:
            chunk = self._chunk()
            sent = self._try_send(chunk)
            self._forget(sent)
            if sent < len(chunk):
                break
        if self.broken:
            queue.clear()
            self._queued_bytes = 0

    def _chunk(self) -> bytes:
        """Join frames from the front up to about `_COALESCE_BYTES`."""
        queue = self._queue
        if len(queue) == 1 or len(queue[0]) >= _COALESCE_BYTES:
            return queue[0]
        if self._queued_bytes <= _COALESCE_BYTES:
            return b"".join(queue)
        count = sum(size <= _COALESCE_BYTES for size in accumulate(map(len, queue)))
        return b"".join(queue[:count])

    def _forget(self, sent: int) -> None:
        """Take what was sent off the front of the queue."""
        queue = self._queue
        self._queued_bytes -= sent
        if not self._queued_bytes:
            queue.clear()
            return
        whole = 0
        while sent >= len(queue[whole]):
            sent -= len(queue[whole])
            whole += 1
        queue[: whole + 1] = [queue[whole][sent:]]

    def _try_send(self, data: bytes) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The connection's reader meets the same end, as EOF or a reset, and closes it; here it is no news.
            self.broken = True
            return 0
