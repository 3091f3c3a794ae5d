"""One long-poll session: a client of the hub whose frames wait for its polls.

What the hub sends is whole WebSocket frames, encoded once for everybody; here they are opened again, since a poll's
answer is JSON. What waits is bounded by `Limits.buffer_bytes`, as a socket's buffer is: past that it is all dropped
and the session closed as a slow reader (1013). The client's next poll tells it that the session is gone, and it opens
another and resumes from the last seq it has seen.

At most one poll waits: a newer one has the older answered with nothing. Answers are at least `_GAP_S` apart, so that
a busy topic costs a client forty polls a second at most, each with all that has come. Polls count as a socket's pings
do (`Limits.chatter_per_min`), of which forty a second are not too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from whispr.errors import exhausted
from whispr.realtime import metrics
from whispr.realtime.channel import Session
from whispr.realtime.frames import CloseCode, FrameReader
from whispr.realtime.protocol import binary_as_text
from whispr.realtime.serializers import V2, Serializer
from whispr.realtime.socket import Authenticate, Socket

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub

_GAP_S = 0.025
_POSTS_MAX = 4  # phoenix.js has one at a time
_ANY_BYTES = 1 << 62  # our own frames: the buffer is bounded, not they


class _Post:
    """Messages on their way to the reader, and whether it has taken them all."""

    __slots__ = ("done", "messages", "taken")

    def __init__(self, messages: Sequence[str | bytes]) -> None:
        self.messages = messages
        self.taken = False
        self.done = trio.Event()


class PollSession(Socket):
    """A client that polls. `run` owns it; `poll` and `post` are the requests of its client."""

    __slots__ = (
        "_buffered_bytes",
        "_frames",
        "_messages",
        "_next_answer_at",
        "_over",
        "_polls",
        "_posting",
        "_posts",
        "_to_read",
        "_turn",
        "_woken",
    )

    def __init__(
        self,
        hub: Hub,
        session: Session,
        serializer: Serializer = V2,
        authenticate: Authenticate | None = None,
    ) -> None:
        super().__init__(hub, session, serializer, authenticate)
        self.send = self._keep
        self._frames = FrameReader(masked=False, message_bytes_max=_ANY_BYTES)
        self._messages: list[str] = []
        self._buffered_bytes = 0
        self._woken = trio.Event()
        self._turn = 0
        self._polls = 0
        self._next_answer_at = trio.current_time()
        self._posts, self._to_read = trio.open_memory_channel[_Post](0)
        self._posting = 0
        self._over = False

    async def poll(self) -> list[str] | None:
        """Return what waits, or comes within `Limits.poll_s`; None once the session is over and all was given."""
        self._chatters()
        self._turn += 1
        turn = self._turn
        self._wake()
        self._polls += 1
        try:
            with trio.move_on_after(self.hub.limits.poll_s):
                await trio.sleep_until(self._next_answer_at)
                while not (self._messages or self._over or self._turn != turn):
                    await self._woken.wait()
        finally:
            self._polls -= 1
            self.last_seen = self.hub.now
        if self._turn != turn:
            return []
        self._next_answer_at = trio.current_time() + _GAP_S
        taken = self._take()
        return None if self._over and not taken else taken

    async def post(self, messages: Sequence[str | bytes]) -> bool:
        """Return once the channels have taken these messages; False when the session ended first.

        Raises RESOURCE_EXHAUSTED while several others wait for that.
        """
        if self._posting >= _POSTS_MAX:
            raise exhausted("wait for the answer before posting more", 1.0)
        self._posting += 1
        post = _Post(messages)
        try:
            await self._posts.send(post)
            await post.done.wait()
        except trio.BrokenResourceError:
            return False
        finally:
            self._posting -= 1
        return post.taken

    # ── what a transport does ──

    async def _read(self) -> None:
        """Take posts, one at a time and in order."""
        with self._to_read:
            async for post in self._to_read:
                try:
                    for message in post.messages:
                        if self._closing is not None:
                            return
                        await self._message(message)
                    post.taken = True
                finally:
                    post.done.set()

    def _keep(self, frame: bytes) -> None:
        """Keep what a frame says for the next poll."""
        if self._over:
            return
        for item in self._frames.feed(frame):
            if isinstance(item, str | bytes):
                text = item if isinstance(item, str) else binary_as_text(item)
                # What came last is not counted: one large reply is no sign of slowness.
                if self._buffered_bytes > self.hub.limits.buffer_bytes:
                    self._too_slow()
                    return
                self._messages.append(text)
                self._buffered_bytes += len(text)
        self._wake()

    def _too_slow(self) -> None:
        metrics.SLOW_CLOSED.inc()
        self._take()
        self.close(CloseCode.TRY_AGAIN_LATER, "too slow: the buffer is full")

    def _say_goodbye(self, code: int, reason: str) -> None:
        """Take no more; a poll that waits is told."""
        del code, reason
        self._over = True
        self._wake()

    def _detach(self) -> None:
        """Nothing here starts tasks."""

    async def _hang_up(self) -> None:
        """Wait for a poll to fetch the last words."""
        with trio.move_on_after(self.hub.limits.close_s, shield=True):
            while self._messages:
                await self._woken.wait()
        self._take()

    def _is_idle(self) -> bool:
        """Tell whether the client has stopped polling."""
        return not self._polls and self.hub.now - self.last_seen > self.hub.limits.poll_idle_s

    def _take(self) -> list[str]:
        taken, self._messages = self._messages, []
        self._buffered_bytes = 0
        if taken:
            self._wake()
        return taken

    def _wake(self) -> None:
        """Have everybody who waits look again."""
        woken, self._woken = self._woken, trio.Event()
        woken.set()
