"""A client of the hub, by whichever transport: dispatches its messages to links, watches over it, and ends it.

Two transports there are, each a subclass that reads and sends in its own way: `whispr.realtime.websocket` and
`whispr.realtime.longpoll`. Links, channels, presence, limits, drain and dismissal are the same for both.

The reader is the socket's only permanent task. It hands each message to its link. A link that cannot take another
push holds the reader back, and the transport holds the client back; the socket's other topics wait with it.

Closing: `close` queues the goodbye and stops the reader. The channels leave, then the transport hangs up, within
`Limits.close_s`. Codes: 1001 idle or shut down, 1002/1007/1009 a broken or oversized frame, 1008 the session ended,
1011 not a Phoenix message (as Phoenix does), 1012 drain, 1013 slow reader.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from whispr.errors import WhisprError, denied, exhausted, invalid, unavailable
from whispr.realtime import metrics
from whispr.realtime.channel import Session, error_response
from whispr.realtime.frames import CloseCode
from whispr.realtime.limits import OperationBudget
from whispr.realtime.link import UNMATCHED, Link
from whispr.realtime.protocol import EMPTY, FIELD_BYTES_MAX, MalformedMessage, Message, Ref
from whispr.realtime.renewal import RENEWALS, expiring, moment, token_in
from whispr.realtime.serializers import Serializer

if TYPE_CHECKING:
    from whispr.realtime.hub import Hub
    from whispr.realtime.transport import Transport

Authenticate = Callable[[str], Awaitable[Session]]
"""Verifies an access token. Raises WhisprError: UNAUTHENTICATED with its reason, or UNAVAILABLE."""

_ids = itertools.count(1)

_APPLICATION_CODES = 3000  # and above: of those who use the protocol (RFC 6455 §7.4.2)


class Socket(abc.ABC):
    """One connected client. `run` owns it; everything else is synchronous and may be called until it has ended."""

    __slots__ = (
        "_authenticate",
        "_budget",
        "_chatter",
        "_closing",
        "_draining",
        "_held_back",
        "_reading",
        "_renewing",
        "_warn_at",
        "began_at",
        "hub",
        "id",
        "last_seen",
        "links",
        "nursery",
        "send",
        "serializer",
        "session",
        "transport",
    )

    nursery: trio.Nursery
    send: Callable[[bytes], None]
    """Send one encoded frame, or drop it when the socket is closing. Set by the transport; it never waits."""

    def __init__(
        self, hub: Hub, session: Session, serializer: Serializer, authenticate: Authenticate | None
    ) -> None:
        """`authenticate` verifies the tokens that follow the first; without it none can."""
        self.id = next(_ids)
        self.serializer = serializer
        self.hub = hub
        self.session = session
        self.links: dict[str, Link] = {}
        self.transport: Transport | None = None
        """Where the fan-out may send to directly; None for a socket that sends in a way of its own."""
        self.began_at = self.last_seen = hub.now
        self._authenticate = authenticate
        self._renewing = False
        self._warn_at = 0.0  # Unix time, once the sweep has looked at the token
        self._budget = OperationBudget(hub.limits.operations_per_min)
        self._chatter = OperationBudget(hub.limits.chatter_per_min)
        self._reading = trio.CancelScope()
        self._closing: tuple[int, str] | None = None
        self._draining = False
        self._held_back = False

    # ── what a transport does ──

    @abc.abstractmethod
    async def _read(self) -> None:
        """Hand what the client says to `_message`, until `close` or the client ends it."""

    @abc.abstractmethod
    def _say_goodbye(self, code: int, reason: str) -> None:
        """Accept nothing more to send; what is queued still goes, and then the reason. May be called again."""

    @abc.abstractmethod
    def _detach(self) -> None:
        """Start no task in the nursery any more, which is closing."""

    @abc.abstractmethod
    async def _hang_up(self) -> None:
        """Let what is queued reach the client, within `Limits.close_s`, and end the connection."""

    # ── for the hub, links and services ──

    async def run(self) -> None:
        """Serve the connection until it ends, and close it."""
        self.hub.add(self)
        try:
            async with trio.open_nursery() as self.nursery:
                try:
                    self.hub.catch_up(self)
                    with self._reading:
                        await self._read()
                    await self._finish_pushes()
                finally:
                    self._end_channels()
                    self.nursery.cancel_scope.cancel(reason="the socket closed")
        finally:
            self.hub.remove(self)
            code, _ = self._closing or (CloseCode.GOING_AWAY, "")
            # What a client closes with is its own business, and there are two thousand such codes.
            metrics.CLOSED.labels("application" if code >= _APPLICATION_CODES else str(int(code))).inc()
            await self._hang_up()

    def reply(self, join_ref: Ref, ref: Ref, topic: str, status: str, response: object) -> None:
        """Answer one message."""
        self.send(self.serializer.reply(join_ref, ref, topic, status, response))

    def end(self, join_ref: Ref, topic: str, event: str, payload: object = EMPTY) -> None:
        """Tell the client that a channel has ended: `phx_close` or `phx_error`."""
        self.send(self.serializer.end(join_ref, topic, event, payload))

    def close(self, code: int, reason: str) -> None:
        """Begin to close: nothing sent or received from now on counts. The first reason given is the one sent."""
        if self._closing is None:
            self._closing = (code, reason)
        self._say_goodbye(*self._closing)
        self._reading.cancel(reason=reason)

    def dismiss(self, event: str, payload: object, reason: str) -> None:
        """Tell every joined channel why, then close with 1008."""
        for link in tuple(self.links.values()):
            link.push(event, payload)
        self.close(CloseCode.POLICY_VIOLATION, reason)

    def drain(self) -> None:
        """Read no more, answer what is in flight (at most `Limits.drain_s`), then close with 1012."""
        if self._closing is None:
            self._closing = (CloseCode.SERVICE_RESTART, "the server is restarting")
            self._draining = True
        self._reading.cancel(reason="drain")

    def check(self, wall_s: float) -> None:
        """Close an idle socket, and one whose session has expired. Called by the hub every second."""
        expires_at = self.session.expires_at
        if expires_at is not None and wall_s >= self._warn_at:
            self._expires(expires_at, wall_s)
        if self._is_idle():
            self.close(CloseCode.GOING_AWAY, "idle: no word from the client")

    async def renew(self, token: str) -> object:
        """Go on with a new access token of the same user; returns what the client is told.

        Raises UNAUTHENTICATED and UNAVAILABLE as `authenticate` does, PERMISSION_DENIED for somebody else's token.
        """
        if self._authenticate is None:
            raise unavailable("tokens cannot be renewed here")
        session = await self._authenticate(token)
        if session.user_id != self.session.user_id:
            raise denied("the token is somebody else's")
        if session.expires_at is None or session.expires_at > (self.session.expires_at or 0.0):
            self.session = session
            self._warn_at = 0.0
            metrics.RENEWALS.inc()
        expires_at = self.session.expires_at
        return {"expires_at": None if expires_at is None else moment(expires_at)}

    def forget(self, link: Link) -> None:
        """Take an ended link off, unless a newer join of its topic took its place."""
        if self.links.get(link.topic) is link:
            del self.links[link.topic]

    # ── reading ──

    def _expires(self, expires_at: float, wall_s: float) -> None:
        """Warn the client that its token expires soon, and dismiss it when that has happened."""
        if expires_at <= wall_s:
            self.dismiss("token_expired", {"reason": "token_expired"}, "token_expired")
        elif not self._warn_at:
            self._warn_at = expires_at - min(self.hub.limits.renew_s, (expires_at - wall_s) / 2)
        else:
            self._warn_at = expires_at
            for link in tuple(self.links.values()):
                link.push("token_expiring", expiring(expires_at, wall_s))

    def _is_idle(self) -> bool:
        """Tell whether the client has been silent for too long. One that we do not read cannot be blamed."""
        return self.hub.now - self.last_seen > self.hub.limits.idle_s and not self._held_back

    async def _message(self, data: str | bytes) -> None:
        try:
            message = self.serializer.decode(data)
        except MalformedMessage as error:
            self.close(CloseCode.INTERNAL_ERROR, f"malformed message: {error}")
            return
        link = self._dispatch(message)
        while link is not None and not link.offer(message):
            self._held_back = True
            await link.room()
            self._held_back = False
            self.last_seen = self.hub.now

    def _dispatch(self, message: Message) -> Link | None:
        """Answer what concerns the socket itself; return the link that must take the message."""
        topic, event = message.topic, message.event
        if topic == "phoenix":
            self._on_phoenix(message)
            return None
        link = self.links.get(topic)
        if event == "phx_leave":
            self._chatters()
            return self._leave(message, link)
        metered = link is None or not link.unmetered(event)
        if (
            metered
            and (wait_s := self._budget.take(trio.current_time() if self._budget.limited else 0.0)) > 0
        ):
            metrics.REFUSED_OPERATIONS.inc()
            self._chatters()
            self._refuse(message, exhausted("too many operations on this socket", wait_s))
            return None
        if event == "phx_join":
            self._join(message, link)
            return None
        if link is None:
            self.reply(None, message.ref, topic, "error", UNMATCHED)
            return None
        if message.join_ref is not None and message.join_ref != link.join_ref:
            return None  # meant for an earlier join of this topic, which has ended
        metrics.PUSHES.inc()
        return link

    def _on_phoenix(self, message: Message) -> None:
        """Answer on the protocol's own topic: heartbeats, and new tokens from clients that have no channel."""
        self._chatters()
        if message.event == "heartbeat":
            self.reply(None, message.ref, "phoenix", "ok", EMPTY)
        elif message.event in RENEWALS and not self._renewing:
            self._renewing = True
            self.nursery.start_soon(self._renew, message)
        else:
            self.reply(None, message.ref, "phoenix", "error", UNMATCHED)

    async def _renew(self, message: Message) -> None:
        try:
            with trio.fail_after(self.hub.limits.push_s):
                response = await self.renew(token_in(message.event, message.payload))
            self.reply(None, message.ref, "phoenix", "ok", response)
        except (WhisprError, trio.TooSlowError) as error:
            refusal = error if isinstance(error, WhisprError) else unavailable("it took too long")
            self._refuse(message, refusal)
        finally:
            self._renewing = False

    def _leave(self, message: Message, link: Link | None) -> Link | None:
        if link is None:
            self.reply(message.join_ref, message.ref, message.topic, "ok", EMPTY)
            return None
        stale = message.join_ref is not None and message.join_ref != link.join_ref
        return None if stale else link

    def _join(self, message: Message, old: Link | None) -> None:
        factory = self.hub.factory(message.topic)
        if factory is None:
            metrics.JOINS.labels("unmatched_topic").inc()
            self.reply(None, message.ref, message.topic, "error", UNMATCHED)
            return
        if old is None and len(self.links) >= self.hub.limits.channels:
            limit = self.hub.limits.channels
            self._refuse(message, exhausted(f"at most {limit} channels a socket", reason="too_many_channels"))
            return
        if (odd := _unfit(message)) is not None:
            metrics.JOINS.labels(odd.reason).inc()
            self._refuse(message, odd)
            return
        replaces: tuple[Link, ...] = ()
        if old is not None:
            replaces = (*old.waits_for, old)
            old.end("replaced")
        elif (error := self._refused_lately(message.topic)) is not None:
            self._refuse(message, error)
            return
        link = Link(self, message, factory, replaces)
        self.links[message.topic] = link
        link.start(message)

    def _refused_lately(self, topic: str) -> WhisprError | None:
        error = self.hub.refusals.find(self.session.user_id, topic, trio.current_time())
        if error is not None:
            metrics.JOINS_UNASKED.inc()
            metrics.JOINS.labels(error.reason).inc()
        return error

    def _chatters(self) -> None:
        """Count what costs us something and is no operation; close whoever does nothing else."""
        if self._chatter.limited and self._chatter.take(trio.current_time()) > 0 and self._closing is None:
            metrics.FLOODS.inc()
            self.close(CloseCode.POLICY_VIOLATION, "flood: too much beside operations")

    def _refuse(self, message: Message, error: WhisprError) -> None:
        response = error_response(error)
        self.reply(message.join_ref, message.ref, message.topic, "error", response)

    # ── ending ──

    async def _finish_pushes(self) -> None:
        if self._draining:
            with trio.move_on_after(self.hub.limits.drain_s):
                for link in tuple(self.links.values()):
                    await link.quiet()

    def _end_channels(self) -> None:
        """Say goodbye if nobody has yet, and end every link; they leave in the nursery."""
        self.close(CloseCode.GOING_AWAY, "the server is shutting down")
        self._detach()
        for link in tuple(self.links.values()):
            link.end("closed")


def _unfit(message: Message) -> WhisprError | None:
    """Find what a join may not have us keep, for as long as the channel lives or its refusal is remembered."""
    kept = {"topic": message.topic, "join_ref": str(message.join_ref)}
    long = [name for name, text in kept.items() if len(text.encode()) > FIELD_BYTES_MAX]
    return invalid(dict.fromkeys(long, f"may have at most {FIELD_BYTES_MAX} bytes")) if long else None
