"""The notification service on a real database, told of events by hand, its push services on loopback."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import http_ece
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.services.kit import Tokens, as_
from tests.services.notification.servers import Request
from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.conversations.domain import Kind, Limits
from whispr.errors import Code, WhisprError, exhausted
from whispr.events import Event
from whispr.identity import AuthInterceptor, Identity
from whispr.ids import new_id
from whispr.services.notification.notifier import Options
from whispr.services.notification.requests import Addresses
from whispr.services.notification.service import NotificationService, Setup
from whispr.testing import open_rpc_pair
from whispr.v1 import notification_pb2 as pb
from whispr.v1.notification_grpc import NotificationServiceStub

TLS = ssl.create_default_context()
"""Made once: reading the system's authorities takes longer than most tests."""
AT_ONCE = Options(batch_s=0)
ANYWHERE = Addresses(private_allowed=True, http_allowed=True)


@dataclass
class Sockets:
    """Who is online, as the test says, and what was announced to whom."""

    online: set[str] = field(default_factory=set)
    reads: dict[str, set[str]] = field(default_factory=dict)
    announced: list[tuple[str, str, Any]] = field(default_factory=list)

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return self.online & set(user_ids)

    def readers_here(self, topic: str) -> set[str]:
        return self.reads.get(topic, set())

    async def reading(self, topic: str, among: Collection[str] | None = None) -> set[str]:
        await trio.lowlevel.checkpoint()
        readers = self.reads.get(topic, set())
        return set(readers) if among is None else readers & set(among)

    def announce(self, topic: str, event: str, payload: object) -> None:
        self.announced.append((topic, event, msgspec.json.decode(msgspec.json.encode(payload))))


