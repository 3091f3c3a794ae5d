"""What a link's channel does, in order: join, pushes, leave; and the replies it owes.

The worker's task runs in the socket's nursery and exists only while there is something to do; the worker itself is
made for a join and for a first push, and dropped by its link when it is idle. So an idle link costs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from whispr.errors import WhisprError, unavailable
from whispr.realtime import metrics
from whispr.realtime.channel import NO_REPLY, Deferred, LeaveReason, error_response
from whispr.realtime.protocol import EMPTY, Message, Ref
from whispr.realtime.tracing import ended_with, push_span
from whispr.telemetry.tracing import Span

if TYPE_CHECKING:
    from whispr.realtime.link import Link

log = structlog.get_logger()

_OVERDUE_SLACK_S = 1.0  # the hub's coarse clock: no reply is failed early


class Worker:
    """The queue of one link and its replies outstanding."""

    __slots__ = (
        "_deferred",
        "_finished",
        "_inbox",
        "_link",
        "_quiet",
        "_room",
        "_scope",
        "_slot",
        "_tried",
        "working",
    )

    def __init__(self, link: Link) -> None:
        self._link = link
        self._inbox: list[Message] = []
        self._tried: Message | None = None  # was offered to `handle_now` already
        self._deferred: dict[Deferred, tuple[Ref, float]] = {}
        self._scope: trio.CancelScope | None = None
        self._room: trio.Event | None = None
        self._slot: trio.Event | None = None
        self._quiet: trio.Event | None = None
        self._finished: trio.Event | None = None
        self.working = False
        """Whether its task runs."""

    @property
    def idle(self) -> bool:
        """Whether nothing is done, waits or is owed."""
        return not (self.working or self._inbox or self._deferred)

    def offer(self, message: Message) -> bool:
        """Take a push or a leave: handle it at once if possible, else queue it. False when the inbox is full."""
        if not self.working and self._handled_now(message):
            return True
        if len(self._inbox) >= self._link.hub.limits.inbox_len:
            return False
        self._inbox.append(message)
        self.start()
        return True

    def start(self, message: Message | None = None) -> None:
        """See to it that the task runs, for a first message if there is one."""
        if message is not None:
            self._inbox.append(message)
        if not self.working:
            self.working = True
            self._link.socket.nursery.start_soon(self._work)

    def stop(self, reason: LeaveReason) -> None:
        """Drop what waits and what is owed, for the link has ended."""
        self._inbox.clear()
        self._deferred.clear()
        if self._scope is not None:
            self._scope.cancel(reason=f"channel {self._link.topic} ended: {reason}")
        self._wake()

    def says_goodbye(self) -> bool:
        """Tell whether the client's leave waits."""
        return any(message.event == "phx_leave" for message in self._inbox)

    def waiting(self) -> tuple[Message, ...]:
        """Return what waits."""
        return tuple(self._inbox)

    async def room(self) -> None:
        """Wait until the inbox may take another message."""
        self._room = self._room or trio.Event()
        await self._room.wait()

    async def quiet(self) -> None:
        """Wait until every push taken so far is answered, or the link has ended."""
        while (self.working or self._deferred) and not self._link.ended:
            self._quiet = self._quiet or trio.Event()
            await self._quiet.wait()

    async def finished(self) -> None:
        """Wait until the task is done."""
        if self.working:
            self._finished = self._finished or trio.Event()
            await self._finished.wait()

    async def answered(self) -> None:
        """Wait until no reply is owed."""
        while self._deferred:
            await self._a_slot()

    def fail_overdue(self, before: float) -> bool:
        """Fail the deferred replies that were due before this time; returns whether others are outstanding."""
        for deferred, (_, deadline) in list(self._deferred.items()):
            if deadline > before:
                break
            metrics.OVERDUE.inc()
            deferred.fail(unavailable("no outcome in time; it is safe to repeat the operation"))
        return bool(self._deferred)

    async def _work(self) -> None:
        link = self._link
        try:
            with trio.CancelScope() as self._scope:
                while self._inbox:
                    message = self._inbox.pop(0)
                    if self._room is not None:
                        self._room.set()
                        self._room = None
                    await self._process(message)
        finally:
            # The end of the socket cancels this task from outside; the channel leaves all the same.
            self._scope = None
            if link.ended:
                await link.leave()
            self.working = False
            self._wake()
            if self._finished is not None:
                self._finished.set()
            link.rest()

    async def _process(self, message: Message) -> None:
        if message.event == "phx_join":
            await self._link.join(message)
        elif message.event == "phx_leave":
            await self.answered()
            self._link.client_left(message)
        else:
            await self._push(message)

    async def _push(self, message: Message) -> None:
        link = self._link
        while len(self._deferred) >= link.hub.limits.deferred_len:
            await self._a_slot()
        try:
            with push_span(link.topic, message) as span, trio.fail_after(link.hub.limits.push_s):
                result: object = NotImplemented
                if message is not self._tried:
                    result = link.channel.handle_now(message.event, message.payload)
                self._tried = None
                if result is NotImplemented:
                    result = await link.channel.handle(message.event, message.payload)
                if span is not None and isinstance(result, Deferred):
                    span.hold()
            self._answer(message.ref, result, span)
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self._failed(message.ref, error)

    async def _a_slot(self) -> None:
        self._slot = self._slot or trio.Event()
        await self._slot.wait()

    def _handled_now(self, message: Message) -> bool:
        """Try the channel's `handle_now`, in the reader's task. Only when nothing is queued before it."""
        link = self._link
        if message.event == "phx_leave" or len(self._deferred) >= link.hub.limits.deferred_len:
            return False
        try:
            with push_span(link.topic, message) as span:
                result = link.channel.handle_now(message.event, message.payload)
                if span is not None and (result is NotImplemented or isinstance(result, Deferred)):
                    span.hold()  # it goes on, or another one begins when the push is handled
            if result is NotImplemented:
                self._tried = message
                return False
            self._answer(message.ref, result, span)
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self._failed(message.ref, error)
        return True

    def _answer(self, ref: Ref, result: object, span: Span | None = None) -> None:
        link = self._link
        if isinstance(result, Deferred):
            if not self._deferred:
                link.hub.watch_overdue(link)
            self._deferred[result] = (ref, link.hub.now + link.hub.limits.push_s + _OVERDUE_SLACK_S)
            result.listen(self._settled if span is None else ended_with(span, self._settled))
        elif ref is not None and result is not NO_REPLY:
            link.socket.reply(link.join_ref, ref, link.topic, "ok", EMPTY if result is None else result)

    def _settled(self, deferred: Deferred, result: object) -> None:
        """Send a deferred reply. Called by whoever settles it, who must not suffer from our failure."""
        entry = self._deferred.pop(deferred, None)
        if entry is None:
            return  # the link ended meanwhile; there is nobody to tell
        self._wake()
        ref = entry[0]
        try:
            if isinstance(result, WhisprError):
                self._failed(ref, result)
            else:
                self._answer(ref, result)
        except Exception as error:  # noqa: BLE001  # such as a response that is no JSON
            self._failed(ref, error)

    def _failed(self, ref: Ref, error: Exception) -> None:
        """Reply with an expected error; anything else is a crash of the channel."""
        link = self._link
        refusal = refusal_of(error)
        if refusal is None:
            link.crash(error)
        elif ref is not None:
            link.socket.reply(link.join_ref, ref, link.topic, "error", error_response(refusal))

    def _wake(self) -> None:
        """Wake whoever waits for a slot among the deferred replies, for room, or for quiet."""
        if self._slot is not None:
            self._slot.set()
            self._slot = None
        if self._quiet is not None:
            self._quiet.set()
            self._quiet = None
        if self._room is not None and self._link.ended:
            self._room.set()
            self._room = None


def refusal_of(error: Exception) -> WhisprError | None:
    """Return the error to answer with, or None for a defect of ours."""
    if isinstance(error, WhisprError):
        return error
    if isinstance(error, trio.TooSlowError):
        metrics.OVERDUE.inc()
        return unavailable("it took too long")
    if isinstance(error, ExceptionGroup):
        # A service that opened a nursery raises its error in a group; several at once are answered by the first.
        refusals = [refusal_of(each) for each in error.exceptions]
        return refusals[0] if all(refusals) else None
    return None
