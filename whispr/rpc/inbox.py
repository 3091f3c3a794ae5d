"""Messages that have arrived on a stream and wait to be read, and waking the one task that waits."""

from __future__ import annotations

from collections import deque

import trio
from trio.lowlevel import Abort, RaiseCancelT

from whispr.errors import Code, WhisprError
from whispr.rpc.compression import Encoding
from whispr.rpc.wire import PREFIX_BYTES, Compressed, MessageReader


class Waker:
    """Wakes one waiting task. A wake with nobody waiting is not remembered: re-check what you wait for."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Sleep until `wake`."""
        assert self._task is None, "one task waits at a time"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED

    def wake(self) -> None:
        """Wake the waiting task, if there is one."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)


class Inbox:
    """Back-pressure by message: the window opens again as messages are taken.

    Bytes of a message still incomplete are given back at once while nothing else waits, or a message larger
    than the window could never arrive. So a stream holds at most one incomplete message and one window.
    """

    __slots__ = ("_held", "_messages", "_reader", "compressed", "ended")

    def __init__(self, message_bytes_max: int) -> None:
        self._reader = MessageReader(message_bytes_max)
        self._messages: deque[bytes] = deque()
        self._held = 0
        self.compressed = False
        """Whether the message taken last had come compressed."""
        self.ended = False
        """The peer will send no more."""

    def expect(self, encoding: Encoding) -> None:
        """The peer has announced this `grpc-encoding`."""
        self._reader.encoding = encoding

    def feed(self, data: bytes | memoryview) -> int:
        """Take DATA; returns the bytes to give back to the window. Raises WhisprError as MessageReader does."""
        self._messages.extend(self._reader.feed(data))
        self._held += len(data)
        return self._surplus()

    def end(self) -> None:
        """The peer ended its side. Raises WhisprError INTERNAL if it did so within a message."""
        self.ended = True
        if self._reader.incomplete:
            raise WhisprError(Code.INTERNAL, "the stream ended within a message")

    def __len__(self) -> int:
        return len(self._messages)

    def take(self) -> tuple[bytes, int]:
        """The oldest message, and the bytes to give back to the window.

        Raises WhisprError: RESOURCE_EXHAUSTED or INTERNAL for a compressed one that cannot be expanded.
        """
        message = self._messages.popleft()
        if self._messages:
            surplus = PREFIX_BYTES + len(message)
            self._held -= surplus
        else:
            surplus = self._surplus()
        if self._reader.encoding is not None:
            message = self._expanded(message, self._reader.encoding)
        return message, surplus

    def _expanded(self, message: bytes, encoding: Encoding) -> bytes:
        self.compressed = isinstance(message, Compressed)
        return encoding.expand(message, self._reader.message_bytes_max) if self.compressed else message

    def _surplus(self) -> int:
        if self._messages:
            return 0
        held, self._held = self._held, 0
        return held
