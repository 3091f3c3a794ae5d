"""One topic joined on one socket: the framework's half of a channel.

A link is born subscribed and *joining*: broadcasts are held until its channel's `join` has answered. It is then
*joined*, and at last *ended*, by whichever comes first: the client's leave, a newer join of the topic, a crash, the
server, or the end of the socket. `end` is synchronous: from that moment nothing is delivered, and what the channel
was doing is cancelled. What still has to wait, the channel's `leave`, runs in the link's worker.

The worker is a task in the socket's nursery that exists only while there is something to do, so an idle link
costs no task. It owns everything the channel does in order: join, pushes, leave.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVarTuple

import structlog
import trio

from whispr.errors import WhisprError, internal, unavailable
from whispr.realtime import metrics
from whispr.realtime.channel import (
    NO_REPLY,
    Channel,
    ChannelFactory,
    Deferred,
    Joined,
    LeaveReason,
    Session,
    error_response,
)
from whispr.realtime.protocol import EMPTY, Message, Ref

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub
    from whispr.realtime.socket import Socket

log = structlog.get_logger()
Args = TypeVarTuple("Args")

_CRASH = {"reason": "channel_crash"}
_RESUME = {"reason": "resume"}
_OVERDUE_SLACK_S = 1.0  # the hub's coarse clock: no reply is failed early

UNMATCHED = {"reason": "unmatched topic"}
"""Phoenix's answer to a message on a topic that is not joined."""


class State(enum.Enum):
    """Where a link is in its life; it only moves downwards."""

    JOINING = 1
    JOINED = 2
    ENDED = 3


