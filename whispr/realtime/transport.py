"""Non-blocking sends on one socket: direct when they can be, coalesced when they should be, always bounded.

A frame goes straight to the kernel if nothing waits before it. Three things make it wait:

* The socket was already sent a frame in this *round*. A round ends when the flusher task runs, one scheduling
  step of Trio after the first send. So a lone frame leaves at once, and a burst costs two system calls in all.
* The hub is corked: a caller is about to send several frames and says so.
* The kernel's buffer is full: the socket is *blocked*. Then a writer task waits for room, and lives only as long as
  that lasts.

Whether a frame may go straight is one comparison: `mark` is the last round in which one did, or `NEVER` while
something waits or nothing more is accepted, and the flusher's `turn` is the round, or 0 while corked.

What waits behind the frame being sent is bounded by `buffer_bytes`. A blocked socket first goes without what its
reader can do without (`whispr.realtime.policies`): dropped frames are not queued, of conflated ones the latest of
each key waits beside the queue, within the same bound. When even so the bound is passed, the reader is too slow for
what it subscribed to: what waits is dropped, `Owner.too_slow` is called once, and only its close frame is still
sent. Once a blocked socket has room again and all is sent, `Owner.caught_up` hears for whom frames were dropped.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection, Hashable
from contextlib import suppress
from itertools import accumulate
from typing import Protocol

import trio

from whispr.realtime.policies import Handling, Spareable

_COALESCE_BYTES = 64 * 1024
NEVER = 1 << 62
"""A `mark` that no round reaches."""


class Flusher:
    """Ends rounds: flushes the transports that held frames back. One per hub; `run` must be running."""

    __slots__ = ("_corks", "_dirty", "_lot", "_round", "armed", "turn")

    def __init__(self) -> None:
        self.turn = 1
        """Transports with a lower `mark` may send now."""
        self.armed = False
        self._round = 1
        self._corks = 0
        self._dirty: list[Transport] = []
        self._lot = trio.lowlevel.ParkingLot()

    def arm(self) -> None:
        """See to it that the round ends soon."""
        self.armed = True
        self._lot.unpark()

    def cork(self) -> None:
        """Hold everything back until as many `uncork`."""
        self._corks += 1
        self.turn = 0

    def uncork(self) -> None:
        """Undo one `cork`; the last one flushes."""
        self._corks -= 1
        if not self._corks:
            self.flush()

    def add(self, transport: Transport) -> None:
        """Flush this transport when the round ends, or when the hub is uncorked."""
        self._dirty.append(transport)
        if not self.armed:
            self.arm()

    def flush(self) -> None:
        """End the round now."""
        self._round += 1
        self.turn = 0 if self._corks else self._round
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


class Owner(Protocol):
    """Whose transport it is."""

    def start_writer(self, write: Callable[[], Awaitable[None]]) -> None:
        """Start the writer task, in the connection's nursery."""

    def too_slow(self) -> None:
        """The buffer was full; what waited is gone."""

    def caught_up(self, missed: Collection[Hashable]) -> None:
        """Room again, and nothing waits. `missed` are those for whom frames were dropped meanwhile."""


class _Spared:
    """What a blocked socket goes without: who missed something, and the latest of each key."""

    __slots__ = ("latest", "missed")

    def __init__(self) -> None:
        self.missed: dict[Hashable, None] = {}
        self.latest: dict[Hashable, bytes] = {}


