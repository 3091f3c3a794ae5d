"""One process's services and listeners, started in order and drained in the opposite one.

A service that runs here gets an rpc server; for every service, here or elsewhere, there is a channel, and the
channel is the only way one calls another. So which services share a process is configuration alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from whispr import limits
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.call_rules import rpc_limits
from whispr.config import SERVICES, Settings
from whispr.conversations import expander
from whispr.conversations.core import Conversations
from whispr.conversations.permissions import Permissions
from whispr.credentials import Credentials
from whispr.dependencies import Dependencies
from whispr.errors import WhisprError, conflict
from whispr.events import Consumer, Expander
from whispr.events.consumers import Consumers
from whispr.events.pace import Pace
from whispr.events.relay import Relay
from whispr.events.streams import Streams
from whispr.gateway.http import Proxies
from whispr.gateway.page_files import Places
from whispr.gateway.pages import Exposition, own_metrics
from whispr.gateway.server import Endpoint, Gateway
from whispr.identity import ACTOR_KEY, AuthInterceptor, Identity, answers_from, keys_from
from whispr.making import Making, Process
from whispr.observing import Observing
from whispr.online import Online
from whispr.operating import Operating
from whispr.peers import Peers
from whispr.polling import Polling
from whispr.quotas import Quotas
from whispr.realtime.addresses import RawHeaders
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.protocol import encode_json
from whispr.realtime.server import serve_websocket
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.channelz import ChannelzServicer
from whispr.rpc.health import HealthServicer
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.reflection import reflected
from whispr.rpc.server import RpcServer
from whispr.seats import SharedSeats
from whispr.stale_reads import StaleReads
from whispr.task_facts import describe_service
from whispr.tokens import Claims, VerifyingKey
from whispr.v1.auth_grpc import AuthServiceStub
from whispr.v1.media_grpc import MediaServiceStub
from whispr.v1.user_grpc import UserServiceStub

EXPANDERS: Mapping[str, Expander] = {expander.NAME: expander.expand}
"""What makes events of rows that stand for many. Any process may be the relay, so every one knows all of them."""

log = structlog.get_logger("whispr.node")


class Serve(Protocol):
    """A listener's task: reports its port once it listens."""

    async def __call__(
        self, host: str, port: int, *, shared: bool, task_status: trio.TaskStatus[int]
    ) -> None:
        """Listen until cancelled, on a port `shared` with others or not. Raises OSError when it cannot be had."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a process has that shares its ports with others of its kind (`whispr.workers`)."""

    folder: Path
    """Where its sockets are."""
    number: int
    exposition: Exposition
    """The metrics of all of them."""
    workers: int
    """How many there are."""


