"""ChatService as in production: over gRPC in memory, beside messaging and user, PostgreSQL and WebSockets for real.

A token is `user`, `user/role` or `user/role/session`; the token `service` is a service's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio

from tests.services.kit import SERVICE, as_, as_service
from whispr.adapters.postgres import Postgres
from whispr.conversations.core import Conversations
from whispr.conversations.domain import Limits
from whispr.conversations.permissions import Permissions
from whispr.conversations.room_announcer import RoomAnnouncer
from whispr.conversations.room_rules import RoomLimits
from whispr.conversations.sanctions import Sanctions
from whispr.conversations.spam import SpamRules
from whispr.conversations.spam_watch import SpamWatch
from whispr.errors import WhisprError, exhausted, unauthenticated, unavailable
from whispr.identity import AuthInterceptor, Identity
from whispr.online import Online, Words
from whispr.realtime.client import ClientChannel
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits as SocketLimits
from whispr.realtime.testing import Server, served
from whispr.services.chat.service import ChatService
from whispr.services.messaging.service import MessagingService
from whispr.services.user.service import UserService
from whispr.testing import open_rpc_pair
from whispr.tokens import Claims, service_claims, user_claims
from whispr.v1 import chat_pb2 as pb
from whispr.v1.chat_grpc import ChatServiceStub
from whispr.v1.messaging_grpc import MessagingServiceStub
from whispr.v1.user_grpc import UserServiceStub

ROOM_LIMITS = RoomLimits(
    public_members=50, rooms_per_hour=40, flag_reports=1, hide_reports=2, event_queue_len=8, subscriptions=2
)
Metadata = Sequence[tuple[str, str]]


class Tokens:
    """Believes every token."""

    def __init__(self) -> None:
        self.lifetime_s = 60.0

    async def authenticate(self, token: str, service: str | None = None) -> Claims:
        del service
        await trio.lowlevel.checkpoint()
        if token == SERVICE:
            return service_claims("test", now=time.time(), lifetime_s=60)
        if not token:
            raise unauthenticated("no token")
        user_id, _, rest = token.partition("/")
        role, _, session_id = rest.partition("/")
        return user_claims(
            user_id=user_id,
            session_id=session_id or "s",
            username="u",
            role=role or "user",
            now=time.time(),
            lifetime_s=self.lifetime_s,
        )


class Away:
    """A Redis that is away: each process then judges by what it knows itself."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        del sha, source, keys, args
        await trio.lowlevel.checkpoint()
        raise unavailable("away")

    async def pipeline(self, commands: Sequence[Words]) -> list[Any]:
        del commands
        await trio.lowlevel.checkpoint()
        raise unavailable("away")

    async def delete(self, *keys: str) -> int:
        del keys
        await trio.lowlevel.checkpoint()
        raise unavailable("away")


class Counted:
    """A rate limiter that counts, and refuses past the limit."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.on_accounts: list[str] = []

    async def take(self, key: str, limit: float, period_s: float) -> None:
        del period_s
        await trio.lowlevel.checkpoint()
        self.taken.append(key)
        if limit and self.taken.count(key) > limit:
            raise exhausted("too many", 1.5)

    def on_account(self, key: str, limit: float, period_s: float) -> bool:
        """Count a call of those that are charged together."""
        self.on_accounts.append(key)
        if limit and self.on_accounts.count(key) > limit:
            raise exhausted("too many", 1.5)
        return True

    async def settle(self, key: str, limit: float, period_s: float) -> None:
        """Never asked for: every call is on account."""
        raise AssertionError(key)


@dataclass
class World:
    """The services, running."""

    db: Postgres
    chat: ChatServiceStub
    messaging: MessagingServiceStub
    users: UserServiceStub
    service: ChatService
    core: Conversations
    server: Server
    tokens: Tokens

    async def room(self, owner: str, *members: str, **fields: Any) -> str:
        """Open a room and have people join it."""
        request = pb.CreateRoomRequest(name="a room", **fields)
        made = await self.chat.CreateRoom(request, metadata=as_(owner))
        for member in members:
            await self.chat.JoinRoom(pb.JoinRoomRequest(room_id=made.room.id), metadata=as_(member))
        return made.room.id

    async def say(self, room_id: str, sender: str, text: str = "hello", **fields: Any) -> Any:
        """Send a message and return it."""
        request = pb.SendRoomMessageRequest(room_id=room_id, content=text.encode(), **fields)
        return (await self.chat.SendMessage(request, metadata=as_(sender))).message


async def refused(call: Awaitable[object]) -> WhisprError:
    """Return the error a call is refused with."""
    with pytest.raises(WhisprError) as error:
        await call
    return error.value


async def expect(channel: ClientChannel, event: str) -> dict[str, Any]:
    """Return the payload of the next such event, leaving out the others."""
    with trio.fail_after(5):
        async for name, payload in channel:
            if name == event:
                return cast("dict[str, Any]", payload)
    raise AssertionError(f"the channel ended before {event}")


@asynccontextmanager
async def open_world(
    db: Postgres, limits: RoomLimits = ROOM_LIMITS, rules: SpamRules | None = None, *, bans: bool = False
) -> AsyncIterator[World]:
    """Run everything until the block ends."""
    tokens = Tokens()
    interceptors = [AuthInterceptor(cast("Identity", tokens))]
    pages = Limits(user_messages_per_min=0)
    hub = Hub(SocketLimits(operations_per_min=0, user_sockets=0))
    online = Online(Away())
    online.attach(hub)
    forgetful: list[Permissions] = []
    user_service = UserService(
        db, limits=pages, on_blocks_changed=lambda one, other: forgetful[0].forget(one, other)
    )
    async with open_rpc_pair([user_service.servicer], server_interceptors=interceptors) as user_rpc:
        users = UserServiceStub(user_rpc.channel)
        forgetful.append(Permissions(users, as_service))
        core = Conversations(db, hub=hub, permissions=forgetful[0], limiter=Counted(), limits=pages)
        chat, messaging = ChatService(core, online=online, limits=limits), MessagingService(core)
        announcer = RoomAnnouncer(core.announcer, hub)
        watch = SpamWatch(Sanctions(db, limits, pages), announcer, Away(), rules or SpamRules(), bans=bans)
        core.watch(watch.observe)
        async with (
            open_rpc_pair([chat.servicer], server_interceptors=interceptors) as chat_rpc,
            open_rpc_pair([messaging.servicer], server_interceptors=interceptors) as messaging_rpc,
            served(core.channels, hub=hub) as server,
            trio.open_nursery() as nursery,
        ):
            for start in (core.run, chat.run, messaging.run, user_service.run, watch.run):
                await nursery.start(start)
            yield World(
                db,
                ChatServiceStub(chat_rpc.channel),
                MessagingServiceStub(messaging_rpc.channel),
                users,
                chat,
                core,
                server,
                tokens,
            )
            nursery.cancel_scope.cancel(reason="the test is over")
