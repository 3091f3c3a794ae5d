"""The bus between nodes: core NATS, at most once, through nats-py on the bridge.

What crosses it is news whose truth is in PostgreSQL, so losing some is allowed and stalling for it is not:
`publish` is synchronous and never fails for want of a server. It appends to a bounded queue that a task of
the bus empties; when the server is away and the queue is full, the oldest message goes and `dropped` counts
it. Subscribers read from a bounded inbox that does the same. Whoever must not miss anything catches up from
the database when `on_up` tells that the bus has come up (again).

nats-py reconnects by itself, for ever, and restores subscriptions. Should it give up all the same (a server
that refuses our credentials makes it), the bus starts a new client. A node does not hear itself.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit, urlunsplit

import structlog
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Handle

from whispr.adapters.bus_feed import FAILURES, LINGER_S, Feed, LeanClient
from whispr.adapters.bus_feed import Message as Message
from whispr.adapters.bus_feed import Missed as Missed
from whispr.bridge import Bridge, Inbox
from whispr.errors import invalid, unavailable
from whispr.nurseries import own_nursery, ungrouped
from whispr.resilience.backend import Backend
from whispr.resilience.bulkhead import BulkheadRules
from whispr.telemetry.live import LiveGauge

OUTBOX_LEN_MAX = 10_000
"""Messages waiting to be sent; the oldest is dropped beyond it."""

INBOX_LEN_MAX = 10_000
"""Messages waiting for a subscriber; the oldest is dropped beyond it."""

PAYLOAD_LEN_MAX = 1024 * 1024
"""Bytes in a message: NATS's default `max_payload`."""

RECONNECT_S = 0.1
"""Pause between attempts to reach the server."""

FLUSH_S = 2
"""How long the server may take to confirm what it was told, before it is asked again."""

FLUSHES = 5
"""How many times a server that is there is asked to confirm a subscription."""

CLOSE_S = 2.0
"""How long goodbyes may take."""

REQUESTS = BulkheadRules(64, 10_000)
"""Requests to JetStream under way at once, and those that wait."""

_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")

CONNECTED = LiveGauge("whispr_bus_connected", "1 while NATS is there")

log = structlog.get_logger("whispr.bus")


class Subscription:
    """Messages of one subject (wildcards `*` and `>` work), in the order received. Iterate over it."""

    def __init__(self, subject: str, len_max: int) -> None:
        self.subject = subject
        self.client: Client | None = None
        """The nats-py client it was handed to, if any."""
        self.handle: Handle | None = None
        """What that client calls it."""
        self._inbox: Inbox[Message] = Inbox(len_max)

    @property
    def dropped(self) -> int:
        """Messages lost because the reader lagged."""
        return self._inbox.dropped

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._inbox

    async def deliver(self, message: Msg) -> None:
        """Take a message from nats-py."""
        self._inbox.put(Message(message.subject, message.data))

    def close(self) -> None:
        """End the iteration."""
        self._inbox.close()