class Node:
    """The services of one process. `run` it, `drain` it, then cancel it."""

    def __init__(
        self,
        settings: Settings,
        services: Sequence[str],
        db: Postgres,
        cache: Cache,
        bus: Bus,
        shared: Shared | None = None,
    ) -> None:
        self._shared = shared
        self.ports: dict[str, int] = {}
        """Listener → port, once running."""
        self._settings = settings
        self._services = services
        self._db, self._cache, self._bus = db, cache, bus
        self._limiter = RateLimiter(cache)
        self._state = "starting"
        self._credentials = Credentials(settings, issues="auth" in services)
        self._identity = Identity(
            cache,
            bus,
            keys=self._credentials.verifying_keys,
            fetch_keys=self._fetch_keys,
            ask=None if "auth" in services else self._ask_about,
        )
        self._quotas = Quotas(self._limiter, self._identity, limits.quota(settings))
        self._stale_reads = StaleReads()
        self._peers = Peers(bus)
        self._online = Online(cache)
        self._channels: dict[str, Channel] = {}
        self._started = trio.Event()
        self._servers: list[RpcServer] = []
        self._rpc_tls = limits.rpc_tls(settings)
        self._observing = Observing(settings, services, self._identity)
        self._health = HealthServicer()
        self._dependencies = Dependencies(settings, services, db, cache, bus, self._health)
        self._channelz = ChannelzServicer()
        self._hub: Hub | None = None
        self._conversations: Conversations | None = None
        self._conversing = False
        self._gateway: Gateway | None = None
        self._operating = Operating(self._observing, self._report, lambda: self._hub, db, bus, shared=shared)
        self._endpoints: list[Endpoint] = list(self._operating.endpoints)
        self._consumers: list[Consumer] = []
        self._consuming: Consumers | None = None
        self._making = Making(self._process())

    @staticmethod
    def sections(services: Sequence[str]) -> list[str]:
        """Name the listeners that a process with these services has."""
        return [
            "gateway",
            *(["websocket"] if {"messaging", "chat", "stream"} & set(services) else []),
            *services,
        ]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start everything, then report; serve until cancelled.

        Raises FAILED_PRECONDITION (port_in_use) for a port that was taken since it was looked at.
        """
        async with trio.open_nursery() as nursery, AsyncExitStack() as channels:
            await nursery.start(self._observing.run, self._servers)
            await nursery.start(self._identity.run)
            await nursery.start(self._operating.run)
            for name in SERVICES:
                if name in self._services:
                    await self._start_service(name, nursery)
                around = self._observing.of_channels()
                target = self._target(name)
                opened = open_channel(
                    target,
                    tls=None if target.startswith("unix:") else self._rpc_tls,
                    interceptors=around,
                    limits=rpc_limits(limits.rpc(self._settings)),
                    guarding=self._dependencies.service(name),
                    rules=self._dependencies.rules,
                )
                self._channels[name] = await channels.enter_async_context(opened)
                self._channelz.add_channel(self._channels[name])
            await nursery.start(self._dependencies.run, self._channels)
            await self._start_websocket(nursery)
            await self._start_gateway(nursery)
            await self._start_events(nursery)
            await self._observing.tasks.note()
            self._started.set()
            self._set_state("serving")
            task_status.started()
            await trio.sleep_forever()

    async def drain(self, drain_s: float) -> None:
        """Refuse what is new and finish what is in flight, clients' listeners before what they call."""
        self._set_state("draining")
        await trio.sleep(self._settings.drain_notice_s)
        with trio.move_on_after(drain_s) as patience:
            async with trio.open_nursery() as nursery:
                if self._gateway is not None:
                    nursery.start_soon(self._gateway.drain)
                if self._hub is not None:
                    nursery.start_soon(self._hub.drain)
            for service in self._making.drained:
                service.drain()
            if self._conversations is not None:
                await self._conversations.drain()
            if self._consuming is not None:
                await self._consuming.drain()
            self._health.end_watches()
            async with trio.open_nursery() as nursery:
                for server in self._servers:
                    nursery.start_soon(server.drain)
        if patience.cancelled_caught:
            log.warning("drain_cut_short", after_s=drain_s)

    async def readiness(self) -> Mapping[str, str]:
        """What keeps this process from serving: name → why. Redis and NATS can be done without for a while."""
        missing = {} if self._state == "serving" else {"process": self._state}
        try:
            await self._db.backend.probe(self._db.probe)
        except WhisprError as error:
            missing["postgres"] = error.message
        return missing

    async def _report(self, fully: bool) -> Mapping[str, object]:
        return await self._dependencies.report(self._channels, fully=fully)

    def _set_state(self, state: str) -> None:
        self._state = state
        self._dependencies.set_state(state)

    # Starting

    async def _start_service(self, name: str, nursery: trio.Nursery) -> None:
        """Build a service, run its background jobs, mount its topics and serve its RPCs."""
        service = self._making.service(name)
        self._endpoints += self._making.endpoints
        self._making.endpoints.clear()
        if self._conversations is not None and not self._conversing:
            self._conversing = True
            await nursery.start(self._conversations.run)
            self._dependencies.on_back("media", self._conversations.attachments.hurry)
            if self._settings.chat.antispam:
                await nursery.start(self._making.spam_watch(self._conversations).run)
            self._mount(self._conversations.channels)
            self._consumers += self._conversations.consumers
        describe_service(service.run, name, trio.current_time())
        await nursery.start(service.run)
        self._consumers += service.consumers
        self._mount(service.channels)
        authorised: list[Interceptor] = [AuthInterceptor(self._identity), self._quotas, self._stale_reads]
        interceptors = [*self._observing.of_servers(), *authorised]
        servicers = reflected([service.servicer, self._health, self._channelz])
        server = RpcServer(servicers, interceptors, limits.rpc(self._settings))
        self._channelz.add_server(name, server)
        self._servers.append(server)
        self.ports[name] = await self._listen(name, nursery, partial(server.serve_tcp, tls=self._rpc_tls))
        if (own := self._own_socket(name)) is not None:
            await nursery.start(server.serve_unix, own)

    async def _start_websocket(self, nursery: trio.Nursery) -> None:
        """Listen for sockets, if a service here has topics."""
        if self._hub is None or self._conversations is None:
            return
        hub = self._hub
        await nursery.start(self._online.run)
        await nursery.start(SharedSeats(self._cache, hub.seats).run)
        await nursery.start(self._peers.listen, hub, self._conversations)

        proxies = Proxies(self._settings.gateway.trusted_proxies)

        async def admit(peer: str, headers: RawHeaders) -> None:
            await self._quotas.admit(proxies.address_behind(peer, headers))

        origins, authenticate = self._settings.websocket.allowed_origins, self._identity.authenticate
        http_limits = limits.gateway(self._settings).http
        polling = Polling(
            hub,
            self._bus,
            self._cache,
            authenticate,
            admit,
            origins=origins,
            http=http_limits,
            proxies=proxies,
        )
        http = await nursery.start(polling.run)
        self._endpoints.append(polling.endpoint)

        async def serve(host: str, port: int, *, shared: bool, task_status: trio.TaskStatus[int]) -> None:
            await serve_websocket(
                hub,
                host,
                port,
                authenticate,
                origins=origins,
                admit=admit,
                http=http,
                proxies=proxies,
                shared=shared,
                task_status=task_status,
            )

        self.ports["websocket"] = await self._listen("websocket", nursery, serve)

    async def _start_gateway(self, nursery: trio.Nursery) -> None:
        gateway = self._gateway = Gateway(
            self._channels,
            readiness=self.readiness,
            voucher=self._credentials.service_token,
            options=limits.gateway(self._settings),
            endpoints=self._endpoints,
            exposition=own_metrics if self._shared is None else self._shared.exposition,
            places=Places(
                self.ports.get("websocket", self._settings.websocket.port),
                self._settings.websocket.public_url,
                self._settings.media.public_url,
            ),
        )
        self.ports["gateway"] = await self._listen("gateway", nursery, gateway.serve)

    async def _start_events(self, nursery: trio.Nursery) -> None:
        """Relay what is in the outbox, and run the consumers of the services here."""
        jetstream = JetStream(self._bus)
        streams = Streams(jetstream, limits.streams(self._settings))
        pace = Pace(self._settings.events.busy_per_s)
        await nursery.start(pace.run)
        relay = Relay(self._db, jetstream, streams, expanders=EXPANDERS, pace=pace)
        await nursery.start(relay.run)
        self._consuming = Consumers(self._db, jetstream, streams, self._consumers, pace=pace)
        await nursery.start(self._consuming.run)

    async def _listen(self, section: str, nursery: trio.Nursery, serve: Serve) -> int:
        """Start a listener where its section says; return its port."""
        host, port = self._settings.bind_host(section), getattr(self._settings, section).port
        try:
            bound: int = await nursery.start(partial(serve, shared=self._shared is not None), host, port)
        except OSError as error:
            raise conflict(
                f"{section} cannot listen on {host}:{port}: {error.strerror}", "port_in_use"
            ) from error
        return bound

    def _target(self, name: str) -> str:
        """Where a service is: in this process, where its endpoint says, or on this host at its usual port."""
        section = getattr(self._settings, name)
        if name not in self.ports:
            return section.endpoint or f"127.0.0.1:{section.port}"
        if (own := self._own_socket(name)) is not None:
            return f"unix:{own}"
        return f"{self._settings.reach_host(name)}:{self.ports[name]}"

    def _own_socket(self, name: str) -> Path | None:
        """Where this process's services reach each other, when others share their ports."""
        return None if self._shared is None else self._shared.folder / f"{self._shared.number}-{name}.sock"

    def _process(self) -> Process:
        """What there is for services here."""
        return Process(
            settings=self._settings,
            db=self._db,
            cache=self._cache,
            bus=self._bus,
            limiter=self._limiter,
            identity=self._identity,
            credentials=self._credentials,
            online=self._online,
            dependencies=self._dependencies,
            channels=self._channels,
            started=self._started,
            conversations=self._the_conversations,
            acting_for=self._acting_for,
            announce=self._announce,
            blocks_changed=self._blocks_changed,
            public_url=self._public_url,
            number=1 if self._shared is None else self._shared.number,
            workers=1 if self._shared is None else self._shared.workers,
        )

    # What the parts ask of the process

    def _public_url(self) -> str:
        """Where clients reach this process's gateway."""
        settings = self._settings
        host = settings.public_host or settings.reach_host("gateway")
        own = f"{settings.gateway.scheme}://{host}:{self.ports['gateway']}"
        return settings.media.public_url.rstrip("/") or own

    def _announce(self, topic: str, event: str, payload: object) -> None:
        """Broadcast to the sockets of every node, from a process with a hub or without."""
        if self._hub is not None:
            self._hub.broadcast(topic, event, payload)
        else:
            self._peers.relay(Broadcast(topic, event, encode_json(payload)))

    def _the_conversations(self) -> Conversations:
        """The process's conversations, made when the first service that is a face of them starts."""
        if self._conversations is None:
            own = self._settings.messaging
            self._conversations = Conversations(
                self._db,
                hub=self._the_hub(),
                permissions=Permissions(UserServiceStub(self._channels["user"]), self._acting_for),
                limiter=self._limiter,
                limits=limits.conversations(self._settings),
                media=MediaServiceStub(self._channels["media"]),
                metadata=self._acting_for,
                search_language=own.search_language,
                keep_messages=own.keep_messages,
                on_status=self._online.choose,
            )
            self._conversations.resuming.hears = lambda: self._bus.connected
            self._conversations.announcer.reads = self._stale_reads
        return self._conversations

    def _mount(self, channels: Mapping[str, ChannelFactory]) -> None:
        for prefix, factory in channels.items():
            self._the_hub().mount(prefix, factory)

    def _the_hub(self) -> Hub:
        """The process's one hub, made when the first service has topics for it."""
        if self._hub is None:
            self._hub = Hub(limits.sockets(self._settings), relay=self._peers.relay)
            self._hub.reach = self._peers
            self._hub.presence.relay = self._peers.relay_presence
            self._identity.on_revoked(self._session_ended)
            self._online.attach(self._hub)
        return self._hub

    def _session_ended(self, session_id: str, reason: str) -> None:
        """Close the sockets of a session that has been ended."""
        self._the_hub().disconnect(session_id=session_id, reason=reason)

    def _blocks_changed(self, user_id: str, target_id: str) -> None:
        """Make everybody who remembers permissions of these two ask again."""
        self._stale_reads.forget(user_id, target_id)
        if self._conversations is not None:
            self._conversations.people_changed(user_id, target_id)
        self._peers.blocks_changed(user_id, target_id)

    def _acting_for(self, user_id: str) -> list[tuple[str, str]]:
        """Metadata of a call to another service on behalf of a person."""
        return [("authorization", f"Bearer {self._credentials.service_token()}"), (ACTOR_KEY, user_id)]

    async def _fetch_keys(self) -> Iterable[VerifyingKey]:
        """Look for the keys to trust: in the folder where tokens are issued, else with the auth service."""
        if "auth" in self._services:
            return self._credentials.trusted()
        published = await keys_from(AuthServiceStub(self._channels["auth"]))()
        return self._credentials.trusted(published)

    async def _ask_about(self, token: str) -> Claims:
        """Ask the auth service about a token under a secret that is not known here."""
        return await answers_from(AuthServiceStub(self._channels["auth"]))(token)