@dataclass
class Others:
    """The user and messaging services, as the test says."""

    blocks: set[tuple[str, str]] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    failure: Exception | None = None

    async def blocked(self, sender_id: str, user_ids: Sequence[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return {each for each in user_ids if {(sender_id, each), (each, sender_id)} & self.blocks}

    async def name_of(self, conversation_id: str, kind: Kind, member_id: str) -> str:
        del kind, member_id
        await trio.lowlevel.checkpoint()
        return self.names.get(conversation_id, "")


@dataclass
class Limiter:
    """Counts, and refuses past the limit."""

    taken: list[str] = field(default_factory=list)

    async def take(self, key: str, limit: float, period_s: float) -> None:
        await trio.lowlevel.checkpoint()
        self.taken.append(key)
        if self.taken.count(key) > limit:
            raise exhausted(f"at most {limit:g} in {period_s:g} s", 1.0)


@dataclass
class Subscription:
    """A browser's: the address at a push service, and the keys that only the browser has."""

    endpoint: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(default_factory=lambda: os.urandom(16))

    @property
    def p256dh(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    def request(self, **more: str) -> pb.RegisterDeviceRequest:
        """Ask to register it."""
        return pb.RegisterDeviceRequest(
            platform="webpush", token=self.endpoint, p256dh=b64(self.p256dh), auth=b64(self.auth), **more
        )

    def decrypt(self, request: Request) -> dict[str, Any]:
        """Read a push as the browser does (RFC 8291)."""
        plain = http_ece.decrypt(
            request.body, private_key=self.key, auth_secret=self.auth, version="aes128gcm"
        )
        return cast("dict[str, Any]", msgspec.json.decode(plain))


def b64(data: bytes) -> str:
    """Encode without padding, as browsers do."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class World:
    """The service, running, and what surrounds it."""

    db: Postgres
    service: NotificationService
    stub: NotificationServiceStub
    sockets: Sockets
    others: Others
    limiter: Limiter

    async def sent(
        self, conversation_id: str, sender_id: str, seq: int, text: str | None = "hello", **facts: Any
    ) -> Event:
        """Let the service hear of a message; returns the event."""
        event = message_event(conversation_id, sender_id, seq, text, **facts)
        await self.service.teller.message_sent(event)
        return event

    async def tell(self) -> None:
        """Tell people of everything that is due, and wait until all pushes are settled."""
        while await self.service.teller.tell_due() == 0.0:
            pass
        await self.pushed()

    async def pushed(self) -> None:
        """Wait until no delivery is under way or due."""
        self.service.dispatcher.wake()
        with trio.fail_after(10):
            while await self.db.fetchval(
                "SELECT EXISTS (SELECT FROM notifications.deliveries"
                " WHERE state = 'sending' OR (state = 'pending' AND due_at <= now()))"
            ):
                with trio.move_on_after(0.05):
                    await self.service.dispatcher.settled()
                self.service.dispatcher.wake()

    async def webhook(self, user_id: str, url: str, **more: str) -> pb.RegisterDeviceResponse:
        """Register a webhook."""
        request = pb.RegisterDeviceRequest(platform="webhook", token=url, **more)
        return await self.stub.RegisterDevice(request, metadata=as_(user_id))

    async def inbox(self, user_id: str, **wanted: Any) -> pb.ListNotificationsResponse:
        """Read somebody's inbox."""
        return await self.stub.ListNotifications(pb.ListNotificationsRequest(**wanted), metadata=as_(user_id))

    async def states(self) -> list[str]:
        """Return the states of all deliveries, the oldest first."""
        return [
            row["state"]
            for row in await self.db.fetch("SELECT state FROM notifications.deliveries ORDER BY id")
        ]


def message_event(
    conversation_id: str, sender_id: str, seq: int, text: str | None = "hello", **facts: Any
) -> Event:
    """Make the event of a message, as the outbox does."""
    message_id, now = new_id(), datetime.now(UTC)
    data: dict[str, Any] = {
        "message_id": message_id,
        "conversation_id": conversation_id,
        "conversation_kind": "group",
        "seq": seq,
        "sender_id": sender_id,
        "message_type": "text",
        "metadata": {},
        "sent_at": now.isoformat(),
    }
    if text is not None:
        data |= {"text": text, "text_cut": False}
    return Event(
        id=message_id, type="message_sent", time=now, source="messaging", subject=conversation_id,
        actor=sender_id, data=data | facts,
    )  # fmt: skip


def event(kind: str, subject: str, actor: str = "", **data: Any) -> Event:
    """Make another event."""
    source = "user" if kind.startswith(("account", "session")) else "messaging"
    return Event(
        id=new_id(), type=kind, time=datetime.now(UTC), source=source, subject=subject, actor=actor, data=data
    )


@asynccontextmanager
async def world(db: Postgres, folder: Path, options: Options = AT_ONCE, **setup: Any) -> AsyncIterator[World]:
    """Run the service until the block ends; people are told by `World.tell`."""
    sockets, others, limiter = Sockets(), Others(), Limiter()
    made = Setup(
        vapid_key_file=folder / "vapid.pem",
        vapid_contact="mailto:operator@example.org",
        addresses=ANYWHERE,
        tls=TLS,
    )
    service = NotificationService(
        db,
        online=sockets,
        neighbours=others,
        announce=sockets.announce,
        limiter=cast("RateLimiter", limiter),
        limits=Limits(),
        setup=msgspec.structs.replace(made, **setup),
        options=options,
    )
    interceptors = [AuthInterceptor(cast("Identity", Tokens()))]
    async with (
        open_rpc_pair([service.servicer], server_interceptors=interceptors) as rpc,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(service.dispatcher.run)
        yield World(db, service, NotificationServiceStub(rpc.channel), sockets, others, limiter)
        nursery.cancel_scope.cancel(reason="the test is over")
    with trio.CancelScope(shield=True):
        await service.senders.aclose()


async def refusal(call: Awaitable[Any]) -> tuple[Code, str]:
    with pytest.raises(WhisprError) as refused:
        await call
    return refused.value.code, refused.value.reason


async def faults(call: Awaitable[Any]) -> set[str]:
    with pytest.raises(WhisprError) as refused:
        await call
    assert refused.value.code is Code.INVALID_ARGUMENT
    return set(refused.value.fields)


def a_message(group: str, sender: str, *recipients: str, **fields: Any) -> pb.SendMessageNotificationRequest:
    return pb.SendMessageNotificationRequest(
        message_id=new_id(), conversation_id=group, sender_id=sender, recipient_ids=recipients, **fields
    )


def why(reply: pb.SendNotificationResponse) -> dict[str, str]:
    """Person or device → why nothing was pushed; empty where it was."""
    return {each.device_id or each.user_id: each.error_message for each in reply.delivery_statuses}
