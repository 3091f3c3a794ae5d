"""The notification service: its parts, put together."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import structlog
import trio

from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.conversations.domain import Limits
from whispr.errors import WhisprError
from whispr.events import Consumer
from whispr.realtime.channel import ChannelFactory
from whispr.resilience.target import TargetRules
from whispr.services.notification import inbox as inboxes
from whispr.services.notification import personal
from whispr.services.notification.dispatcher import Dispatcher
from whispr.services.notification.domain import Platform
from whispr.services.notification.notifier import Notifier, Options
from whispr.services.notification.requests import Addresses
from whispr.services.notification.senders.addresses import Network
from whispr.services.notification.senders.apns import APNS_URL, Apns, Team, read_key
from whispr.services.notification.senders.fcm import FCM_URL, Fcm, read_account
from whispr.services.notification.senders.http import Http
from whispr.services.notification.senders.port import Sender
from whispr.services.notification.senders.vapid import Vapid, load_or_make
from whispr.services.notification.senders.webhook import Webhook
from whispr.services.notification.senders.webpush import WebPush
from whispr.services.notification.servicer import NotificationServicer
from whispr.services.notification.surroundings import Announce, Neighbours, Presence
from whispr.services.notification.teller import Teller

PRUNE_EVERY_S = 600.0
PROVIDER_REQUESTS = 48
"""Requests to FCM or APNs at once."""

log = structlog.get_logger("whispr.notification")


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Which push services are used, and how."""

    vapid_key_file: Path
    vapid_contact: str
    """A `mailto:` or `https:` URI by which a push service reaches the operator (RFC 8292, section 2.1)."""
    addresses: Addresses = Addresses()
    """Which addresses users may name, for webhooks and Web Push."""
    host_requests: int = 8
    """Requests to one host at once."""
    fcm_account_file: Path | None = None
    fcm_url: str = FCM_URL
    apns_key_file: Path | None = None
    apns_key_id: str = ""
    apns_team_id: str = ""
    apns_topic: str = ""
    apns_url: str = APNS_URL
    calls: TargetRules | None = None
    """When hosts that fail are left alone."""
    tls: ssl.SSLContext | None = None
    """Whom to trust; the system's authorities when None."""


class Senders:
    """The senders that are set up, and their connections."""

    def __init__(self, setup: Setup) -> None:
        self.vapid = Vapid(load_or_make(setup.vapid_key_file), setup.vapid_contact)
        self._https: list[Http] = []
        self._tls = setup.tls or ssl.create_default_context()
        private = setup.addresses.private_allowed
        self._rules = setup.calls
        guarded = self._http("push", Network(private_allowed=private), setup.host_requests)
        self.by_platform: dict[Platform, Sender] = {
            Platform.WEBPUSH: WebPush(guarded, self.vapid),
            Platform.WEBHOOK: Webhook(guarded),
        }
        # Where these are is the operator's choice, not a user's.
        trusted = Network(private_allowed=True)
        if setup.fcm_account_file is not None:
            account = read_account(setup.fcm_account_file)
            self.by_platform[Platform.FCM] = Fcm(
                self._http("fcm", trusted, PROVIDER_REQUESTS), account, url=setup.fcm_url
            )
        if setup.apns_key_file is not None:
            key = read_key(setup.apns_key_file)
            team = Team(key, setup.apns_key_id, setup.apns_team_id, setup.apns_topic)
            http2 = self._http("apns", trusted, PROVIDER_REQUESTS, http2=True)
            self.by_platform[Platform.APNS] = Apns(http2, team, url=setup.apns_url)

    def _http(self, kind: str, network: Network, per_host: int, *, http2: bool = False) -> Http:
        http = Http(
            network,
            per_host=per_host,
            kind=kind,
            rules=self._rules,
            http1=not http2,
            http2=http2,
            tls=self._tls,
        )
        self._https.append(http)
        return http

    async def aclose(self) -> None:
        """Close all connections."""
        for http in self._https:
            await http.aclose()


class NotificationService:
    """NotificationService of one process."""

    def __init__(
        self,
        db: Postgres,
        *,
        online: Presence,
        neighbours: Neighbours,
        announce: Announce,
        limiter: RateLimiter,
        limits: Limits,
        setup: Setup,
        options: Options = Options(),  # noqa: B008  # frozen
    ) -> None:
        self._db = db
        self._options = options
        self.senders = Senders(setup)
        self.notifier = Notifier(db, online=online, neighbours=neighbours, announce=announce, options=options)
        self.dispatcher = Dispatcher(
            self.notifier.deliveries, self.senders.by_platform, host_flights_max=setup.host_requests
        )
        self.teller = Teller(db, self.notifier, self.dispatcher)
        self.servicer = NotificationServicer(
            db,
            self.notifier,
            self.dispatcher,
            limiter=limiter,
            limits=limits,
            addresses=setup.addresses,
            platforms=tuple(self.senders.by_platform),
            vapid_public_key=self.senders.vapid.public_key,
        )
        self.channels: Mapping[str, ChannelFactory] = {}

    @property
    def consumers(self) -> Sequence[Consumer]:
        """What it listens to on the event bus."""
        return self.teller.consumers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell people, send pushes and let old entries go, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.dispatcher.run)
                await nursery.start(self.teller.run)
                nursery.start_soon(self._prune_for_ever)
                task_status.started()
        finally:
            with trio.move_on_after(1, shield=True):
                await self.senders.aclose()

    async def _prune_for_ever(self) -> None:
        while True:
            if self._options.inbox_days:
                try:
                    await personal.prune(self._db, inboxes.now() - timedelta(days=self._options.inbox_days))
                except WhisprError as error:
                    log.warning("inbox_not_pruned", error=str(error))
            await trio.sleep(PRUNE_EVERY_S)
