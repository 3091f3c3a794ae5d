"""One topic joined on one socket: the framework's half of a channel.

A link is born subscribed and *joining*: broadcasts are held until its channel's `join` has answered. It is then
*joined*, and at last *ended*, by whichever comes first: the client's leave, a newer join of the topic, a crash, the
server, or the end of the socket. `end` is synchronous: from that moment nothing is delivered, and what the channel
was doing is cancelled. What still has to wait, the channel's `leave`, runs in the link's worker.

What the channel does in order, join, pushes and leave, is its worker's (`whispr.realtime.worker`). While a link is
live on a socket that sends by itself, `transport` is set, and the fan-out hands frames to it directly.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVarTuple

import structlog
import trio

from whispr.errors import denied, internal, unavailable
from whispr.realtime import metrics
from whispr.realtime.channel import Channel, ChannelFactory, Joined, LeaveReason, Session, error_response
from whispr.realtime.policies import Spareable, spareable
from whispr.realtime.protocol import EMPTY, Message, Ref
from whispr.realtime.worker import Worker, refusal_of

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub
    from whispr.realtime.socket import Socket
    from whispr.realtime.transport import Transport

log = structlog.get_logger()
Args = TypeVarTuple("Args")

_CRASH = {"reason": "channel_crash"}
_RESUME = {"reason": "resume"}

UNMATCHED = {"reason": "unmatched topic"}
"""Phoenix's answer to a message on a topic that is not joined."""


class State(enum.Enum):
    """Where a link is in its life; it only moves downwards."""

    JOINING = 1
    JOINED = 2
    ENDED = 3


class _Joining:
    """What a link needs until it is joined: broadcasts held, and the links of the same topic it replaces."""

    __slots__ = ("factory", "held", "overflowed", "ref", "replaces")

    def __init__(self, factory: ChannelFactory, ref: Ref, replaces: tuple[Link, ...]) -> None:
        self.factory = factory
        self.ref = ref
        self.replaces = replaces
        self.held: list[tuple[bytes, int | None, int | None, Spareable | None]] = []
        self.overflowed = False