class Link:
    """A channel's way to its client, its topic and its hub."""

    __slots__ = (
        "_beside",
        "_change_floor",
        "_deferred",
        "_factory",
        "_finished",
        "_floor",
        "_has_left",
        "_held",
        "_inbox",
        "_leave_reason",
        "_overflowed",
        "_presence",
        "_quiet",
        "_replaces",
        "_room",
        "_scope",
        "_slot",
        "_tried",
        "_working",
        "channel",
        "join_ref",
        "socket",
        "state",
        "topic",
    )

    channel: Channel

    def __init__(
        self, socket: Socket, join: Message, factory: ChannelFactory, replaces: Link | None = None
    ) -> None:
        self.socket = socket
        self.topic = join.topic
        self.join_ref: Ref = join.join_ref
        self.state = State.JOINING
        self._replaces = replaces
        self._factory = factory
        self._inbox: list[Message] = [join]
        self._tried: Message | None = None  # was offered to `handle_now` already
        self._held: list[tuple[int | None, int | None, bytes]] | None = []
        self._overflowed = False
        self._floor = -1
        self._change_floor = -1
        self._deferred: dict[Deferred, tuple[Ref, float]] = {}
        self._working = False
        self._scope: trio.CancelScope | None = None
        self._beside: set[trio.CancelScope] | None = None
        self._room: trio.Event | None = None
        self._slot: trio.Event | None = None
        self._quiet: trio.Event | None = None
        self._finished: trio.Event | None = None
        self._has_left = True  # until `join` succeeded there is nothing to leave
        self._leave_reason: LeaveReason = "closed"
        self._presence: str | None = None

    # ── for channels ──

    @property
    def session(self) -> Session:
        """Whose socket it is."""
        return self.socket.session

    @property
    def hub(self) -> Hub:
        """The hub, for reaching other topics."""
        return self.socket.hub

    @property
    def subtopic(self) -> str:
        """What follows the first colon of the topic: usually an id."""
        return self.topic.partition(":")[2]

    def push(self, event: str, payload: object) -> None:
        """Send an event to this client alone; while joining, right after the join reply."""
        frame = self.socket.serializer.push(self.join_ref, self.topic, event, payload)
        self.deliver(frame)

    def broadcast(self, event: str, payload: object, *, seq: int | None = None) -> None:
        """Send an event to everyone on the topic, this client included."""
        self.hub.broadcast(self.topic, event, payload, seq=seq)

    def broadcast_from(self, event: str, payload: object, *, seq: int | None = None) -> None:
        """Send an event to everyone on the topic but this link. The user's other sockets do get it."""
        self.hub.broadcast(self.topic, event, payload, seq=seq, exclude=self)

    def track(self, meta: dict[str, object]) -> None:
        """Make the user present on the topic, with this meta, until the link ends. A second call updates it.

        Does nothing on a link that has ended: its channel may not have left yet, but nobody would untrack it.
        """
        if self.state is State.ENDED:
            return
        if self._presence is None:
            self._presence = self.hub.presence_track(self.topic, self.session.user_id, meta)
        else:
            self.update(meta)

    def update(self, meta: dict[str, object]) -> None:
        """Replace the meta; the user must be tracked."""
        assert self._presence is not None, "update before track"
        self._presence = self.hub.presence_update(self.topic, self.session.user_id, self._presence, meta)

    def untrack(self, *, linger: bool = False) -> None:
        """Stop being present, with `linger` only if the user does not come back soon. Nothing when not tracked."""
        if self._presence is not None:
            self.hub.presence_untrack(self.topic, self.session.user_id, self._presence, linger=linger)
            self._presence = None

    def push_presence_state(self) -> None:
        """Send `presence_state`, from which the client follows the `presence_diff` broadcasts.

        On a topic whose people are only counted it is empty, and `presence_count` follows.
        """
        state = self.hub.presence_state(self.topic)
        self.push("presence_state", state)
        if not state and (count := self.hub.presence_count(self.topic)):
            self.push("presence_count", {"count": count})

    def start_soon(self, fn: Callable[[*Args], Awaitable[None]], *args: *Args) -> None:
        """Run a task beside the pushes, cancelled when the link ends. An exception in it crashes the channel."""
        if self.state is not State.ENDED:
            self.socket.nursery.start_soon(self._run_beside, lambda: fn(*args))

    def close(self, event: str | None = None, payload: object = None) -> None:
        """End the channel from the server's side, after an optional last event; the client does not rejoin."""
        if self.state is State.ENDED:
            return
        if event is not None:
            self.push(event, payload)
        self.end("kicked")
        self.socket.end(self.join_ref, self.topic, "phx_close")

    # ── for the hub ──

    def restart(self) -> None:
        """End the channel as a crash does, so that the client joins again and resumes."""
        if self.state is not State.ENDED:
            self.end("crashed")
            self.socket.end(self.join_ref, self.topic, "phx_error", _RESUME)

    def deliver(self, frame: bytes, seq: int | None = None, change: int | None = None) -> None:
        """Send a frame unless this client has its seq or its change already; hold it while joining."""
        held = self._held
        if held is not None:
            if len(held) < self.hub.limits.held_len:
                held.append((seq, change, frame))
            else:
                self._overflowed = True
        elif (
            (seq is None or seq > self._floor)
            and (change is None or change > self._change_floor)
            and self.state is State.JOINED
        ):
            self.socket.send(frame)

    def fail_overdue(self, before: float) -> bool:
        """Fail the deferred replies that were due before this time; returns whether others are outstanding."""
        for deferred, (_, deadline) in list(self._deferred.items()):
            if deadline > before:
                break
            metrics.OVERDUE.inc()
            deferred.fail(unavailable("no outcome in time; it is safe to repeat the operation"))
        return bool(self._deferred)

    # ── for the socket ──

    def start(self) -> None:
        """Subscribe and begin to join."""
        self.hub.subscribe(self)
        self._start_worker()

    def offer(self, message: Message) -> bool:
        """Take a push or a leave: handle it at once if possible, else queue it. False when the inbox is full."""
        if self.state is State.ENDED:
            return True
        if not self._working and self._handled_now(message):
            return True
        if len(self._inbox) >= self.hub.limits.inbox_len:
            return False
        self._inbox.append(message)
        self._start_worker()
        return True

    async def room(self) -> None:
        """Wait until the inbox may take another message."""
        self._room = self._room or trio.Event()
        await self._room.wait()

    async def quiet(self) -> None:
        """Wait until every push taken so far is answered."""
        while (self._working or self._deferred) and self.state is not State.ENDED:
            self._quiet = self._quiet or trio.Event()
            await self._quiet.wait()

    async def finished(self) -> None:
        """Wait until the channel of an ended link has left."""
        if self._working:
            self._finished = self._finished or trio.Event()
            await self._finished.wait()

    def end(self, reason: LeaveReason) -> None:
        """Stop delivering, cancel what the channel does, and have it leave."""
        if self.state is State.ENDED:
            return
        if reason == "closed" and any(message.event == "phx_leave" for message in self._inbox):
            reason = "left"  # said goodbye and hung up in one breath
        self.state = State.ENDED
        self._leave_reason = reason
        self._held = None
        self._inbox.clear()
        self._deferred.clear()
        # Whose socket broke is usually back within seconds; nobody else need notice.
        self.untrack(linger=reason in ("closed", "crashed"))
        self.hub.unsubscribe(self)
        self.socket.forget(self)
        for scope in (self._scope, *(self._beside or ())):
            if scope is not None:
                scope.cancel(reason=f"channel {self.topic} ended: {reason}")
        self._wake()
        if not self._has_left:
            self._start_worker()

    # ── the worker ──

    def _start_worker(self) -> None:
        if not self._working:
            self._working = True
            self.socket.nursery.start_soon(self._work)

    async def _work(self) -> None:
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
            if self.state is State.ENDED and not self._has_left:
                with trio.move_on_after(self.hub.limits.leave_s, shield=True) as leaving:
                    await self._leave()
                if leaving.cancelled_caught:
                    log.warning("channel did not leave in time", topic=self.topic)
            self._working = False
            self._wake()
            if self._finished is not None:
                self._finished.set()

    async def _process(self, message: Message) -> None:
        if message.event == "phx_join":
            await self._join(message)
        elif message.event == "phx_leave":
            await self._client_leaves(message)
        else:
            await self._push(message)

    async def _join(self, message: Message) -> None:
        replaced = self._replaces
        self._replaces = None
        if replaced is not None:
            with trio.CancelScope(shield=True):  # bounded: it has ended and `leave_s` is running
                await replaced.finished()
        try:
            with trio.fail_after(self.hub.limits.push_s):
                await self.hub.in_force(self.topic)
                self.channel = self._factory(self)
                result = await self.channel.join(message.payload)
            self._has_left = False
            self._go_live(message.ref, result if isinstance(result, Joined) else Joined(result))
            metrics.JOINS.labels("ok").inc()
        except Exception as error:  # noqa: BLE001  # the boundary to service code: a failed join is an error reply
            self._refuse_join(message.ref, error)
        finally:
            if replaced is not None:
                self.socket.end(replaced.join_ref, self.topic, "phx_close")

    def _go_live(self, ref: Ref, joined: Joined) -> None:
        """Send the join reply, what was held, and from now on what comes. No step of this waits."""
        if self._overflowed:
            raise unavailable("the topic is too busy to join just now")
        response = EMPTY if joined.response is None else joined.response
        reply = self.socket.serializer.reply(self.join_ref, ref, self.topic, "ok", response)
        held, self._held = self._held or [], None
        self._floor = -1 if joined.seq is None else joined.seq
        self._change_floor = -1 if joined.change is None else joined.change
        self.state = State.JOINED
        self.hub.went_live(self)
        self.socket.send(reply)
        for seq, change, frame in held:
            self.deliver(frame, seq, change)
        if joined.seq is not None and joined.change is not None:
            self.hub.resumed(self.topic, joined.seq, joined.change)

    def _refuse_join(self, ref: Ref, error: Exception) -> None:
        refusal = _refusal(error)
        if refusal is None:
            metrics.CRASHES.inc()
            log.error("channel crashed in join", topic=self.topic, exc_info=error)
            refusal = internal("join crashed")
        metrics.JOINS.labels(refusal.reason).inc()
        waiting = tuple(self._inbox)
        self.end("crashed")
        self.socket.reply(self.join_ref, ref, self.topic, "error", error_response(refusal))
        for each in waiting:
            self.socket.reply(None, each.ref, self.topic, "error", UNMATCHED)

    async def _client_leaves(self, message: Message) -> None:
        """Answer what is in flight, then `ok`, then `phx_close`."""
        while self._deferred:
            self._slot = self._slot or trio.Event()
            await self._slot.wait()
        self.end("left")
        self.socket.reply(self.join_ref, message.ref, self.topic, "ok", EMPTY)
        self.socket.end(self.join_ref, self.topic, "phx_close")

    async def _push(self, message: Message) -> None:
        while len(self._deferred) >= self.hub.limits.deferred_len:
            self._slot = self._slot or trio.Event()
            await self._slot.wait()
        try:
            with trio.fail_after(self.hub.limits.push_s):
                result: object = NotImplemented
                if message is not self._tried:
                    result = self.channel.handle_now(message.event, message.payload)
                self._tried = None
                if result is NotImplemented:
                    result = await self.channel.handle(message.event, message.payload)
            self._answer(message.ref, result)
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self._failed(message.ref, error)

    def _handled_now(self, message: Message) -> bool:
        """Try the channel's `handle_now`, in the reader's task. Only when nothing is queued before it."""
        if message.event == "phx_leave" or len(self._deferred) >= self.hub.limits.deferred_len:
            return False
        try:
            result = self.channel.handle_now(message.event, message.payload)
            if result is NotImplemented:
                self._tried = message
                return False
            self._answer(message.ref, result)
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self._failed(message.ref, error)
        return True

    def _answer(self, ref: Ref, result: object) -> None:
        if isinstance(result, Deferred):
            if not self._deferred:
                self.hub.watch_overdue(self)
            self._deferred[result] = (ref, self.hub.now + self.hub.limits.push_s + _OVERDUE_SLACK_S)
            result.listen(self._settled)
        elif ref is not None and result is not NO_REPLY:
            self.socket.reply(self.join_ref, ref, self.topic, "ok", EMPTY if result is None else result)

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
        refusal = _refusal(error)
        if refusal is None:
            self._crash(error)
        elif ref is not None:
            self.socket.reply(self.join_ref, ref, self.topic, "error", error_response(refusal))

    def _crash(self, error: Exception) -> None:
        if self.state is State.ENDED:
            return
        metrics.CRASHES.inc()
        log.error("channel crashed", topic=self.topic, exc_info=error)
        self.end("crashed")
        self.socket.end(self.join_ref, self.topic, "phx_error", _CRASH)

    async def _run_beside(self, start: Callable[[], Awaitable[None]]) -> None:
        if self.state is State.ENDED:
            return
        self._beside = self._beside or set()
        with trio.CancelScope() as scope:
            self._beside.add(scope)
            try:
                await start()
            except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
                self._crash(error)
            finally:
                self._beside.discard(scope)

    async def _leave(self) -> None:
        self._has_left = True
        try:
            await self.channel.leave(self._leave_reason)
        except Exception as error:  # the boundary to service code: it may raise anything
            log.error("channel failed to leave", topic=self.topic, exc_info=error)

    def _wake(self) -> None:
        """Wake whoever waits for a slot among the deferred replies, for room, or for quiet."""
        for name in ("_slot", "_quiet"):
            event = getattr(self, name)
            if event is not None:
                event.set()
                setattr(self, name, None)
        if self.state is State.ENDED and self._room is not None:
            self._room.set()
            self._room = None


def _refusal(error: Exception) -> WhisprError | None:
    """Return the error to answer with, or None for a defect of ours."""
    if isinstance(error, WhisprError):
        return error
    if isinstance(error, trio.TooSlowError):
        metrics.OVERDUE.inc()
        return unavailable("it took too long")
    if isinstance(error, ExceptionGroup):
        # A service that opened a nursery raises its error in a group; several at once are answered by the first.
        refusals = [_refusal(each) for each in error.exceptions]
        return refusals[0] if all(refusals) else None
    return None
