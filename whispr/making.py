"""The services of a process, made of what the process has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import purerpc
import trio

from whispr import limits, neighbours
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.objects import Objects, S3Options, objects_at
from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.config import Settings
from whispr.conversations.core import Conversations
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.sanctions import Sanctions
from whispr.conversations.spam import SpamRules
from whispr.conversations.spam_watch import SpamWatch
from whispr.credentials import Credentials
from whispr.dependencies import Dependencies
from whispr.events import Consumer
from whispr.gateway.http import Proxies
from whispr.gateway.server import Endpoint
from whispr.identity import Identity
from whispr.online import Online
from whispr.realtime.channel import ChannelFactory
from whispr.rpc.channel import Channel
from whispr.services.auth.service import AuthService
from whispr.services.chat.service import ChatService
from whispr.services.media.service import PATH as MEDIA_PATH
from whispr.services.media.service import MediaService
from whispr.services.messaging.service import MessagingService
from whispr.services.notification.service import NotificationService
from whispr.services.notification.surroundings import Services as NotificationNeighbours
from whispr.services.stream.service import StreamService, Surroundings
from whispr.services.user.service import UserService
from whispr.v1.chat_grpc import ChatServiceStub
from whispr.v1.messaging_grpc import MessagingServiceStub
from whispr.v1.user_grpc import UserServiceStub


class Service(Protocol):
    """What each service package offers."""

    @property
    def servicer(self) -> purerpc.Servicer:
        """Its RPCs."""

    @property
    def channels(self) -> Mapping[str, ChannelFactory]:
        """Its WebSocket topics: prefix → channel."""

    @property
    def consumers(self) -> Sequence[Consumer]:
        """What it listens to on the event bus."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Do its background jobs until cancelled."""


class Drained(Protocol):
    """A service that has what never ends by itself."""

    def drain(self) -> None:
        """End that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What a process has for its services."""

    settings: Settings
    db: Postgres
    cache: Cache
    bus: Bus
    limiter: RateLimiter
    identity: Identity
    credentials: Credentials
    online: Online
    dependencies: Dependencies
    channels: Mapping[str, Channel]
    """To every service, by name, once they are open."""
    started: trio.Event
    """Set once the process serves."""
    conversations: Callable[[], Conversations]
    acting_for: Callable[[str], list[tuple[str, str]]]
    announce: Callable[[str, str, object], None]
    blocks_changed: Callable[[str, str], None]
    public_url: Callable[[], str]
    number: int = 1
    """Among the processes that share its ports."""
    workers: int = 1
    """How many those are."""


class Making:
    """Makes the services of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.endpoints: list[Endpoint] = []
        """What the services made so far serve over HTTP."""
        self.drained: list[Drained] = []
        """Those of the services made so far that are to be told when the process drains."""

    def service(self, name: str) -> Service:
        """Make a service."""
        makers: Mapping[str, Callable[[], Service]] = {
            "auth": self._make_auth, "user": self._make_user, "messaging": self._make_messaging,
            "notification": self._make_notification, "media": self._make_media, "chat": self._make_chat,
            "stream": self._make_stream,
        }  # fmt: skip
        return makers[name]()

    def _make_auth(self) -> AuthService:
        keys = self._process.credentials.keys()
        own = limits.auth(self._process.settings)
        others = neighbours.of_auth(self._process.channels, self._process.acting_for, self._process.started)
        return AuthService(
            self._process.db,
            self._process.cache,
            self._process.bus,
            self._process.identity,
            keys,
            others,
            limits=own,
        )

    def _make_user(self) -> UserService:
        own = limits.conversations(self._process.settings)
        return UserService(
            self._process.db,
            limits=own,
            own_limits=limits.users(self._process.settings),
            neighbours=neighbours.of_user(
                self._process.channels, self._process.acting_for, self._process.online
            ),
            on_blocks_changed=self._process.blocks_changed,
        )

    def _make_messaging(self) -> MessagingService:
        return MessagingService(self._process.conversations())

    def _make_chat(self) -> ChatService:
        own = limits.rooms(self._process.settings)
        chat = ChatService(self._process.conversations(), online=self._process.online, limits=own)
        self._process.identity.on_revoked(chat.session_ended)
        self.drained.append(chat)
        return chat

    def spam_watch(self, core: Conversations) -> SpamWatch:
        """Watch what this process commits, whichever service it was sent through."""
        sanctions = Sanctions(self._process.db, limits.rooms(self._process.settings), core.limits)
        announcer = RoomAnnouncer(core.announcer, core.hub)
        bans = self._process.settings.chat.antispam_bans
        watch = SpamWatch(sanctions, announcer, self._process.cache, SpamRules(), bans=bans)
        core.watch(watch.observe)
        return watch

    def _make_media(self) -> MediaService:
        own = self._process.settings.media
        folder = self._process.settings.data_dir / "media" / "objects"
        service = MediaService(
            self._process.db,
            objects_at(
                self._process.db.bridge,
                own.store_url,
                folder,
                S3Options(own.s3_endpoint, own.s3_region),
                self._process.dependencies.other("store") if own.store_url.startswith("s3:") else None,
            ),
            scanner=self._process.dependencies.other("scanner")
            if own.scan_command or own.scan_clamd
            else None,
            limiter=self._process.limiter,
            base_url=self._process.public_url,
            options=limits.media(self._process.settings),
        )
        self.endpoints.append(Endpoint("media", MEDIA_PATH, service.endpoints))
        return service

    def _make_notification(self) -> NotificationService:
        others = NotificationNeighbours(
            UserServiceStub(self._process.channels["user"]).CheckUserBlocks,
            lambda request, *, metadata: MessagingServiceStub(
                self._process.channels["messaging"]
            ).GetConversation(request, metadata=metadata),
            self._process.acting_for,
        )
        return NotificationService(
            self._process.db,
            online=self._process.online,
            neighbours=others,
            announce=self._process.announce,
            limiter=self._process.limiter,
            limits=limits.conversations(self._process.settings),
            setup=limits.pushes(self._process.settings),
            options=limits.notifications(self._process.settings),
        )

    def _make_stream(self) -> StreamService:
        self._process.conversations()  # so that a listener's one socket has the chat beside the sound
        proxies = Proxies(self._process.settings.gateway.trusted_proxies)
        around = Surroundings(
            identity=self._process.identity,
            limiter=self._process.limiter,
            announce=self._process.announce,
            base_url=self._process.public_url,
            chat=lambda: ChatServiceStub(self._process.channels["chat"]),
            acting_for=self._process.acting_for,
            address_of=proxies.client_address,
        )
        options = limits.streaming(self._process.settings, self._process.number, self._process.workers)
        stream = StreamService(
            self._process.db, self._process.cache, self._process.bus, self._recordings_at(), around, options
        )
        self.endpoints += [
            Endpoint(each.name, each.path, each.app, answers_origins=True) for each in stream.endpoints
        ]
        self.drained.append(stream)
        return stream

    def _recordings_at(self) -> Objects:
        """Where recordings are stored: like media, by the same credentials."""
        own, media = self._process.settings.stream, self._process.settings.media
        return objects_at(
            self._process.db.bridge,
            own.store_url,
            self._process.settings.data_dir / "streams" / "objects",
            S3Options(media.s3_endpoint, media.s3_region),
            self._process.dependencies.other("store") if own.store_url.startswith("s3:") else None,
            setting="WHISPR_STREAM_STORE_URL",
        )