class Link:
    """A channel's way to its client, its topic and its hub."""

    __slots__ = (
        "_beside",
        "_has_left",
        "_joining",
        "_leave_reason",
        "_presence",
        "_worker",
        "change_floor",
        "channel",
        "join_ref",
        "seq_floor",
        "socket",
        "state",
        "topic",
        "transport",
    )

    channel: Channel

    def __init__(
        self, socket: Socket, join: Message, factory: ChannelFactory, replaces: tuple[Link, ...] = ()
    ) -> None:
        self.socket = socket
        self.topic = join.topic
        self.join_ref: Ref = join.join_ref
        self.state = State.JOINING
        self.seq_floor = self.change_floor = -1
        """Broadcasts numbered up to here are not for this client, which has them."""
        self.transport: Transport | None = None
        """Where the fan-out may send to; None while joining, when ended, and where the socket sends otherwise."""
        self._joining: _Joining | None = _Joining(factory, join.ref, replaces)
        self._worker: Worker | None = None
        self._beside: set[trio.CancelScope] | None = None
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

    @property
    def ended(self) -> bool:
        """Whether nothing is delivered any more."""
        return self.state is State.ENDED

    def push(self, event: str, payload: object) -> None:
        """Send an event to this client alone; while joining, right after the join reply."""
        frame = self.socket.serializer.push(self.join_ref, self.topic, event, payload)
        self.deliver(frame, kind=spareable(self.topic, event, payload))

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
            self._presence = self.hub.presence.track(self.topic, self.session.user_id, meta)
        else:
            self.update(meta)

    def update(self, meta: dict[str, object]) -> None:
        """Replace the meta; the user must be tracked."""
        assert self._presence is not None, "update before track"
        self._presence = self.hub.presence.update(self.topic, self.session.user_id, self._presence, meta)

    def untrack(self, *, linger: bool = False) -> None:
        """Stop being present, with `linger` only if the user does not come back soon. Nothing when not tracked."""
        if self._presence is not None:
            self.hub.presence.untrack(self.topic, self.session.user_id, self._presence, linger=linger)
            self._presence = None

    def push_presence_state(self) -> None:
        """Send `presence_state` soon, from which the client follows the `presence_diff` broadcasts.

        On a topic whose people are only counted it is empty, and `presence_count` follows.
        """
        self.hub.presence.show(self)

    def start_soon(self, fn: Callable[[*Args], Awaitable[None]], *args: *Args) -> None:
        """Run a task beside the pushes, cancelled when the link ends. An exception in it crashes the channel."""
        if self.state is not State.ENDED:
            self.socket.nursery.start_soon(self._run_beside, lambda: fn(*args))

    def close(self, event: str | None = None, payload: object = None) -> None:
        """End the channel from the server's side, after an optional last event; the client does not rejoin.

        Whoever is still joining is refused, with the event for a reason.
        """
        if self.state is State.ENDED:
            return
        if self._joining is not None:
            told = denied("the channel was closed while it was being joined", reason=event or "closed")
            self._refuse_join(self._joining.ref, told)
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

    def deliver(
        self, frame: bytes, seq: int | None = None, change: int | None = None, kind: Spareable | None = None
    ) -> None:
        """Send a frame unless this client has its seq or its change already; hold it while joining.

        `kind` says how a slow reader is spared it.
        """
        joining = self._joining
        if joining is not None:
            if len(joining.held) < self.hub.limits.held_len:
                joining.held.append((frame, seq, change, kind))
            else:
                joining.overflowed = True
        elif (
            (seq is None or seq > self.seq_floor)
            and (change is None or change > self.change_floor)
            and self.state is State.JOINED
        ):
            if kind is not None and self.transport is not None:
                self.transport.spare(frame, kind, self)
            else:
                self.socket.send(frame)

    def caught_up(self) -> None:
        """Make good what the client missed while it was slow."""
        if self.state is not State.JOINED:
            return
        try:
            self.channel.missed_presence()
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self.crash(error)

    def fail_overdue(self, before: float) -> bool:
        """Fail the deferred replies that were due before this time; returns whether others are outstanding."""
        return self._worker is not None and self._worker.fail_overdue(before)

    # ── for the socket ──

    @property
    def waits_for(self) -> tuple[Link, ...]:
        """Return the links that this one was to replace, as long as it has not begun to join."""
        return () if self._joining is None else self._joining.replaces

    def start(self, join: Message) -> None:
        """Subscribe and begin to join."""
        self.hub.subscribe(self)
        self._worker = Worker(self)
        self._worker.start(join)

    def offer(self, message: Message) -> bool:
        """Take a push or a leave: handle it at once if possible, else queue it. False when the inbox is full."""
        if self.state is State.ENDED:
            return True
        if self._worker is None:
            self._worker = Worker(self)
        return self._worker.offer(message)

    def unmetered(self, event: str) -> bool:
        """Whether a push is media, which its channel bounds by what it takes, and no operation."""
        if self.state is not State.JOINED:
            return False
        try:
            return event in self.channel.media
        except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
            self.crash(error)
            return False

    async def room(self) -> None:
        """Wait until the inbox may take another message."""
        if self._worker is not None:
            await self._worker.room()

    async def quiet(self) -> None:
        """Wait until every push taken so far is answered."""
        if self._worker is not None:
            await self._worker.quiet()

    async def finished(self) -> None:
        """Wait until the channel of an ended link has left."""
        if self._worker is not None:
            await self._worker.finished()

    def end(self, reason: LeaveReason) -> None:
        """Stop delivering, cancel what the channel does, and have it leave."""
        if self.state is State.ENDED:
            return
        worker = self._worker
        if reason == "closed" and worker is not None and worker.says_goodbye():
            reason = "left"  # said goodbye and hung up in one breath
        self.state = State.ENDED
        self.transport = None
        self._leave_reason = reason
        self._joining = None
        # Whose socket broke is usually back within seconds; nobody else need notice.
        self.untrack(linger=reason in ("closed", "crashed"))
        self.hub.unsubscribe(self)
        self.socket.forget(self)
        for scope in self._beside or ():
            scope.cancel(reason=f"channel {self.topic} ended: {reason}")
        if worker is not None:
            worker.stop(reason)
        if not self._has_left:
            self._worker = worker = worker or Worker(self)
            worker.start()

    # ── for the worker ──

    async def join(self, message: Message) -> None:
        """Have the channel admit or refuse the client."""
        joining = self._joining
        if joining is None:
            return  # ended before it began
        replaced, joining.replaces = joining.replaces, ()
        for each in replaced:
            with trio.CancelScope(shield=True):  # bounded: it has ended and `leave_s` is running
                await each.finished()
        try:
            with trio.fail_after(self.hub.limits.push_s):
                await self.hub.in_force(self.topic)
                self.channel = joining.factory(self)
                result = await self.channel.join(message.payload)
            self._has_left = False
            # The channel may have been closed in the moment between its answer and our turn.
            if self._joining is joining:
                self._go_live(joining, message.ref, result if isinstance(result, Joined) else Joined(result))
                metrics.JOINS.labels("ok").inc()
        except Exception as error:  # noqa: BLE001  # the boundary to service code: a failed join is an error reply
            self._refuse_join(message.ref, error)
        finally:
            for each in replaced:
                self.socket.end(each.join_ref, self.topic, "phx_close")

    def client_left(self, message: Message) -> None:
        """Answer the client's leave with `ok`, then `phx_close`."""
        self.end("left")
        self.socket.reply(self.join_ref, message.ref, self.topic, "ok", EMPTY)
        self.socket.end(self.join_ref, self.topic, "phx_close")

    async def leave(self) -> None:
        """Let the channel of an ended link clean up, once."""
        if self._has_left:
            return
        self._has_left = True
        with trio.move_on_after(self.hub.limits.leave_s, shield=True) as leaving:
            try:
                await self.channel.leave(self._leave_reason)
            except Exception as error:  # the boundary to service code: it may raise anything
                log.error("channel failed to leave", topic=self.topic, exc_info=error)
        if leaving.cancelled_caught:
            log.warning("channel did not leave in time", topic=self.topic)

    def rest(self) -> None:
        """Drop a worker that has nothing to do."""
        if self._worker is not None and self._worker.idle:
            self._worker = None

    def crash(self, error: Exception) -> None:
        """End the channel for an unexpected exception; the client may join again."""
        if self.state is State.ENDED:
            return
        metrics.CRASHES.inc()
        log.error("channel crashed", topic=self.topic, exc_info=error)
        self.end("crashed")
        self.socket.end(self.join_ref, self.topic, "phx_error", _CRASH)

    def _go_live(self, joining: _Joining, ref: Ref, joined: Joined) -> None:
        """Send the join reply, what was held, and from now on what comes. No step of this waits."""
        if joining.overflowed:
            raise unavailable("the topic is too busy to join just now")
        response = EMPTY if joined.response is None else joined.response
        reply = self.socket.serializer.reply(self.join_ref, ref, self.topic, "ok", response)
        self._joining = None
        self.seq_floor = -1 if joined.seq is None else joined.seq
        self.change_floor = -1 if joined.change is None else joined.change
        self.state = State.JOINED
        self.hub.went_live(self)
        self.socket.send(reply)
        self.transport = self.socket.transport
        for held in joining.held:
            self.deliver(*held)
        if joined.seq is not None and joined.change is not None:
            self.hub.resumed(self.topic, joined.seq, joined.change)

    def _refuse_join(self, ref: Ref, error: Exception) -> None:
        refusal = refusal_of(error)
        if refusal is None:
            metrics.CRASHES.inc()
            log.error("channel crashed in join", topic=self.topic, exc_info=error)
            refusal = internal("join crashed")
        metrics.JOINS.labels(refusal.reason).inc()
        self.hub.refusals.note(self.session.user_id, self.topic, refusal, trio.current_time())
        waiting = self._worker.waiting() if self._worker is not None else ()
        self.end("crashed")
        self.socket.reply(self.join_ref, ref, self.topic, "error", error_response(refusal))
        for each in waiting:
            self.socket.reply(None, each.ref, self.topic, "error", UNMATCHED)

    async def _run_beside(self, start: Callable[[], Awaitable[None]]) -> None:
        if self.state is State.ENDED:
            return
        self._beside = self._beside or set()
        with trio.CancelScope() as scope:
            self._beside.add(scope)
            try:
                await start()
            except Exception as error:  # noqa: BLE001  # the boundary to service code: it may raise anything
                self.crash(error)
            finally:
                self._beside.discard(scope)