class Transport:
    """The sending half of one non-blocking stdlib socket.

    `ending` says that nothing more is accepted, because a close frame was sent or is the last of the queue;
    `broken` that the connection is gone.
    """

    __slots__ = (
        "_blocked",
        "_buffer_bytes",
        "_dirty",
        "_flusher",
        "_owner",
        "_queue",
        "_queued_bytes",
        "_sock",
        "_spared",
        "broken",
        "ending",
        "mark",
        "send_now",
    )

    def __init__(self, sock: socket.socket, flusher: Flusher, buffer_bytes: int, owner: Owner) -> None:
        self._sock = sock
        self._flusher = flusher
        self._buffer_bytes = buffer_bytes
        self._owner = owner
        self._queue: list[bytes] = []  # the first may be what is left of a frame
        self._queued_bytes = 0
        self._spared: _Spared | None = None
        self._dirty = False
        self._blocked = False
        self.mark = 0
        self.ending = False
        self.broken = False
        self.send_now = sock.send
        """The kernel's send, for `whispr.realtime.fanout`, which has compared `mark`."""

    @property
    def blocked(self) -> bool:
        """Whether the kernel's buffer is full."""
        return self._blocked

    def limit_unsent(self, size: int) -> None:
        """Have the kernel hold at most about `size` bytes that are not on their way, for what must not be late.

        Past them the socket is `blocked` (TCP_NOTSENT_LOWAT, tcp(7)). Nothing where there is no such limit.
        """
        with suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def send(self, frame: bytes) -> None:
        """Send, or keep for later, one whole frame; drop it when the connection is ending. Never waits or raises."""
        flusher = self._flusher
        if self.mark >= flusher.turn:
            self.enqueue(frame)
            return
        self.mark = flusher.turn
        if not flusher.armed:
            flusher.arm()
        sent = self._try_send(frame)
        if sent < len(frame):
            self.keep_rest(frame, sent)

    def spare(self, frame: bytes, spareable: Spareable, whose: Hashable) -> None:
        """Send a frame that a slow reader goes without: `whose` is told to `Owner.caught_up` if it was dropped."""
        if self._blocked:
            self.enqueue(frame, spareable, whose)
        else:
            self.send(frame)

    def keep_rest(self, frame: bytes, sent: int) -> None:
        """Queue what the kernel did not take of a frame, and wait for room."""
        if self.broken:
            return
        self._queue.append(frame[sent:])
        self._queued_bytes = len(frame) - sent
        self.mark = NEVER
        self._wait_for_room()

    def fail(self) -> None:
        """Note that the connection is gone.

        Its reader meets the same end, as EOF or a reset, and closes it; here it is no news.
        """
        self.broken = True
        self.mark = NEVER

    def end(self, close_frame: bytes) -> None:
        """Send the close frame after what waits, and accept nothing more."""
        if self.ending:
            return
        self.ending = True
        self.mark = NEVER
        self._spared = None
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

    def enqueue(self, frame: bytes, spareable: Spareable | None = None, whose: Hashable = None) -> None:
        """Take a frame that may not go straight; `spareable` when a blocked reader goes without it."""
        if self.ending or self.broken:
            return
        if self._blocked:
            if spareable is not None and self._went_without(frame, spareable, whose):
                return
            # The frame being sent is not counted: one large reply to a healthy reader is no sign of slowness.
            if self._queued_bytes - len(self._queue[0]) + len(frame) > self._buffer_bytes:
                self._give_up()
                return
        elif self._queued_bytes >= _COALESCE_BYTES:
            self.flush()
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self.mark = NEVER
        if not self._blocked and not self._dirty:
            self._dirty = True
            self._flusher.add(self)

    def _went_without(self, frame: bytes, spareable: Spareable, whose: Hashable) -> bool:
        """Drop a frame, or keep it instead of the one before it of the same key; False when it must be queued."""
        conflated = spareable.handling is Handling.CONFLATE
        if conflated and spareable.key is None:
            return False
        spareable.spared()
        spared = self._spared = self._spared or _Spared()
        if not conflated:
            spared.missed[whose] = None
            return True
        self._queued_bytes += len(frame) - len(spared.latest.pop(spareable.key, b""))
        spared.latest[spareable.key] = frame
        if self._queued_bytes - len(self._queue[0]) > self._buffer_bytes:
            self._give_up()
        return True

    def _give_up(self) -> None:
        """Drop what waits, save the rest of a frame already begun: without it no close frame could be read."""
        self._spared = None
        del self._queue[1:]
        self._queued_bytes = len(self._queue[0])
        self._owner.too_slow()

    def _wait_for_room(self) -> None:
        self._blocked = True
        self._owner.start_writer(self._write)

    async def _write(self) -> None:
        """Writer task: lives as long as the kernel's buffer is full."""
        await self.flushed()
        self._blocked = False
        spared, self._spared = self._spared, None
        if spared is not None and spared.missed and not self.broken:
            self._owner.caught_up(spared.missed)

    def _push_out(self) -> None:
        """Send coalesced chunks until the queue is empty or the kernel takes no more."""
        queue = self._queue
        while queue and not self.broken:
            chunk = self._chunk()
            sent = self._try_send(chunk)
            self._forget(sent)
            if sent < len(chunk):
                break
            if not queue and self._spared is not None and self._spared.latest:
                queue.extend(self._spared.latest.values())
                self._spared.latest.clear()
        if self.broken:
            queue.clear()
            self._queued_bytes = 0
        elif not queue and not self.ending:
            self.mark = self._flusher.turn

    def _chunk(self) -> bytes:
        """Join frames from the front up to about `_COALESCE_BYTES`."""
        queue = self._queue
        if len(queue) == 1 or len(queue[0]) >= _COALESCE_BYTES:
            return queue[0]
        if self._queued_bytes <= _COALESCE_BYTES and self._spared is None:
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
        while whole < len(queue) and sent >= len(queue[whole]):
            sent -= len(queue[whole])
            whole += 1
        queue[: whole + 1] = [queue[whole][sent:]] if whole < len(queue) else []

    def _try_send(self, data: bytes) -> int:
        try:
            return self.send_now(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.fail()
            return 0