class Bus:
    """A connection to NATS that comes and goes. Made by `open_bus`."""

    def __init__(self, bridge: Bridge, url: str) -> None:
        self._bridge = bridge
        self._server, self._token, self._user, self._password = _taken_apart(url)
        self.backend = Backend("nats", REQUESTS)
        """Its breaker, which notices a server that is connected and silent."""
        self.backend.on_trip = self._fell_silent
        self.backend.on_return = self._speaks_again
        self._news: Inbox[str] = Inbox(16)
        self._client: LeanClient | None = None
        self._subscribed = False
        self._outbox: deque[Message] = deque()
        self._sender = trio.lowlevel.ParkingLot()
        self._came_up = trio.lowlevel.ParkingLot()
        self._subscriptions: set[Subscription] = set()
        self._feeds: set[Feed] = set()
        self._on_up: list[Callable[[], None]] = []
        self.dropped = 0
        """Messages never sent because the queue was full."""
        self._refusals: set[str] = set()
        """Why the server could not be connected to, since it last was: each is logged once."""
        self.ups = 0
        """How many times the bus has come up."""

    @property
    def connected(self) -> bool:
        """Whether the server is there now, and knows our subscriptions."""
        there = self._subscribed and self._client is not None and self._client.is_connected
        return there and not self.backend.away

    @property
    def bridge(self) -> Bridge:
        """Where its asyncio side runs."""
        return self._bridge

    @property
    def client(self) -> Client:
        """The nats-py client of now, for adapters that do more with it. Raises UNAVAILABLE when NATS is away."""
        self.backend.check()
        if self._client is None or not self.connected:
            raise unavailable("NATS is away")
        return self._client

    @property
    def queued(self) -> int:
        """Messages waiting to be sent."""
        return len(self._outbox)

    async def probe(self) -> None:
        """Ask the server how it is: return once it has answered. Raises UNAVAILABLE."""
        client = self._client
        if client is None or not client.is_connected:
            raise unavailable("NATS is away")
        try:
            await self._bridge.call(client.flush)
        except FAILURES as error:
            raise unavailable(f"NATS is away: {type(error).__name__}") from error

    async def wait_connected(self) -> None:
        """Return once the server is there; the caller's deadline bounds it."""
        await trio.lowlevel.checkpoint()
        while not self.connected:
            await self._came_up.park()

    def on_up(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` each time the bus comes up: messages may have been missed. Returns its undoing."""
        self._on_up.append(callback)
        return lambda: self._on_up.remove(callback)

    def publish(self, subject: str, payload: bytes) -> None:
        """Send to every other node's subscribers, soon and at most once. Raises for a malformed message."""
        if not _SUBJECT.fullmatch(subject):
            raise invalid({"subject": f"{subject!r} is not a subject to publish to"})
        if len(payload) > PAYLOAD_LEN_MAX:
            raise invalid({"payload": f"{len(payload)} bytes; at most {PAYLOAD_LEN_MAX}"})
        if len(self._outbox) >= OUTBOX_LEN_MAX:
            self._outbox.popleft()
            self.dropped += 1
        self._outbox.append(Message(subject, payload))
        self._sender.unpark()

    @asynccontextmanager
    async def subscribe(self, subject: str, len_max: int = INBOX_LEN_MAX) -> AsyncIterator[Subscription]:
        """Subscribe for the length of the block.

        If the server is there, what others publish once the block has begun arrives. If it is away, the
        subscription is made when the bus comes up.
        """
        subscription = Subscription(subject, len_max)
        self._subscriptions.add(subscription)
        try:
            if self._client is not None:
                await self._attach(subscription, self._client)
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()
            await self._detach(subscription)

    @asynccontextmanager
    async def feed(self, linger_s: float = LINGER_S) -> AsyncIterator[Feed]:
        """Hear very many subjects, which come and go, for the length of the block (`bus_feed`)."""
        feed = Feed(self._bridge, linger_s=linger_s, away=lambda: self.backend.away)
        async with own_nursery("the feed is closing") as nursery:
            self._feeds.add(feed)
            await feed.attach(self._client)
            nursery.start_soon(feed.run, name="bus feed")
            try:
                yield feed
            finally:
                self._feeds.discard(feed)
                with trio.move_on_after(CLOSE_S, shield=True):
                    await feed.close()

    async def _attach(self, subscription: Subscription, client: Client) -> None:
        """Hand a subscription to nats-py, once per client, and wait until the server knows of it."""
        if subscription.client is client:
            return
        subscription.client = client

        async def attach() -> None:
            subscription.handle = await client.subscribe(subscription.subject, cb=subscription.deliver)

        try:
            await self._bridge.call(attach)
        except FAILURES as error:
            # nats-py has it in its list and will subscribe when the server is back.
            log.info("bus_subscription_waits", subject=subscription.subject, error=type(error).__name__)
            return
        # A server that is only slow must not let the caller go: what is published before it has read this is lost.
        for _ in range(FLUSHES):
            if await self._confirmed(client) or not client.is_connected or self.backend.away:
                return

    async def _detach(self, subscription: Subscription) -> None:
        """Take it back from nats-py; a server that is away forgets it by itself."""
        handle = subscription.handle
        if handle is None or self._client is not subscription.client:
            return
        with trio.move_on_after(CLOSE_S, shield=True):
            try:
                await self._bridge.call(handle.unsubscribe)
            except FAILURES as error:
                log.debug("bus_unsubscribe_failed", subject=subscription.subject, error=type(error).__name__)

    async def _run(self) -> None:
        """Keep a client: a new one whenever nats-py has closed the last."""
        while True:
            client = await self._bridge.call(_new_client)
            news = self._news = Inbox(16)
            try:
                await self._bridge.call(self._connect, client, news)
                self._client = client
                await self._up(client)
                async for what in news:
                    if what == "closed":
                        break
                    await self._up(client)
            finally:
                self._client, self._subscribed = None, False
                for feed in list(self._feeds):
                    feed.detach()
                with trio.move_on_after(CLOSE_S, shield=True):
                    await self._bridge.call(_closed, client)
            log.error("bus_client_closed", server=self._server)
            await trio.sleep(RECONNECT_S)

    def _fell_silent(self) -> None:
        """Let nobody wait for it any longer."""
        for feed in list(self._feeds):
            feed.confirmed()

    def _speaks_again(self) -> None:
        """Tell everybody, unless its being back is news already: what was said meanwhile may have been missed."""
        if self._subscribed:
            self._news.put("up")

    async def _up(self, client: LeanClient) -> None:
        """Have the server confirm all subscriptions, then wake the sender and tell those who catch up."""
        for subscription in list(self._subscriptions):
            await self._attach(subscription, client)
        for feed in list(self._feeds):
            await feed.attach(client)
        # nats-py says it has reconnected before the server has read the restored subscriptions.
        while not await self._confirmed(client):
            if not client.is_connected:
                return  # lost again: there will be news
        self._subscribed = True
        for feed in list(self._feeds):
            feed.confirmed()
        if self.backend.away:
            return  # until it has been asked once more: `_speaks_again`
        self.ups += 1
        self._refusals.clear()
        log.info("bus_up", server=self._server, times=self.ups)
        self._sender.unpark_all()
        self._came_up.unpark_all()
        for callback in list(self._on_up):
            callback()

    async def _confirmed(self, client: Client) -> bool:
        """Whether the server has answered, and so read all that was sent before."""
        try:
            await self._bridge.call(client.flush, FLUSH_S)
        except FAILURES as error:
            log.info("bus_slow", server=self._server, error=type(error).__name__)
            return False
        return True

    async def _connect(self, client: Client, news: Inbox[str]) -> None:
        """Connect, however long it takes (asyncio side)."""

        async def disconnected() -> None:
            self._subscribed = False
            if self._client is client:  # not when it is we who close it
                log.warning("bus_down", server=self._server)

        async def reconnected() -> None:
            news.put("up")

        async def closed() -> None:
            news.put("closed")

        async def failed(error: Exception) -> None:
            # Refusals repeat many times a second and their text may hold what we sent.
            log.debug("bus_error", server=self._server, error=type(error).__name__)
            why = _why_refused(error)
            if not client.is_connected and why not in self._refusals:
                self._refusals.add(why)
                log.warning("bus_refused", server=self._server, why=why)

        await client.connect(
            self._server,
            token=self._token,
            user=self._user,
            password=self._password,
            name="whispr",
            no_echo=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]  # annotated int, used as seconds
            disconnected_cb=disconnected,
            reconnected_cb=reconnected,
            closed_cb=closed,
            error_cb=failed,
        )

    async def _send(self) -> None:
        """Empty the queue whenever there is something in it and the server is there."""
        while True:
            while not self._outbox or not self.connected:
                await self._sender.park()
            try:
                await self._bridge.call(self._send_queued)
            except FAILURES as error:
                log.info("bus_message_lost", error=type(error).__name__)

    async def _send_queued(self) -> None:
        """Publish what is queued (asyncio side)."""
        if self._client is not None:
            await self._client.publish_queued(self._outbox)


@asynccontextmanager
async def open_bus(bridge: Bridge, url: str) -> AsyncIterator[Bus]:
    """Open the bus. Never fails and does not wait: the server may come later.

    At the end what is queued is sent if the server is there, within CLOSE_S seconds.
    """
    bus = Bus(bridge, url)
    with ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus._run, name="bus connection")
            nursery.start_soon(bus._send, name="bus sender")
            try:
                with CONNECTED.watching(lambda: bus.connected):
                    yield bus
            finally:
                with trio.move_on_after(CLOSE_S, shield=True):
                    await bridge.call(bus._send_queued)
                nursery.cancel_scope.cancel(reason="the bus is closing")


async def _new_client() -> LeanClient:
    return LeanClient()  # binds itself to the running asyncio loop


async def _closed(client: Client) -> None:
    if client.options:  # set by connect; without it there is nothing to close, and close would fail
        await client.close()


def _why_refused(error: Exception) -> str:
    """What an operator has to know of a failed attempt to connect, in words of our own."""
    if "authorization" in str(error).lower():
        return "the credentials in WHISPR_NATS_URL are wrong"
    return f"it cannot be reached ({type(error).__name__})"


def _taken_apart(url: str) -> tuple[str, str | None, str | None, str | None]:
    """Split a NATS URL into server, token, user and password, so that the first can be logged."""
    parts = urlsplit(url)
    server = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    user = unquote(parts.username) if parts.username else None
    if parts.password is None:
        return server, user, None, None
    return server, None, user, unquote(parts.password)
